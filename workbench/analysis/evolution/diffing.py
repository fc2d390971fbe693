"""What two sources of a crosscoder share and what only one of them has: a base and a fine-tuned model, a Transformer
and a Mamba.

Two kinds of evidence per latent, in that order. The *relative norm* of the second source (0 = only in the first, 1 =
only in the second)

    delta = ( (n_2 - n_1) / max(n_1, n_2) + 1 ) / 2

names candidates: above 0.9 *second-only*, below 0.1 *first-only*, between 0.4 and 0.6 *shared*, else *mixed*. Because
the penalty can shrink a norm that the data would keep, a candidate is confirmed by *latent scaling*
(:mod:`crosscoders.scaling`): nu^eps < 0.2 and nu^r < 0.5 in the source it is said to be absent from. Thresholds:
Kissane et al.'s replication of Anthropic's crosscoders, and Minder et al. 2025 (arXiv 2504.02922). The direction whose
presence is asked for is that of the source where the latent is stronger, which supposes that both sources share a
basis; unrelated models do not, and there each source's own decoder row is used. Nor do their norms share a unit: where
a few directions hold most of a model's variance, all its other latents are short beside it. Norms of unrelated models
are compared in units of each source's median.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd

from sae.errors import UsageError
from sae.strict import nearest

if TYPE_CHECKING:
    from torch import Tensor

    from crosscoders import Crosscoder
    from crosscoders.scaling import Scaling

EXCLUSIVE, SHARED = 0.1, (0.4, 0.6)
NU_ERROR, NU_RECONSTRUCTION = 0.2, 0.5


def relative_norm(first: npt.ArrayLike, second: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """delta in [0, 1] from two arrays of norms; NaN where both are zero."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    top = np.maximum(a, b)
    return 0.5 * ((b - a) / np.where(top > 0, top, np.nan) + 1)


def norm_class(delta: npt.ArrayLike) -> npt.NDArray[np.str_]:
    """*first-only*, *shared*, *second-only*, *mixed*, or *never* (zero norms) of every latent."""
    d = np.asarray(delta, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        conditions = [np.isnan(d), d < EXCLUSIVE, d > 1 - EXCLUSIVE, (d >= SHARED[0]) & (d <= SHARED[1])]
    return np.select(conditions, ["never", "first-only", "second-only", "shared"], default="mixed")


def measure_scaling(cc: Crosscoder, batches: Iterable[Tensor], *, reference: Tensor | None = None) -> Scaling:
    """Latent scaling of a crosscoder over raw rows, in training scale.

    Args:
        reference: per latent the source whose decoder row is the common direction (see
        :class:`crosscoders.ScalingMeter`).
    """
    import torch

    from crosscoders import ScalingMeter
    from crosscoders.gates import OwnMagnitude, PerSource

    scale = torch.cat([s.expand(w) for s, w in zip(cc.source_scale_S, cc.widths, strict=True)])
    meter = ScalingMeter(cc.decoder_blocks(), reference)
    gain = cc.gain_F
    with torch.no_grad():
        for x in batches:
            y, values, indices = cc.reconstructed(x)
            bias = cc.b_dec / cc.scale_D  # raw, before and after folding
            at = None
            if isinstance(cc.activation, PerSource | OwnMagnitude):
                at = [f / gain[indices] for f in cc.source_values(x)[0]]
            meter.update(values / gain[indices], indices, x * scale, y * scale, bias * scale, at)
    return meter.result()


def compare_sources(
    cc: Crosscoder,
    first: str | int,
    second: str | int,
    batches: Iterable[Tensor] | None = None,
    *,
    common_basis: bool = True,
) -> pd.DataFrame:
    """One row per latent: norms, relative norm, cosine (equal widths), class by norm, and with ``batches`` latent
    scaling.

    Without a ``common_basis`` (unrelated models, also of one width) no direction is compared between the sources, and
    the relative norm is taken in units of each source's median norm; ``norm_first`` and ``norm_second`` are in training
    scale always.

    Columns of the scaling: ``nu_error``, ``nu_reconstruction`` (of the weaker source relative to the stronger one),
    ``confirmed`` (True/False for candidates, missing for others), ``n_fired``.

    Raises:
        UsageError: a source the crosscoder does not have; the message names the nearest.
    """
    import torch

    from crosscoders.evolution import cosine_matrices

    a, b = (_index(cc, s) for s in (first, second))
    norms = cc.decoder_norms().double().numpy()
    unit = (
        np.ones(2) if common_basis else np.array([np.median(n[n > 0]) if (n > 0).any() else 1.0 for n in norms[[a, b]]])
    )
    delta = relative_norm(norms[a] / unit[0], norms[b] / unit[1])
    table = pd.DataFrame(
        {"latent": np.arange(cc.d_sae), "norm_first": norms[a], "norm_second": norms[b], "relative_norm": delta}
    )
    table["class"] = norm_class(delta)
    if common_basis and cc.widths[a] == cc.widths[b]:
        blocks = cc.decoder_blocks()
        table["cosine"] = cosine_matrices([blocks[a].numpy(), blocks[b].numpy()])[:, 0, 1]
    if batches is None:
        return table
    common = None
    second_stronger = ~(delta < 0.5)
    if common_basis and len(set(cc.widths)) == 1:
        common = torch.where(torch.from_numpy(second_stronger), b, a)
    scaling = measure_scaling(cc, batches, reference=common)
    nu: dict[str, np.ndarray] = {}
    for k, name in enumerate(("nu_error", "nu_reconstruction")):
        of_first, of_second = scaling.ratio(of=a, to=b)[k].numpy(), scaling.ratio(of=b, to=a)[k].numpy()
        nu[name] = np.where(second_stronger, of_first, of_second)
        table[name] = nu[name]
    table["n_fired"] = scaling.n_fired.numpy()
    candidate = table["class"].isin(["first-only", "second-only"]).to_numpy()
    with np.errstate(invalid="ignore"):
        specific = (nu["nu_error"] < NU_ERROR) & (nu["nu_reconstruction"] < NU_RECONSTRUCTION)
    known = candidate & np.isfinite(nu["nu_error"]) & np.isfinite(nu["nu_reconstruction"])
    table["confirmed"] = pd.Series(specific, dtype="boolean").mask(~known)
    return table


def _index(cc: Crosscoder, source: str | int) -> int:
    if isinstance(source, int) and -len(cc.sources) <= source < len(cc.sources):
        return source % len(cc.sources)
    if source in cc.sources:
        return cc.sources.index(str(source))
    raise UsageError(f"the crosscoder has no source {source!r} ({nearest(str(source), list(cc.sources))})")
