"""Geometry of decoder directions: nearest neighbours against chance, families between widths, a two-dimensional map.

How close two unrelated directions come depends on how many there are, on the width, and on how unevenly directions use
the space. Bounds for this are vacuous at small widths, so chance is measured: *isotropic* random directions, and
*matched* ones whose second moment is the decoder's own. Both have the same counts as the real ones.

A family (feature splitting): the latents of a wider dictionary whose nearest latent in the narrower one is the same,
counted only where the cosine exceeds what the matched baseline reaches in one of a thousand latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from sae.errors import UsageError
from workbench.analysis.latents.neighbours import nearest, unit_rows

BASELINES = ("isotropic", "matched")
QUANTILE = 0.999
MAX_QUERIES = 2048


@dataclass(frozen=True)
class Chance:
    """Largest cosines of unrelated directions, pooled over draws; one array per baseline."""

    cosines: dict[str, np.ndarray]
    draws: int

    def threshold(self, baseline: str = "matched", quantile: float = QUANTILE) -> float:
        """Cosine that only ``1 - quantile`` of unrelated latents exceed."""
        return float(np.quantile(self.cosines[baseline], quantile))


def random_directions(like: torch.Tensor, n: int, baseline: str, generator: torch.Generator) -> torch.Tensor:
    """``n`` random directions [n, D]: isotropic, or *matched*: unit-scaled, they have the second moment of the unit
    rows of ``like``.

    Scaling a Gaussian to unit length flattens its spectrum, so the Gaussian's own spectrum is found by fixed-point
    steps.
    """
    d = like.shape[1]
    if baseline == "isotropic":
        return torch.randn(n, d, generator=generator)
    unit = unit_rows(like).double()
    target, vectors = torch.linalg.eigh(unit.T @ unit / len(unit))
    target = target.clamp_min(0)
    probe = torch.randn(4096, d, generator=generator, dtype=torch.float64)
    spectrum = target.clone()
    for _ in range(20):
        square = probe.square() * spectrum
        got = (square / square.sum(1, keepdim=True).clamp_min(1e-30)).mean(0)
        spectrum = spectrum * torch.where(got > 0, target / got, torch.zeros_like(got))
    return ((torch.randn(n, d, generator=generator, dtype=torch.float64) * spectrum.sqrt()) @ vectors.T).float()


def chance(W: torch.Tensor, to: torch.Tensor | None = None, *, draws: int = 3, seed: int = 0) -> Chance:
    """Nearest cosines of random directions in place of ``W`` [F, D] to random ones in place of ``to`` (default: among
    themselves).
    """
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[np.ndarray]] = {b: [] for b in BASELINES}
    for baseline in BASELINES:
        for _ in range(draws):
            candidates = random_directions(W if to is None else to, len(W if to is None else to), baseline, generator)
            if to is None and len(W) <= MAX_QUERIES:
                found[baseline].append(nearest(candidates, n=1)[1][:, 0])
            else:
                queries = random_directions(W, min(len(W), MAX_QUERIES), baseline, generator)
                found[baseline].append(nearest(queries, candidates if to is not None else candidates[1:], n=1)[1][:, 0])
    return Chance({b: np.concatenate(v) for b, v in found.items()}, draws)


def cosine_histogram(real: np.ndarray, against: Chance, *, bins: int = 80) -> pd.DataFrame:
    """Tidy histogram (series, left, right, count, n) of nearest cosines and both baselines on one grid over [-1, 1]."""
    edges = np.linspace(-1, 1, bins + 1)
    rows = []
    for series, values in {"decoder": real, **against.cosines}.items():
        values = values[np.isfinite(values)]
        for i, count in enumerate(np.histogram(values, edges)[0].tolist()):
            rows.append({"series": series, "left": edges[i], "right": edges[i + 1], "count": count, "n": len(values)})
    return pd.DataFrame(rows)


def families(
    narrow: torch.Tensor, wide: torch.Tensor, *, against: Chance | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which latents of a wide dictionary [F2, D] split off which of a narrow one [F1, D].

    Returns:
        children: latent (of the wide one), parent (of the narrow one; -1 where the cosine is within chance), cosine,
        threshold.
        parents: latent (of the narrow one), n_children, best_cosine (to any wide latent).

    Raises:
        UsageError: different widths D, or the "narrow" one has more latents.
    """
    if narrow.shape[1] != wide.shape[1]:
        raise UsageError(
            "families follow latents from a narrow dictionary to a wider one of the same hook; these have rows of"
            f" width {narrow.shape[1]} and {wide.shape[1]}."
        )
    if len(narrow) > len(wide):
        raise UsageError(f"the first dictionary ({len(narrow):,} latents) must not be the wider one ({len(wide):,}).")
    limit = (against or chance(wide, narrow)).threshold()
    ids, cosines = nearest(wide, narrow, 1)
    parent = np.where(cosines[:, 0] > limit, ids[:, 0], -1).astype(np.int32)
    children = pd.DataFrame(
        {"latent": np.arange(len(wide), dtype=np.int32), "parent": parent, "cosine": cosines[:, 0], "threshold": limit}
    )
    back = nearest(narrow, wide, 1)[1][:, 0]
    counts = np.bincount(parent[parent >= 0], minlength=len(narrow))
    parents = pd.DataFrame(
        {"latent": np.arange(len(narrow), dtype=np.int32), "n_children": counts, "best_cosine": back}
    )
    return children, parents


def umap_layout(W: torch.Tensor, *, seed: int = 0, n_neighbors: int = 15, min_dist: float = 0.1) -> np.ndarray:
    """[F, 2] float32 UMAP of unit decoder directions with cosine distance; deterministic for a seed.

    UMAP keeps neighbourhoods, not distances or densities: the map is for finding one's way, not for measuring.

    Raises:
        UsageError: fewer than four latents.
    """
    if len(W) < 4:
        raise UsageError(f"a map needs at least 4 latents, not {len(W)}.")
    import warnings

    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = umap.UMAP(
            n_neighbors=min(n_neighbors, len(W) - 1), min_dist=min_dist, metric="cosine", random_state=seed, n_jobs=1
        )
        return np.asarray(reducer.fit_transform(unit_rows(W).numpy()), dtype=np.float32)


def density_grid(points: np.ndarray, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """(counts uint32 [bins, bins] indexed [x, y], edges float32 [2, bins + 1]) of a layout [F, 2]."""
    counts, x, y = np.histogram2d(points[:, 0], points[:, 1], bins=bins)
    return counts.astype(np.uint32), np.stack([x, y]).astype(np.float32)
