"""Latent records: built arrays against brute force, the folder round trip, and what a damaged folder says."""

import shutil
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from sae.errors import CorruptError, MissingError, UsageError
from tests.workbench.fakes import FakeDictionary, FakeStore
from workbench.analysis.latents.encoded import choose_rows, codes_and_scores, encode_store
from workbench.analysis.latents.histogram import log_histogram, moments
from workbench.analysis.latents.records_build import build_records
from workbench.provenance import write_manifest
from workbench.results.records import GROUPS, LatentRecords

VOCAB = [f"tok{i}" for i in range(50)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    store, dictionary = FakeStore.random(), FakeDictionary()
    dictionary.W_dec[7] = -10 * torch.ones(16)
    dictionary.W_enc = dictionary.W_dec.T.contiguous()
    dictionary.b_enc[7] = -1e4  # latent 7 never fires
    built = build_records(dictionary, store, "h", VOCAB, k=6, window=16)
    folder = tmp_path_factory.mktemp("latents") / "d"
    folder.mkdir()
    built.write(folder)
    write_manifest(folder, "latents", "d", numbers=built.numbers, metadata=built.metadata)
    return store, dictionary, built, LatentRecords.open(folder, verify=True)


def test_contexts_carry_the_dense_activations_of_their_own_tokens(made):
    store, dictionary, _, records = made
    dense = dictionary.encode(store.x).reshape(40, 32, -1).numpy()
    checked = 0
    for latent in range(0, len(records), 5):
        for group in GROUPS:
            for c in records.contexts(latent, group):
                at = np.arange(c.start, c.start + len(c.ids))
                assert c.start >= 1, "position 0 (BOS) is not stored"
                np.testing.assert_array_equal(c.ids, store.ids[c.seq, at])
                np.testing.assert_allclose(c.acts, dense[c.seq, at - 1, latent], rtol=1e-6)
                assert c.tokens[c.peak] == VOCAB[store.ids[c.seq, c.start + c.peak]]
                assert c.value == c.acts[c.peak]
                checked += 1
    assert checked > 200


def test_top_is_the_strongest_token_of_the_strongest_sequences(made):
    store, dictionary, _, records = made
    dense = dictionary.encode(store.x).reshape(40, 32, -1).numpy()
    for latent in (0, 3, 20):
        best = dense[:, :, latent].max(1)
        want = np.sort(best)[::-1][:6]
        np.testing.assert_allclose([c.value for c in records.contexts(latent, "top")], want, rtol=1e-6)
        assert len({c.seq for c in records.contexts(latent, "top")}) == 6
        assert records.available(latent, "top") == (best > 0).sum()


def test_quantile_groups_are_equal_in_mass_and_ordered(made):
    *_, records = made
    for latent in (0, 3, 20):
        counts = [records.available(latent, f"q{q}") for q in (1, 2, 3, 4)]
        assert sum(counts) == records.row(latent)["n_fired"] == records.available(latent, "random")
        assert max(counts) - min(counts) <= 1
        groups = [[c.value for c in records.contexts(latent, f"q{q}")] for q in (1, 2, 3, 4)]
        for lower, upper in pairwise(groups):
            assert max(lower) <= min(upper)
        assert all(v > 0 for g in groups for v in g)


def test_near_misses_are_the_highest_preactivations_of_silent_tokens(made):
    store, dictionary, _, records = made
    pre = dictionary.pre_activations(store.x)
    active = dictionary.encode(store.x) > 0
    for latent in (0, 3, 20):
        score = pre[:, latent].masked_fill(active[:, latent], -torch.inf).reshape(40, 32).numpy()
        want = np.sort(score.max(1))[::-1][:6]
        found = records.contexts(latent, "near_miss")
        got = [score[c.seq, c.start + c.peak - 1] for c in found]
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert [c.value for c in found] == [0.0] * 6
        assert records.available(latent, "near_miss") == 1280 - records.row(latent)["n_fired"]


def test_near_misses_do_not_depend_on_the_block_size():
    from workbench.analysis.latents.contexts import NearMisses

    dictionary, store = FakeDictionary(), FakeStore.random()
    kept = []
    for block in (1280, 97):
        near = NearMisses(48, 5)
        encode_store(
            dictionary,
            store,
            "h",
            block=block,
            each_block=near.add,
        )
        kept.append(near.entries())
    np.testing.assert_array_equal(kept[0][0], kept[1][0])
    np.testing.assert_array_equal(kept[0][1], kept[1][1])


def test_one_product_gives_the_codes_of_encode_sparse():
    from sae import TopKSAE

    sae = TopKSAE(16, 64, 5)
    g = torch.Generator().manual_seed(0)
    for p in sae.parameters():
        p.data.normal_(generator=g)
    x = torch.randn(200, 16, generator=g)
    with torch.no_grad():
        values, indices, pre = codes_and_scores(sae, x)
        dense = torch.zeros(200, 64).scatter_(1, indices, values)
        torch.testing.assert_close(dense, sae.encode(x))
        torch.testing.assert_close(pre, (x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert (dense > 0).any()


def test_numbers_of_the_table_match_dense_statistics(made):
    store, dictionary, _, records = made
    f = dictionary.encode(store.x).double().numpy()
    for latent in (0, 20):
        positive = f[:, latent][f[:, latent] > 0]
        row = records.row(latent)
        z = (positive - positive.mean()) / positive.std()
        assert row["n_fired"] == len(positive) and row["density"] == len(positive) / 1280 and row["n_tokens"] == 1280
        for name, value in {
            "max": positive.max(),
            "mean": positive.mean(),
            "std": positive.std(),
            "skew": (z**3).mean(),
            "kurtosis": (z**4).mean(),
        }.items():
            assert row[name] == pytest.approx(value, rel=1e-5), name
        assert row["peak_token"] == store.ids.reshape(-1, 33)[:, 1:].reshape(-1)[f[:, latent].argmax()]
        assert row["peak_text"] == VOCAB[row["peak_token"]]
        h = records.histogram(latent)
        assert h.counts.sum() == h.n == len(positive)
        np.testing.assert_array_equal(h.counts[1:], np.histogram(positive, h.edges.astype(float))[0][1:])


def test_a_latent_that_never_fires_has_no_statistics_rather_than_zeros(made):
    *_, records = made
    row = records.row(7)
    assert row["n_fired"] == 0 and row["density"] == 0
    assert not {"max", "mean", "std", "skew", "kurtosis", "peak_text"} & row.keys()
    assert records.contexts(7, "top") == [] and records.contexts(7, "q2") == []
    assert records.logits(7) is None


def test_neighbours_are_sorted_cosines_without_self(made):
    _, dictionary, _, records = made
    unit = dictionary.W_dec / dictionary.W_dec.norm(dim=1, keepdim=True)
    cos = (unit @ unit.T).fill_diagonal_(-2)
    ids, values = zip(*records.neighbours(5), strict=True)
    np.testing.assert_allclose(values, cos[5].sort(descending=True).values[:20], atol=1e-6)
    assert 5 not in ids and [cos[5, j].item() for j in ids] == pytest.approx(list(values))


def test_all_dead_dictionary_can_be_written_and_opened(tmp_path):
    dictionary = FakeDictionary()
    dictionary.b_enc -= 1e4
    built = build_records(dictionary, FakeStore.random(), "h", VOCAB, k=3)
    built.write(tmp_path)
    write_manifest(tmp_path, "latents", "dead", metadata=built.metadata)
    records = LatentRecords.open(tmp_path)
    assert records.row(3)["n_fired"] == 0 and records.contexts(3, "random") == []
    assert len(records.contexts(3, "near_miss")) == 3


def test_row_choice_spreads_over_the_store_without_overlap():
    rows = choose_rows(1_000_000, 100_000)
    assert sum(r.stop - r.start for r in rows) == pytest.approx(100_000, abs=10)
    assert rows[0].start == 0 and rows[-1].stop == pytest.approx(1_000_000, abs=2)
    assert all(a.stop <= b.start for a, b in pairwise(rows))
    assert choose_rows(10, None) == choose_rows(10, 99) == [slice(0, 10)]
    whole = choose_rows(1_000_000, 100_000, unit=125)
    assert (
        all(r.start % 125 == 0 and r.stop % 125 == 0 for r in whole) and sum(r.stop - r.start for r in whole) > 98_000
    )
    with pytest.raises(UsageError, match="-3"):
        choose_rows(10, -3)


def test_moments_and_histogram_of_empty_and_constant_latents():
    dictionary, store = FakeDictionary(), FakeStore.random(n_seq=2)
    codes = encode_store(dictionary, store, "h")
    constant = codes.__class__(
        codes.n_latents, codes.ids, codes.seq, codes.pos, codes.indptr, codes.row, np.ones_like(codes.value)
    )
    m = moments(constant)
    fired = m.n >= 4
    assert np.isnan(m.skew[fired]).all() and (m.std[fired] == 0).all() and (m.mean[fired] == 1).all()
    counts, edges = log_histogram(constant)
    assert (np.diff(edges) > 0).all() and counts.sum() == len(codes.value)


def test_damage_is_named(made, tmp_path):
    records = made[-1]
    folder = tmp_path / "d"
    shutil.copytree(records.folder, folder)
    np.save(folder / "hist.npy", np.zeros((3, 64), np.uint32))
    with pytest.raises(CorruptError, match=r"hist\.npy is uint32\[3, 64\]"):
        LatentRecords.open(folder)
    (folder / "hist.npy").write_bytes(b"nonsense")
    with pytest.raises(CorruptError, match=r"hist\.npy is not a numpy array"):
        LatentRecords.open(folder)
    (folder / "hist.npy").unlink()
    with pytest.raises(MissingError, match="workbench features"):
        LatentRecords.open(folder)
    with pytest.raises(MissingError, match="no latent records"):
        LatentRecords.open(tmp_path / "nothing")
    with pytest.raises(UsageError, match="did you mean 'near_miss'"):
        records.contexts(0, "nearmiss")
    with pytest.raises(UsageError, match="latent 4800 is not in d"):
        records.row(4800)


def test_reading_records_needs_no_torch():
    code = "import sys, workbench.results.records; assert not {'torch', 'h5py'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
