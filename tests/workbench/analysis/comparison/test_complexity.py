"""Proxies on planted latents: what a token decides is simple, what does not depend on tokens is not, and halves keep
rare latents honest.
"""

import numpy as np
import pytest

from sae.errors import UsageError
from workbench.analysis.comparison.complexity import complexity_table, monosemanticity
from workbench.analysis.latents.encoded import from_rows

VOCAB, N_SEQ, CTX = 40, 200, 60


@pytest.fixture(scope="module")
def codes():
    """Latents: 0 one token, 1 five tokens, 2 previous token, 3 bigram, 4 random, 5 one token twice in all, 6 silent."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, VOCAB, (N_SEQ, CTX))
    before = np.concatenate([np.zeros((N_SEQ, 1), int), ids[:, :-1]], axis=1)
    dense = np.zeros((N_SEQ, CTX, 7), np.float32)
    noise = lambda: rng.uniform(0.9, 1.1, ids.shape)  # noqa: E731
    dense[..., 0] = (ids == 7) * noise()
    dense[..., 1] = np.isin(ids, [1, 2, 3, 4, 5]) * noise()
    dense[..., 2] = (before == 9) * noise()
    dense[..., 3] = ((before < 20) & (ids >= 20) & ((before + ids) % 2 == 0)) * noise()
    dense[..., 4] = (rng.random(ids.shape) < 0.05) * noise()
    dense[3, 5, 5] = dense[8, 9, 5] = 1
    flat = dense.reshape(-1, 7)
    seq, pos = np.repeat(np.arange(N_SEQ), CTX), np.tile(np.arange(CTX), N_SEQ)
    return from_rows(7, ids.reshape(-1), seq, pos, flat, np.tile(np.arange(7), (len(flat), 1)))


def test_complexity_follows_what_tokens_explain(codes):
    t = complexity_table(codes, VOCAB).set_index("latent")
    assert t.loc[0, "complexity"] < 0.1 and t.loc[1, "complexity"] < 0.1
    assert t.loc[2, "v_previous"] > 0.9 and t.loc[2, "v_token"] < 0.05 and t.loc[2, "complexity"] < 0.1
    assert t.loc[3, "v_bigram"] > 0.8 > t.loc[3, "v_token"] and t.loc[3, "v_previous"] < 0.8
    assert t.loc[4, "complexity"] > 0.95
    assert t.loc[[5, 6], "complexity"].isna().all() and t.loc[[5, 6], "monosemanticity"].isna().all()
    np.testing.assert_array_equal(t["n_fired"], codes.n_fired)


def test_monosemanticity_orders_one_token_five_tokens_any_token(codes):
    m = monosemanticity(codes, VOCAB)
    assert m[0] > 0.95
    assert 0.3 < m[1] < m[0] - 0.2
    assert m[4] < 0.1 and m[2] < 0.1
    assert np.isnan(m[6])


def test_one_sequence_cannot_be_split(codes):
    with pytest.raises(UsageError, match="two sequences"):
        complexity_table(codes.keep(codes.seq == 0), VOCAB)
