"""The parts of attention layers in `workbench circuits`: attention scores, heads to logit, reads by offset,
heads to heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from workbench.analysis.circuits.attribution import Budget, best, patch_flops, path_flops
from workbench.analysis.circuits.heads import (
    head_changes,
    head_to_head,
    head_to_logit,
    inside,
    kv_head,
    measure_cells,
    read_changes,
)
from workbench.analysis.circuits.induction import Found, attention_scores, by_attention, by_effect, score_table
from workbench.analysis.circuits.layers import attention_layers, heads_of
from workbench.analysis.circuits.patching import Patch
from workbench.analysis.circuits.paths import FrozenPaths, collect
from workbench.analysis.circuits.slopes import path_slopes, sender_slopes, to_first_order
from workbench.analysis.circuits.table import EXAMPLES, Circuits, peak_of
from workbench.models.anatomy import anatomy_of


def transformer_parts(found: Circuits, paths: FrozenPaths, budget: Budget | None) -> dict[str, Callable[[], None]]:
    """Named parts, to be run in this order; each adds to `found`.

    With a budget, first-order effects of all heads and positions stand in the table as `attribution`, and the best are
    measured exactly.
    """
    model, p = found.model, found.prompts
    layers = attention_layers(model)
    heads = {"layer": layers, "unit": range(heads_of(model))}
    source = "control" if "B" in p.marks else "corrupt"
    readers: dict[str, Any] = {}

    def attention() -> None:
        scores = attention_scores(model, p)
        found.scores = score_table(scores, layers)
        readers["scores"] = scores
        names = {f"blocks.{l}.attn.hook_pattern": lambda v, rows: v for l in layers}
        found.arrays["maps"] = np.stack([v.numpy() for v in collect(model, p.clean[:EXAMPLES], names).values()], 1)

    def to_logit() -> None:
        for path in ("direct", "residual"):
            effects = head_to_logit(model, p, paths, source=source, path=path, metrics=found.metrics)  # type: ignore[arg-type]
            found.add("head_to_logit", path, effects, heads, source=source, site="z")

    def reads() -> None:
        axes = {**heads, "position": found.labels}
        changes, chosen, first = read_changes(model, p, found.labels), None, None
        if budget is not None:
            effects = {"logit_diff": to_first_order(changes, path_slopes(paths, p))}
            first = inside(effects, p, found.labels)["logit_diff"]
            found.add("attribution", "direct", {"logit_diff": first}, axes, site="kv")
            chosen = best({"kv": first}, {"kv": path_flops(model, p)[layers]}, budget.reads)["kv"]
        measured = inside(measure_cells(paths, p, changes, "direct", found.metrics, chosen), p, found.labels)
        found.add("read_profile", "direct", measured, axes, site="kv")
        profile = measured["logit_diff"]
        found.arrays["profile"] = profile.astype(np.float32)
        found.numbers["read_peak"] = peak_of(
            profile, ("layer", "unit", "position"), found, _beyond(first, chosen), layers
        )
        at = found.labels.index(p.focus) if p.focus in found.labels else None
        beyond = 0.0 if at is None or chosen is None or first is None else _beyond(first[..., at], chosen[..., at])
        readers["effect"] = by_effect(profile[..., at], beyond, layers) if at is not None else []

    def to_head() -> None:
        scores, top = readers["scores"], [h for h in readers["effect"] if h[0] > layers[0]][:2]
        receiving: list[tuple[Literal["k", "v", "q"], str]] = [("k", p.focus), ("v", p.focus), ("q", "last")]
        sent: list[Any] = []
        for layer, head in top:
            for inputs, position in receiving:
                chosen = first = None
                before = [l for l in layers if l < layer]
                axes = {"layer": before, "unit": heads["unit"]}
                where = {"source": source, "site": "z", "position": position}
                where["receiver"] = _receiver(model, layer, head, inputs)
                if budget is not None:
                    changes = head_changes(model, p, paths, source, position)[: len(before)]
                    slopes = sender_slopes(model, p, paths, (layer, head), inputs=inputs, position=position)
                    first = to_first_order(changes, slopes)
                    found.add("attribution", "direct", {"logit_diff": first}, axes, **where)
                    one = np.full(len(before), patch_flops(model, p, [Patch("z", layer, "last")]))
                    chosen = best({"z": first[..., None]}, {"z": one}, budget.senders)["z"][..., 0]
                effects = head_to_head(
                    model,
                    p,
                    paths,
                    (layer, head),
                    inputs=inputs,
                    position=position,
                    source=source,
                    metrics=found.metrics,  # type: ignore[arg-type]
                    chosen=chosen,
                )
                found.add("head_to_head", "total", effects, axes, **where)
                if inputs == "k" and not sent:
                    sent.append(by_effect(effects["logit_diff"], _beyond(first, chosen), before))
        if "B" in p.marks:
            induction = Found("induction", by_attention(scores["induction"], layers), readers["effect"])
            previous = Found("previous-token", by_attention(scores["previous"], layers), sent[0] if sent else [])
            found.numbers["induction_heads"], found.numbers["previous_token_heads"] = (
                induction.as_dict(),
                previous.as_dict(),
            )

    return {
        "attention scores": attention,
        "heads to logit": to_logit,
        "reads by offset": reads,
        "heads to heads": to_head,
    }


def _beyond(first: np.ndarray | None, chosen: np.ndarray | None) -> float:
    """Summed absolute effects of the cells that were not measured, to first order [P, *cells]."""
    if first is None or chosen is None:
        return 0.0
    n = np.maximum(np.isfinite(first).sum(0), 1)
    mean = np.where(np.isfinite(first), first, 0.0).sum(0) / n
    return float(np.abs(mean[~chosen]).sum())


def _receiver(model: Any, layer: int, head: int, inputs: str) -> str:
    """``L5H3.q``; keys and values that several query heads share are ``L5KV1.k``."""
    at = anatomy_of(model).layers[layer]
    shared = inputs != "q" and at.kv_heads < at.heads
    return f"L{layer}KV{kv_head(model, layer, head)}.{inputs}" if shared else f"L{layer}H{head}.{inputs}"
