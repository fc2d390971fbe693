"""A latent's decoder norm at a snapshot follows how well a linear probe reads the latent there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab

if TYPE_CHECKING:
    import torch

LATENTS, FIRINGS = 200, 40  # latents probed per seed; firings each needs in either half
RIDGE = 1e-2


def separability(x_ND: np.ndarray, on_NF: np.ndarray) -> np.ndarray:
    """[F] area under the ROC of a linear probe for each column of ``on``: least squares on the first half of the rows,
    tested on the second.
    """
    from scipy.stats import rankdata

    half = len(x_ND) // 2
    x = x_ND - x_ND[:half].mean(0)
    y = on_NF.astype(np.float64)
    square = x[:half].T @ x[:half]
    square += RIDGE * np.trace(square) / len(square) * np.eye(len(square))
    scores = x[half:] @ np.linalg.solve(square, x[:half].T @ (y[:half] - y[:half].mean(0)))
    positive = on_NF[half:]
    n1 = positive.sum(0)
    ranks = rankdata(scores, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        out: np.ndarray = ((ranks * positive).sum(0) - n1 * (n1 + 1) / 2) / (n1 * (len(scores) - n1))
    return out


def within(norms_FS: np.ndarray, auc_FS: np.ndarray) -> np.ndarray:
    """[F] rank correlation over snapshots of each latent's two curves; NaN where one of them is flat."""
    from scipy.stats import rankdata

    a, b = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2 for v in (norms_FS, auc_FS))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.where(size > 0, (a * b).sum(1) / np.where(size > 0, size, 1), np.nan)


def held_rows(lab: Lab, evolution: Any) -> tuple[list[torch.Tensor], np.ndarray]:
    """Held-out rows of all snapshots side by side, a few sequences at a time, kept for all seeds; and the tokens
    [n, ctx - 1] they stand at.
    """

    def make() -> Any:
        from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
        from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots
        from workbench.corpus import plan_tokens
        from workbench.models.load import load_tokenizer

        recipe = EvolveRecipe.model_validate(evolution.manifest.recipe)
        tokenizer = load_tokenizer(recipe.model)
        n = 96 if lab.quick else 256
        plan = plan_tokens(recipe.corpus.model_copy(update={"split": "heldout"}), tokenizer, n_seq=n, ctx=recipe.ctx)
        batches = OnlineBatches(Snapshots(resolve_sources(recipe)), plan.tokens, 1, seed=0)
        rows = [batches.rows_of(np.arange(i, min(i + 16, n))) for i in range(0, n, 16)]
        return rows, np.asarray(plan.tokens)[:, 1:]

    found: tuple[list[torch.Tensor], np.ndarray] = lab.once("held-out rows of the snapshots", make)
    return found


def _curves(lab: Lab, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(relative norms, separabilities), both [F, S], of some latents that fire often enough."""
    import torch

    from crosscoders import Crosscoder

    evolution = lab.evolution(seed)
    rows, _ = held_rows(lab, evolution)
    cc = Crosscoder.load(lab.workspace.get("dictionaries", evolution.id).path)

    def codes() -> Iterator[torch.Tensor]:
        for x in rows:
            values, indices = cc.encode_sparse(x)
            yield torch.zeros(len(x), cc.d_sae, dtype=torch.bool).scatter_(1, indices, values > 0)

    on = torch.cat(list(codes())).numpy()
    half = len(on) // 2
    often = np.flatnonzero((on[:half].sum(0) >= FIRINGS) & (on[half:].sum(0) >= FIRINGS) & (on.mean(0) < 0.5))
    chosen = np.sort(np.random.default_rng(seed).permutation(often)[:LATENTS])
    parts = [[p.double().numpy() for p in cc.split(x)] for x in rows]
    auc = np.stack(
        [separability(np.concatenate([p[s] for p in parts]), on[:, chosen]) for s in range(len(cc.widths))], axis=1
    )
    norms = evolution.norms(chosen)
    assert norms is not None  # a crosscoder over snapshots has them
    return norms / norms.max(1, keepdims=True), auc


def measure(lab: Lab) -> Finding:
    """Mean within-latent rank correlation, in the seed where it is least; control: norms of one latent beside the probe
    of another.
    """
    rows = []
    for seed in lab.each_seed():
        norms, auc = _curves(lab, seed)
        r = within(norms, auc)
        if np.isfinite(r).sum() < 20:
            return untestable(f"{np.isfinite(r).sum()} latents fire often enough to be probed")
        rng = np.random.default_rng(seed)
        null = [np.nanmean(within(norms[rng.permutation(len(norms))], auc)) for _ in range(200)]
        rows.append(
            {
                "seed": seed,
                "r": float(np.nanmean(r)),
                "null": float(np.mean(null)),
                "null_high": float(np.quantile(null, 0.975)),
                "n": int(np.isfinite(r).sum()),
                "auc": float(auc.mean()),
            }
        )
    table = pd.DataFrame(rows)
    note = (
        f"probes' area under the ROC {table['auc'].mean():.2f} on average; shuffled latents share the"
        f" trend of training;"
        " the probed code is read from all snapshots, those of large norm most"
    )
    unit = "rank correlation"
    return Finding(Measured.of(table["r"], unit=unit), Measured.of(table["null"], unit=unit), table, note)


CLAIM = Claim(
    id="evolution.norm-tracks-probe",
    paper="evolution",
    section="4.1",
    statement="A latent's decoder norm over the snapshots follows how well a linear probe finds the latent there.",
    paper_number="decoder norm tracks linear separability, figure only",
    experiment=(
        "At every snapshot a linear probe for whether a latent fires, on half of the held-out rows, tested on the"
        " other; rank correlation of its area under the ROC with the decoder norm within each latent."
    ),
    control="Decoder norms of one latent beside the probes of another, 200 times.",
    rule=Rule("above", 0.0, "beaten"),
    unit="seed of the crosscoder; one training run of the model",
    would_change="Norms of other latents that follow the probe as well.",
    measure=measure,
    needs=("evolution",),
    cost=8,
)
