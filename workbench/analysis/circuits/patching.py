"""Activation patching: replace one activation, let everything after it follow, and measure the answer (the *total
effect*).

A patch names a site, a layer, a position (a mark of the task, with offset) and optionally a unit (a head, a channel
range).
Replacements: `corrupt` and `control` take the value from the prompt's other versions, `zero` and `mean` (over prompts,
at the same position label) and `resample` (the clean value of another prompt) ablate. Patches of a layer are batched:
one forward pass from that layer on serves many (patch, prompt) rows, and rows whose replacement equals the clean value
cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from sae.strict import nearest
from workbench.analysis.circuits.effects import METRICS, answer_metrics, check_metrics
from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import PromptSet
from workbench.models.anatomy import anatomy_of
from workbench.run import QUIET, Run

Source = Literal["corrupt", "control", "zero", "mean", "resample"]
Unit = int | tuple[int, int] | None
SOURCES = ("corrupt", "control", "zero", "mean", "resample")

# site -> hook below "blocks.{l}.", axis of positions, axis of units
SITES = {
    "resid": ("hook_out", 1, 2),
    "attn": ("attn.hook_out", 1, 2),
    "mlp": ("mlp.hook_out", 1, 2),
    "z": ("attn.hook_z", 1, 2),
    "q": ("attn.hook_q", 1, 2),
    "k": ("attn.hook_k", 1, 2),
    "v": ("attn.hook_v", 1, 2),
    **{name: (f"mixer.hook_{name}", 1, 2) for name in ("x", "dt", "B", "C", "decay", "write", "h", "y", "gate")},
}
_BRANCHES = {"attn": "A", "mlp": "M"}
# of every recurrent layer, whatever its kind (workbench.models.recurrent); axes of positions and units are 1 and 2
_RECURRENT = ("mixer", "conv_in", "conv", "state", "read", "write_key", "write_value")
_STATE_NUMBERS = 1 << 26  # numbers of states that the rows of one pass may hold together


@dataclass(frozen=True)
class Patch:
    """What to replace: `unit` is a head index, a channel range (start, stop), or None for everything
    at the position.
    """

    site: str
    layer: int
    position: str
    unit: Unit = None


def hook_of(model: Any, site: str, layer: int) -> tuple[str, int, int]:
    """Hook name of a site, and its axes of positions and units. Raises UsageError for a site the model lacks."""
    if site in _RECURRENT:
        recurrent = {found.index: found for found in state_layers(model)}
        if layer not in recurrent:
            raise UsageError(
                f"layer {layer} has no state, so no site {site!r}; states are in layers {list(recurrent)}."
            )
        return recurrent[layer].branch if site == "mixer" else recurrent[layer].hook(site), 1, 2
    if site not in SITES:
        raise UsageError(f"site {site!r} is unknown ({nearest(site, [*SITES, *_RECURRENT])}).")
    name, position_axis, unit_axis = SITES[site]
    hook = f"blocks.{layer}.{name}"
    if site in _BRANCHES:  # what is added to the residual stream, whatever the model puts around it
        hook = anatomy_of(model).layers[layer].sites.get(_BRANCHES[site], (hook,))[0]
    if hook not in model.hook_dict:
        have = [s for s, (n, _, _) in SITES.items() if f"blocks.{layer}.{n}" in model.hook_dict]
        have += _RECURRENT if layer in {found.index for found in state_layers(model)} else ()
        raise UsageError(f"the model has no {hook}. Layer {layer} offers the sites {', '.join(have)}.")
    return hook, position_axis, unit_axis


class Runs:
    """Runs of the versions of a prompt set (`clean`, `corrupt`, `control`), each made when first asked for and kept.

    Args:
        clean: the clean run, where it is there already.
    """

    def __init__(self, model: Any, prompts: PromptSet, clean: Tail | None = None):
        self.model, self.prompts = model, prompts
        self._runs = {} if clean is None else {"clean": clean}

    def of(self, version: str) -> Tail:
        """The run of one version."""
        if version not in self._runs:
            self._runs[version] = Tail(self.model, getattr(self.prompts, version), check=not self._runs)
        return self._runs[version]


@torch.no_grad()
def patch_effects(
    model: Any,
    prompts: PromptSet,
    patches: Sequence[Patch],
    *,
    source: Source = "corrupt",
    direction: Literal["noise", "denoise"] = "noise",
    metrics: Sequence[str] = METRICS,
    batch_rows: int = 256,
    seed: int = 0,
    runs: Runs | None = None,
    run: Run = QUIET,
) -> dict[str, np.ndarray]:
    """Total effects [P, len(patches)] per metric: patched minus unpatched. NaN where a prompt has no such position.

    `noise` patches the clean run; `denoise` patches clean values into the corrupted run (then source must be
    `corrupt`). `runs` of the same prompts are made here where the caller has none.
    """
    check_metrics(metrics)
    if source not in SOURCES:
        raise UsageError(f"source {source!r} is unknown ({nearest(source, list(SOURCES))}).")
    if direction == "denoise" and source != "corrupt":
        raise UsageError(
            f"denoising patches clean values into the corrupted run; source {source!r} does not apply. Use"
            " source = 'corrupt', or direction = 'noise'."
        )
    base, other = ("clean", "corrupt") if direction == "noise" else ("corrupt", "clean")
    other = "control" if source == "control" else other
    runs = runs or Runs(model, prompts)
    tail = runs.of(base)
    answer, wrong = torch.as_tensor(prompts.answer), torch.as_tensor(prompts.wrong)
    before = answer_metrics(tail.logits, answer, wrong, tail.logits, metrics)
    result = {m: np.full((len(prompts), len(patches)), np.nan) for m in metrics}
    groups: dict[tuple[str, int], list[int]] = {}
    for j, patch in enumerate(patches):
        groups.setdefault((patch.site, patch.layer), []).append(j)
    for (site, layer), members in run.each(list(groups.items()), "patching", unit="site"):
        place = _Place(model, site, layer, [patches[j] for j in members], prompts)
        clean = place.values(tail)
        new = place.replacements(runs.of(other) if source in ("corrupt", "control") else tail, source, seed)
        rows = _rows(clean, new, place.position, result, metrics, members)
        held = clean[0, 0].numel() * tail.tokens.shape[1] if site == "state" else 1
        size = max(1, min(batch_rows, _STATE_NUMBERS // held))
        for start in range(0, len(rows), size):
            which, prompt = rows[start : start + size].unbind(1)
            logits = tail.run(layer, prompt, [(place.hook, place.editor(which, prompt, new))])
            after = answer_metrics(logits, answer[prompt], wrong[prompt], tail.logits[prompt], metrics)
            for m in metrics:
                result[m][prompt.numpy(), np.asarray(members)[which.numpy()]] = after[m] - before[m][prompt.numpy()]
    return result


def _rows(
    clean: Tensor,
    new: Tensor,
    position: Tensor,
    result: dict[str, np.ndarray],
    metrics: Sequence[str],
    members: list[int],
) -> Tensor:
    """(patch, prompt) pairs [R,2] that change anything; the effect of existing others is set to zero."""
    exists = position >= 0
    changes = exists & (clean != new).flatten(2).any(-1)
    for m in metrics:
        for k, j in enumerate(members):
            result[m][exists[k].numpy(), j] = 0.0
    return changes.nonzero()


class _Place:
    """The patches of one site and layer. Values are [J patches, P prompts, ...] with the position axis gone, units last
    as hooked.

    Where units differ between patches, values outside a patch's own unit keep the clean ones, so replacing all is
    replacing the unit.
    """

    def __init__(self, model: Any, site: str, layer: int, patches: list[Patch], prompts: PromptSet):
        self.hook, self.position_axis, self.unit_axis = hook_of(model, site, layer)
        self.layer, self.patches = layer, patches
        self.position = torch.as_tensor(np.stack([prompts.position(p.position) for p in patches]))

    def _read(self, tail: Tail) -> Tensor:
        """The hooked activation of a run with positions on axis 1, [P,T,...]."""
        seen: list[Tensor] = []
        tail.block(self.layer, [(self.hook, lambda v, hook: seen.append(v.detach().movedim(self.position_axis, 1)))])
        return seen[0]

    def _gather(self, v: Tensor) -> Tensor:
        return v[torch.arange(len(v)), self.position.clamp_min(0)]

    def values(self, tail: Tail) -> Tensor:
        """Clean values [J,P,...]."""
        self._clean = self._gather(self._read(tail))
        return self._clean

    def replacements(self, other: Tail, source: Source, seed: int) -> Tensor:
        """What each patch puts in its place [J,P,...]; corrupted and control values come from the run `other`."""
        clean, exists = self._clean, self.position >= 0
        if source in ("corrupt", "control"):
            new = self._gather(self._read(other))
        elif source == "zero":
            new = torch.zeros_like(clean)
        elif source == "mean":
            weight = exists.to(clean.dtype).reshape(*exists.shape, *[1] * (clean.dim() - 2))
            new = ((clean * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)).expand_as(clean)
        else:
            n = clean.shape[1]
            shift = 1 + int(np.random.default_rng(seed).integers(max(n - 1, 1)))
            new = clean.roll(shift, 1)
        out = clean.clone()
        for j, patch in enumerate(self.patches):
            unit = self._unit(patch)
            out[j][unit] = new[j][unit]
        return out

    def _unit(self, patch: Patch) -> tuple[Any, ...]:
        """Index of a patch's unit in [P,...]: the unit axis is 1, whichever it was."""
        if patch.unit is None:
            return (slice(None),)
        return (slice(None), slice(*patch.unit) if isinstance(patch.unit, tuple) else patch.unit)

    def editor(self, patch: Tensor, prompt: Tensor, new: Tensor) -> Callable[..., Tensor]:
        """A hook that puts row r's replacement at row r's position."""
        position, rows = self.position[patch, prompt], torch.arange(len(patch))

        def edit(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value.movedim(self.position_axis, 1)[rows, position] = new[patch, prompt]
            return value

        return edit
