"""The same contexts at every snapshot: what a latent reads in them before it is born, at its peak and afterwards.

A crosscoder has one code for all snapshots, so a snapshot's share of it has to be said: the pre-activation is a sum
over snapshots, z = sum_s c_s + b, and the *reading* of snapshot s is max(0, S c_s + b), the latent if all snapshots
looked like this one. Readings average to z. Those below the smallest activation the latent was ever kept with count as
zero.

Axes: F latents, K contexts, S sources, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Chosen windows: sequence, first position and peak within the window, each int64 [F, K]; sequence -1 = none."""

    seq: Ints
    start: Ints
    peak: Ints
    length: int


def choose_windows(codes: sparse.csr_array, ctx: int, *, contexts: int = 4, length: int = 24) -> Windows:
    """The ``contexts`` strongest firings of every latent in different sequences, each in a window of ``length`` tokens.

    ``codes`` [n_seq * (ctx - 1), F]: rows in order, position 0 left out.
    """
    length = min(length, ctx)
    columns = sparse.csc_array(codes)
    F = codes.shape[1]
    seq, start, peak = (np.full((F, contexts), -1, dtype=np.int64) for _ in range(3))
    for i in range(F):
        part = slice(columns.indptr[i], columns.indptr[i + 1])
        order = np.argsort(-columns.data[part], kind="stable")
        rows = columns.indices[part][order].astype(np.int64)
        rows = rows[columns.data[part][order] > 0]
        _, first = np.unique(rows // (ctx - 1), return_index=True)
        rows = rows[np.sort(first)[:contexts]]
        pos = rows % (ctx - 1) + 1
        at = np.clip(pos - (3 * length) // 4, 0, ctx - length)
        seq[i, : len(rows)], start[i, : len(rows)], peak[i, : len(rows)] = rows // (ctx - 1), at, pos - at
    return Windows(seq, start, peak, length)


@dataclass(frozen=True)
class Scrub:
    """``acts`` uint8 [F, K, S, T] and ``code`` uint8 [F, K, T] in units of ``top`` [F] / 255; ``tokens`` int32 [F, K,
    T], -1 = none.
    """

    tokens: npt.NDArray[np.int32]
    acts: npt.NDArray[np.uint8]
    code: npt.NDArray[np.uint8]
    top: npt.NDArray[np.float32]


@torch.no_grad()
def scrub(
    cc: Any,
    rows_of: Callable[[np.ndarray], torch.Tensor],
    tokens: np.ndarray,
    codes: sparse.csr_array,
    windows: Windows,
    *,
    is_row: npt.NDArray[np.bool_] | None = None,
) -> Scrub:
    """Readings of the chosen windows at every source.

    Args:
        cc: a folded crosscoder. rows_of: sequences -> raw rows [n * (ctx - 1), D]. tokens: [n_seq, ctx].
        is_row: [n_seq, ctx - 1], which tokens after position 0 are data; default: all.
    """
    F, K = windows.seq.shape
    S, T, ctx = len(cc.widths), windows.length, tokens.shape[1]
    readings = np.zeros((F, K, S, T), dtype=np.float32)
    code = np.zeros((F, K, T), dtype=np.float32)
    ids = np.full((F, K, T), -1, dtype=np.int32)
    least = _smallest_kept(codes)
    for seq in np.unique(windows.seq[windows.seq >= 0]):
        latent, slot = np.nonzero(windows.seq == seq)
        positions = windows.start[latent, slot][:, None] + np.arange(T)[None, :]  # [n, T]
        ids[latent, slot] = tokens[seq][positions]
        row = np.maximum(positions - 1, 0)
        inside = (positions > 0) & (True if is_row is None else is_row[seq][row])
        x = cc.split(rows_of(np.array([seq])) - cc.b_dec)
        for s, (part, enc) in enumerate(zip(x, cc.enc_FD.split(cc.widths, 1), strict=True)):
            c = (part @ enc.t()).numpy()
            readings[latent, slot, s] = (S * c[row, latent[:, None]] + cc.b_enc.numpy()[latent][:, None]) * inside
        mine = codes[seq * (ctx - 1) : (seq + 1) * (ctx - 1)].toarray()
        code[latent, slot] = mine[row, latent[:, None]] * inside
    readings[readings < 0.999 * least[:, None, None, None]] = 0  # the sum over sources rounds differently
    top = np.maximum(readings.max((1, 2, 3)), code.max((1, 2)))
    unit = 255 / np.where(top > 0, top, 1)
    acts = np.rint(readings * unit[:, None, None, None]).astype(np.uint8)
    return Scrub(ids, acts, np.rint(code * unit[:, None, None]).astype(np.uint8), top.astype(np.float32))


def _smallest_kept(codes: sparse.csr_array) -> npt.NDArray[np.float32]:
    """Smallest positive activation of every latent [F]; infinity where it never fired."""
    least = np.full(codes.shape[1], np.inf, dtype=np.float32)
    on = codes.data > 0
    np.minimum.at(least, codes.indices[on], codes.data[on])
    return least
