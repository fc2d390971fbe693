"""What a model can do at each snapshot: its loss beside the n-gram entropies, the tasks it solves, the room its latents
take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from crosscoders import evolution as ev
from workbench.analysis.circuits.tasks import PromptSet
from workbench.analysis.evolution.attribution import accuracies
from workbench.analysis.evolution.ngrams import NgramTable, PhaseMeter
from workbench.analysis.evolution.snapshots import Snapshots
from workbench.run import QUIET, Run


@torch.no_grad()
def language_phases(
    snapshots: Snapshots,
    table: NgramTable,
    tokens: np.ndarray,
    *,
    batch: int = 32,
    run: Run = QUIET,
) -> pd.DataFrame:
    """Loss and n-gram divergences of every source on held-out tokens [n_seq, ctx]; one row per source (see
    :mod:`workbench.analysis.evolution.ngrams`).
    """
    ids = torch.from_numpy(tokens.astype(np.int64))
    rows = []
    for i in run.each(range(len(snapshots)), "loss and n-grams", unit="snapshot"):
        meter = PhaseMeter(table)
        model = snapshots.model(i)
        for part in ids.split(batch):
            meter.update(part, model(part, return_type="logits")[..., : table.vocab])
        rows.append(asdict(meter.result()))
    out = pd.DataFrame(rows)
    out.insert(0, "source", [s.name for s in snapshots.sources])
    out["h1"], out["h2"] = table.h1, table.h2
    return out


def task_accuracies(snapshots: Snapshots, prompts: Sequence[PromptSet]) -> pd.DataFrame:
    """``accuracy_<task>`` of every source (see :func:`workbench.analysis.evolution.attribution.accuracies`);
    ``n_<task>`` prompts.
    """
    out: dict[str, Any] = {}
    for p in prompts:
        out[f"accuracy_{p.task}"] = accuracies(snapshots, p)
        out[f"n_{p.task}"] = len(p)
    return pd.DataFrame(out)


def latent_phases(
    blocks: list[npt.NDArray[np.float32]], cosines_FSS: npt.NDArray[np.float32] | None, alive: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    """Dimensionality, mean norm, and mean cosine to the next source, over alive latents; one row per source."""
    S = len(blocks)
    out: dict[str, Any] = {
        "dimensionality": [ev.total_dimensionality(b[alive]) for b in blocks],
        "mean_norm": [float(np.linalg.norm(b[alive], axis=1).mean()) for b in blocks],
    }
    if cosines_FSS is not None:
        nxt = np.full(S, np.nan)
        nxt[:-1] = np.nanmean(cosines_FSS[alive][:, np.arange(S - 1), np.arange(1, S)].astype(np.float64), axis=0)
        out["cosine_next"] = nxt
    return pd.DataFrame(out)


def first_solved(accuracy: npt.ArrayLike, *, level: float = 0.8) -> int:
    """First source from which on the accuracy stays at or above ``level``; -1 if it does not at the last."""
    a = np.asarray(accuracy) >= level
    if not len(a) or not a[-1]:
        return -1
    return int(len(a) - np.argmin(a[::-1])) if not a.all() else 0


def end_of_ngram_phase(kl_to_bigram: npt.ArrayLike) -> int:
    """The source at which the model is closest to the bigram table token by token; it leaves the n-gram phase
    afterwards.
    """
    return int(np.nanargmin(np.asarray(kl_to_bigram, dtype=np.float64)))
