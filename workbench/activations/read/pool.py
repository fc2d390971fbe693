"""Open shards: proven when first touched, read by position, a bounded number open at a time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sae import system
from workbench.activations.disk import calls as disk
from workbench.activations.disk import direct_io
from workbench.activations.format.errors import StoreIncomplete
from workbench.activations.format.layout import Container, Dataset, Layout, lay_out
from workbench.activations.format.seal import Seal
from workbench.activations.format.shard import SHARDS, check_blocks, open_shard, shard_attributes, shard_datasets
from workbench.activations.format.spec import StoreSpec, Stream

_TABLE_BYTES = 16 * 1024 * 1024


@dataclass(slots=True)
class Piece:
    """Rows ``lo … hi - 1`` of one dataset of a shard, on their way into ``out``.

    No byte counts before its block is proven.
    """

    container: Container
    dataset: Dataset
    digests: np.ndarray
    out: np.ndarray
    lo: int
    hi: int

    def read(self, *, cache: bool) -> None:
        """Read and prove the rows; without ``cache`` nothing is added to the page cache.

        Raises:
            ShardCorrupt: a block is not what was written.
        """
        d, c = self.dataset, self.container
        first, last = self._blocks()
        start, end = first * d.block_rows, min(d.shape[0], last * d.block_rows)
        target = self.out if self.whole else np.empty((end - start, *d.shape[1:]), d.dtype)
        view, offset = disk.bytes_of(target), self._offset(start)
        got = (
            disk.read_all(c.fd, view, offset)
            if cache
            else direct_io.read(c.fd, c.direct, view, target.ctypes.data, offset)
        )
        check_blocks(c, d, view[:got], first, last, self.digests)
        if not self.whole:
            self.out[:] = target[self.lo - start : self.hi - start]

    @property
    def whole(self) -> bool:
        """Whether the rows are whole blocks, so that they can be proven where they are to lie."""
        d = self.dataset
        return (
            not self.lo % d.block_rows
            and (not self.hi % d.block_rows or self.hi == d.shape[0])
            and self.out.flags.c_contiguous
        )

    def place(self) -> tuple[int, int, int, int]:
        """(file, memory address, bytes, offset) of a direct read; no bytes where the rows should be read otherwise."""
        c, address, offset = self.container, self.out.ctypes.data, self._offset(self.lo)
        n = direct_io.direct_bytes(c.fd, c.direct, address, offset, self.out.nbytes) if self.whole else 0
        return c.direct, address, n, offset

    def finish(self, done: int) -> None:
        """Read the rest after ``done`` bytes of a direct read, and prove all of it; see :meth:`read`."""
        view = disk.bytes_of(self.out)
        got = direct_io.read_rest(self.container.fd, view, self._offset(self.lo), done)
        check_blocks(self.container, self.dataset, view[:got], *self._blocks(), self.digests)

    def _blocks(self) -> tuple[int, int]:
        return self.lo // self.dataset.block_rows, -(-self.hi // self.dataset.block_rows)

    def _offset(self, row: int) -> int:
        return self.container.layout.offsets[self.dataset.name] + row * self.dataset.row_bytes


class ShardPool:
    """The shards of one store. Threads may share it; after a fork every process should make its own.

    Args:
        seal: the store's seal; without one, the layout is worked out once for each number of rows.
    """

    def __init__(self, folder: Path, spec: StoreSpec, seal: Seal | None):
        self.folder, self.spec, self.seal = folder, spec, seal
        per_shard = 8 * len(spec.streams) * -(-spec.rows_per_shard // spec.block_rows) + 512
        self.capacity = max(4, min(512, system.open_files_limit() // 8, _TABLE_BYTES // per_shard))
        self._open: OrderedDict[int, tuple[Container, dict[str, np.ndarray]]] = OrderedDict()
        self._proven: dict[int, tuple[int, ...]] = {}
        self._layouts: dict[int, Layout] = {}
        self._mutex = threading.Lock()

    def get(self, index: int) -> tuple[Container, dict[str, np.ndarray]]:
        """A proven shard and its digest tables by stream key.

        Raises:
            ShardCorrupt, UntrustedFile: it is not what was committed. StoreIncomplete: it is not there.
        """
        with self._mutex:
            entry = self._open.get(index)
            if entry is None:
                entry = self._open[index] = self._enter(index)
                while len(self._open) > self.capacity:
                    self._open.popitem(last=False)  # its file closes when the last reader lets go
            else:
                self._open.move_to_end(index)
            return entry

    def _enter(self, index: int) -> tuple[Container, dict[str, np.ndarray]]:
        name = self.spec.shard_name(index)
        layout = self._layout(index)
        try:
            container = self._reopen(self.folder / SHARDS / name, index, layout)
            if container is None:
                container = open_shard(
                    self.folder, self.spec, index, layout, self.seal.shards[name][1] if self.seal else None
                )
        except FileNotFoundError:
            raise StoreIncomplete(
                f"shard {name} of {self.folder} is missing. Run the `workbench harvest` that made the store again; it"
                " makes only what is missing."
            ) from None
        container.direct = direct_io.reopen(container.fd)
        self._proven[index] = _identity(container.fd)
        tables = {s.key: container.small(layout.datasets[f"acts/{s.key}"].digests) for s in self.spec.streams}
        return container, tables

    def _layout(self, index: int) -> Layout:
        if self.seal is not None:
            return self.seal.layout(self.spec, index)
        lo, hi = self.spec.rows(index)
        if hi - lo not in self._layouts:
            self._layouts[hi - lo], _ = lay_out(shard_datasets(self.spec, index), shard_attributes(self.spec, index))
        return self._layouts[hi - lo]

    def _reopen(self, path: Path, index: int, layout: Layout) -> Container | None:
        """A shard proven before and unchanged since is opened without proving it again."""
        if index not in self._proven:
            return None
        fd = system.open_file(path)
        if _identity(fd) != self._proven[index]:
            os.close(fd)
            return None
        return Container(path, fd, layout, "")

    def piece(self, out: np.ndarray, stream: Stream, lo: int, hi: int) -> Piece:
        """Rows ``lo … hi - 1`` of the store, which must lie in one shard, as something that can be read into ``out``
        [hi - lo, width].
        """
        index = lo // self.spec.rows_per_shard
        container, tables = self.get(index)
        base = index * self.spec.rows_per_shard
        return Piece(
            container, container.layout.datasets[f"acts/{stream.key}"], tables[stream.key], out, lo - base, hi - base
        )

    def read_into(self, out: np.ndarray, stream: Stream, lo: int, hi: int) -> None:
        """Rows ``lo … hi - 1`` of the store, which must lie in one shard, into ``out`` [hi - lo, width]; every block
        proven.
        """
        self.piece(out, stream, lo, hi).read(cache=True)

    def close(self) -> None:
        """Forget all open shards."""
        with self._mutex:
            self._open.clear()


def _identity(fd: int) -> tuple[int, ...]:
    s = os.fstat(fd)
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns
