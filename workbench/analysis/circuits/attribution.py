"""Attribution patching: what activation patching would find, to first order, for all cells from two passes.

The effect of putting the corrupted value of an activation a in its place is, to first order, ``(a_corrupt - a_clean) ·
∂ metric / ∂a`` at the clean run (Nanda 2023, *Attribution patching*; Syed et al. 2024, arXiv 2310.10348). It misses
what bends: saturated attention, and norms under large changes. So on large models it chooses which cells are patched
exactly, and both stand in the table under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.patching import Patch, hook_of
from workbench.analysis.circuits.tail import last_logits
from workbench.analysis.circuits.tasks import PromptSet

EXACT_FLOPS = 2e13  # measuring every cell exactly may take this much: minutes on two cores
BEST_FLOPS = 4e12  # what the exact patches of the best cells may take where every cell would take more, …
PROMPTS = 64  # … with so many prompts: with fewer the same cells are patched, and sooner
PASSES = 18  # forward passes over all prompts, a backward counted as two, that all of this takes
CHUNK = 8  # prompts whose activations are held with their gradients at a time


@dataclass(frozen=True)
class Budget:
    """What the exact measurements of the cells that first-order effects choose may take together, in flops: patches of
    activations, and shares of it for each kind of ablation, for what heads read, and for what heads send to one input
    of one head.
    """

    patches: float

    @property
    def ablation(self) -> float:
        """One of three kinds."""
        return self.patches / 3

    @property
    def reads(self) -> float:
        """All heads and positions."""
        return self.patches / 2

    @property
    def senders(self) -> float:
        """One of six at most: two receivers with three inputs."""
        return self.patches / 4

    @property
    def total(self) -> float:
        """All of it."""
        return self.patches + 3 * self.ablation + self.reads + 6 * self.senders


def _behind(model: Any) -> np.ndarray:
    """[L] parameters from each block to the last one."""
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    return np.cumsum(sizes[::-1])[::-1].astype(np.float64)


def _head(model: Any) -> float:
    """Multiply-adds of the unembedding at one position."""
    return float(model.cfg.d_model) * float(model.cfg.d_vocab)


def patch_flops(model: Any, prompts: PromptSet, patches: Sequence[Patch]) -> float:
    """Multiply-adds, times two, of patching exactly: each patch runs every prompt from its layer to the end."""
    behind, tokens = _behind(model), prompts.clean.shape[1]
    per_prompt = sum(2.0 * (behind[p.layer] * tokens + _head(model)) for p in patches)
    return float(per_prompt * len(prompts))


def path_flops(model: Any, prompts: PromptSet) -> np.ndarray:
    """[L] the same of one change of a layer's mixer output along the direct path: one position of every prompt."""
    return 2.0 * len(prompts) * (_behind(model) + _head(model))


def pass_flops(model: Any, prompts: PromptSet) -> float:
    """The same of one forward pass of all prompts, logits at the last position."""
    return float(2.0 * (prompts.clean.size * _behind(model)[0] + len(prompts) * _head(model)))


def attribution(
    model: Any, prompts: PromptSet, sites: Mapping[str, tuple[Sequence[int], bool]], labels: Sequence[str]
) -> dict[str, np.ndarray]:
    """First-order effects on the logit difference, site -> [P, L, units, labels].

    Args:
        sites: site -> (its layers, whether its units, heads, are told apart). labels: positions, as in patches.

    Raises:
        UsageError: an activation that the logits do not depend on, as hooked here.
    """
    at = np.stack([prompts.position(label) for label in labels], 1)  # [P, O]
    parts: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for start in range(0, len(prompts), CHUNK):
        rows = slice(start, start + CHUNK)
        for site, found in _chunk(model, prompts[rows], sites, at[rows]).items():
            parts[site].append(found)
    return {site: np.concatenate(found) for site, found in parts.items()}


def _chunk(
    model: Any, prompts: PromptSet, sites: Mapping[str, tuple[Sequence[int], bool]], at: np.ndarray
) -> dict[str, np.ndarray]:
    names = {(site, l): hook_of(model, site, l) for site, (layers, _) in sites.items() for l in layers}
    corrupt: dict[str, Tensor] = {}
    clean: dict[str, Tensor] = {}

    def keep(into: dict[str, Tensor], name: str, detach: bool) -> Any:
        def hook(value: Tensor, hook: Any) -> Tensor | None:
            into[name] = value.detach() if detach else value
            return (
                None if detach else value
            )  # a hook may be shown a view (heads apart): what it returns is what is used

        return hook

    hooks = list(dict.fromkeys(name for name, _, _ in names.values()))
    with torch.no_grad(), model.hooks(fwd_hooks=[(n, keep(corrupt, n, True)) for n in hooks]):
        last_logits(model, torch.as_tensor(prompts.corrupt))
    start = ("hook_embed", lambda value, hook: value.detach().requires_grad_(True))
    with torch.enable_grad(), model.hooks(fwd_hooks=[start, *((n, keep(clean, n, False)) for n in hooks)]):
        logits = last_logits(model, torch.as_tensor(prompts.clean))
        rows = torch.arange(len(prompts))
        scalar = (logits[rows, torch.as_tensor(prompts.answer)] - logits[rows, torch.as_tensor(prompts.wrong)]).sum()
        gradients = torch.autograd.grad(scalar, [clean[n] for n in hooks], allow_unused=True)
    if silent := [n for n, g in zip(hooks, gradients, strict=True) if g is None]:
        raise UsageError(
            f"{silent[0]} of {model.cfg.architecture} cannot be patched: TransformerLens shows it at that hook, and"
            " the logits do not depend on the shown value. Leave that site out, or choose another model."
        )
    slope = dict(zip(hooks, gradients, strict=True))
    positions, exists = torch.as_tensor(np.maximum(at, 0)), at >= 0
    out: dict[str, list[np.ndarray]] = {site: [] for site in sites}
    for (site, _), (name, position_axis, _) in names.items():
        product = ((corrupt[name] - clean[name].detach()) * slope[name]).movedim(position_axis, 1)  # [P, T, …]
        effect = (
            product.flatten(3).sum(-1) if sites[site][1] and product.dim() > 3 else product.flatten(2).sum(-1, True)
        )
        chosen = effect[torch.arange(len(effect))[:, None], positions].double().numpy()  # [P, O, units]
        out[site].append(np.where(exists[..., None], chosen, np.nan).swapaxes(1, 2))
    return {site: np.stack(layers, 1) for site, layers in out.items()}


def best(effects: Mapping[str, np.ndarray], flops_of: Mapping[str, np.ndarray], limit: float) -> dict[str, np.ndarray]:
    """The cells worth patching, site -> bool [L, units, labels]: by the size of their mean effect, while what they take
    together stays within ``limit``; at least one.

    Args:
        effects: site -> [P, L, units, labels]. flops_of: site -> [L], of one cell.
    """
    cells = []
    for site, values in effects.items():
        some = np.isfinite(values).any(0)
        mean = np.abs(np.where(np.isfinite(values), values, 0).sum(0)) / np.maximum(np.isfinite(values).sum(0), 1)
        cells += [(float(mean[i]), site, i) for i in np.ndindex(mean.shape) if some[i]]
    chosen = {site: np.zeros(values.shape[1:], bool) for site, values in effects.items()}
    spent = 0.0
    for n, (_, site, i) in enumerate(sorted(cells, key=lambda c: (-c[0], c[1], c[2]))):
        spent += float(flops_of[site][i[0]])
        if n and spent > limit:
            break
        chosen[site][i] = True
    return chosen
