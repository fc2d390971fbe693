"""All circuit analyses of one model on one task: tables, arrays and headline numbers, for whatever its layers are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.analysis.circuits.attribution import (
    BEST_FLOPS,
    EXACT_FLOPS,
    PASSES,
    PROMPTS,
    Budget,
    attribution,
    best,
    pass_flops,
    patch_flops,
    path_flops,
)
from workbench.analysis.circuits.effects import answer_metrics, interval, locate_peak
from workbench.analysis.circuits.heads import inside, measure_cells, read_changes
from workbench.analysis.circuits.layers import attention_layers, check_circuits, heads_of, left_out, state_layers
from workbench.analysis.circuits.off_by_one import write_profile
from workbench.analysis.circuits.patching import Patch, Runs, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.recurrent import recurrent_parts
from workbench.analysis.circuits.table import OFFSETS, Circuits
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import PromptSet
from workbench.analysis.circuits.transformer import transformer_parts
from workbench.models.anatomy import anatomy_of
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
    for layer, why in left_out(model).items():
        run.say(f"layer {layer}: heads are left out, because {why}")
    found = Circuits(model, prompts, tuple(metrics), offsets)
    with run.bar(f"circuits of {model.cfg.model_name}", None, "part") as bar:
        bar.part("clean runs")
        begin = time.perf_counter()
        tail = Tail(model, prompts.clean)  # a run of all prompts, and one of a few
        budget = _planned(found, run, (time.perf_counter() - begin) / pass_flops(model, prompts))
        _answers(found, tail)
        paths, runs = FrozenPaths(model, tail), Runs(model, prompts, tail)
        parts = transformer_parts(found, paths, budget) if attention_layers(model) else {}
        for name, part in (parts | (recurrent_parts(found, paths) if state_layers(model) else {})).items():
            bar.part(name)
            part()
        bar.part("activation patching")
        first_order = _activation(found, runs, budget)
        bar.part("ablations")
        _ablations(found, runs, budget, first_order)
    return found


def _planned(found: Circuits, run: Run, seconds_per_flop: float) -> Budget | None:
    """None where everything is measured exactly, or what may be; which, and how long it will take, is said."""
    model, p = found.model, found.prompts
    patches = [patch for some in _cells(found).values() for patch in some]
    flops, cells = patch_flops(model, p, patches), len(patches)
    if attention := attention_layers(model):
        units, middle = heads_of(model), attention[len(attention) // 2]
        reads = units * len(found.labels)
        sent = 6 * units * (len(attention) // 2)  # two receivers, keys, values and queries of each
        flops += float(path_flops(model, p)[attention].sum()) * (reads + 2 * units)
        flops += sent * patch_flops(model, p, [Patch("z", middle, "last")])
        cells += len(attention) * (reads + 2 * units) + sent
    if flops <= EXACT_FLOPS:
        return None
    budget = Budget(BEST_FLOPS * len(p) / PROMPTS)
    minutes = [max(1, round(f * seconds_per_flop / 60)) for f in (flops, budget.total + PASSES * pass_flops(model, p))]
    run.say(
        f"measuring all {cells:,} changes of activations would take about {minutes[0]:,} min, so attribution ranks them"
        f" and the best are measured exactly: about {minutes[1]} min"
    )
    return budget


def compare_to_control(found: Circuits, control: Any, name: str) -> None:
    """Is the peak of the profile more than the untrained `control` shows anywhere? The same prompts, differences prompt
    by prompt; where only some cells of the profile were measured, the same cells.
    """
    p, profile = found.prompts, found.arrays["profile"].astype(np.float64)
    paths = FrozenPaths(control, Tail(control, p.clean))
    if not state_layers(control):
        measured = np.asarray(np.isfinite(profile).any(0))
        changes = read_changes(control, p, found.labels)
        cells = measure_cells(paths, p, changes, "direct", ("logit_diff",), None if measured.all() else measured)
        other = inside(cells, p, found.labels)["logit_diff"]
    else:
        other = write_profile(control, p, paths, found.labels, metrics=("logit_diff",))["logit_diff"]
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


def _sites(model: Any) -> dict[str, tuple[Sequence[int], Sequence[int | None]]]:
    """What activation patching replaces: site -> (its layers, its units)."""
    layers = anatomy_of(model).layers
    attention, recurrent = attention_layers(model), [layer.index for layer in state_layers(model)]
    # beside attention the feed-forward part is a branch of its own; a Mamba's block has its mixer alone
    feeds = [i for i, layer in enumerate(layers) if "M" in layer.sites]
    sites: dict[str, tuple[Sequence[int], Sequence[int | None]]] = {
        "resid": (range(len(layers)), [None]),
        "z": (attention, range(heads_of(model))),
        "mlp": (feeds, [None]),
        "mixer": (recurrent, [None]),
        "conv_in": (recurrent, [None]),
    }
    return {site: (at, units) for site, (at, units) in sites.items() if at}


def _cells(found: Circuits) -> dict[str, list[Patch]]:
    """Site -> every patch of it, by layer, unit and label."""
    labels = _labels(found)
    return {
        site: [Patch(site, l, label, unit) for l in layers for unit in units for label in labels]
        for site, (layers, units) in _sites(found.model).items()
    }


def _activation(found: Circuits, runs: Runs, budget: Budget | None) -> dict[str, np.ndarray] | None:
    """Total effects of the corrupted activation at every label, layer and site (every head in Transformers).

    With a budget: first-order effects of all, exact ones of the best (see
    :mod:`workbench.analysis.circuits.attribution`). Returns the first-order effects, site -> [P, L, units, labels];
    None where every cell was patched.
    """
    model, p = found.model, found.prompts
    labels = _labels(found)
    sites, every = _sites(model), _cells(found)
    effects, chosen = None, {}
    if budget is not None:
        effects = attribution(model, p, {site: (at, units != [None]) for site, (at, units) in sites.items()}, labels)
        one = {s: np.array([patch_flops(model, p, [Patch(s, l, "last")]) for l in at]) for s, (at, _) in sites.items()}
        chosen = best(effects, one, budget.patches)
    wanted = {s: np.flatnonzero(chosen[s]) if chosen else np.arange(len(cells)) for s, cells in every.items()}
    patches = [every[site][i] for site in sites for i in wanted[site]]
    values = patch_effects(model, p, patches, metrics=found.metrics, runs=runs)
    start = 0
    for site, (layers, units) in sites.items():
        axes = {"layer": layers, "unit": [-1 if u is None else u for u in units], "position": labels}
        shape, stop = tuple(len(a) for a in axes.values()), start + len(wanted[site])
        if effects is not None:
            found.add("attribution", "total", {"logit_diff": effects[site]}, axes, site=site)
        if stop > start:
            grids = {m: _grid(v[:, start:stop], wanted[site], shape) for m, v in values.items()}
            found.add("activation", "total", grids, axes, site=site)
        start = stop
    return effects


def _grid(values: np.ndarray, cells: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[P, *shape] from [P, cells]; NaN, not computed, elsewhere."""
    out = np.full((len(values), int(np.prod(shape))), np.nan)
    out[:, cells] = values
    return out.reshape(len(values), *shape)


