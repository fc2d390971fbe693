"""From a group of rows as they are stored to a batch of float32: gathered by several threads, into memory that is used
again.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import torch

from workbench.activations.disk.direct_io import empty

_SCRATCH = 1 << 19
"""Numbers gathered at a time before they are widened: few enough for the processor's cache, enough that each step is
worth a call.
"""
_LEAST = 1 << 19
"""Numbers a thread is worth starting for."""


class Gatherer:
    """Makes batches. Their memory is used again once nobody holds them: fresh pages cost more than all the rest of a
    batch.

    The tensors share memory with arrays kept here; PyTorch holds one reference to an array for as long as any tensor or
    view over it lives, so an array without it is free.
    """

    def __init__(self, threads: int) -> None:
        self.arrays: list[np.ndarray] = []
        self.hands = max(1, min(threads, (os.cpu_count() or 1) - 1, 4))  # one processor is left to those who read
        self.others = ThreadPoolExecutor(self.hands - 1, "store-gather") if self.hands > 1 else None

    def tensor(self, rows: int, width: int) -> torch.Tensor:
        """An uninitialised float32 tensor [rows, width]."""
        for array in self.arrays:
            if array.shape == (rows, width) and sys.getrefcount(array) == 3:  # the list, the loop, the call
                return torch.from_numpy(array)
        array = empty((rows, width), "<f4") if rows * width >= _LEAST else np.empty((rows, width), np.float32)
        self.arrays = [*self.arrays[-2:], array]
        return torch.from_numpy(array)

    def take(self, tensors: list[torch.Tensor], index: torch.Tensor, out: torch.Tensor) -> None:
        """Gather rows of every stream side by side into ``out`` [len(index), total width], as float32."""
        parts = max(1, min(self.hands, out.numel() // _LEAST))
        cuts = [len(index) * k // parts for k in range(parts + 1)]
        jobs = [(tensors, index[a:b], out[a:b]) for a, b in pairwise(cuts)]
        running = [self.others.submit(take, *job) for job in jobs[1:]] if self.others else []
        take(*jobs[0])
        for done in running:
            done.result()

    def close(self) -> None:
        """End the threads."""
        if self.others is not None:
            self.others.shutdown()


def as_torch(stored: np.ndarray, dtype: str) -> torch.Tensor:
    """Stored numbers as a tensor over the same memory."""
    if dtype == "bfloat16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)


def take(tensors: list[torch.Tensor], index: torch.Tensor, out: torch.Tensor) -> None:
    """Gather rows of every stream side by side into ``out``, as float32."""
    with torch.inference_mode(
        out.is_inference()
    ):  # the mode belongs to the thread, and helpers do not inherit the caller's
        if len(tensors) == 1 and tensors[0].dtype == out.dtype:
            torch.index_select(tensors[0], 0, index, out=out)
            return
        at = 0
        for t in tensors:
            step, width = max(1, _SCRATCH // t.shape[1]), t.shape[1]
            scratch = t.new_empty(min(step, len(index)), width)
            for rows, target in zip(index.split(step), out[:, at : at + width].split(step), strict=True):
                target.copy_(torch.index_select(t, 0, rows, out=scratch[: len(rows)]))
            at += width
