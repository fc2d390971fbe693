"""Reading and writing rows past the page cache: what is cached comes from there, the rest goes straight to and from the
disk.

Filling the cache costs several times the processor time of the transfer itself, and evicts what other programs need. It
pays only where the same bytes are read again soon and fit. Where a file system knows no direct transfer, everything
takes the usual way.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from contextlib import suppress
from functools import cache

import numpy as np

from sae import system
from workbench.activations.disk import calls as disk

ALIGN = 4096
"""Offsets, lengths and addresses of direct transfers are multiples of this, which satisfies every common disk."""
_SCRATCH = 4 << 20
_CACHESTAT = 451


def reopen(fd: int, *, write: bool = False) -> int:
    """The very file behind ``fd`` once more, for direct transfer; -1 where that is not possible."""
    try:
        access = os.O_RDWR if write else os.O_RDONLY
        return os.open(system.PROC / "self" / "fd" / str(fd), access | os.O_DIRECT | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return -1


def read(fd: int, direct: int, view: memoryview, address: int, offset: int) -> int:
    """Fill ``view``, which lies at ``address``, from ``offset`` on without adding to the page cache; returns the bytes
    read.

    ``direct`` is what :func:`reopen` gave. Parts that are not aligned, and the rest after a failed direct read, take
    the usual way.
    """
    done = 0
    if whole := direct_bytes(fd, direct, address, offset, len(view)):
        with suppress(OSError):  # the usual way says whether the disk, or only direct reading, is at fault
            done = system.read_at(direct, view[:whole], offset)
    return read_rest(fd, view, offset, done)


def direct_bytes(fd: int, direct: int, address: int, offset: int, n: int) -> int:
    """How many of ``n`` bytes, from the first on, a direct read should fetch: whole pages, none where it cannot or
    where all are cached.
    """
    if direct < 0 or address % ALIGN or offset % ALIGN or n < ALIGN or is_cached(fd, offset, n):
        return 0
    return n // ALIGN * ALIGN


def read_rest(fd: int, view: memoryview, offset: int, done: int) -> int:
    """Fill ``view``, of which ``done`` bytes are there, the usual way; returns the bytes there are then."""
    return done + (disk.read_all(fd, view[done:], offset + done) if done < len(view) else 0)


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Pages(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    )


def is_cached(fd: int, offset: int, n: int) -> bool:
    """Whether all of ``n`` bytes are in the page cache, which is then the faster way (False where Linux is older than
    6.5).

    A read that may not wait would start loading what it does not find, so the system is asked (cachestat).
    """
    if system.PLATFORM != "linux":
        return False
    pages = _Pages()
    failed = _libc().syscall(_CACHESTAT, fd, ctypes.byref(_Range(offset, n)), ctypes.byref(pages), 0)
    return not failed and pages.cached * mmap.PAGESIZE >= n


@cache
def _libc() -> ctypes.PyDLL:
    return ctypes.PyDLL(None)  # the answer comes sooner than the lock of the interpreter would be handed over


class Writer:
    """Writes to ``fd`` past the cache wherever whole pages are written; a flush of ``fd`` makes them
    durable as usual.
    """

    def __init__(self, fd: int):
        self.fd, self.direct = fd, reopen(fd, write=True)
        self.scratch = np.empty(0, np.uint8)

    def write(self, data: memoryview, offset: int) -> None:
        """Write every byte of ``data`` at ``offset``."""
        done = 0
        while (
            self.direct >= 0 and not (offset + done) % ALIGN and (n := min(len(data) - done, _SCRATCH) // ALIGN * ALIGN)
        ):
            if not self.scratch.size:
                self.scratch = empty((1, _SCRATCH), "u1")[0]
            self.scratch[:n] = data[done : done + n]
            try:
                done += disk.write_some(self.direct, self.scratch[:n].data, offset + done)
            except OSError as e:
                if e.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
                self.close()
        disk.write_all(self.fd, data[done:], offset + done)

    def close(self) -> None:
        """Close what was opened here; writing goes on the usual way."""
        direct, self.direct = self.direct, -1
        if direct >= 0:
            os.close(direct)


def empty(shape: tuple[int, int], dtype: str) -> np.ndarray:
    """An uninitialised array that begins at a multiple of :data:`ALIGN`, on large pages where there are any."""
    nbytes = shape[0] * shape[1] * np.dtype(dtype).itemsize
    # Unasked, memory is shared, and Linux gives shared memory no large pages; Windows knows no such flag.
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(nbytes, 1), **private)
    with suppress(OSError, AttributeError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype, count=shape[0] * shape[1]).reshape(shape)


def touch(*arrays: np.ndarray) -> None:
    """Give new arrays their memory now: the system hands out pages when they are first written to, which may take
    longer than reading.
    """
    for array in arrays:
        array.reshape(-1).view(np.uint8)[:: mmap.PAGESIZE] = 0


def fits(nbytes: int) -> bool:
    """Whether that many bytes, read again and again, are worth caching: half of this machine's memory holds them."""
    return nbytes <= system.memory_bytes() // 2
