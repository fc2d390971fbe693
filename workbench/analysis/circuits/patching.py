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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from sae.strict import nearest
from workbench.analysis.circuits.effects import METRICS, check_metrics
from workbench.analysis.circuits.layers import state_layers
from workbench.analysis.circuits.tail import TOKENS, Tail
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
_READ_NUMBERS = 1 << 28  # numbers of activations that stay in memory once they were read


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
    """Runs of the versions of a prompt set (`clean`, `corrupt`, `control`), each made when first asked for and kept,
    and what was read from them, while that is small.

    Args:
        clean: the clean run, where it is there already.
    """

    def __init__(self, model: Any, prompts: PromptSet, clean: Tail | None = None):
        self.model, self.prompts = model, prompts
        self._runs = {} if clean is None else {"clean": clean}
        self._read: dict[tuple[str, str], Tensor] = {}

    def of(self, version: str) -> Tail:
        """The run of one version."""
        if version not in self._runs:
            self._runs[version] = Tail(self.model, getattr(self.prompts, version), check=not self._runs)
        return self._runs[version]

    def read(self, version: str, layer: int, hook: str, also: Sequence[str] = ()) -> Tensor:
        """The hooked activation of one version, as hooked. `also` are hooks of the same layer that will be asked for:
        one pass through the block reads all of them.
        """
        run = self.of(version)
        if hook == f"blocks.{layer}.hook_out" and layer + 1 < run.n_layers:
            return run.inputs[layer + 1]
        if (version, hook) not in self._read:
            next_input = f"blocks.{layer}.hook_out" if layer + 1 < run.n_layers else ""  # never asked of the cache
            wanted = [h for h in dict.fromkeys([hook, *also]) if (version, h) not in self._read and h != next_input]
            seen: dict[str, Tensor] = {}
            run.block(layer, [(h, lambda v, hook, h=h: seen.update({h: v.detach()})) for h in wanted])
            for name in wanted:  # the one that is asked for first
                if sum(v.numel() for v in self._read.values()) + seen[name].numel() <= _READ_NUMBERS:
                    self._read[version, name] = seen[name]
            return seen[hook]
        return self._read[version, hook]


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
    answers, rows_at_once = tail.answers(prompts, metrics), min(batch_rows, max(1, TOKENS // tail.tokens.shape[1]))
    result = {m: np.full((len(prompts), len(patches)), np.nan) for m in metrics}
    groups: dict[tuple[str, int], list[int]] = {}
    for j, patch in enumerate(patches):
        groups.setdefault((patch.site, patch.layer), []).append(j)
    hooks: dict[int, list[str]] = {}
    for site, layer in groups:
        hooks.setdefault(layer, []).append(hook_of(model, site, layer)[0])
    for (site, layer), members in run.each(sorted(groups.items(), key=lambda g: g[0][1]), "patching", unit="site"):
        place = _Place(model, site, layer, [patches[j] for j in members], prompts)

        def read(version: str, place: _Place = place) -> Tensor:
            return place.gather(runs.read(version, place.layer, place.hook, hooks[place.layer]))

        clean = read(base)
        new = place.replacements(clean, read(other) if source in ("corrupt", "control") else None, source, seed)
        rows = _rows(clean, new, place.position, result, metrics, members)
        held = clean[0, 0].numel() * tail.tokens.shape[1] if site == "state" else 1
        size = max(1, min(rows_at_once, _STATE_NUMBERS // held))
        for start in range(0, len(rows), size):
            which, prompt = rows[start : start + size].unbind(1)
            logits = place.run(tail, which, prompt, new)
            changes = answers.changes(lambda rows, logits=logits: logits[rows], prompt)  # type: ignore[misc]
            for m in metrics:
                result[m][prompt.numpy(), np.asarray(members)[which.numpy()]] = changes[m]
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

    def gather(self, value: Tensor) -> Tensor:
        """[J,P,...] of a hooked activation of all prompts."""
        value = value.movedim(self.position_axis, 1)
        return value[torch.arange(len(value)), self.position.clamp_min(0)]

    def replacements(self, clean: Tensor, other: Tensor | None, source: Source, seed: int) -> Tensor:
        """What each patch puts in the place of `clean` [J,P,...]; `other` are corrupted and control values."""
        exists = self.position >= 0
        if other is not None:
            new = other
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

    def run(self, tail: Tail, patch: Tensor, prompt: Tensor, new: Tensor) -> Tensor:
        """Logits [R,V] with row r's replacement at row r's position."""
        position, rows = self.position[patch, prompt], torch.arange(len(patch))
        if self.hook == f"blocks.{self.layer}.hook_out" and self.layer + 1 < tail.n_layers:  # what enters the next one
            resid = tail.inputs[self.layer + 1][prompt]
            resid[rows, position] = new[patch, prompt]
            return tail.run(self.layer + 1, prompt, resid=resid)

        def edit(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value.movedim(self.position_axis, 1)[rows, position] = new[patch, prompt]
            return value

        return tail.run(self.layer, prompt, [(self.hook, edit)])
