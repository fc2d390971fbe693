"""Atomic writes and strict JSON."""

from __future__ import annotations

import errno
import os

import pytest

from sae.errors import CorruptError, MissingError, OutOfSpace
from sae.files import new_folder, parse_json, read_json, sha256_json, write_bytes, write_json


def test_json_round_trip_is_strict(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None], "t": "⏎"})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None], "t": "⏎"}
    for bad in ('{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, "{"):
        with pytest.raises(CorruptError, match=r"x\.json"):
            parse_json(bad, where="x.json")
    with pytest.raises(MissingError):
        read_json(tmp_path / "none.json")


def test_equal_values_have_equal_digests():
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1}) != sha256_json({"a": 1, "b": 3})


@pytest.mark.faults
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call):
    target = tmp_path / "f"
    write_bytes(target, b"old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutOfSpace):
        write_bytes(target, b"new")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    final = tmp_path / "result"
    with pytest.raises(RuntimeError), new_folder(final) as tmp:
        (tmp / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with new_folder(final) as tmp:
        (tmp / "one").write_text("1")
        assert not final.exists()
    assert (final / "one").read_text() == "1"
    with pytest.raises(FileExistsError), new_folder(final):
        pass
    with new_folder(final, replace=True) as tmp:
        (tmp / "two").write_text("2")
    assert sorted(os.listdir(final)) == ["two"] and os.listdir(tmp_path) == ["result"]
