"""One or two layers of the Mamba carry induction in their state, written at one position."""

from __future__ import annotations

from workbench.claims.base import Claim, Finding, Measured, untestable
from workbench.claims.lab import Lab

LEVEL = 0.3  # accuracy on single-match prompts from which a model counts as doing induction


def _solved(lab: Lab) -> str:
    accuracy = lab.circuits("mini-mamba")["accuracy"]
    if accuracy["value"] >= LEVEL:
        return ""
    return (
        f"the bundled Mamba copies from a single match with accuracy {accuracy['value']:.2f} only (n = {accuracy['n']})"
    )


def few_layers(lab: Lab) -> Finding:
    """Share of the state-to-logit effect in the two strongest layers; control: the untrained model's accuracy."""
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
        Measured.from_dict(start["accuracy"], "accuracy untrained"),
        note=note,
    )


def sharp_write(lab: Lab) -> Finding:
    """Share of the write profile at its peak; the offset is reported, not asserted. Control: the share an even profile
    would have.
    """
    if why := _solved(lab):
        return untestable(why)
    peak = lab.circuits("mini-mamba")["write_peak"]
    note = (
        f"peak at {peak['position']} (offset {peak['offset']:+d} from the value token) in layer {peak['layer']}; the"
        " paper's motif is +1"
    )
    return Finding(
        Measured.from_dict(peak["share"], "share of the profile"),
        Measured(1 / 12, None, None, peak["share"]["n"], "even over 12 offsets"),
        note=note,
    )


def convolution_agrees(lab: Lab) -> Finding:
    """Share of the convolution's effect at the tap that carries the value token to where it is written."""
    if why := _solved(lab):
        return untestable(why)
    numbers = lab.circuits("mini-mamba")
    conv, peak = numbers["conv_peak"], numbers["write_peak"]
    agree = conv["layer"] == peak["layer"] and conv["write_offset"] == peak["offset"]
    note = (
        f"tap {conv['tap']} reads offset {conv['source_offset']:+d} and writes at {conv['write_offset']:+d}; the write"
        f" profile peaks at {peak['offset']:+d}"
    )
    share = Measured.from_dict(conv["share"], "share of the taps' effect")
    return Finding(
        share if agree else Measured(0.0, 0.0, 0.0, share.n, share.unit),
        Measured(0.25, None, None, share.n, "even over four taps"),
        note=note,
    )


CLAIMS = [
    Claim(
        id="universality.mamba-few-layers",
        paper="universality",
        section="5.2",
        statement="One or two Mamba layers carry the induction information in their state.",
        paper_number="layer 17 lowers the answer's logit by 7.87 of 64.46, layer 12 by 2.35, the rest little",
        experiment="State to logit with other layers' last states held clean; share of the two strongest layers.",
        control="The untrained model, which must not solve the task.",
        criterion="Share's interval above 0.6 with an untrained accuracy at most 0.1.",
        measure=few_layers,
        holds=lambda f: f.effect.floor > 0.6 and f.control is not None and f.control.value <= 0.1,
        needs=("circuits mini-mamba", "circuits mini-mamba@step0"),
        cost=1,
    ),
    Claim(
        id="universality.off-by-one",
        paper="universality",
        section="5.2, off-by-one motif",
        statement=(
            "The value token is written into the state at one sharply located position (the paper: the position after"
            " it)."
        ),
        paper_number="effect −9.13 at offset +1, at most 0.52 elsewhere",
        experiment=(
            "Write terms of one position from the corrupted run; share of the absolute profile at its peak over twelve"
            " offsets."
        ),
        control="An even profile.",
        criterion="Peak share's interval above 0.5 and above the control; the offset is reported, not asserted.",
        measure=sharp_write,
        holds=lambda f: f.effect.floor > 0.5 and f.control is not None and f.effect.floor > f.control.value,
        needs=("circuits mini-mamba", "circuits mini-mamba@step0"),
        cost=1,
    ),
    Claim(
        id="universality.convolution-carries",
        paper="universality",
        section="5.2",
        statement="The short convolution carries the value token to the position where it is written.",
        paper_number="convolution of layer 17 carries B to the next position",
        experiment=(
            "Convolution taps patched one by one at the write position; share of the tap that reaches the value token."
        ),
        control="Equal taps.",
        criterion="Share's interval above 0.5, at the layer and offset where the write profile peaks.",
        measure=convolution_agrees,
        holds=lambda f: f.effect.floor > 0.5,
        needs=("circuits mini-mamba", "circuits mini-mamba@step0"),
        cost=1,
    ),
]
