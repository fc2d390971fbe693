"""Numbers as a store keeps them: rounding, the largest magnitude (which also tells what is not finite), statistics."""

from __future__ import annotations

import numpy as np

from workbench.activations.format.spec import STORED

INFINITE = {
    "float32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
    "float16": (np.uint16, 0x7FFF, 0x7C00),
    "bfloat16": (np.uint16, 0x7FFF, 0x7F80),
}
_TILE = 1 << 16
"""Numbers handled at a time by the statistics: small enough to stay in a core's cache."""


def to_stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as the store keeps them, [rows, width]. float32 is rounded to nearest even for bfloat16; uint16 counts as
    bfloat16 bits.
    """
    if dtype == "bfloat16":
        if values.dtype == np.uint16:
            return np.ascontiguousarray(values)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = ((bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16).astype(np.uint16)
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return np.where(nan, np.uint16(0x7FC0), rounded) if nan.any() else rounded
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, STORED[dtype])


def max_magnitude(bits: np.ndarray, mask: int) -> int:
    """Largest value of ``bits & mask``: one pass serves the finite check and the largest absolute value."""
    flat = bits.reshape(-1)
    scratch = np.empty(min(_TILE, flat.size), bits.dtype)
    best = 0
    for at in range(0, flat.size, _TILE):
        tile = flat[at : at + _TILE]
        best = max(best, int(np.bitwise_and(tile, bits.dtype.type(mask), out=scratch[: tile.size]).max()))
    return best


class Statistics:
    """Running sum per dimension, sum of squares and largest absolute value of a stream.

    Tiles are summed in float32 and accumulated in float64, by reductions whose order does not depend on thread counts.
    """

    def __init__(self, width: int, dtype: str):
        self.sum = np.zeros(width, np.float64)
        self.squares = self.largest = 0.0
        self.dtype = dtype
        rows = max(1, min(1024, _TILE // width))
        self._bits = np.empty((rows, width), np.uint32)
        self._tile = self._bits.view(np.float32)
        self._square = np.empty((rows, width), np.float32)

    def add(self, stored: np.ndarray, largest: int) -> None:
        """Count rows [n, width] in their stored form, of which ``largest`` is the :func:`max_magnitude`."""
        bits = np.array([largest], INFINITE[self.dtype][0])
        self.largest = max(self.largest, float(to_float(bits.view(STORED[self.dtype]), self.dtype)[0]))
        for at in range(0, len(stored), len(self._tile)):
            self._add_tile(stored[at : at + len(self._tile)])

    def _add_tile(self, stored: np.ndarray) -> None:
        n = len(stored)
        tile, square = self._tile[:n], self._square[:n]
        if self.dtype == "bfloat16":
            self._bits[:n] = stored
            self._bits[:n] <<= np.uint32(16)
        else:
            tile[:] = stored
        self.sum += np.add.reduce(tile, axis=0)
        with np.errstate(over="ignore"):
            squares = float(np.add.reduce(np.square(tile, out=square).reshape(-1)))
        self.squares += squares if np.isfinite(squares) else float(np.square(tile, dtype=np.float64).sum())

    def result(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """``sum`` [width] and ``moments`` = (n, sum of squares over all numbers, largest absolute value)."""
        return self.sum, np.array([n, self.squares, self.largest], np.float64)


def to_float(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored numbers as float32 (exact)."""
    if dtype == "bfloat16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float32, copy=False)
