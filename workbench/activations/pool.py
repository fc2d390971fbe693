"""Open shards: proven when first touched, read by position, a bounded number open at a time."""

from __future__ import annotations

import os
import resource
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from workbench.activations import disk, uncached
from workbench.activations.errors import StoreIncomplete
from workbench.activations.format import Container, Layout, lay_out
from workbench.activations.seal import Seal
from workbench.activations.shard import SHARDS, check_blocks, open_shard, shard_attributes, shard_datasets
from workbench.activations.spec import STORED, StoreSpec, Stream

_TABLE_BYTES = 16 * 1024 * 1024


class ShardPool:
    """The shards of one store. Threads may share it; after a fork every process should make its own.

    Args:
        seal: the store's seal; without one, the layout is worked out once for each number of rows.
    """

    def __init__(self, folder: Path, spec: StoreSpec, seal: Seal | None):
        self.folder, self.spec, self.seal = folder, spec, seal
        per_shard = 8 * len(spec.streams) * -(-spec.rows_per_shard // spec.block_rows) + 512
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.capacity = max(4, min(512, files // 8 if files > 0 else 512, _TABLE_BYTES // per_shard))
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
                container = open_shard(self.folder, self.spec, index, layout, self.seal.shards[name][1] if self.seal else None)
        except FileNotFoundError:
            raise StoreIncomplete(
                f"shard {name} of {self.folder} is missing. Run the `workbench harvest` that made the store again; it makes only what is missing."
            ) from None
        container.direct = uncached.reopen(container.fd)
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
        fd = disk.open_regular(path)
        if _identity(fd) != self._proven[index]:
            os.close(fd)
            return None
        return Container(path, fd, layout, "")

    def read_into(self, out: np.ndarray, stream: Stream, lo: int, hi: int, *, cache: bool = True) -> None:
        """Rows ``lo … hi - 1`` of the store, which must lie in one shard, into ``out`` [hi - lo, width]; every block proven.

        Without ``cache`` nothing is added to the page cache.
        """
        spec = self.spec
        index = lo // spec.rows_per_shard
        container, tables = self.get(index)
        d = container.layout.datasets[f"acts/{stream.key}"]
        row_bytes = stream.width * spec.itemsize
        base = index * spec.rows_per_shard
        first, last = (lo - base) // d.block_rows, -(-(hi - base) // d.block_rows)
        start, end = first * d.block_rows, min(d.shape[0], last * d.block_rows)
        whole = (start, end) == (lo - base, hi - base) and out.flags.c_contiguous
        target = out if whole else np.empty((end - start, stream.width), STORED[spec.dtype])
        view = disk.bytes_of(target)
        at = container.layout.offsets[d.name] + start * row_bytes
        if cache:
            got = disk.read_all(container.fd, view, at)
        else:
            got = uncached.read(container.fd, container.direct, view, target.ctypes.data, at)
        check_blocks(container, d, view[:got], first, last, tables[stream.key])
        if not whole:
            out[:] = target[lo - base - start : hi - base - start]

    def close(self) -> None:
        """Forget all open shards."""
        with self._mutex:
            self._open.clear()


def _identity(fd: int) -> tuple[int, ...]:
    s = os.fstat(fd)
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns
