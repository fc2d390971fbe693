"""Many direct reads in flight, kept going by one thread: Linux' asynchronous I/O (io_submit(2), io_getevents(2)).

Threads that each wait for one read keep a disk busy only while the scheduler lets them run at once, and beside a busy
processor it does not. Here the kernel holds the queue; completed reads are proven while the others go on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from sae import system

DEPTH = 128
"""Reads in flight. So many of 256 KiB last a fast disk longer than a thread waits for a busy processor (10 ms)."""
_REAP = 8
"""Completed reads to wait for at a time while enough others are in flight."""
_SETUP, _DESTROY, _SUBMIT, _GETEVENTS = range(4)
_CALLS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
_IOCB = np.dtype(
    [
        ("data", "<u8"),
        ("key", "<u4"),
        ("rw_flags", "<u4"),
        ("opcode", "<u2"),
        ("priority", "<i2"),
        ("fd", "<u4"),
        ("buffer", "<u8"),
        ("nbytes", "<u8"),
        ("offset", "<i8"),
        ("reserved", "<u8"),
        ("flags", "<u4"),
        ("eventfd", "<u4"),
    ]
)
_EVENT = np.dtype([("data", "<u8"), ("request", "<u8"), ("result", "<i8"), ("more", "<i8")])


ReadRequest = tuple[int, int, int, int]
"""(file opened for direct reading, memory address, bytes, offset in the file); the last three are multiples of the page
size.
"""
Read = tuple[ReadRequest, Callable[[int], None]]
"""A read, and what to call with the number of bytes it gave (0 after an error): that does the rest, proves it, and
holds the memory.
"""


class DirectReader:
    """One thread that keeps up to ``depth`` reads in flight.

    Raises:
        OSError: this system has no asynchronous I/O for us.
    """

    def __init__(self, depth: int = DEPTH):
        self.depth, self.context = depth, ctypes.c_ulong(0)
        _system(_SETUP, ctypes.c_uint(depth), ctypes.byref(self.context))
        self.todo: queue.SimpleQueue[tuple[Sequence[Read], Future[None]] | None] = queue.SimpleQueue()
        self.flying: dict[int, tuple[Callable[[int], None], Future[None]]] = {}
        self.left: dict[Future[None], int] = {}
        self.next = 0
        self.stop = False
        self.thread = threading.Thread(target=self._run, name="store-direct", daemon=True)
        self.thread.start()

    def submit(self, reads: Sequence[Read]) -> Future[None]:
        """Do these reads, at least one; the future ends with the last of them, or with the first error."""
        done: Future[None] = Future()
        self.todo.put((reads, done))
        return done

    def close(self) -> None:
        """Wait for what is in flight, and end; what was not begun ends with :class:`CancelledError`.

        Nothing may be submitted afterwards.
        """
        self.stop = True
        self.todo.put(None)
        self.thread.join()
        with suppress(OSError):  # a forked child, which inherited the object but not the reads
            _system(_DESTROY, self.context)

    def _run(self) -> None:
        why: BaseException = CancelledError()
        try:
            self._read_on(np.zeros(self.depth, _EVENT))
        except BaseException as e:  # noqa: BLE001 (nobody may wait for a thread that is gone)
            why = e
        while True:
            for done in self.left:
                if not done.done():
                    done.set_exception(why)
            self.left.clear()
            if (work := self.todo.get()) is None:
                return
            self.left[work[1]] = 0

    def _read_on(self, events: np.ndarray) -> None:
        while not self.stop:
            if self.flying and self.todo.empty():
                self._reap(events, min(_REAP, len(self.flying)))
            elif work := self.todo.get():
                self._begin(*work, events)
            else:  # close() asks to end
                self.todo.put(None)
        while self.flying:
            self._reap(events, len(self.flying), prove=False)

    def _begin(self, reads: Sequence[Read], done: Future[None], events: np.ndarray) -> None:
        """Hand reads to the kernel as there is room for them, finishing others meanwhile."""
        self.left[done] = len(reads)
        blocks = np.zeros(len(reads), _IOCB)  # opcode 0 reads
        blocks["data"] = np.arange(self.next, self.next + len(reads), dtype=np.uint64)
        for name, column in zip(
            ("fd", "buffer", "nbytes", "offset"), np.array([place for place, _ in reads], np.int64).T, strict=True
        ):
            blocks[name] = column
        pointers = blocks.ctypes.data + _IOCB.itemsize * np.arange(len(blocks), dtype=np.uint64)
        begun = 0
        while begun < len(reads) and not self.stop:
            n = min(len(reads) - begun, self.depth - len(self.flying))
            if n < min(_REAP, len(reads) - begun):
                self._reap(events, min(_REAP, len(self.flying)))
                continue
            try:
                n = _system(
                    _SUBMIT,
                    self.context,
                    ctypes.c_long(n),
                    ctypes.c_void_p(pointers.ctypes.data + pointers.itemsize * begun),
                )
            except OSError:  # the first of them is refused: it takes the usual way
                self._finish(reads[begun][1], done, 0)
                begun += 1
                continue
            for k in range(begun, begun + n):
                self.flying[self.next + k] = (reads[k][1], done)
            begun += n
        self.next += len(reads)

    def _reap(self, events: np.ndarray, least: int, *, prove: bool = True) -> None:
        n = _system(
            _GETEVENTS,
            self.context,
            ctypes.c_long(least),
            ctypes.c_long(len(events)),
            ctypes.c_void_p(events.ctypes.data),
            None,
        )
        for tag, result in zip(events["data"][:n].tolist(), events["result"][:n].tolist()):
            finish, done = self.flying.pop(tag)
            if prove:
                self._finish(finish, done, max(0, result))

    def _finish(self, finish: Callable[[int], None], done: Future[None], n: int) -> None:
        try:
            if not done.done():
                finish(n)
        except BaseException as e:  # noqa: BLE001 (handed to whoever waits for the rows)
            done.set_exception(e)
        self.left[done] -= 1
        if not self.left[done]:
            del self.left[done]
            if not done.done():
                done.set_result(None)


def direct_reader() -> DirectReader | None:
    """A :class:`DirectReader`, or None where the system has none to give."""
    try:
        return DirectReader()
    except OSError:
        return None


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _system(call: int, *arguments: Any) -> int:
    """One of the four calls, again where a signal interrupted it.

    Raises:
        OSError: it failed, or there is no such call here.
    """
    if system.PLATFORM != "linux" or platform.machine() not in _CALLS:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    while (n := _libc().syscall(ctypes.c_long(_CALLS[platform.machine()][call]), *arguments)) < 0:
        if (code := ctypes.get_errno()) != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return int(n)