def _ablations(found: Circuits, runs: Runs, budget: Budget | None, first_order: dict[str, np.ndarray] | None) -> None:
    """Total effects of removing each head (or mixer) at the last position; where first-order effects chose what is
    patched, of the heads they choose at that position.
    """
    model, p, sites = found.model, found.prompts, _sites(found.model)
    for site in [str(s) for s in ("z", "mixer") if s in sites]:
        layers, units = sites[site]
        patches = [Patch(site, l, "last", unit) for l in layers for unit in units]
        axes = {"layer": layers, "unit": [-1 if u is None else u for u in units]}
        wanted = np.arange(len(patches))
        if first_order is not None and budget is not None:
            one = {site: np.array([patch_flops(model, p, [Patch(site, l, "last")]) for l in layers])}
            last = _labels(found).index("last")
            at_last = first_order[site][..., last : last + 1]
            wanted = np.flatnonzero(best({site: at_last}, one, budget.ablation)[site])
        shape = (len(layers), len(axes["unit"]))
        for source in ("zero", "mean", "resample"):
            some = [patches[i] for i in wanted]
            values = patch_effects(model, p, some, source=source, metrics=found.metrics, runs=runs)  # type: ignore[arg-type]
            grids = {m: _grid(v, wanted, shape) for m, v in values.items()}
            found.add("ablation", "total", grids, axes, source=source, site=site)
