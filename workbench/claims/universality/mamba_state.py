"""Which layers of the Mamba carry induction in their state, where each of them writes, and what carries it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.results.circuits import CircuitResult

LEVEL = 0.3  # accuracy on single-match prompts from which a model counts as doing induction
WRITES = 0.1  # share of the whole effect from which a layer counts as one that writes
CARRIER = 1  # the tap that reads one position back


@dataclass(frozen=True)
class Write:
    """Where one layer writes the value token: its share of all layers' effect, and how sharp its own profile is."""

    layer: int
    weight: float
    offset: int
    sharpness: Measured  # share of the layer's own profile at its peak
    at_plus_one: Measured  # and one position after the value token

    def __str__(self) -> str:
        return f"layer {self.layer} at {self.offset:+d}"


def writes(result: CircuitResult, *, least: float = WRITES) -> list[Write]:
    """Layers with at least this share of the whole write profile, strongest first."""
    from workbench.analysis.circuits.effects import share_of

    profile = result.array("profile").astype(np.float64)  # [prompts, layers, offsets]
    offsets = sorted(result.select(analysis="write_profile", metric="logit_diff")["offset"].dropna().unique())
    size = np.abs(np.nanmean(profile, axis=0))
    out = []
    for layer, weight in enumerate(size.sum(1) / size.sum()):
        if weight < least:
            continue
        peak = int(size[layer].argmax())
        shares = [share_of(profile[:, layer], [i]).as_dict() for i in (peak, offsets.index(1))]
        measured = [Measured.from_dict(s, "share of the layer's profile") for s in shares]
        out.append(Write(layer, float(weight), int(offsets[peak]), *measured))
    return sorted(out, key=lambda w: -w.weight)


def words(found: list[Write]) -> str:
    """``layer 2 at +0 (0.60 of all, sharpness 0.99); layer 3 at +1 (…)``."""
    return "; ".join(f"{w} ({w.weight:.2f} of all, sharpness {w.sharpness.value:.2f})" for w in found)


def profile_of(lab: Lab, model: str = "mini-mamba", revision: str | None = None) -> CircuitResult:
    """The circuits of a model or snapshot, made where they are not there."""
    return CircuitResult.open(lab.circuits_item(model, revision).path)


def _solved(lab: Lab) -> str:
    accuracy = lab.circuits("mini-mamba")["accuracy"]
    if accuracy["value"] >= LEVEL:
        return ""
    return (
        f"the bundled Mamba copies from a single match with accuracy {accuracy['value']:.2f} only (n = {accuracy['n']})"
    )


def _table(found: list[Write]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "layer": w.layer,
                "offset": w.offset,
                "words": str(w),
                "share_of_all": w.weight,
                "sharpness": w.sharpness.value,
                "low": w.sharpness.low,
                "high": w.sharpness.high,
                "at_plus_one": w.at_plus_one.value,
            }
            for w in found
        ]
    )


def few_layers(lab: Lab) -> Finding:
    """Share of the state-to-logit effect in the two strongest layers; control: the same in the untrained model."""
    if why := _solved(lab):
        return untestable(why)
    final, start = lab.circuits("mini-mamba"), lab.circuits("mini-mamba", "step0")
    layers = final["state_layers"]
    note = (
        f"layers {layers['layers']}; accuracy {final['accuracy']['value']:.2f}, untrained"
        f" {start['accuracy']['value']:.2f}"
    )
    return Finding(
        Measured.from_dict(layers["two_strongest"], "share of the effect"),
        Measured.from_dict(start["state_layers"]["two_strongest"], "share of the effect"),
        note=note,
    )


def sharp_write(lab: Lab) -> Finding:
    """Sharpness of the least sharp of the layers that write; control: of the sharpest layer of the untrained model."""
    if why := _solved(lab):
        return untestable(why)
    found, start = writes(profile_of(lab)), writes(profile_of(lab, revision="step0"))
    worst = min(found, key=lambda w: w.sharpness.value)
    control = max((w.sharpness for w in start), key=lambda m: m.value, default=None)
    more = {"writes": [str(w) for w in found]}
    return Finding(worst.sharpness, control, _table(found), words(found), more=more)


def relay(lab: Lab) -> Finding:
    """Share of its own profile that a writing layer has at +1, in the layer where it is largest; control: the same in
    the untrained model.
    """
    if why := _solved(lab):
        return untestable(why)
    found, start = writes(profile_of(lab)), writes(profile_of(lab, revision="step0"))
    best = max(found, key=lambda w: w.at_plus_one.value)
    control = max((w.at_plus_one for w in start), key=lambda m: m.value, default=None)
    note = f"{words(found)}; the paper's motif is {best} here"
    return Finding(best.at_plus_one, control, _table(found), note, more={"writes": [str(w) for w in found]})


