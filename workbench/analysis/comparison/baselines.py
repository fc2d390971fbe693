"""What similarity looks like where there is none, or all there can be.

Nulls, on the same codes: one permutation of the tokens of one side (keeps densities and which latents fire together),
and a circular shift by at least a document (keeps the order of tokens, too). Random-weight encoders with matched
densities see the same activations without having learned anything. The maximum over many candidates inflates all of
them, most for rare latents, so null quantiles are given per bin of firing counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from sae.errors import UsageError
from workbench.analysis.correlation import Floats, Ints
from workbench.stats import interval95

MIN_BIN = 30  # latents a null quantile rests on at least: neighbouring bins are joined until they hold as many


def permuted(codes: Any, rng: np.random.Generator) -> sp.csr_array:
    """The codes with their tokens in random order, the same for all latents."""
    return sp.csr_array(codes)[rng.permutation(codes.shape[0])]


def rotated(codes: Any, seq: NDArray[np.integer], rng: np.random.Generator, *, at_least: int = 1) -> sp.csr_array:
    """The codes moved on by a random number of whole sequences (at least ``at_least`` from home on either side),
    circularly.

    Args:
        seq: [tokens] sequence of each row; rows of a sequence are consecutive.

    Raises:
        UsageError: too few sequences to move by so many.
    """
    starts = np.flatnonzero(np.concatenate([[True], np.diff(seq) != 0]))
    n = len(starts)
    if n < 2 * at_least + 1:
        raise UsageError(
            f"the chance level pairs each text with one at least {at_least} sequences further on, which needs more"
            f" than {2 * at_least} sequences; there are {n}. Compare on more tokens, or leave that baseline out."
        )
    by = int(starts[rng.integers(at_least, n - at_least + 1)])
    x = sp.csr_array(codes)
    return sp.vstack([x[by:], x[:by]], format="csr")


def random_codes(x: torch.Tensor, densities: Floats, *, generator: torch.Generator, block: int = 512) -> sp.csr_array:
    """Codes of an encoder with random weights: Gaussian directions, thresholds such that each latent fires as often as
    asked.

    Args:
        x: [tokens, d] raw activations, float32.
        densities: [F] share of tokens on which each latent shall fire.
    """
    n = len(x)
    centred = (x - x.mean(0)).t()
    columns = []
    for lo in range(0, len(densities), block):
        counts = np.round(densities[lo : lo + block] * n).astype(np.int64)
        directions = torch.randn(len(counts), len(centred), generator=generator)
        pre = ((directions / directions.norm(dim=1, keepdim=True)) @ centred).numpy()  # [latents, tokens]
        columns += [_strongest(row, int(k)) for row, k in zip(pre, counts, strict=True)]
    indptr = np.concatenate([[0], np.cumsum([len(at) for at, _ in columns])])
    rows, data = (np.concatenate([c[i] for c in columns]) for i in (0, 1))
    return sp.csr_array(sp.csc_array((data, rows, indptr), shape=(n, len(densities))))


def _strongest(row: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Where the k largest entries are, and by how much they exceed the next one."""
    if k < 1:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    order = np.argpartition(row, len(row) - k)[len(row) - k :] if k < len(row) else np.arange(len(row))
    rest = np.delete(row, order)
    floor = rest.max() if len(rest) else row.min() - np.float32(1e-6)
    at = np.sort(order)
    return at, np.maximum(row[at] - floor, np.float32(1e-12))


def firing_bins(n_fired: Ints, min_count: int = MIN_BIN) -> Ints:
    """Edges of bins of firing counts: powers of two, joined upwards until each holds ``min_count`` latents.

    Returns ascending edges [bins + 1]; latent i is in bin ``searchsorted(edges, n_fired, "right") - 1``.
    """
    fired = n_fired[n_fired > 0]
    if not len(fired):
        return np.array([1, 2])
    powers = 2 ** np.arange(0, int(fired.max()).bit_length() + 1)
    counts = np.histogram(fired, powers)[0]
    edges, held = [int(powers[0])], 0
    for right, count in zip(powers[1:], counts, strict=True):
        held += int(count)
        if held >= min_count:
            edges.append(int(right))
            held = 0
    if held or len(edges) == 1:  # what is left joins the last bin
        edges = [*edges[:-1], int(powers[-1])] if len(edges) > 1 else [edges[0], int(powers[-1])]
    return np.array(edges)


def null_by_bin(
    null_r: Floats, null_fired: Ints, edges: Ints, quantiles: tuple[float, ...] = (0.5, 0.95, 0.99)
) -> Floats:
    """[bins, quantiles] of null maxima, by how often the latent fires; NaN where a bin is empty."""
    which = np.searchsorted(edges, null_fired, side="right") - 1
    out = np.full((len(edges) - 1, len(quantiles)), np.nan)
    for b in range(len(out)):
        inside = null_r[(which == b) & np.isfinite(null_r)]
        if len(inside):
            out[b] = np.quantile(inside, quantiles)
    return out


def per_latent(values_by_bin: Floats, n_fired: Ints, edges: Ints) -> Floats:
    """[F] the bin's value for each latent; NaN outside all bins."""
    which = np.searchsorted(edges, n_fired, side="right") - 1
    inside = (which >= 0) & (which < len(values_by_bin))
    return np.where(inside, values_by_bin[which.clip(0, len(values_by_bin) - 1)], np.nan)


def interval(
    values: Floats, *, statistic: Callable[..., Any] = np.mean, rng: np.random.Generator, n_boot: int = 1000
) -> tuple[float, float]:
    """95 % bootstrap interval of a statistic over latents (NaN left out); NaN, NaN for fewer than two."""
    x = values[np.isfinite(values)]
    if len(x) < 2:
        return float("nan"), float("nan")
    means = np.concatenate(
        [statistic(x[rng.integers(0, len(x), (min(100, n_boot - i), len(x)))], axis=1) for i in range(0, n_boot, 100)]
    )
    return interval95(means)


def difference(
    low: Floats, high: Floats, *, paired: bool, rng: np.random.Generator, n_boot: int = 1000
) -> tuple[float, float, float]:
    """mean(high) - mean(low) with its 95 % bootstrap interval; ``paired`` where both list the same latents."""
    if paired:
        both = np.isfinite(low) & np.isfinite(high)
        d = high[both] - low[both]
        return (float(d.mean()) if len(d) else float("nan"), *interval(d, rng=rng, n_boot=n_boot))
    a, b = low[np.isfinite(low)], high[np.isfinite(high)]
    if len(a) < 2 or len(b) < 2:
        return float("nan"), float("nan"), float("nan")
    boot = [
        b[rng.integers(0, len(b), len(b))].mean() - a[rng.integers(0, len(a), len(a))].mean() for _ in range(n_boot)
    ]
    return float(b.mean() - a.mean()), *interval95(boot)
