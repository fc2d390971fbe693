"""What is written: exact numbers in every stored type, statistics, non-finite values, names, read-only places, missing
packages.
"""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from itertools import pairwise

import h5py
import numpy as np
import pytest
import torch

from sae.errors import MissingError, UsageError, UserError
from tests.workbench.activations.small import CTX, N_SEQ, SPEC, TOKENS, content, make, make_spec, producer_of, truth
from workbench.activations import ActivationStore
from workbench.activations.format.errors import NonFiniteActivation, ReadOnlyStore
from workbench.activations.format.numbers import to_stored
from workbench.activations.write.fill import missing
from workbench.activations.write.writer import PartFile
from workbench.workspace import check_id


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_tokens_sequences(tmp_path, dtype):
    spec = make_spec(dtype=dtype)
    s = ActivationStore.open(make(tmp_path / "s", spec))
    kind = getattr(torch, dtype)
    for stream in spec.streams:
        expected = torch.from_numpy(truth(spec, stream.key)).to(kind).float()
        assert torch.equal(s.read(stream.hook, source=stream.source), expected)
        assert torch.equal(s.read(stream.at, slice(45, 60), stream.source), expected[45:60])
        pick = np.array([170, 3, 3, 48, 47, 0, 175])
        assert torch.equal(s.read(stream.hook, pick, stream.source), expected[pick])
        assert torch.equal(s.sequence(21, stream.hook, stream.source), expected[-8:])
    assert s.read("x", slice(5, 5), "a").shape == (0, 6)
    assert (
        len(s) == N_SEQ * (CTX - 1) == 176
        and s.width("x", ["a", "b"]) == 10
        and s.hooks == ["x", "y"]
        and s.sources == ["a", "b"]
    )
    ids, seq, pos = s.tokens(slice(6, 12))
    assert (
        seq.tolist() == [0, 0, 1, 1, 1, 1]
        and pos.tolist() == [7, 8, 1, 2, 3, 4]
        and ids.tolist() == TOKENS[seq, pos].tolist()
    )
    assert s.sequence_tokens(-1).tolist() == TOKENS[-1].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_statistics_match_the_rows(tmp_path, dtype):
    s = ActivationStore.open(make(tmp_path / "s", make_spec(dtype=dtype)))
    x = s.read("x", source="b").double()
    stats = s.statistics("x", "b")
    assert stats["n"] == len(x)
    np.testing.assert_allclose(stats["mean"], x.mean(0).numpy(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(
        [stats["mean_square"], stats["max_abs"]], [x.square().sum(1).mean(), x.abs().max()], rtol=1e-6
    )


def test_rounding_to_bfloat16_is_torchs():
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) * np.float32(10.0) ** np.random.default_rng(
        1
    ).integers(-38, 38, (64, 64))
    x[0, :4] = [0.0, -0.0, np.inf, 1.00390625]
    assert np.array_equal(
        to_stored(x, "bfloat16"), torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    )


def test_digests_do_not_depend_on_how_rows_arrive(tmp_path):
    """Appending in odd pieces gives the same digests as at once."""
    from workbench.activations.format.shard import shard_attributes, shard_datasets

    (tmp_path / "tmp").mkdir()
    tables = []
    for cuts in ([0, 48], [0, 1, 4, 9, 10, 11, 27, 48]):
        part = PartFile(tmp_path, tmp_path / "x.h5", shard_datasets(SPEC, 0), shard_attributes(SPEC, 0))
        rows = truth(SPEC, "h000")[:48]
        for a, b in pairwise(cuts):
            part.append("acts/h000", rows[a:b])
        tables.append(part._digests["acts/h000"].tolist())
        part.drop()
    assert tables[0] == tables[1] and len(set(tables[0])) == 10
    assert os.listdir(tmp_path / "tmp") == []


def test_any_hdf5_tool_reads_a_shard(pristine):
    with h5py.File(pristine / "shards" / "000003.h5") as f:
        assert np.array_equal(f["acts/h000"][:], truth(SPEC, "h000")[144:])
        assert f.attrs["store_id"] == SPEC.store_id and f.attrs["shard"] == 3
        assert bytes(f["store_json"][:]) == (pristine / "store.json").read_bytes()
        assert f["acts/h000"].chunks is None and f["acts/h000"].compression is None
        assert f["tok/seq"][0] == 18 and f["tok/pos"][0] == 1


@pytest.mark.faults
@pytest.mark.parametrize(
    "dtype, value, why",
    [
        ("float32", np.nan, "NaN"),
        ("float32", -np.inf, "infinite"),
        ("float16", 70_000.0, "infinite \\(as float16\\)"),
        ("bfloat16", 3.4e38, "infinite"),
    ],
)
def test_non_finite(tmp_path, dtype, value, why):
    """Fault 12: the place is named, the shard is not committed, others are; `skip-sequence` leaves the sequence out."""

    def poisoned(spec):
        def produce(lo, hi):
            for i, batch in zip(range(lo, hi, spec.batch_size), producer_of(spec)(lo, hi)):
                if i <= 13 < min(hi, i + spec.batch_size):
                    x = batch["h001"].copy()
                    x[(13 - i) * 8 + 5, 2] = value
                    batch = {**batch, "h001": x}
                yield batch

        return produce

    spec = make_spec(dtype=dtype)
    with pytest.raises(NonFiniteActivation, match=f"a y at sequence 13, position 6 is {why}"):
        make(tmp_path / "s", spec, producer=poisoned(spec))
    assert missing(tmp_path / "s", spec) == [2, 3] and os.listdir(tmp_path / "s" / "tmp") == []
    spec = make_spec(dtype=dtype, non_finite="skip-sequence")
    s = ActivationStore.open(make(tmp_path / "t", spec, producer=poisoned(spec)))
    assert s.skipped == (13,)
    gone = slice(13 * 8, 14 * 8)
    assert torch.isnan(s.read("x", gone, "a")).all() and not torch.isnan(s.read("x", slice(0, 13 * 8), "a")).any()
    rows = torch.cat(list(s.batches("y", 9, seed=0, source="a", split="all", epochs=1)))
    assert len(rows) == 176 - 8 and torch.isfinite(rows).all()
    keep = np.setdiff1d(np.arange(176), np.arange(gone.start, gone.stop))
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, s.read("y", keep, "a").tolist()))
    assert s.statistics("y", "a")["n"] == 168