def carried(result: CircuitResult, layer: int, offset: int) -> Measured:
    """Share of the taps' effect on a layer's write at an offset that the tap one position back has; its interval is
    conservative: from the ends of the taps' own intervals.
    """
    taps = result.select(analysis="conv_profile", metric="logit_diff", layer=layer, offset=offset).set_index("tap")
    size = {t: abs(r.effect) for t, r in taps.iterrows()}
    ends = {
        t: (0.0 if r.low <= 0 <= r.high else min(abs(r.low), abs(r.high)), max(abs(r.low), abs(r.high), size[t]))
        for t, r in taps.iterrows()
    }
    total = sum(size.values())
    if CARRIER not in size or not total:
        return Measured(float("nan"), None, None, 0, "share of the taps' effect")
    others = {i: sum(ends[t][i] for t in size if t != CARRIER) for i in (0, 1)}
    low = ends[CARRIER][0] / (ends[CARRIER][0] + others[1])
    high = ends[CARRIER][1] / (ends[CARRIER][1] + others[0])
    return Measured(size[CARRIER] / total, low, high, int(taps["n"].iloc[0]), "share of the taps' effect")


def convolution_carries(lab: Lab) -> Finding:
    """Share of tap 1 where a layer writes at +1; control: the same where a layer writes at the token itself, whose own
    tap carries it by construction.
    """
    if why := _solved(lab):
        return untestable(why)
    result = profile_of(lab)
    found = writes(result)
    late, early = ([w for w in found if w.offset == o] for o in (1, 0))
    if not late:
        return untestable(f"no layer writes at +1: {words(found)}")
    control = carried(result, early[0].layer, 0) if early else None
    more = {"writes": [str(w) for w in found]}
    return Finding(
        carried(result, late[0].layer, 1), control, _table(found), f"{late[0]}, through tap {CARRIER}", more=more
    )


_COMMON: dict[str, Any] = {
    "paper": "universality",
    "unit": "prompt; one trained Mamba",
    "needs": ("circuits mini-mamba", "circuits mini-mamba@step0"),
    "cost": 1.0,
}
CLAIMS = [
    Claim(
        id="universality.mamba-few-layers",
        section="5.2",
        statement="One or two Mamba layers carry the induction information in their state.",
        paper_number="layer 17 lowers the answer's logit by 7.87 of 64.46, layer 12 by 2.35, the rest little",
        experiment="State to logit with other layers' last states held clean; share of the two strongest layers.",
        control="The same share in the untrained model.",
        rule=Rule("above", 0.6, "beaten"),
        would_change="A third layer that carries a tenth of the effect.",
        measure=few_layers,
        **_COMMON,
    ),
    Claim(
        id="universality.off-by-one",
        section="5.2, off-by-one motif",
        statement="Every layer that writes the value token writes it at one sharply located position.",
        paper_number="effect −9.13 at offset +1, at most 0.52 elsewhere",
        experiment=(
            "Write terms of one position from the corrupted run, layer by layer; share of each layer's own profile at"
            " its peak over twelve offsets, in the least sharp of the layers with a tenth of the whole effect."
        ),
        control="The sharpest layer of the untrained model.",
        rule=Rule("above", 0.5, "beaten"),
        would_change="A layer that spreads its write over several positions.",
        measure=sharp_write,
        **_COMMON,
    ),
    Claim(
        id="universality.off-by-one-relay",
        section="5.2, off-by-one motif",
        statement="A layer of the Mamba writes the value token at the position after it.",
        paper_number="effect −9.13 at offset +1, at most 0.52 elsewhere",
        experiment="Share of a writing layer's own profile at offset +1, in the layer where it is largest.",
        control="The same in the untrained model.",
        rule=Rule("above", 0.5, "beaten"),
        would_change="No layer whose write at +1 is most of its profile.",
        measure=relay,
        **_COMMON,
    ),
    Claim(
        id="universality.convolution-carries",
        section="5.2",
        statement=(
            "Where a layer writes the value token one position late, the tap one position back of its"
            " convolution carries it."
        ),
        paper_number="convolution of layer 17 carries B to the next position",
        experiment="Convolution taps patched one by one at the write at +1; share of tap 1.",
        control="The share of the same tap where a layer writes at the value token itself.",
        rule=Rule("above", 0.5, "beaten"),
        would_change="A write at +1 that survives without tap 1.",
        measure=convolution_carries,
        **_COMMON,
    ),
]
