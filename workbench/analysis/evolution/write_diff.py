"""A crosscoder over two sources that are not snapshots of one training: what they share, what one of them has alone.

Writes ``diff.parquet`` (:func:`workbench.analysis.evolution.diffing.compare_sources` on held-out rows) and states what
it shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.analysis.evolution.diffing import compare_sources
from workbench.analysis.evolution.emergence import partial_spearman
from workbench.analysis.evolution.orders import claim_row
from workbench.stats import wilson

if TYPE_CHECKING:
    from torch import Tensor

    from crosscoders import Crosscoder

MIN_SHARE = 0.01


def write_diff(
    cc: Crosscoder, batches: Iterable[Tensor], folder: Path, *, common_basis: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Compare the two sources latent by latent; returns (headline numbers, claims)."""
    table = compare_sources(cc, 0, 1, batches, common_basis=common_basis)
    table.to_parquet(folder / "diff.parquet", index=False)
    alive = table[table["n_fired"] > 0]
    numbers: dict[str, Any] = {
        "n_compared": len(alive),
        "classes": {str(k): int(v) for k, v in alive["class"].value_counts().items()},
    }
    numbers["confirmed"] = {
        str(k): int(v) for k, v in alive[alive["confirmed"].fillna(False)]["class"].value_counts().items()
    }
    return numbers, diff_claims(alive, cc.sources)


def diff_claims(alive: pd.DataFrame, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Shared and exclusive latents among those that fired, and whether norms and latent scaling tell the same story."""
    n = len(alive)
    shared = wilson(int((alive["class"] == "shared").sum()), n, "latents")
    rows = [
        claim_row(
            "most latents are shared (relative norm 0.4 to 0.6)",
            shared,
            "found" if (shared.low or 0) > 0.5 else "not found",
        )
    ]
    for kind, name in (("first-only", names[0]), ("second-only", names[1])):
        candidates = alive[alive["class"] == kind]
        confirmed = int(candidates["confirmed"].fillna(False).sum())
        share = wilson(confirmed, n, "latents")
        claim = f"{name} has latents of its own (at least {MIN_SHARE:.0%}, confirmed by latent scaling)"
        note = f"{len(candidates)} by norm, {confirmed} confirmed"
        rows.append(claim_row(claim, share, "found" if (share.low or 0) > MIN_SHARE else "not found", note=note))
    weaker = 1 - (2 * alive["relative_norm"] - 1).abs()  # the weaker norm over the stronger
    r = partial_spearman(weaker.to_numpy(), alive["nu_error"].to_numpy(dtype=float))
    claim = "relative norms agree with latent scaling (Spearman of weaker over stronger norm with nu^eps)"
    rows.append(claim_row(claim, r, "found" if (r.low or 0) > 0.5 else "not found"))
    return rows
