"""All circuit analyses of one model on one task: tables, arrays and headline numbers, for either architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sae.errors import UsageError
from workbench.analysis.circuits.effects import answer_metrics, interval, locate_peak
from workbench.analysis.circuits.heads import read_profile
from workbench.analysis.circuits.mamba import mamba_parts
from workbench.analysis.circuits.off_by_one import write_profile
from workbench.analysis.circuits.patching import Patch, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths, is_mamba, is_transformer
from workbench.analysis.circuits.table import OFFSETS, Circuits
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import PromptSet
from workbench.analysis.circuits.transformer import transformer_parts
from workbench.run import QUIET, Run
from workbench.stats import Estimate, wilson


def analyse(
    model: Any,
    prompts: PromptSet,
    *,
    metrics: Sequence[str],
    offsets: Sequence[int] = OFFSETS,
    run: Run = QUIET,
) -> Circuits:
    """Everything `workbench circuits` reports."""
    if not is_transformer(model) and not is_mamba(model):
        raise UsageError(f"circuits are analysed for attention and Mamba-1 mixers, not for {model.cfg.architecture}.")
    found = Circuits(model, prompts, tuple(metrics), offsets)
    with run.bar(f"circuits of {model.cfg.model_name}", None, "part") as bar:
        bar.part("clean runs")
        tail = Tail(model, prompts.clean)
        _answers(found, tail)
        paths = FrozenPaths(model, tail)
        parts = transformer_parts if is_transformer(model) else mamba_parts
        for name, part in parts(found, paths).items():
            bar.part(name)
            part()
        bar.part("activation patching")
        _activation(found)
        bar.part("ablations")
        _ablations(found)
    return found


def compare_to_control(found: Circuits, control: Any, name: str) -> None:
    """Is the peak of the profile more than the untrained `control` shows anywhere? The same prompts, differences prompt
    by prompt.
    """
    p, profile = found.prompts, found.arrays["profile"].astype(np.float64)
    paths = FrozenPaths(control, Tail(control, p.clean))
    run = read_profile if is_transformer(control) else write_profile
    other = run(control, p, paths, found.labels, metrics=("logit_diff",))["logit_diff"]
    peak, strongest = locate_peak(profile), locate_peak(other)
    here, there = (_signed(v, at.index, at.effect.value) for v, at in ((profile, peak), (other, strongest)))
    low, high = interval((here - there)[np.isfinite(here - there)])
    difference = abs(peak.effect.value) - abs(strongest.effect.value)
    found.numbers["control"] = {
        "revision": name,
        "strongest_effect": strongest.effect.as_dict(),
        "excess": Estimate(
            float(difference), float(low), float(high), len(p), "prompts", "bootstrap over prompts, 95 %"
        ).as_dict(),
        "exceeds": bool(low > 0),
    }


def _signed(values: np.ndarray, cell: tuple[int, ...], sign: float) -> np.ndarray:
    """One cell of [P, ...] per prompt, positive where it has the given sign."""
    return values.reshape(len(values), -1)[:, np.ravel_multi_index(cell, values.shape[1:])] * np.sign(sign)


def _answers(found: Circuits, tail: Tail) -> None:
    p = found.prompts
    before = answer_metrics(tail.logits, *_ids(p), tail.logits, [m for m in found.metrics if m != "kl"])
    hits = int((tail.logits.argmax(-1).numpy() == p.answer).sum())
    found.numbers["accuracy"] = wilson(hits, len(p), "prompts").as_dict()
    preferred = int(((tail.logits[np.arange(len(p)), p.answer] - tail.logits[np.arange(len(p)), p.wrong]) > 0).sum())
    found.numbers["prefers_answer"] = wilson(preferred, len(p), "prompts").as_dict()
    for metric, values in before.items():
        low, high = interval(values)
        found.numbers[f"clean_{metric}"] = Estimate(
            float(values.mean()), float(low), float(high), len(p), "prompts", "bootstrap over prompts, 95 %"
        ).as_dict()
        found.arrays[f"clean_{metric}"] = values.astype(np.float32)
    found.arrays |= {"clean": p.clean, "corrupt": p.corrupt, "answer": p.answer, "wrong": p.wrong}
    found.arrays |= {f"mark_{name}": at for name, at in p.marks.items()}
    found.arrays["predicted"] = tail.logits.argmax(-1).numpy()


def _ids(p: PromptSet) -> tuple[Any, Any]:
    return torch.as_tensor(p.answer), torch.as_tensor(p.wrong)


def _activation(found: Circuits) -> None:
    """Total effects of the corrupted activation at every label, layer and site (every head in Transformers)."""
    model, p = found.model, found.prompts
    labels = list(dict.fromkeys([*found.labels, "last"]))
    sites: dict[str, Sequence[int | None]] = {"resid": [None]}
    sites |= (
        {"z": range(model.cfg.n_heads), "mlp": [None]}
        if is_transformer(model)
        else {"mixer": [None], "conv_in": [None]}
    )
    for site, units in sites.items():
        patches = [Patch(site, l, label, unit) for l in range(len(model.blocks)) for unit in units for label in labels]
        values = patch_effects(model, p, patches, metrics=found.metrics)
        axes = {"layer": range(len(model.blocks)), "unit": [-1 if u is None else u for u in units], "position": labels}
        shape = (len(p), *(len(a) for a in axes.values()))
        found.add("activation", "total", {m: v.reshape(shape) for m, v in values.items()}, axes, site=site)


def _ablations(found: Circuits) -> None:
    """Total effects of removing each head (or mixer) at the last position."""
    model, p = found.model, found.prompts
    site, units = ("z", range(model.cfg.n_heads)) if is_transformer(model) else ("mixer", [None])
    patches = [Patch(site, l, "last", unit) for l in range(len(model.blocks)) for unit in units]
    axes = {"layer": range(len(model.blocks)), "unit": [-1 if u is None else u for u in units]}
    for source in ("zero", "mean", "resample"):
        values = patch_effects(model, p, patches, source=source, metrics=found.metrics)  # type: ignore[arg-type]
        shaped = {m: v.reshape(len(p), len(model.blocks), -1) for m, v in values.items()}
        found.add("ablation", "total", shaped, axes, source=source, site=site)
