"""The parts of recurrent layers in `workbench circuits`: states and y to logit, writes by offset, convolution taps,
channels, hidden attention, how long writes live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.analysis.circuits.effects import locate_peak, share_of
from workbench.analysis.circuits.hidden_attention import hidden_attention, last_reads
from workbench.analysis.circuits.induction import by_effect
from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.lifetimes import lifetimes
from workbench.analysis.circuits.off_by_one import channel_effects, conv_profile, write_profile
from workbench.analysis.circuits.patching import Patch, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.states import state_to_logit, y_to_logit
from workbench.analysis.circuits.table import EXAMPLES, Circuits, offset_of, peak_of


def recurrent_parts(found: Circuits, paths: FrozenPaths) -> dict[str, Callable[[], None]]:
    """Named parts, to be run in this order; each adds to `found`."""
    model, p = found.model, found.prompts
    known = state_layers(model)
    layers, source = {"layer": [layer.index for layer in known]}, "control" if "B" in p.marks else "corrupt"
    located: dict[str, Any] = {}

    def states() -> None:
        for path in ("direct", "residual"):
            effects = state_to_logit(model, p, paths, path=path, metrics=found.metrics)  # type: ignore[arg-type]
            found.add("state_to_logit", path, effects, layers, site="h", position="last-1")
            if path == "direct":
                found.numbers["state_layers"] = dominant_layers(effects["logit_diff"], layers["layer"])
        total = patch_effects(model, p, [Patch("state", l, "last-1") for l in layers["layer"]], metrics=found.metrics)
        found.add("state_to_logit", "total", total, layers, site="h", position="last-1")

    def outputs() -> None:
        found.add(
            "y_to_logit",
            "direct",
            y_to_logit(model, p, paths, source=source, metrics=found.metrics),
            layers,
            source=source,
            site="y",
        )

    def writes() -> None:
        effects = write_profile(model, p, paths, found.labels, metrics=found.metrics)
        found.add("write_profile", "direct", effects, {**layers, "position": found.labels}, site="write")
        found.arrays["profile"] = effects["logit_diff"].astype(np.float32)
        found.numbers["write_peak"] = peak_of(
            effects["logit_diff"], ("layer", "position"), found, layers=layers["layer"]
        )
        located["peak"] = locate_peak(effects["logit_diff"]).index

    def convolution() -> None:
        effects = conv_profile(model, p, paths, found.labels, metrics=found.metrics)
        taps = range(effects["logit_diff"].shape[-1])
        found.add("conv_profile", "direct", effects, {**layers, "position": found.labels, "tap": taps}, site="conv_in")
        index, at = located["peak"]
        layer, here = layers["layer"][index], locate_peak(effects["logit_diff"][:, index, at])
        offset = offset_of(found.labels[at], found)
        found.numbers["conv_peak"] = {
            "layer": layer,
            "write_offset": offset,
            "tap": here.index[0],
            "share": here.share.as_dict(),
            "same": here.same,
            "source_offset": None if offset is None else offset - here.index[0],
        }

    def channels() -> None:
        index, at = located["peak"]
        layer = layers["layer"][index]
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
        found.numbers["channels_for_half"] = {
            "layer": layer,
            "value": int((share < 0.5).sum()) + 1,
            "of": len(size),
            "n": len(p),
        }

    def attention() -> None:
        name = "state_maps" if "maps" in found.arrays else "maps"  # attention's own, in a hybrid
        found.arrays[name] = hidden_attention(model, p.clean[:EXAMPLES])
        found.arrays["last_reads"] = last_reads(model, p.clean)

    def lives() -> None:
        result = lifetimes(model, p.clean)
        found.lifetimes = result.table
        found.arrays["survival"], found.arrays["half_lives"] = result.survival, result.half_lives
        found.numbers["half_lives"] = result.numbers()

    return {
        "states to logit": states,
        "y to logit": outputs,
        "writes by offset": writes,
        "convolution taps": convolution,
        "channels": channels,
        "hidden attention": attention,
        "lives of writes": lives,
    }


def dominant_layers(effects: np.ndarray, layers: Sequence[int]) -> dict[str, Any]:
    """Which of ``layers`` carry the answer (effects [P,L]): interval below zero and at least a tenth of the summed
    absolute effects.

    `two_strongest` is the share of the two layers with the largest effects together, with its interval.
    """
    heads = by_effect(effects[:, :, None])
    mean = np.abs(effects.mean(0))
    share = mean / mean.sum() if mean.sum() else mean
    two = share_of(effects, np.argsort(-mean, kind="stable")[:2].tolist())
    named = {"layers": [layers[l] for l, _ in heads], "share": [float(share[l]) for l, _ in heads], "n": len(effects)}
    return {**named, "two_strongest": two.as_dict()}
