"""Hostile weights: every damaged safetensors header is refused, ours as strictly as foreign ones, and no pickle runs
code.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae
from sae import TopKSAE
from sae.errors import CorruptError, MissingError, UntrustedFile
from sae.formats.libraries import read
from sae.formats.tensors import read_safetensors, read_state_dict

Edit = Callable[[dict[str, Any]], None]


def rebuilt(data: bytes, edit: Edit | None = None, *, header: bytes | None = None, tail: bytes = b"") -> bytes:
    """A safetensors file with an edited header; the data after it stay as they are."""
    length = struct.unpack("<Q", data[:8])[0]
    if header is None:
        entries = json.loads(data[8 : 8 + length])
        if edit is not None:
            edit(entries)
        header = json.dumps(entries).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :] + tail


def change(name: str, key: str, value: Any) -> Edit:
    """An edit of one entry of the header."""
    return lambda entries: entries[name].update({key: value})


def duplicate(data: bytes) -> bytes:
    """b_dec appears twice: the second would win silently."""
    length = struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8 : 8 + length])
    text = json.dumps(entries)
    return rebuilt(data, header=(text[:-1] + f', "b_dec": {json.dumps(entries["b_enc"])}}}').encode())


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda d: d[:-3],
    "empty": lambda d: b"",
    "trailing bytes": lambda d: rebuilt(d, tail=b"more"),
    "hole": lambda d: rebuilt(
        d[:-4] + b"\0" * 8,
        lambda h: next(iter(sorted(h.values(), key=lambda e: -e["data_offsets"][1])))["data_offsets"].__setitem__(
            slice(None), [len(d), len(d) + 4]
        ),
    ),
    "overlap": lambda d: rebuilt(d, change("b_dec", "data_offsets", [0, 24])),
    "shape overflow": lambda d: rebuilt(d, change("b_dec", "shape", [2**62, 2**62])),
    "shape of another size": lambda d: rebuilt(d, change("b_dec", "shape", [7])),
    "negative shape": lambda d: rebuilt(d, change("b_dec", "shape", [-6])),
    "unknown type": lambda d: rebuilt(d, change("b_dec", "dtype", "F13")),
    "huge header": lambda d: struct.pack("<Q", 1 << 60) + d[8:],
    "header over 100 MB": lambda d: rebuilt(d, header=b"{}" + b" " * (101 * 2**20)),
    "not JSON": lambda d: rebuilt(d, header=b"not json"),
    "a pickle": lambda d: b"\x80\x04}.",
    "duplicate key": duplicate,
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_header_is_refused_in_our_folders_as_in_foreign_ones(tmp_path: Path, damage: str) -> None:
    TopKSAE(6, 12, 3).save(tmp_path / "a")
    path = tmp_path / "a" / "sae_weights.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(CorruptError, match=r"sae_weights\.safetensors is not a whole safetensors file.*make it again"):
        sae.load(tmp_path / "a")
    with pytest.raises(
        UntrustedFile, match=r"sae_weights\.safetensors is not a whole safetensors file.*Download it again"
    ):
        read(tmp_path / "a", "saelens")


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["symlink", "fifo", "missing"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w.safetensors"
    if kind == "symlink":
        save_file({"a": torch.zeros(4)}, tmp_path / "real")
        path.symlink_to(tmp_path / "real")
    elif kind == "fifo":
        os.mkfifo(path)
    for own, refusal in ((False, UntrustedFile), (True, CorruptError)):
        with pytest.raises(MissingError if kind == "missing" else refusal, match=r"w\.safetensors"):
            read_safetensors(path, own=own)


def test_an_honest_file_reads_the_same_either_way(tmp_path: Path) -> None:
    save_file({"a": torch.arange(4.0), "b": torch.ones(2, 3)}, tmp_path / "w")
    want = load_file(tmp_path / "w")
    for own in (False, True):
        got = read_safetensors(tmp_path / "w", own=own)
        assert got.keys() == want.keys() and all(torch.equal(got[n], t) for n, t in want.items())


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, target: str):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.target, "w"))


@pytest.mark.faults
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "pwned"
    torch.save({"encoder.weight": torch.zeros(2, 2), "x": Bomb(str(target))}, tmp_path / "archive.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb(str(target))))
    (tmp_path / "text.pt").write_text("hello")
    for name in ("archive.pt", "plain.pt", "text.pt"):
        with pytest.raises(UntrustedFile, match=name):
            read_state_dict(tmp_path / name)
    assert not target.exists()


@pytest.mark.faults
def test_a_pickle_over_its_memory_limit_is_refused(tmp_path: Path) -> None:
    torch.save({"big": torch.zeros(40_000_000)}, tmp_path / "big.pt")
    with pytest.raises(UntrustedFile, match=r"big\.pt"):
        read_state_dict(tmp_path / "big.pt", max_bytes=64 * 2**20)
