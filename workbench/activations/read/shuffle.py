"""The order in which training sees rows: a pure function of a few integers, computed from integers alone.

Rows are read in *units* (a few consecutive digest blocks). The units of an epoch are sorted by SplitMix64 (Steele, Lea
& Flood 2014, https://doi.org/10.1145/2660193.2660195) of (seed, epoch, unit), cut into *groups* that fit the buffer,
and the rows of a group are sorted by the same function of (seed, epoch, group). SplitMix64 is one-to-one, so there are
no ties, and no library's random stream is part of the contract. Nothing depends on threads, workers or earlier batches.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

SHUFFLE_VERSION = 1
GROUP_ROWS = 1 << 16
MAX_UNITS = 1 << 19
MAX_LISTED = 64  # skipped ranges that a checkpoint lists; of more it keeps the digest
_M = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser of uint64 numbers: one-to-one."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def state_of(*words: int) -> int:
    """One 64-bit state from a few integers, each stirred in by SplitMix64."""
    state = 0
    for word in words:
        state = int(splitmix64(np.array([(state + _GOLDEN + word) & _M], np.uint64))[0])
    return state


def permutation(n: int, *words: int) -> np.ndarray:
    """A permutation of ``range(n)`` (int64) that depends on the words alone."""
    counters = np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(state_of(*words))
    return np.argsort(splitmix64(counters))


@dataclass(frozen=True)
class Order:
    """What decides the order of a split's rows.

    Args:
        rows_per_shard, n_rows: of the whole store. first, last: row range of the split.
        block_rows: rows of a digest block. group_rows: rows a buffer holds. window: shards shuffled together (0 = all).
        skipped: row ranges left out, as (first, last) in order.
    """

    rows_per_shard: int
    n_rows: int
    first: int
    last: int
    block_rows: int
    seed: int
    group_rows: int = GROUP_ROWS
    window: int = 0
    skipped: tuple[tuple[int, int], ...] = ()

    @cached_property
    def unit_rows(self) -> int:
        """Rows read together: the digest block, doubled until the store has few enough units to list in memory."""
        rows = self.block_rows
        while -(-self.rows_per_shard // rows) * self.n_shards > MAX_UNITS and rows < self.rows_per_shard:
            rows *= 2
        return rows

    @property
    def n_shards(self) -> int:
        """Shards of the store."""
        return -(-self.n_rows // self.rows_per_shard)

    @property
    def units_per_shard(self) -> int:
        """Units of a full shard; the last of them may be short."""
        return -(-self.rows_per_shard // self.unit_rows)

    @property
    def units_per_group(self) -> int:
        """Units a group holds."""
        return max(1, self.group_rows // self.unit_rows)

    def unit_range(self, unit: int) -> tuple[int, int]:
        """First row of a unit and one past its last, cut to the split."""
        shard, k = divmod(unit, self.units_per_shard)
        start = shard * self.rows_per_shard
        lo = start + k * self.unit_rows
        hi = min(lo + self.unit_rows, start + self.rows_per_shard, self.n_rows)
        return max(lo, self.first), max(min(hi, self.last), max(lo, self.first))

    def kept(self, unit: int) -> list[tuple[int, int]]:
        """The row ranges of a unit that are returned: its range less what is skipped."""
        lo, hi = self.unit_range(unit)
        out = []
        first = bisect_right(self.skipped, lo, key=lambda s: s[1])
        for a, b in self.skipped[first:]:
            if a >= hi:
                break
            if a > lo:
                out.append((lo, a))
            lo = max(lo, b)
        if lo < hi:
            out.append((lo, hi))
        return out

    @cached_property
    def unit_sizes(self) -> np.ndarray:
        """Rows every unit returns, int32."""
        starts = (
            np.arange(self.n_shards, dtype=np.int64)[:, None] * self.rows_per_shard
            + np.arange(self.units_per_shard, dtype=np.int64) * self.unit_rows
        ).reshape(-1)
        ends = np.minimum(starts + self.unit_rows, (starts // self.rows_per_shard + 1) * self.rows_per_shard)
        lo, hi = np.maximum(starts, self.first), np.minimum(ends, self.last)
        hi = np.maximum(lo, hi)
        return (hi - lo - (self._skipped_before(hi) - self._skipped_before(lo))).astype(np.int32)

    def _skipped_before(self, rows: np.ndarray) -> np.ndarray:
        """How many skipped rows come before each of ``rows``."""
        ranges = np.asarray(self.skipped, np.int64).reshape(-1, 2)
        at = np.searchsorted(ranges[:, 0], rows)  # ranges that begin before the row
        whole = np.concatenate([[0], np.cumsum(ranges[:, 1] - ranges[:, 0])])[at]
        beyond = np.where(at > 0, np.concatenate([[0], ranges[:, 1]])[at] - rows, 0)
        return np.asarray(whole - np.maximum(beyond, 0))

    @cached_property
    def epoch_rows(self) -> int:
        """Rows of one epoch."""
        return int(self.unit_sizes.sum(dtype=np.int64))

    def contract(self) -> dict[str, Any]:
        """Everything that decides the order, as plain values: two equal contracts give equal batches."""
        skipped: Any = [list(s) for s in self.skipped]
        if len(skipped) > MAX_LISTED:
            skipped = hashlib.sha256(np.asarray(skipped, "<i8").tobytes()).hexdigest()
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"shuffle_version": SHUFFLE_VERSION, **values, "skipped": skipped}

    def shard_order(self, epoch: int) -> np.ndarray:
        """Shards in the order in which windows take them."""
        return permutation(self.n_shards, self.seed, epoch, 2)


@dataclass
class EpochOrder:
    """The groups of one epoch. ``starts`` [G + 1] cut ``units``; ``row0`` [G + 1] counts the rows before each group."""

    order: Order
    epoch: int

    def __post_init__(self) -> None:
        o = self.order
        units = permutation(o.n_shards * o.units_per_shard, o.seed, self.epoch, 0)
        units = units[o.unit_sizes[units] > 0]
        cuts = [0, len(units)]
        if o.window and o.window < o.n_shards:
            rank = np.empty(o.n_shards, np.int64)
            rank[o.shard_order(self.epoch)] = np.arange(o.n_shards) // o.window
            window = rank[units // o.units_per_shard]
            by_window = np.argsort(window, kind="stable")
            units, window = units[by_window], window[by_window]
            cuts = [0, *(np.flatnonzero(np.diff(window)) + 1).tolist(), len(units)]
        self.units = units
        self.window_cuts = np.asarray(cuts, np.int64)
        self.starts = np.concatenate(
            [np.arange(a, b, o.units_per_group) for a, b in pairwise(cuts)] + [[len(units)]]
        ).astype(np.int64)
        before = np.concatenate([[0], np.cumsum(o.unit_sizes[units], dtype=np.int64)])
        self.row0 = before[self.starts]

    @property
    def n_groups(self) -> int:
        """Groups of the epoch."""
        return len(self.starts) - 1

    def group_at(self, row: int) -> int:
        """The group that holds the epoch's ``row``-th row."""
        return int(np.searchsorted(self.row0, row, side="right")) - 1

    def windows(self) -> list[tuple[int, list[int]]]:
        """(last group, shards) of every window, in the order in which they are read."""
        last = np.searchsorted(self.starts, self.window_cuts[1:]) - 1
        per_shard = self.order.units_per_shard
        return [
            (int(g), np.unique(self.units[a:b] // per_shard).tolist())
            for g, (a, b) in zip(last, pairwise(self.window_cuts))
        ]

    def group_units(self, group: int) -> np.ndarray:
        """Units of a group in file order, which is the order they have in the buffer."""
        return np.sort(self.units[self.starts[group] : self.starts[group + 1]])

    def group_rows(self, group: int) -> int:
        """Rows of a group."""
        return int(self.row0[group + 1] - self.row0[group])

    def row_order(self, group: int) -> np.ndarray:
        """The order in which a group's buffer rows are returned."""
        return permutation(self.group_rows(group), self.order.seed, self.epoch, 1, group)
