"""All circuit analyses of one model on one task: tables, arrays and headline numbers, for either architecture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.analysis.circuits.attribution import BEST_FLOPS, EXACT_FLOPS, attribution, best, patch_flops
from workbench.analysis.circuits.effects import answer_metrics, interval, locate_peak
from workbench.analysis.circuits.heads import read_profile
from workbench.analysis.circuits.mamba import mamba_parts
from workbench.analysis.circuits.off_by_one import write_profile
from workbench.analysis.circuits.patching import Patch, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths, check_circuits, is_transformer
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
    check_circuits(model)
    found = Circuits(model, prompts, tuple(metrics), offsets)
    with run.bar(f"circuits of {model.cfg.model_name}", None, "part") as bar:
        bar.part("clean runs")
        begin = time.perf_counter()
        tail = Tail(model, prompts.clean)  # two runs of all prompts
        seconds_per_flop = (time.perf_counter() - begin) / (
            2 * patch_flops(model, prompts, [Patch("resid", 0, "last")])
        )
        _answers(found, tail)
        paths = FrozenPaths(model, tail)
        parts = transformer_parts if is_transformer(model) else mamba_parts
        for name, part in parts(found, paths).items():
            bar.part(name)
            part()
        bar.part("activation patching")
        first_order = _activation(found, run, seconds_per_flop)
        bar.part("ablations")
        _ablations(found, first_order)
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


def _labels(found: Circuits) -> list[str]:
    """Positions of activation patching."""
    return list(dict.fromkeys([*found.labels, "last"]))


def _sites(model: Any) -> dict[str, Sequence[int | None]]:
    """What activation patching replaces: site -> its units."""
    sites: dict[str, Sequence[int | None]] = {"resid": [None]}
    return sites | (
        {"z": range(model.cfg.n_heads), "mlp": [None]}
        if is_transformer(model)
        else {"mixer": [None], "conv_in": [None]}
    )


def _activation(found: Circuits, run: Run, seconds_per_flop: float) -> dict[str, np.ndarray] | None:
    """Total effects of the corrupted activation at every label, layer and site (every head in Transformers).

    On a model for which that would take long: first-order effects of all, exact ones of the best (see
    :mod:`workbench.analysis.circuits.attribution`). Returns the first-order effects, site -> [P, L, units, labels];
    None where every cell was patched.
    """
    model, p = found.model, found.prompts
    labels, layers = _labels(found), range(len(model.blocks))
    sites = _sites(model)
    every = {
        site: [Patch(site, l, label, unit) for l in layers for unit in units for label in labels]
        for site, units in sites.items()
    }
    flops = sum(patch_flops(model, p, patches) for patches in every.values())
    effects, chosen = None, {}
    if flops > EXACT_FLOPS:
        effects = attribution(model, p, {site: units != [None] for site, units in sites.items()}, labels)
        one = {site: np.array([patch_flops(model, p, [Patch(site, l, "last")]) for l in layers]) for site in sites}
        chosen = best(effects, one, BEST_FLOPS)
        run.say(
            f"patching all {sum(map(len, every.values())):,} activations would take about"
            f" {max(1, round(flops * seconds_per_flop / 60)):,} min, so attribution ranks them and the best"
            f" {sum(int(c.sum()) for c in chosen.values())} are patched: about"
            f" {max(1, round(BEST_FLOPS * seconds_per_flop / 60))} min"
        )
    for site, units in sites.items():
        axes = {"layer": layers, "unit": [-1 if u is None else u for u in units], "position": labels}
        shape = tuple(len(a) for a in axes.values())
        wanted = np.flatnonzero(chosen[site]) if effects is not None else np.arange(len(every[site]))
        if effects is not None:
            found.add("attribution", "total", {"logit_diff": effects[site]}, axes, site=site)
        if not len(wanted):
            continue
        values = patch_effects(model, p, [every[site][i] for i in wanted], metrics=found.metrics)
        found.add("activation", "total", {m: _grid(v, wanted, shape) for m, v in values.items()}, axes, site=site)
    return effects


def _grid(values: np.ndarray, cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[P, *shape] from [P, cells]; NaN, not computed, elsewhere."""
    out = np.full((len(values), int(np.prod(shape))), np.nan)
    out[:, cells] = values
    return out.reshape(len(values), *shape)


def _ablations(found: Circuits, first_order: dict[str, np.ndarray] | None) -> None:
    """Total effects of removing each head (or mixer) at the last position; where first-order effects chose what is
    patched, of the heads they choose at that position.
    """
    model, p = found.model, found.prompts
    site, units = ("z", range(model.cfg.n_heads)) if is_transformer(model) else ("mixer", [None])
    patches = [Patch(site, l, "last", unit) for l in range(len(model.blocks)) for unit in units]
    axes = {"layer": range(len(model.blocks)), "unit": [-1 if u is None else u for u in units]}
    wanted = np.arange(len(patches))
    if first_order is not None:
        one = {site: np.array([patch_flops(model, p, [Patch(site, l, "last")]) for l in axes["layer"]])}
        last = _labels(found).index("last")
        at_last = first_order[site][..., last : last + 1]
        wanted = np.flatnonzero(best({site: at_last}, one, BEST_FLOPS / 3)[site])  # three kinds of ablation
    for source in ("zero", "mean", "resample"):
        some = [patches[i] for i in wanted]
        values = patch_effects(model, p, some, source=source, metrics=found.metrics)  # type: ignore[arg-type]
        shape = (len(model.blocks), len(axes["unit"]))
        found.add(
            "ablation", "total", {m: _grid(v, wanted, shape) for m, v in values.items()}, axes, source=source, site=site
        )
