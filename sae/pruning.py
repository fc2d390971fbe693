"""Pruning after training: a smaller dictionary of the latents that are worth keeping, and which they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sae.errors import UserError
from sae.metrics import evaluate
from sae.model import SAE


@dataclass(frozen=True)
class Pruned:
    """A smaller dictionary; ``kept[i]`` is the number that its latent i had.

    Counts are of latents left out, on ``n`` rows.
    """

    dictionary: SAE
    kept: Tensor
    dead: int
    dense: int
    n: int


def prune(sae: SAE, batches: Iterable[Tensor], *, min_firings: int = 1, max_density: float = 1.0) -> Pruned:
    """Leave out latents that fire too seldom or too often on some rows.

    Without latents that never fire the codes of those rows stay what they were, for every kind of activation.

    Args:
        batches: raw rows [B, d_in] (a transcoder's with the output beside). min_firings: latents that fire on fewer
        rows go.
        max_density: latents that fire on a larger share of the rows go.

    Raises:
        UserError: no rows, bounds out of range, or nothing would be left (a Top-K dictionary needs k latents).
    """
    if min_firings < 0 or not 0 < max_density <= 1:
        raise UserError(
            f"min_firings = {min_firings} (rarer latents go) must not be negative, max_density = {max_density} (more"
            " frequent ones go) must be above 0 and at most 1."
        )
    if sae.kind == "write":
        raise UserError("a dictionary of writes is not pruned: train it with fewer latents instead.")
    measured = evaluate(sae, batches)
    dead, dense = measured.fired_F < min_firings, measured.fired_F > max_density * measured.n
    kept = (~(dead | dense)).nonzero().flatten()
    if len(kept) < max(1, sae.k if sae.thresholds() is None else 1):
        raise UserError(
            f"only {len(kept)} of {sae.d_sae} latents would be left. Lower min_firings, raise max_density, or take more"
            " rows."
        )
    return Pruned(select(sae, kept), kept, int(dead.sum()), int((dense & ~dead).sum()), measured.n)


@torch.no_grad()
def select(sae: SAE, latents: Tensor) -> SAE:
    """The dictionary of some latents [n] of another, in the order given; frozen. ``metadata.pruned_from`` says how many
    there were.

    Raises:
        UserError: a crosscoder, whose latents also have places among its sources.
    """
    if sae.kind == "crosscoder":
        raise UserError(
            "a crosscoder is not pruned: which of its latents are shared between sources is fixed by their order."
            " Train it with a smaller d_sae instead."
        )
    whole = sae.folded()
    extra: dict[str, object] = (
        {"d_out": whole.d_out, "skip": getattr(whole, "skip_DD", None) is not None}
        if whole.kind == "transcoder"
        else {}
    )
    out = _empty(whole, len(latents), extra)
    target = dict(out.named_parameters()) | dict(out.named_buffers())
    for name, t in (dict(whole.named_parameters()) | dict(whole.named_buffers())).items():
        per_latent = t.ndim > 0 and name in ("enc_FD", "dec_FD", "b_enc", "threshold_F")
        target[name].copy_(t[latents.to(t.device)] if per_latent else t)
    out.metadata = {**whole.metadata, "pruned_from": whole.d_sae}
    return out.requires_grad_(False).eval()


def _empty(whole: SAE, n: int, transcoder: dict[str, object]) -> SAE:
    from sae.model import empty_sae
    from sae.transcoder import Transcoder

    dtype, device = whole.enc_FD.dtype, whole.enc_FD.device
    if transcoder:
        return Transcoder(whole.d_in, n, whole.activation, dtype=dtype, **transcoder).to(device)  # type: ignore[arg-type]
    return empty_sae(whole.d_in, n, whole.activation, dtype=dtype).to(device)
