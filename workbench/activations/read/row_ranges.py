"""Which rows a request means, and how they are best read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from sae.errors import UsageError


def row_numbers(rows: slice | np.ndarray | Sequence[int], n: int) -> np.ndarray:
    """Row numbers, int64, that a request means in a store of ``n`` rows.

    Raises:
        UsageError: not a slice or a list of whole numbers, or beyond the store.
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n), dtype=np.int64)
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise UsageError(
            f"rows must be a slice or a list of whole numbers, not {type(rows).__name__} of {numbers.dtype} with"
            f" {numbers.ndim} dimensions. Give store.read(hook, slice(0, 100)), for example."
        )
    if numbers.size and (numbers.min() < 0 or numbers.max() >= n):
        raise UsageError(
            f"row {int(numbers.max() if numbers.max() >= n else numbers.min())} is not in the store: it has {n:,},"
            " counted from 0."
        )
    return numbers.astype(np.int64)


def runs(numbers: np.ndarray, per_shard: int, block_rows: int) -> list[tuple[slice | np.ndarray, int, int]]:
    """Cut row numbers into reads: (places in the result, first row, one past the last), each within one shard."""
    n = len(numbers)
    if n and numbers[-1] - numbers[0] == n - 1 and (n == 1 or bool((np.diff(numbers) == 1).all())):
        lo, hi = int(numbers[0]), int(numbers[-1]) + 1
        cuts = [lo, *range((lo // per_shard + 1) * per_shard, hi, per_shard), hi]
        return [(slice(a - lo, b - lo), a, b) for a, b in pairwise(cuts)]
    block = numbers // per_shard * (1 << 32) + numbers % per_shard // block_rows
    by_block = np.argsort(block, kind="stable")
    cuts = [0, *(np.flatnonzero(np.diff(block[by_block])) + 1).tolist(), n] if n else [0]
    return [
        (row_indices := by_block[a:b], int(numbers[row_indices].min()), int(numbers[row_indices].max()) + 1)
        for a, b in pairwise(cuts)
    ]


def merged(ranges: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Row ranges in order, those that touch or overlap as one."""
    out: list[tuple[int, int]] = []
    for lo, hi in sorted(ranges):
        if out and lo <= out[-1][1]:
            out[-1] = out[-1][0], max(hi, out[-1][1])
        else:
            out.append((lo, hi))
    return tuple(out)
