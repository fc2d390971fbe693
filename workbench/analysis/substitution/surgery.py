"""One write of a recurrent layer replaced in a running model, and what becomes of it.

At position t a layer adds W = k vᵀ to its state (per head; :mod:`workbench.models.recurrent`). Something else is put in
its place, the decay, the erasure and everything before stay as they are, and what follows goes on from there: the
layer's later reads y, and the next-token distributions from t on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.tail import Tail
from workbench.models.head import finished, raw_logits
from workbench.models.recurrent import RecurrentLayer, recurrent_layers
from workbench.models.recurrent.kind import silent

MOST_NUMBERS = 1 << 26  # of all writes of the rows that run together
EXACT = 1e-4  # nats: how far the model may move when its own writes are put in the place of themselves


@dataclass(frozen=True)
class Outcome:
    """What R replacements did, each [R]; distances are from the clean run, over the window from the position on.

    Attributes:
        kl: nats, summed over the next-token distributions of the window. next: of the position's own alone.
        read: squared distance of y, summed over the later positions of the window.
        logits: [R, vocab] at the position.
    """

    kl: Tensor
    next: Tensor
    read: Tensor
    logits: Tensor


def layer_of(model: Any, hook_key: str) -> RecurrentLayer:
    """The recurrent layer whose keys a hook shows.

    Raises:
        UsageError: the model has none such.
    """
    for layer in recurrent_layers(model):
        if layer.hook("write_key") == hook_key:
            return layer
    have = ", ".join(layer.hook("write_key") for layer in recurrent_layers(model)) or "none"
    raise UsageError(f"the model shows nothing written into a state at {hook_key!r} (it has {have}).")


class Place:
    """A block of sequences, run once clean, and again from the layer on for every replacement there.

    Args:
        tokens: [S, T]. window: positions that are looked at from the replaced one on.

    Attributes:
        key, value: [S, T, H, K] and [S, T, H, V] what the layer writes in the clean run.
    """

    @torch.no_grad()
    def __init__(self, model: Any, layer: RecurrentLayer, tokens: Tensor, window: int):
        self.model, self.layer, self.tokens, self.window = model, layer, tokens, window
        self.tail = Tail(model, tokens)
        seen: dict[str, Tensor] = {}
        last = f"blocks.{len(model.blocks) - 1}.hook_resid_post"
        names = {n: layer.hook(n) for n in ("write_key", "write_value", "conv", "y")}
        names |= {"in": f"{layer.path}.hook_in", "last": last}

        def keep(name: str) -> Any:
            def hook(value: Tensor, hook: Any = None) -> None:
                seen[name] = value.detach()

            return hook

        hooks = [(at, keep(name)) for name, at in names.items()]
        logits = self.tail.run(layer.index, torch.arange(len(tokens)), hooks, every=True)
        if missing := [n for n in names if n not in seen]:
            raise UsageError(
                f"{layer.path} did not show its {missing[0]}, so what it writes into its state cannot be replaced."
                " Choose another layer."
            )
        self.key, self.value, self.y = seen["write_key"], seen["write_value"], seen["y"]
        self.factors = layer.factors_of(seen["in"], seen["conv"])
        self.last, self.logits = seen["last"], logits
        self.log_p = logits.float().log_softmax(-1)

    def put(self, rows: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> Outcome:
        """Replace the writes of sequences ``rows`` [R] at ``positions`` [R] by key [R, H, K] times value [R, H, V]."""
        return self._replaced(rows, positions, {"write_key": key, "write_value": value})

    def put_writes(self, rows: Tensor, positions: Tensor, writes: Tensor) -> Outcome:
        """Replace them by matrices [R, H, K, V] of any rank, a few rows at a time: all writes of a row are held."""
        size = max(1, MOST_NUMBERS // (self.tokens.shape[1] * writes[0].numel()))
        parts = [
            self._replaced(r, p, {"write": w})
            for r, p, w in zip(rows.split(size), positions.split(size), writes.split(size), strict=True)
        ]
        return Outcome(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Outcome)))

    @torch.no_grad()
    def _replaced(self, rows: Tensor, positions: Tensor, new: dict[str, Tensor]) -> Outcome:
        """What follows when hooks of the layer show other values [R, ...] at the positions."""
        each = torch.arange(len(rows))
        seen: dict[str, Tensor] = {}

        def instead(new: Tensor) -> Any:
            def hook(old: Tensor, hook: Any = None) -> Tensor:
                out = old.clone()
                out[each, positions] = new.to(out)
                return out

            return hook

        def keep(value: Tensor, hook: Any = None) -> None:
            seen["y"] = value.detach()

        hooks = [(self.layer.hook(name), instead(value)) for name, value in new.items()]
        hooks.append((self.layer.hook("y"), keep))
        logits = self.tail.run(self.layer.index, rows, hooks, every=True)
        log_q, log_p = logits.float().log_softmax(-1), self.log_p[rows]
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)  # [R, T]
        read = (seen["y"] - self.y[rows]).square().flatten(2).sum(-1)
        at = torch.arange(self.tokens.shape[1])[None] - positions[:, None]
        within = (at >= 0) & (at < self.window)
        return Outcome(
            kl=(kl * within).sum(1),
            next=kl[each, positions],
            read=(read * (within & (at > 0))).sum(1),
            logits=logits[each, positions].float(),
        )

    @torch.no_grad()
    def check(self, rows: Tensor, positions: Tensor) -> float:
        """Nats by which the model moves when its own writes are put in their own place.

        Raises:
            UsageError: more than rounding.
        """
        moved = float(self.put(rows, positions, self.key[rows, positions], self.value[rows, positions]).kl.max())
        if not moved <= EXACT:
            raise UsageError(
                f"putting back what {self.layer.path} wrote anyway changes the model's prediction by {moved:.2g} nats,"
                " more than rounding, so replacements cannot be measured on this model. Choose another."
            )
        return moved

    @torch.no_grad()
    def predicted(self, rows: Tensor, positions: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[R, vocab] the change of the logits at the positions in closed form: the new write less the old one, as the
        position itself reads it, through the layer's output and straight to the final norm and the unembedding. What
        later layers make of it is not in it, so of the last layer it is the change itself.

        The norm is applied anew: a write may go along the residual stream, where the norm's own scale takes most of it
        back.
        """
        q = self.factors.read[rows, positions]
        old_key, old_value = self.key[rows, positions], self.value[rows, positions]
        change = (q * key).sum(-1, keepdim=True) * value - (q * old_key).sum(-1, keepdim=True) * old_value
        y = self.y[rows, positions][:, None]
        skip = self.factors.skip
        here = replace(
            self.factors,
            gate=self.factors.gate[rows, positions][:, None],
            skip=None if skip is None else skip[rows, positions][:, None],
        )
        component = self.layer.component
        kind, mixer = component.recurrence.kind, component.original_component
        finish = [kind.finish(mixer, v, here, silent)[:, 0] for v in (y + change[:, None], y)]
        head, resid = self.tail.head, self.last[rows, positions]
        there = (resid.float() + (finish[0] - finish[1]).float()).to(resid)
        logits = finished(raw_logits(self.model, there).float(), head.factor, head.cap)
        return centred(logits - self.logits[rows, positions].float())


def centred(logits: Tensor) -> Tensor:
    """Logits less their mean over the vocabulary, which says nothing."""
    return logits - logits.mean(-1, keepdim=True)
