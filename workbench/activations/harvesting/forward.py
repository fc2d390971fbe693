"""Running models for a harvest: hooks in, numbers out, and no layer beyond the last one that is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from sae.errors import UsageError
from sae.strict import nearest
from workbench.activations.format.spec import StoreSpec
from workbench.models.fused_attention import agrees, fused_attention

_SITE = re.compile(r"L\d+[A-Z]+")


class _Enough(Exception):
    """Raised inside a forward pass when the last wanted activation has been seen."""


def resolve_hooks(model: Any, wanted: list[str], given: dict[str, str]) -> dict[str, str]:
    """Store-level hook name -> this model's hook name, in order.

    ``wanted`` entries are hook names, sites (``L2R``; a transcoder site gives its input and output, a site of writes
    its keys and values) or patterns of sites (``*R``: those the model has; only patterns that end in W mean writes).
    ``given`` maps store-level names to this model's own hook names or sites.

    Raises:
        UsageError: the model has no such hook or site.
    """
    from workbench.models import site_hooks, sites
    from workbench.models.sites import write_sites

    found: dict[str, str] = {}
    for name in wanted:
        target = given.get(name, name)
        if "*" in target:
            known = [*sites(model), *(write_sites(model) if target.endswith("W") else ())]
            matching = [s for s in known if fnmatchcase(s, target)]
            if not matching:
                raise UsageError(f"no site of the model matches {target!r} (it has {', '.join(known)})")
            for site in matching:
                found |= {hook: hook for hook in site_hooks(model, site)}
        elif _SITE.fullmatch(target):
            hooks = site_hooks(model, target)
            found |= {hook: hook for hook in hooks} if name == target else {name: hooks[1]}
        elif target in model.hook_dict:
            found[name] = target
        else:
            raise UsageError(f"the model has no hook {target!r} ({nearest(target, list(model.hook_dict))})")
    if unknown := set(given) - set(wanted):
        raise UsageError(
            f"source hooks name {sorted(unknown)[0]!r}, which is not among the recipe's hooks"
            f" ({nearest(sorted(unknown)[0], wanted)})"
        )
    return found


def capture(model: Any, tokens: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """Activations [batch, ctx, width] of some hooks on tokens [batch, ctx]; heads are laid side by side. Ends after the
    last one.

    Raises:
        UsageError: a hook did not fire, or does not give one row per token.
    """
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(value: torch.Tensor, hook: Any = None) -> None:
            if value.shape[:2] != tokens.shape:
                raise UsageError(
                    f"hook {name!r} gives {tuple(value.shape)}, not one row per token of {tuple(tokens.shape)}; it"
                    " cannot be stored. Choose a hook of shape [sequences, positions, width]."
                )
            seen[name] = value.detach().reshape(*tokens.shape, -1)
            if len(seen) == len(names):
                raise _Enough

        return hook

    with torch.inference_mode(), model.hooks(fwd_hooks=[(n, keep(n)) for n in names]):
        try:
            model(tokens, return_type=None)
        except _Enough:
            return seen
    missing = [n for n in names if n not in seen]
    raise UsageError(
        f"hook {missing[0]!r} did not fire in this model's forward pass. Choose another"
        f" ({nearest(missing[0], list(model.hook_dict))})."
    )


class ModelProducer:
    """The producer of a harvest: ``producer(seq_start, seq_end)`` runs every source on the same batches of the plan."""

    def __init__(self, spec: StoreSpec, tokens: np.ndarray, models: dict[str, Any], *, device: str = "cpu"):
        self.spec, self.tokens, self.models, self.device = spec, tokens, models, device
        self.keep = torch.from_numpy(spec.positions.astype(np.int64)).to(device)
        self._fused: dict[str, bool] = {}  # source -> whether the fused kernel was seen to give the same numbers

    def __call__(self, seq_start: int, seq_end: int) -> Iterator[dict[str, np.ndarray]]:
        for lo in range(seq_start, seq_end, self.spec.batch_size):
            batch = torch.from_numpy(self.tokens[lo : min(seq_end, lo + self.spec.batch_size)].astype(np.int64)).to(
                self.device
            )
            out: dict[str, np.ndarray] = {}
            for source, model in self.models.items():
                streams = [s for s in self.spec.streams if s.source == source]
                names = list(dict.fromkeys(s.at for s in streams))
                with fused_attention(model, names) if self._may_fuse(source, batch, names) else nullcontext():
                    seen = capture(model, batch, names)
                for s in streams:
                    out[s.key] = self._rows(seen[s.at])
            yield out

    def _may_fuse(self, source: str, batch: torch.Tensor, names: list[str]) -> bool:
        """Asked of the first sequence of a source, once: whole, as windows and scalings of positions begin late."""
        if source not in self._fused:
            model, one = self.models[source], batch[:1]
            self._fused[source] = agrees(lambda: capture(model, one, names), model, names)
        return self._fused[source]

    def _rows(self, value: torch.Tensor) -> np.ndarray:
        """[batch, ctx, width] -> stored rows without excluded positions, on the host."""
        rows = value.index_select(1, self.keep).reshape(-1, value.shape[-1])
        if self.spec.dtype == "bfloat16":
            return rows.to(torch.bfloat16).cpu().view(torch.int16).numpy().view(np.uint16)
        return rows.float().cpu().numpy()


def widths(model: Any, token: int, names: list[str]) -> dict[str, int]:
    """Numbers per row of some hooks, by running two tokens."""
    seen = capture(model, torch.full((1, 2), token, dtype=torch.int64, device=next(model.parameters()).device), names)
    return {n: v.shape[-1] for n, v in seen.items()}
