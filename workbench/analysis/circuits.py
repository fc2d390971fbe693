"""All circuit analyses of one model on one task: tables, arrays and headline numbers, for either architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from sae.errors import UsageError
from workbench.analysis.bootstrap import Estimate, wilson
from workbench.analysis.effects import answer_metrics, interval, locate_peak, tidy
from workbench.analysis.heads import Effects, head_to_head, head_to_logit, read_profile
from workbench.analysis.hidden_attention import hidden_attention, last_reads
from workbench.analysis.induction import Found, attention_scores, by_attention, by_effect, score_table
from workbench.analysis.off_by_one import channel_effects, conv_profile, write_profile
from workbench.analysis.patching import Patch, patch_effects
from workbench.analysis.paths import FrozenPaths, collect, is_mamba, is_transformer
from workbench.analysis.states import state_to_logit, y_to_logit
from workbench.analysis.tail import Tail
from workbench.analysis.tasks import PromptSet

OFFSETS = tuple(range(-2, 10))
EXAMPLES = 8
_COLUMNS = (
    "analysis",
    "path",
    "source",
    "site",
    "layer",
    "unit",
    "receiver",
    "position",
    "offset",
    "tap",
    "metric",
    "effect",
    "low",
    "high",
    "n",
)
_FILL: dict[str, Any] = {"source": "corrupt", "site": "", "unit": -1, "receiver": "", "position": "last", "tap": -1}


@dataclass
class Circuits:
    """What was measured: `numbers` for the manifest, `tables` joined into one, `scores`, `arrays` by name."""

    model: Any
    prompts: PromptSet
    metrics: Sequence[str]
    offsets: Sequence[int] = OFFSETS
    numbers: dict[str, Any] = field(default_factory=dict)
    tables: list[pd.DataFrame] = field(default_factory=list)
    scores: pd.DataFrame | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """Position labels of the profiles: the focus mark with each offset, those inside at least one prompt."""
        every = [label_of(self.prompts.focus, o) for o in self.offsets]
        return [label for label in every if (self.prompts.position(label) >= 0).any()]

    def add(self, analysis: str, path: str, effects: Effects, axes: Mapping[str, Sequence[Any]], **constants: Any) -> None:
        """Put effects [P, *axes] of every metric into the table."""
        for metric, values in effects.items():
            self.tables.append(tidy(values, axes, analysis=analysis, path=path, metric=metric, **constants))

    def effects(self) -> pd.DataFrame:
        """The joined table with all columns; `offset` counts from the focus mark, absent where the position is not relative to it."""
        table = pd.concat(self.tables, ignore_index=True)
        for column, value in _FILL.items():
            table[column] = table[column].fillna(value) if column in table else value
        offset = {label_of(self.prompts.focus, o): o for o in self.offsets}
        table["offset"] = table["position"].map(offset).astype("Int16")
        table = table.astype({"layer": "int16", "unit": "int32", "tap": "int8", "n": "int32"})
        return table[list(_COLUMNS)]


def label_of(mark: str, offset: int) -> str:
    """`B`, `B+1`, `B-2`."""
    return mark if offset == 0 else f"{mark}{offset:+d}"


def analyse(
    model: Any,
    prompts: PromptSet,
    *,
    metrics: Sequence[str],
    offsets: Sequence[int] = OFFSETS,
    step: Callable[[str], None] = lambda _: None,
) -> Circuits:
    """Everything `workbench circuits` reports. `step` is told the name of each part before it starts."""
    if not is_transformer(model) and not is_mamba(model):
        raise UsageError(f"circuits are analysed for attention and Mamba-1 mixers, not for {model.cfg.architecture}.")
    found = Circuits(model, prompts, tuple(metrics), offsets)
    step("clean runs")
    tail = Tail(model, prompts.clean)
    _answers(found, tail)
    paths = FrozenPaths(model, tail)
    parts = _transformer_parts if is_transformer(model) else _mamba_parts
    for name, part in parts(found, paths).items():
        step(name)
        part()
    step("activation patching")
    _activation(found)
    step("ablations")
    _ablations(found)
    return found


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
    import torch

    return torch.as_tensor(p.answer), torch.as_tensor(p.wrong)


def _transformer_parts(found: Circuits, paths: FrozenPaths) -> dict[str, Callable[[], None]]:
    model, p = found.model, found.prompts
    heads = {"layer": range(len(model.blocks)), "unit": range(model.cfg.n_heads)}
    source = "control" if "B" in p.marks else "corrupt"
    readers: dict[str, Any] = {}

    def attention() -> None:
        scores = attention_scores(model, p)
        found.scores = score_table(scores)
        readers["scores"] = scores
        names = {f"blocks.{l}.attn.hook_pattern": (lambda v, rows: v) for l in range(len(model.blocks))}
        found.arrays["maps"] = np.stack([v.numpy() for v in collect(model, p.clean[:EXAMPLES], names).values()], 1)

    def to_logit() -> None:
        for path in ("direct", "residual"):
            effects = head_to_logit(model, p, paths, source=source, path=path, metrics=found.metrics)  # type: ignore[arg-type]
            found.add("head_to_logit", path, effects, heads, source=source, site="z")

    def reads() -> None:
        effects = read_profile(model, p, paths, found.labels, metrics=found.metrics)
        found.add("read_profile", "direct", effects, {**heads, "position": found.labels}, site="kv")
        profile = effects["logit_diff"]
        found.arrays["profile"] = profile.astype(np.float32)
        found.numbers["read_peak"] = _peak(profile, ("layer", "unit", "position"), found)
        at = found.labels.index(p.focus) if p.focus in found.labels else None
        readers["effect"] = by_effect(profile[..., at]) if at is not None else []

    def to_head() -> None:
        scores, top = readers["scores"], [h for h in readers["effect"] if h[0] > 0][:2]
        receiving: list[tuple[Literal["k", "v", "q"], str]] = [("k", p.focus), ("v", p.focus), ("q", "last")]
        sent: list[Any] = []
        for layer, head in top:
            for inputs, position in receiving:
                effects = head_to_head(
                    model,
                    p,
                    paths,
                    (layer, head),
                    inputs=inputs,
                    position=position,
                    source=source,
                    metrics=found.metrics,  # type: ignore[arg-type]
                )
                axes = {"layer": range(layer), "unit": heads["unit"]}
                found.add(
                    "head_to_head", "total", effects, axes, source=source, site="z", position=position, receiver=f"L{layer}H{head}.{inputs}"
                )
                if inputs == "k" and not sent:
                    sent.append(by_effect(effects["logit_diff"]))
        if "B" in p.marks:
            induction = Found("induction", by_attention(scores["induction"]), readers["effect"])
            previous = Found("previous-token", by_attention(scores["previous"]), sent[0] if sent else [])
            found.numbers["induction_heads"], found.numbers["previous_token_heads"] = induction.as_dict(), previous.as_dict()

    return {"attention scores": attention, "heads to logit": to_logit, "reads by offset": reads, "heads to heads": to_head}


def _mamba_parts(found: Circuits, paths: FrozenPaths) -> dict[str, Callable[[], None]]:
    model, p = found.model, found.prompts
    layers, source = {"layer": range(len(model.blocks))}, "control" if "B" in p.marks else "corrupt"
    located: dict[str, Any] = {}

    def states() -> None:
        for path in ("direct", "residual"):
            effects = state_to_logit(model, p, paths, path=path, metrics=found.metrics)  # type: ignore[arg-type]
            found.add("state_to_logit", path, effects, layers, site="h", position="last-1")
            if path == "direct":
                found.numbers["state_layers"] = _dominant(effects["logit_diff"])
        total = patch_effects(model, p, [Patch("h", l, "last-1") for l in layers["layer"]], metrics=found.metrics)
        found.add("state_to_logit", "total", total, layers, site="h", position="last-1")

    def outputs() -> None:
        found.add(
            "y_to_logit", "direct", y_to_logit(model, p, paths, source=source, metrics=found.metrics), layers, source=source, site="y"
        )

    def writes() -> None:
        effects = write_profile(model, p, paths, found.labels, metrics=found.metrics)
        found.add("write_profile", "direct", effects, {**layers, "position": found.labels}, site="write")
        found.arrays["profile"] = effects["logit_diff"].astype(np.float32)
        found.numbers["write_peak"] = _peak(effects["logit_diff"], ("layer", "position"), found)
        located["peak"] = locate_peak(effects["logit_diff"]).index

    def convolution() -> None:
        effects = conv_profile(model, p, paths, found.labels, metrics=found.metrics)
        taps = range(effects["logit_diff"].shape[-1])
        found.add("conv_profile", "direct", effects, {**layers, "position": found.labels, "tap": taps}, site="conv_in")
        layer, at = located["peak"]
        here = locate_peak(effects["logit_diff"][:, layer, at])
        offset = _offset(found.labels[at], found)
        found.numbers["conv_peak"] = {
            "layer": layer, "write_offset": offset, "tap": here.index[0], "share": here.share.as_dict(), "same": here.same,
            "source_offset": None if offset is None else offset - here.index[0],
        }  # fmt: skip

    def channels() -> None:
        layer, at = located["peak"]
        result = channel_effects(model, p, paths, layer, found.labels[at])
        axes = {"layer": [layer], "unit": range(result.channels.shape[1])}
        values = {"logit_diff": result.channels[:, None]}
        found.add("channels", "first-order", values, axes, site="write", position=found.labels[at])
        found.add(
            "channels",
            "direct",
            {"logit_diff": result.exact[:, None]},
            {"layer": [layer], "unit": result.sizes},
            site="write-top",
            position=found.labels[at],
        )
        found.arrays |= {"channel_states": result.states.mean(0).astype(np.float32), "channel_order": result.order}
        size = np.abs(result.channels.mean(0))
        share = np.cumsum(np.sort(size)[::-1]) / max(float(size.sum()), 1e-30)
        found.numbers["channels_for_half"] = {"layer": layer, "value": int((share < 0.5).sum()) + 1, "of": len(size), "n": len(p)}

    def attention() -> None:
        found.arrays["maps"] = hidden_attention(model, p.clean[:EXAMPLES])
        found.arrays["last_reads"] = last_reads(model, p.clean)

    return {
        "states to logit": states, "y to logit": outputs, "writes by offset": writes,
        "convolution taps": convolution, "channels": channels, "hidden attention": attention,
    }  # fmt: skip


def _offset(label: str, found: Circuits) -> int | None:
    return next((o for o in found.offsets if label_of(found.prompts.focus, o) == label), None)


def _peak(profile: np.ndarray, axes: Sequence[str], found: Circuits) -> dict[str, Any]:
    """The located peak as a JSON-ready dict; `offset` is position minus the focus mark's."""
    peak = locate_peak(profile)
    where = dict(zip(axes, peak.index, strict=True))
    label = found.labels[where.pop("position")]
    numbers = {"effect": peak.effect.as_dict(), "share": peak.share.as_dict(), "same": peak.same}
    return {**where, "position": label, "offset": _offset(label, found), **numbers}


def _dominant(effects: np.ndarray) -> dict[str, Any]:
    """Layers that carry the answer (effects [P,L]): interval below zero and at least a tenth of the summed absolute effects."""
    heads = by_effect(effects[:, :, None])
    mean = np.abs(effects.mean(0))
    share = mean / mean.sum() if mean.sum() else mean
    return {"layers": [l for l, _ in heads], "share": [float(share[l]) for l, _ in heads], "n": len(effects)}


def _activation(found: Circuits) -> None:
    """Total effects of the corrupted activation at every label, layer and site (every head in Transformers)."""
    model, p = found.model, found.prompts
    labels = list(dict.fromkeys([*found.labels, "last"]))
    sites: dict[str, Sequence[int | None]] = {"resid": [None]}
    sites |= {"z": range(model.cfg.n_heads), "mlp": [None]} if is_transformer(model) else {"mixer": [None], "conv_in": [None]}
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