@pytest.mark.faults
def test_read_only_places(store, tmp_path, monkeypatch):
    """Fault 18: reading works, writing says so before any model is loaded (root is not stopped by modes, so access is
    patched).
    """
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **k: False if mode & os.W_OK else real(path, mode, **k))
    assert len(ActivationStore.open(store).read("x", source="a")) == 176
    with pytest.raises(ReadOnlyStore, match="may not be written to"):
        make(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    from workbench.activations.harvesting.run import HarvestRecipe, harvest
    from workbench.workspace import Workspace

    (tmp_path / "ws").mkdir()
    with pytest.raises(ReadOnlyStore):
        harvest(HarvestRecipe(id="s", sources=[{"model": "no-such-model"}]), Workspace(tmp_path / "ws"))


@pytest.mark.faults
@pytest.mark.parametrize(
    "name", ["../x", "/abs", "..\\x", "a\0b", "a\nb", "x" * 300, "\u202egnp.exe", "a/b", "", ".", "..", "b\udcff"]
)
def test_names_stay_inside(tmp_path, name):
    """Fault 33: ids are refused; hook and source names are text only and never become a path."""
    with pytest.raises(UsageError, match="is not an id"):
        check_id(name)
    if "\udcff" in name:
        return
    first = SPEC.streams[0].model_copy(update={"hook": name, "at": name})
    spec = make_spec(streams=(first,), sources=(SPEC.sources[0],), n_seq=6, heldout_seqs=1)
    folder = make(tmp_path / "in" / "s", spec)
    assert ActivationStore.open(folder).read(name).shape == (48, 6)
    assert sorted(os.listdir(tmp_path)) == ["in"] and os.listdir(tmp_path / "in") == ["s"]


@pytest.mark.faults
def test_without_h5py(tmp_path, monkeypatch):
    """Fault 37: the message names the package; an old one is refused, too."""
    real = builtins.__import__

    def refuse(name, *a, **k):
        if name.split(".")[0] == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *a, **k)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingError, match=r"h5py.*pip install"):
        make(tmp_path / "s")
    monkeypatch.undo()
    monkeypatch.setattr(h5py, "__version__", "3.9.0")
    with pytest.raises(MissingError, match=r"3\.14 or newer; this is 3\.9\.0"):
        make(tmp_path / "t")


def test_the_writer_needs_no_torch(tmp_path):
    code = (
        "import sys; from tests.workbench.activations.small import make; from pathlib import Path;"
        f" make(Path({str(tmp_path / 's')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_producer_that_gives_the_wrong_rows(tmp_path):
    with pytest.raises(ValueError, match="expected"):
        make(
            tmp_path / "s",
            producer=lambda lo, hi: ({s.key: np.zeros((8, 2), np.float32) for s in SPEC.streams} for _ in range(1)),
        )
    with pytest.raises(ValueError, match="has 8 of 48 rows"):
        make(
            tmp_path / "t",
            producer=lambda lo, hi: (
                {s.key: np.zeros((8, s.width), np.float32) for s in SPEC.streams} for _ in range(1)
            ),
        )
    assert missing(tmp_path / "t", SPEC) == [0, 1, 2, 3]


def test_equal_plans_equal_bytes(tmp_path, pristine):
    make(tmp_path / "s", slot=1, slots=3)
    assert content(tmp_path / "s") == content(pristine)
    seen = []
    make(tmp_path / "t", keep_going=lambda: len(seen) < 2, on_shard=lambda done, total: seen.append(done))
    assert len(missing(tmp_path / "t", SPEC)) == 3
    with pytest.raises(UserError):
        ActivationStore.open(tmp_path / "t")
