"""Archives that somebody crafted: nothing is written anywhere, nothing large is believed, and the error says why."""

from __future__ import annotations

import io
import resource
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sae.errors import CorruptError, MissingError
from workbench.results.archives import MAX_ENTRIES, npz_names, read_npz

pytestmark = pytest.mark.faults


def array_bytes(value: np.ndarray) -> bytes:
    sink = io.BytesIO()
    np.save(sink, value)
    return sink.getvalue()


def crafted(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return path


def link(name: str, to: str) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info, to.encode()


def test_arrays_come_back_and_a_wrong_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "arrays.npz"
    want = {
        "profile": np.arange(12.0).reshape(3, 4),
        "map": np.zeros((0, 5), np.float32),
        "big": np.zeros(200_000, np.int8),
    }
    for save in (np.savez, np.savez_compressed):
        save(path, **want)
        assert sorted(npz_names(path)) == sorted(want)
        for name, value in want.items():
            found = read_npz(path, name)
            assert found.dtype == value.dtype and np.array_equal(found, value)
    with pytest.raises(MissingError, match="did you mean 'profile'"):
        read_npz(path, "profil")
    with pytest.raises(MissingError, match="does not exist"):
        npz_names(tmp_path / "no.npz")


ZEROS = array_bytes(np.zeros(4))
LIE = ZEROS.replace(b"(4,)", b"(4000000000000,)").replace(b" " * 12 + b"\n", b"\n") + b" " * 0
CRAFTED = {
    "traversal": ([("../../outside.npy", ZEROS)], "no array that this program writes"),
    "absolute": ([("/tmp/outside.npy", ZEROS)], "no array that this program writes"),
    "backslash": ([("..\\outside.npy", ZEROS)], "no array that this program writes"),
    "link, then through it": ([link("link", "/tmp"), ("link/outside.npy", ZEROS)], "no array that this program writes"),
    "bomb": ([("profile.npy", array_bytes(np.zeros(50_000_000, np.int8)))], "claims 50,000,128 bytes"),
    "nested archive": ([("0.zip", b"PK")], "no array that this program writes"),
    "many entries": ([(f"a{j}.npy", b"") for j in range(MAX_ENTRIES + 1)], "at most 4,096"),
    "objects": ([("profile.npy", array_bytes(np.array([{}], dtype=object)))], "claims object"),
    "header that lies": ([("profile.npy", LIE)], "cannot hold"),
    "not an array": ([("profile.npy", b"hello")], "not a whole archive"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_archive_is_refused_and_touches_nothing(name: str, tmp_path: Path) -> None:
    entries, words = CRAFTED[name]
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    path = crafted(folder / "arrays.npz", entries)  # type: ignore[arg-type]
    before = sorted(tmp_path.rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptError, match=words):
        read_npz(path, "profile")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/outside.npy").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 * 1024  # kB


def test_an_entry_twice_and_a_cut_archive(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = crafted(tmp_path / "twice.npz", [("profile.npy", ZEROS), ("profile.npy", ZEROS)])
    with pytest.raises(CorruptError, match="twice"):
        read_npz(twice, "profile")
    whole = crafted(
        tmp_path / "whole.npz", [("profile.npy", array_bytes(np.random.default_rng(0).random(500)))]
    ).read_bytes()
    for cut in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        with pytest.raises(CorruptError):
            read_npz(tmp_path / "cut.npz", "profile")
