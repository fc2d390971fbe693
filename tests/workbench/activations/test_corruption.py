"""Damage after the fact: no reader returns a row that differs from what was harvested, and harvest re-makes only what
is bad.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

import h5py
import numpy as np
import pytest

from sae.errors import CorruptError, NewerSchemaError, UntrustedFile, UserError
from tests.workbench.activations.small import SPEC, TOKENS, content, make, make_spec, truth
from workbench.activations import ActivationStore, check
from workbench.activations.format.errors import ShardCorrupt, StoreIncomplete, StoreMismatch
from workbench.activations.format.shard import open_shard

pytestmark = pytest.mark.faults


def overwrite(path: Path, offset: int, data: bytes) -> None:
    os.chmod(path, 0o644)
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(data)


def flip(path: Path, offset: int, mask: int = 0x10) -> None:
    overwrite(path, offset, bytes([path.read_bytes()[offset] ^ mask]))


def read_everything(folder: Path) -> None:
    """Read all there is; every row must be the true one."""
    store = ActivationStore.open(folder)
    for s in SPEC.streams:
        assert np.array_equal(store.read(s.hook, source=s.source).numpy(), truth(SPEC, s.key))
    ids, seq, pos = store.tokens()
    assert np.array_equal(ids, TOKENS[seq, pos])
    for s in SPEC.streams:
        store.statistics(s.hook, s.source)


def test_the_undamaged_store_reads(store):
    read_everything(store)
    assert check(store, deep=True).ok


@pytest.mark.parametrize("name", ["shards/000001.h5", "plan.h5"])
def test_truncation(store, pristine, name):
    """Fault 7: any length; refused at open or on first read, set aside by check, and harvest re-makes
    only that file.
    """
    size = (store / name).stat().st_size
    for length in sorted(
        {0, 1, 7, 8, 95, 96, 511, 512, 4095, 4096, 4097, size // 2, size - 33, size - 1, *range(0, size, size // 23)}
    ):
        os.chmod(store / name, 0o644)
        os.truncate(store / name, length)
        with pytest.raises((ShardCorrupt, StoreIncomplete)):
            read_everything(store)
        (store / name).unlink()
        shutil.copy(pristine / name, store / name)
    os.truncate(store / name, size // 2)
    others = {p.name: p.stat().st_mtime_ns for p in (store / "shards").iterdir() if p.name != Path(name).name}
    report = check(store)
    assert not report.ok and len(report.set_aside) == 1 and "harvest" in report.remedy
    assert not (store / "seal.json").exists()
    make(store)
    assert content(store) == content(pristine)
    assert {p.name: p.stat().st_mtime_ns for p in (store / "shards").iterdir() if p.name in others} == others


@pytest.mark.parametrize("stride", [97, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_byte_anywhere(store, pristine, stride):
    """Fault 8: every region of a shard; corrupt at open, on first read, or by a deep check. Never a wrong row."""
    path = store / "shards" / "000002.h5"
    good = path.read_bytes()
    kinds = set()
    os.chmod(path, 0o644)
    for offset in range(3, len(good), stride):
        bad = bytearray(good)
        bad[offset] ^= 1 << (offset % 8)
        path.write_bytes(bad)
        with pytest.raises(ShardCorrupt) as e:
            read_everything(store)
        kinds.add("block" if e.value.block is not None else "header")
        assert "000002.h5" in str(e.value)
    assert kinds == {"block", "header"}


def test_a_flip_is_named(store):
    """Fault 8: shard, stream and block are in the message, and in no batch."""
    shard = open_shard(store, SPEC, 1)
    offset = shard.layout.offsets["acts/h001"] + 12 * 3 * 4 + 2  # row 12 of 5-row blocks of 3 float32
    shard.close()
    flip(store / "shards" / "000001.h5", offset)
    assert check(store).ok  # a quick check does not read rows
    s = ActivationStore.open(store)
    with pytest.raises(ShardCorrupt, match=r"000001.h5 is corrupt, stream acts/h001, block 2"):
        list(s.batches("y", 16, seed=0, source="a", split="all", epochs=1))
    assert np.array_equal(s.read("x", source="a").numpy(), truth(SPEC, "h000"))
    report = check(store, deep=True)
    assert [f for f, _ in report.problems] == ["shards/000001.h5"]


def test_missing_renamed_swapped_and_foreign_shards(store, pristine, tmp_path):
    """Fault 9."""
    shards = store / "shards"
    (shards / "000003.h5").rename(shards / "000009.h5")
    with pytest.raises(StoreIncomplete, match=r"000003.h5 .* is missing"):
        ActivationStore.open(store)
    report = check(store, quarantine=False)
    assert report.missing == ["000003.h5"] and report.strays == ["000009.h5"] and not report.ok
    (shards / "000009.h5").rename(shards / "000003.h5")
    (shards / "000000.h5").rename(shards / "t")
    (shards / "000001.h5").rename(shards / "000000.h5")
    (shards / "t").rename(shards / "000001.h5")
    with pytest.raises(ShardCorrupt, match=r"not the file that seal\.json lists"):
        read_everything(store)
    report = check(store)
    assert {f for f, _ in report.problems} == {"shards/000000.h5", "shards/000001.h5"}
    make(store)
    other = make(tmp_path / "other", make_spec(sources=make_spec().sources[:2], recipe={"note": "anothr2"}))
    (shards / "000000.h5").unlink()
    shutil.copy(other / "shards" / "000000.h5", shards / "000000.h5")
    with pytest.raises(ShardCorrupt):
        read_everything(store)
    (store / "seal.json").unlink()
    report = check(store)  # without a seal the plan alone tells whose shard it is
    assert [f for f, _ in report.problems] == ["shards/000000.h5"]
    make(store)
    assert content(store) == content(pristine)


def test_somebody_opens_a_shard_for_writing(store, pristine):
    """Fault 20: the file is read-only; who may write all the same empties it, and that is seen."""
    path = store / "shards" / "000000.h5"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    os.chmod(path, 0o644)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(ShardCorrupt):
        ActivationStore.open(store)
    check(store)
    make(store)
    assert content(store) == content(pristine)


def test_a_shard_that_changes_under_an_open_store(store):
    """A proven shard that is replaced by another file is proven again."""
    s = ActivationStore.open(store)
    s.read("x", slice(0, 5), source="a")
    s.pool.close()
    path = store / "shards" / "000000.h5"
    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(ShardCorrupt):
        s.read("x", slice(0, 5), source="a")


@pytest.mark.parametrize("rounds", [40, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["store.json", "seal.json", "plan.h5", "shards/000001.h5"])
def test_fuzz(store, pristine, name, rounds):
    """Fault 31: random bytes in each of our files: a clear error, or exactly the right content."""
    chance = np.random.default_rng(11)
    path, good = store / name, (pristine / name).read_bytes()
    path.unlink()
    refused = 0
    for _ in range(rounds):
        bad = bytearray(good)
        for _ in range(chance.integers(1, 4)):
            bad[chance.integers(len(bad))] = chance.integers(256)
        if chance.random() < 0.1:
            bad = bad[: chance.integers(len(bad))]
        path.write_bytes(bad)
        try:
            read_everything(store)
        except UserError:
            refused += 1
    assert refused > rounds * 0.9


def test_links_inside_the_store(store, tmp_path):
    """Fault 34: a link is refused, whatever it points at."""
    for name in ("shards/000001.h5", "seal.json", "store.json", "plan.h5"):
        copy = tmp_path / Path(name).name
        shutil.move(store / name, copy)
        (store / name).symlink_to(copy)
        with pytest.raises((UntrustedFile, ShardCorrupt)):
            read_everything(store)
        (store / name).unlink()
        shutil.move(copy, store / name)
    shutil.move(store / "shards", tmp_path / "elsewhere")
    (store / "shards").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UntrustedFile, match="is a link"):
        ActivationStore.open(store)
    with pytest.raises(UntrustedFile):
        make(store)


@pytest.mark.parametrize(
    "harm, error, words",
    [
        (lambda v: v | {"schema_version": 99}, NewerSchemaError, "made by version 7.7"),
        (lambda v: v | {"n_seq": 23}, CorruptError, "store_id"),
        (lambda v: v | {"n_seq": "many"}, CorruptError, "n_seq"),
        (lambda v: v | {"surprise": 1}, CorruptError, "surprise"),
        (lambda v: [v], CorruptError, "does not describe"),
        (lambda v: {k: x for k, x in v.items() if k != "streams"}, CorruptError, "streams"),
    ],
)
def test_bad_store_json(store, harm, error, words):
    """Fault 36: values."""
    value = json.loads((store / "store.json").read_text())
    value["made_by"] = {"workbench": "7.7"}
    overwrite_text(store / "store.json", json.dumps(harm(value)))
    with pytest.raises(error, match=words):
        ActivationStore.open(store)


@pytest.mark.parametrize(
    "text", ['{"format": "actstore", "format": "actstore"}', '{"n": NaN}', "[" * 100_000, '{"a": 1', "", "\xff\xfe"]
)
@pytest.mark.parametrize("name", ["store.json", "seal.json"])
def test_bad_json(store, text, name):
    """Fault 36: syntax."""
    overwrite_text(store / name, text)
    with pytest.raises(CorruptError):
        ActivationStore.open(store)


def test_huge_json(store):
    """Fault 36: a gigabyte is refused by its size."""
    for name in ("store.json", "seal.json"):
        before = (store / name).read_bytes()
        os.truncate(store / name, 1 << 30)
        with pytest.raises(CorruptError, match="bytes"):
            ActivationStore.open(store)
        os.truncate(store / name, 0)
        overwrite(store / name, 0, before)
    ActivationStore.open(store)


def overwrite_text(path: Path, text: str) -> None:
    path.unlink()
    path.write_bytes(text.encode("latin-1"))


def test_a_damaged_seal_is_set_aside_and_made_again(store, pristine):
    overwrite_text(store / "seal.json", "{}")
    report = check(store)
    assert report.set_aside and not report.ok
    make(store)
    assert content(store) == content(pristine)


def test_a_damaged_plan_is_no_reason_to_touch_shards(store, pristine):
    flip(store / "plan.h5", (store / "plan.h5").stat().st_size - 5)
    with pytest.raises(ShardCorrupt):
        ActivationStore.open(store).tokens(slice(0, 3))
    make(store)
    assert content(store) == content(pristine)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            {"sources": (make_spec().sources[0].model_copy(update={"revision": "step1"}), make_spec().sources[1])},
            r"sources\[0\].revision: the store has null, the request \"step1\"",
        ),
        (
            {"sources": (make_spec().sources[0].model_copy(update={"weights": "33"}), make_spec().sources[1])},
            r"sources\[0\].weights: the store has \"11\", the request \"33\"",
        ),
        (
            {"streams": (make_spec().streams[0].model_copy(update={"hook": "z"}), *make_spec().streams[1:])},
            r"streams\[0\].hook: the store has \"x\", the request \"z\"",
        ),
        ({"plan": {"about": {"tokenizer": "other"}}}, "plan.about.tokenizer"),
        ({"dtype": "bfloat16"}, r"dtype: the store has \"float32\", the request \"bfloat16\""),
        ({"batch_size": 5}, "batch_size: the store has 4, the request 5"),
        ({"made_by": {"torch": "9"}}, "made_by.torch"),
    ],
)
def test_another_plan_for_the_same_store(store, pristine, change, words):
    """Faults 10 and 11: the field and both values are named, and the store is untouched."""
    with pytest.raises(StoreMismatch, match=words):
        make(store, make_spec(**change))
    assert content(store) == content(pristine)
