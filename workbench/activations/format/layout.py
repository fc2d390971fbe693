"""The files of a store: HDF5 containers that are sealed, laid out by HDF5 and written without it.

A container has *large* datasets, hashed in blocks of rows, and *small* ones. ``/seal`` holds the SHA-256 of every byte
outside the large datasets and itself; the block digests are among those bytes, so one short read proves the container
and every later block read proves itself. The HDF5 library lays the container out in memory; the bytes then go to disk
by plain system calls, so a full disk or a kill can never leave the library in the middle of something. Nor does the
library parse our files again: where everything lies is known from the store's seal, or laid out anew.
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

from sae import system
from sae.errors import MissingError
from workbench.activations.disk import calls as disk
from workbench.activations.format.errors import ShardCorrupt

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
        raise MissingError(
            "activation stores need the package h5py, which is not installed: pip install 'h5py>=3.14'"
        ) from e
    if tuple(int(p) for p in module.__version__.split(".")[:2]) < (3, 14):
        raise MissingError(
            f"activation stores need h5py 3.14 or newer; this is {module.__version__}: pip install -U 'h5py>=3.14'"
        )
    return module


@dataclass(frozen=True)
class Dataset:
    """One dataset of a container.

    ``block_rows`` > 0 marks a large one, whose digests lie in ``xxh3/<last part of name>``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    block_rows: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.nbytes // self.shape[0]

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

    def as_json(self) -> dict[str, Any]:
        """For the store's seal."""
        return {"size": self.size, "offsets": self.offsets}

    @classmethod
    def from_json(cls, datasets: list[Dataset], value: dict[str, Any]) -> Layout:
        """From the store's seal.

        Raises:
            ValueError, KeyError, TypeError: not the layout of these datasets.
        """
        layout = cls({d.name: d for d in datasets}, dict(value["offsets"]), value["size"])
        if (
            layout.offsets.keys() != layout.datasets.keys()
            or type(layout.size) is not int
            or not all(type(v) is int for v in layout.offsets.values())
        ):
            raise ValueError("other datasets")
        at = 0
        for name, offset in sorted(layout.offsets.items(), key=lambda item: item[1]):
            if offset < at:
                raise ValueError(f"{name} overlaps")
            at = offset + layout.datasets[name].nbytes
        if at > layout.size:
            raise ValueError("beyond the end")
        return layout

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
            made = h5.h5d.create(
                group.id, leaf.encode(), h5.h5t.py_create(np.dtype(d.dtype)), h5.h5s.create_simple(d.shape), dcpl=plist
            )
            offsets[d.name] = made.get_offset()
        for key, value in attributes.items():
            f.attrs[key] = value
    layout = Layout({d.name: d for d in datasets}, offsets, image.size)
    return layout, {
        page * ALIGN: bytes(data[: max(0, image.size - page * ALIGN)]) for page, data in sorted(image.pages.items())
    }


@dataclass
class Container:
    """An open, proven container. Its files stay open until :meth:`close`; reads are positional, so threads and forks
    share them.

    ``direct`` is the same file opened for direct reading, or -1.
    """

    path: Path
    fd: int
    layout: Layout
    seal: str
    direct: int = -1

    def small(self, name: str) -> np.ndarray:
        """A small dataset, read in full (already proven by the seal)."""
        d = self.layout.datasets[name]
        out = np.empty(d.shape, d.dtype)
        disk.read_all(self.fd, disk.bytes_of(out), self.layout.offsets[name])
        return out

    def close(self, _close: Callable[[int], None] = os.close) -> None:
        """Close the files. (The default argument keeps ``os.close`` alive while the interpreter shuts down.)"""
        files, self.fd, self.direct = (self.fd, self.direct), -1, -1
        for fd in files:
            if fd >= 0:
                _close(fd)

    __del__ = close


def open_container(
    path: Path,
    layout: Layout,
    *,
    pages: dict[int, bytes] | None = None,
    seal: str | None = None,
    shard: int | None = None,
) -> Container:
    """Open one of our files and prove everything but its large data, without letting HDF5 parse it.

    ``layout`` says where everything must lie: from the store's seal, or laid out anew. ``seal`` is what the store's
    seal says of the file; without one, ``pages`` are the metadata that HDF5 would write here, and must be there byte
    for byte.

    Raises:
        ShardCorrupt: its size, structure or content is not what it must be. UntrustedFile: a link or a device.
    """
    fd = system.open_file(path)
    try:
        disk.expect(fd, in_order=False)
        size = os.fstat(fd).st_size
        if size != layout.size:
            raise ShardCorrupt(path.name, f"it has {size:,} bytes instead of {layout.size:,}", shard=shard)
        regions = {lo: _region(fd, lo, hi) for lo, hi in layout.gaps()}
        named, actual = _seal_of(regions, layout)
        if named != actual:
            raise ShardCorrupt(path.name, "its header, tokens or digests changed after it was written", shard=shard)
        if seal is not None and seal != actual.hex():
            raise ShardCorrupt(path.name, "it is not the file that seal.json lists under this name", shard=shard)
        if pages is not None and _masked(regions, layout) != _masked(_spread(pages, regions), layout):
            raise ShardCorrupt(
                path.name, "its structure or attributes are another shard's, or another store's", shard=shard
            )
        return Container(path, fd, layout, actual.hex())
    except BaseException:
        os.close(fd)
        raise


def _region(fd: int, lo: int, hi: int) -> bytearray:
    data = bytearray(hi - lo)
    disk.read_all(fd, memoryview(data), lo)
    return data


def _seal_of(regions: dict[int, bytearray], layout: Layout) -> tuple[bytes, bytes]:
    """The seal a file carries, and the SHA-256 of every byte outside the large datasets and the seal."""
    digest, at, named = hashlib.sha256(), layout.offsets[SEAL], b""
    for lo, data in regions.items():
        if lo <= at < lo + len(data):
            named = bytes(data[at - lo : at - lo + 32])
            data = data[: at - lo] + bytes(32) + data[at - lo + 32 :]
        digest.update(data)
    return named, digest.digest()


def _spread(pages: dict[int, bytes], regions: dict[int, bytearray]) -> dict[int, bytearray]:
    """Pages laid over regions of zeros."""
    out = {lo: bytearray(len(data)) for lo, data in regions.items()}
    for lo, region in out.items():
        for offset, data in pages.items():
            a, b = max(lo, offset), min(lo + len(region), offset + len(data))
            if a < b:
                region[a - lo : b - lo] = data[a - offset : b - offset]
    return out


def _masked(regions: dict[int, bytearray], layout: Layout) -> dict[int, bytearray]:
    """Regions with the data of all small datasets zeroed: what is left is HDF5's own structure."""
    out = {lo: bytearray(data) for lo, data in regions.items()}
    for name, d in layout.datasets.items():
        at = layout.offsets[name]
        for lo, data in out.items():
            if not d.block_rows and lo <= at < lo + len(data):
                data[at - lo : at - lo + d.nbytes] = bytes(d.nbytes)
    return out
