"""The next batches on their way to a GPU while it works on this one: pinned memory, a stream of its own, a bounded
queue.

On the CPU, batches pass through untouched. A background thread takes batches from the source in order, so what is
trained on does not change; an error of the source is raised where its batch would have come.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from queue import Empty, Full, Queue
from typing import Any, TypeVar

import torch
from torch import Tensor

from sae.devices import abilities
from sae.rows import LocalRows

B = TypeVar("B")
_END = object()


def on_device(batches: Iterable[B], device: str | torch.device, *, depth: int = 2) -> Iterator[B]:
    """The same batches with their tensors on ``device``; up to ``depth`` of them are copied ahead where it is a GPU."""
    device = torch.device(device)
    if not abilities(device).pinned:
        return iter(batches)
    return fetched_ahead(batches, Copier(device), depth=depth)


class Copier:
    """Copies a batch to a GPU on a stream of its own, from pinned memory; what it returns makes the reader's stream
    wait for the copy.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def __call__(self, batch: Any) -> Callable[[], Any]:
        with torch.cuda.stream(self.stream):
            copied = each_tensor(
                batch, lambda t: t.pin_memory().to(self.device, non_blocking=True) if t.device.type == "cpu" else t
            )
            done = torch.cuda.Event()
            done.record(self.stream)

        def ready() -> Any:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(done)

            def use_here(t: Tensor) -> Tensor:
                t.record_stream(now)  # its memory is not given to others before the reader is done with it
                return t

            return each_tensor(copied, use_here)

        return ready


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A batch (tensor, a process's share of one, tuple of those or None, or mapping of those) with every tensor
    changed.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, LocalRows):
        return replace(
            batch, rows=change(batch.rows), batch_index=None if batch.batch_index is None else change(batch.batch_index)
        )
    if isinstance(batch, tuple):
        return tuple(each_tensor(b, change) for b in batch)
    if isinstance(batch, Mapping):
        return {k: each_tensor(v, change) for k, v in batch.items()}
    return batch


def fetched_ahead(
    batches: Iterable[Any], start: Callable[[Any], Callable[[], Any]], *, depth: int = 2
) -> Iterator[Any]:
    """Batches in order, each begun by ``start`` in a background thread, at most ``depth`` ahead of the reader, and
    awaited on delivery.

    Closing the iterator ends the thread and closes the source.
    """
    queue: Queue[Any] = Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> bool:
        while not stop.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def work() -> None:
        source = iter(batches)
        try:
            for batch in source:
                if not put((start(batch), None)):
                    return
            put((_END, None))
        except BaseException as e:  # noqa: BLE001  (raised again in the reader's thread)
            put((_END, e))
        finally:
            close = getattr(source, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="to-device", daemon=True)
    thread.start()
    try:
        while True:
            ready, problem = queue.get()
            if problem is not None:
                raise problem
            if ready is _END:
                return
            yield ready()
    finally:
        stop.set()
        while True:
            try:
                queue.get_nowait()
            except Empty:
                break
        thread.join()
