"""The files of a store: HDF5 containers that are sealed, laid out by HDF5 and written without it.

A container has *large* datasets, hashed in blocks of rows, and *small* ones. ``/seal`` holds the SHA-256 of every byte
outside the large datasets and itself; the block digests are among those bytes, so one short read proves the container
and every later block read proves itself. The HDF5 library lays the container out in memory; the bytes then go to disk
by plain system calls, so a full disk or a kill can never leave the library in the middle of something.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import MissingError
from workbench.activations import disk
from workbench.activations.errors import ShardCorrupt

ALIGN = 4096
SEAL = "seal"


def h5py() -> Any:
    """The h5py module.

    Raises:
        MissingError: not installed, or too old.
    """
    try:
        import h5py as module
    except ImportError as e:
        raise MissingError("activation stores need the package h5py, which is not installed: pip install 'h5py>=3.14'") from e
    if tuple(int(p) for p in module.__version__.split(".")[:2]) < (3, 14):
        raise MissingError(f"activation stores need h5py 3.14 or newer; this is {module.__version__}: pip install -U 'h5py>=3.14'")
    return module


@dataclass(frozen=True)
class Dataset:
    """One dataset of a container. ``block_rows`` > 0 marks a large one, whose digests lie in ``xxh3/<last part of name>``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    block_rows: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def digests(self) -> str:
        """Name of the dataset of block digests."""
        return f"xxh3/{self.name.rsplit('/', 1)[-1]}"

    @property
    def n_blocks(self) -> int:
        """Blocks of a large dataset."""
        return -(-self.shape[0] // self.block_rows) if self.block_rows else 0


@dataclass(frozen=True)
class Layout:
    """Where everything of a container lies: offsets in bytes by dataset name."""

    datasets: dict[str, Dataset]
    offsets: dict[str, int]
    size: int

    @property
    def large(self) -> list[Dataset]:
        """The datasets that are read block by block."""
        return [d for d in self.datasets.values() if d.block_rows]

    def gaps(self) -> Iterator[tuple[int, int]]:
        """Byte ranges outside the large datasets, in order: what the seal covers."""
        at = 0
        for d in sorted(self.large, key=lambda d: self.offsets[d.name]):
            if self.offsets[d.name] > at:
                yield at, self.offsets[d.name]
            at = self.offsets[d.name] + d.nbytes
        if at < self.size:
            yield at, self.size


def complete(datasets: list[Dataset]) -> list[Dataset]:
    """The datasets with the digest tables of the large ones and the seal added."""
    tables = [Dataset(d.digests, "<u8", (d.n_blocks,)) for d in datasets if d.block_rows]
    return [*datasets, *tables, Dataset(SEAL, "|u1", (32,))]


class _Sparse(io.RawIOBase):
    """A file in memory that keeps only the pages written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.at = self.size = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = (0, self.at, self.size)[whence] + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def truncate(self, size: int | None = None) -> int:
        self.size = self.at if size is None else size
        return self.size

    def _span(self, n: int) -> Iterator[tuple[int, int, int, int]]:
        done = 0
        while done < n:
            page, start = divmod(self.at + done, ALIGN)
            part = min(n - done, ALIGN - start)
            yield page, start, part, done
            done += part

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for page, start, part, done in self._span(len(view)):
            self.pages.setdefault(page, bytearray(ALIGN))[start : start + part] = view[done : done + part]
        self.at += len(view)
        self.size = max(self.size, self.at)
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        for page, start, part, done in self._span(len(view)):
            view[done : done + part] = self.pages.get(page, bytes(ALIGN))[start : start + part]
        self.at += len(view)
        return len(view)


def lay_out(datasets: list[Dataset], attributes: dict[str, Any]) -> tuple[Layout, dict[int, bytes]]:
    """Let HDF5 lay a container out. Returns the layout and the pages of its metadata: offset -> bytes.

    The same arguments give the same bytes: no time stamps, contiguous storage, no filters, no fill values.
    """
    h5 = h5py()
    image = _Sparse()
    with h5.File(image, "w", libver=("v108", "v108"), alignment_threshold=ALIGN, alignment_interval=ALIGN) as f:
        plist = h5.h5p.create(h5.h5p.DATASET_CREATE)
        plist.set_layout(h5.h5d.CONTIGUOUS)
        plist.set_alloc_time(h5.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5.h5d.FILL_TIME_NEVER)
        plist.set_obj_track_times(False)
        offsets = {}
        for d in datasets:
            parent, _, leaf = d.name.rpartition("/")
            group = f.require_group(parent) if parent else f
            made = h5.h5d.create(group.id, leaf.encode(), h5.h5t.py_create(np.dtype(d.dtype)), h5.h5s.create_simple(d.shape), dcpl=plist)
            offsets[d.name] = made.get_offset()
        for key, value in attributes.items():
            f.attrs[key] = value
    layout = Layout({d.name: d for d in datasets}, offsets, image.size)
    return layout, {page * ALIGN: bytes(data[: max(0, image.size - page * ALIGN)]) for page, data in sorted(image.pages.items())}


def seal_of(fd: int, layout: Layout) -> bytes:
    """SHA-256 of every byte of an open container outside the large datasets and the seal."""
    digest = hashlib.sha256()
    skip = layout.offsets[SEAL]
    for lo, hi in layout.gaps():
        data = bytearray(hi - lo)
        if disk.read_all(fd, memoryview(data), lo) != hi - lo:
            raise EOFError
        if lo <= skip < hi:
            data[skip - lo : skip - lo + 32] = bytes(32)
        digest.update(data)
    return digest.digest()


@dataclass
class Container:
    """An open, proven container. ``fd`` stays open until :meth:`close`; reads are positional, so threads and forks share it."""

    path: Path
    fd: int
    layout: Layout
    attributes: dict[str, Any]
    seal: str

    def small(self, name: str) -> np.ndarray:
        """A small dataset, read in full (already proven by the seal)."""
        d = self.layout.datasets[name]
        out = np.empty(d.shape, d.dtype)
        disk.read_all(self.fd, disk.bytes_of(out), self.layout.offsets[name])
        return out

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Close the file. (The default argument keeps ``os.close`` alive while the interpreter shuts down.)"""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            _close(fd)

    __del__ = close


def open_container(path: Path, expected: list[Dataset], attributes: dict[str, Any], *, shard: int | None = None) -> Container:
    """Open one of our files and prove everything but its large data.

    ``expected`` and ``attributes`` are what the file must hold, in full; anything else is corruption.

    Raises:
        ShardCorrupt: size, structure, attributes or seal are not what they must be. UntrustedFile: a link or a device.
    """

    def bad(problem: str) -> ShardCorrupt:
        return ShardCorrupt(path.name, problem, shard=shard)

    fd = disk.open_regular(path)
    try:
        layout, found = _structure(fd, expected, bad)
        for key in attributes.keys() | found.keys():
            if found.get(key) != attributes.get(key):
                raise bad(f"attribute {key} is {found.get(key)!r}, not {attributes.get(key)!r}")
        container = Container(path, fd, layout, found, "")
        named = container.small(SEAL).tobytes()
        try:
            actual = seal_of(fd, layout)
        except EOFError:
            raise bad("it ends early") from None
        if named != actual:
            raise bad("its header, tokens or digests changed after it was written")
        container.seal = actual.hex()
        return container
    except BaseException:
        os.close(fd)
        raise


def _structure(fd: int, expected: list[Dataset], bad: Any) -> tuple[Layout, dict[str, Any]]:
    """Offsets of the expected datasets and the root attributes, by HDF5; refuses whatever could lead elsewhere."""
    h5 = h5py()
    try:
        with open(os.dup(fd), "rb") as raw, h5.File(raw, "r") as f:
            names: list[str] = []
            _walk(h5, f, "", names, bad)
            if sorted(names) != sorted(d.name for d in expected):
                raise bad(f"it holds {', '.join(sorted(names)[:6])} … instead of what the store's plan says")
            offsets = {}
            for d in expected:
                have = f[d.name]
                plist = have.id.get_create_plist()
                if (
                    plist.get_layout() != h5.h5d.CONTIGUOUS
                    or plist.get_external_count()
                    or plist.get_nfilters()
                    or have.shape != d.shape
                    or have.dtype != np.dtype(d.dtype)
                ):
                    raise bad(f"dataset {d.name} is {have.dtype} {have.shape}, not plain {d.dtype} {d.shape}")
                offset = have.id.get_offset()
                if offset is None:
                    raise bad(f"dataset {d.name} has no data")
                offsets[d.name] = int(offset)
            attributes = {k: (v.item() if isinstance(v, np.generic) else v) for k, v in f.attrs.items()}
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, OverflowError, UnicodeError) as e:
        raise bad(f"it is not readable as HDF5 ({str(e)[:120]})") from e
    size = os.fstat(fd).st_size
    spans = sorted((offsets[d.name], d.nbytes, d.name) for d in expected)
    at = 0
    for offset, nbytes, name in spans:
        if offset < at or offset + nbytes > size:
            raise bad(f"dataset {name} lies outside the file's {size:,} bytes")
        at = offset + nbytes
    return Layout({d.name: d for d in expected}, offsets, size), attributes


def _walk(h5: Any, group: Any, prefix: str, names: list[str], bad: Any) -> None:
    """Names of all datasets at most two groups deep, through hard links only."""
    if len(group) > 100_000 or prefix.count("/") > 2:
        raise bad("it has more objects than a store's file")
    for leaf in group:
        link = group.get(leaf, getlink=True)
        if not isinstance(link, h5.HardLink):
            raise bad(f"{prefix}{leaf} is a link elsewhere")
        kind = group.get(leaf, getclass=True)
        if kind is h5.Group:
            _walk(h5, group[leaf], f"{prefix}{leaf}/", names, bad)
        elif kind is h5.Dataset:
            names.append(prefix + leaf)
        else:
            raise bad(f"{prefix}{leaf} is neither a group nor a dataset")
