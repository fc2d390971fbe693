"""Probing and absorption on dictionaries whose latents are planted."""

import numpy as np
import pytest
import torch

from tests.workbench.fakes import FakeDictionary
from workbench.analysis.evaluation.probing import first_letters, probe_rows

VOCAB = [" apple", " anchor", " bear", " blue", "(", ")", "\n", "ing", "7", " cat"]
N_SEQ, CTX, D = 80, 60, 24


@pytest.fixture(scope="module")
def planted():
    """Activation = one orthogonal direction per token + noise; latents 0–9 are the tokens, 10 is "starts with a"."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 10, (N_SEQ * CTX,), generator=g).numpy()
    basis = torch.linalg.qr(torch.randn(D, D, generator=g))[0]
    starts_a = torch.from_numpy(np.isin(ids, [0, 1]).astype(np.float32))
    x = 3 * basis[ids] + 2 * starts_a[:, None] * basis[10] + 0.05 * torch.randn(len(ids), D, generator=g)
    seq, pos = np.repeat(np.arange(N_SEQ), CTX), np.tile(np.arange(1, CTX + 1), N_SEQ)
    return x, ids, seq, pos, basis


def dictionary(rows, k=2):
    d = FakeDictionary(D, len(rows), k, W_dec=rows.contiguous())
    d.b_enc -= 0.5
    return d


def score(result, label, probe, k):
    rows = result.table.query("label == @label and probe == @probe and k == @k")
    assert len(rows) == 1
    return rows["balanced_accuracy"].iloc[0]


def test_one_latent_suffices_where_one_was_planted(planted):
    x, ids, seq, pos, basis = planted
    result = probe_rows(dictionary(basis[:11]), x, ids, seq, pos, VOCAB)
    assert score(result, "letter_a", "latents", 1) > 0.98 and score(result, "letter_a", "dense", 0) > 0.98
    assert score(result, "digit", "latents", 1) > 0.98
    assert 0.4 < score(result, "repeat_token", "latents", 10) < 0.8, (
        "what the activation does not hold, no latent tells"
    )
    assert result.absorption["n_absorbed"].sum() == 0, "the letter's own latent fires on every one of its tokens"
    assert result.summary()["latents_k1"]["n_labels"] == result.table["label"].nunique()


def test_a_token_latent_that_swallows_its_letter_is_absorption(planted):
    """Latent 0 is "apple including its a", and apple is rare among the a-words.

    The letter's latent stays silent on it.
    """
    x, ids, seq, pos, basis = planted
    keep = (ids != 0) | (np.random.default_rng(0).random(len(ids)) < 0.04)
    x, ids, seq, pos = x[torch.from_numpy(keep)], ids[keep], seq[keep], pos[keep]
    apple = torch.nn.functional.normalize(3 * basis[0] + 2 * basis[10], dim=0)

    class Absorbing(FakeDictionary):
        def encode(self, x):
            f = super().encode(x)
            swallowed = (f[..., 0] > 2.5)[..., None] & (torch.arange(f.shape[-1]) == 10)
            return f.masked_fill(swallowed, 0)

    d = Absorbing(D, 11, 2, W_dec=torch.cat([apple[None], basis[1:11]]).contiguous())
    d.b_enc -= 0.5
    clean = probe_rows(dictionary(basis[:11]), x, ids, seq, pos, VOCAB).absorption.set_index("letter")
    row = probe_rows(d, x, ids, seq, pos, VOCAB).absorption.set_index("letter").loc["a"]
    test_apples = int(((ids == 0) & (seq % 2 == 1)).sum())
    assert clean.loc["a", "n_absorbed"] == 0
    assert 0 < row["n_absorbed"] <= test_apples and row["n_absorbed"] >= 0.7 * test_apples
    assert row["n_tokens"] > 200


def test_letters_are_those_of_word_starts():
    got = first_letters(np.arange(10), VOCAB)
    assert np.flatnonzero(got["letter_a"]).tolist() == [0, 1] and np.flatnonzero(got["letter_b"]).tolist() == [2, 3]
    assert not got["letter_i"].any()
