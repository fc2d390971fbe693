"""What each layer keeps of each token, how long, who reads it, and what of the prediction depends on it.

A recurrent layer *writes* k vᵀ into its state at every position, and what is read at a later position i of the write at
j is a term of a sum, y_i = Σ_j received(i, j) (:mod:`workbench.models.recurrent`). Attention is the same sum: position
i receives A_ij v_j. So both have

- *share* [reader i, written j]: the norm of what i receives of j over the sum of such norms over j; of attention A_ij
  itself, averaged over heads;
- *effect* [written j, reader i]: by how much the log probability of the token that follows i falls when what the layer
  keeps of j is removed (its write, or its value in every head) and everything after goes on from there. Nats, exact;

and a recurrent layer alone has *survival* (what is left of a write after 0, 1, 2, … positions) and the *channels*
in which a write is strongest.

Axes: T positions, H heads, K keys, V values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.models.anatomy import anatomy_of
from workbench.models.recurrent import RecurrentLayer, recurrent_layers
from workbench.models.recurrent.algebra import received, survival

Floats = npt.NDArray[np.float32]
CHANNELS = 4  # of a write are kept, the strongest
AT_ONCE = 64  # rows of a pass in which one write each is removed
LARGEST_BEFORE = 1e-3  # nats that removing a write may change before it was made: rounding
LEAST = 1e-5  # nats below which no removal at all has an effect
MOST_TOKENS = 128


@dataclass(frozen=True)
class LayerMemory:
    """What one layer keeps of one text.

    Attributes:
        layer, kind: its index; ``attention``, ``Mamba``, …
        share: [T, T] by reader and written, rows sum to 1. effect: [T, T] by written and reader, nats; the last reader
            has no next token and is NaN.
        survival: [T, T] by written and offset; None for attention. channels: [T, C] strongest channels of each write
            and weight [T, C], their share of its squared norm; None for attention.
        heads: [H, T, T] patterns of attention; None for a state.
    """

    layer: int
    kind: str
    share: Floats
    effect: Floats
    survival: Floats | None = None
    channels: npt.NDArray[np.int32] | None = None
    weight: Floats | None = None
    heads: Floats | None = None
    atoms: list[list[tuple[int, float]]] = field(default_factory=list)


@dataclass(frozen=True)
class TextMemory:
    """All layers on one text: ids [T], log probability of each next token [T - 1], the most likely next token [T]."""

    ids: npt.NDArray[np.int64]
    logprob: Floats
    predicted: npt.NDArray[np.int64]
    layers: list[LayerMemory]


def kept_layers(model: Any) -> list[tuple[int, str, RecurrentLayer | None]]:
    """(index, kind, its state or None for attention) of the layers that keep something, in order.

    Raises:
        UsageError: none does, or one cannot be read; the message says why.
    """
    recurrent = {layer.index: layer for layer in recurrent_layers(model)}
    found: list[tuple[int, str, RecurrentLayer | None]] = []
    for i, layer in enumerate(anatomy_of(model).layers):
        if i in recurrent:
            found.append((i, recurrent[i].kind, recurrent[i]))
        elif layer.kind == "attention":
            if layer.not_patched:
                raise UsageError(f"layer {i} of {model.cfg.architecture} cannot be read: {layer.not_patched}.")
            found.append((i, "attention", None))
        elif layer.kind != "MLP":
            why = getattr(layer, "not_shown", "") or f"what a layer of kind {layer.kind!r} keeps is not shown"
            raise UsageError(f"layer {i} of {model.cfg.architecture} cannot be read: {why}.")
    if not found:
        raise UsageError(
            f"no layer of {model.cfg.architecture} keeps anything from one position to the next:"
            f" {anatomy_of(model).describe()}."
        )
    return found


@torch.no_grad()
def text_memory(model: Any, ids: npt.NDArray[np.int64], *, dictionaries: dict[int, Any] | None = None) -> TextMemory:
    """What every layer keeps of a text of T tokens.

    Args:
        dictionaries: of writes, by layer: a write is then told by its atoms too.

    Raises:
        UsageError: a layer cannot be read, or the text has fewer than 3 or more than :data:`MOST_TOKENS` tokens.
    """
    if not 3 <= len(ids) <= MOST_TOKENS:
        raise UsageError(f"a text of {len(ids)} tokens: 3 to {MOST_TOKENS} can be followed. Give another.")
    tokens = torch.as_tensor(ids, dtype=torch.int64)[None]
    kept = kept_layers(model)
    names = [name for i, _, state in kept for name in _wanted(i, state)]
    seen: dict[str, Tensor] = {}
    hooks = [(name, lambda value, hook: seen.update({hook.name: value.detach()})) for name in names]
    logits = model.run_with_hooks(tokens, fwd_hooks=hooks, use_cache=False)[0].float()
    clean = _following(logits[None], tokens)[0]
    layers = []
    for i, kind, state in kept:
        effect = _effects(model, tokens, clean, _remover(i, state))
        if state is None:
            layers.append(_of_attention(i, seen[f"blocks.{i}.attn.hook_pattern"][0], effect))
        else:
            layers.append(_of_state(i, kind, state, seen, effect, (dictionaries or {}).get(i)))
    return TextMemory(np.asarray(ids), clean.numpy(), logits.argmax(-1).numpy(), layers)


def _wanted(index: int, state: RecurrentLayer | None) -> list[str]:
    if state is None:
        return [f"blocks.{index}.attn.hook_pattern"]
    return [f"{state.path}.hook_in", state.hook("conv")]


def _following(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B, T - 1] log probabilities of the next tokens."""
    return logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def _remover(index: int, state: RecurrentLayer | None) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """The hook at which what a layer keeps of one position per row is removed, and how."""
    name = f"blocks.{index}.attn.hook_v" if state is None else state.hook("write_value")

    def remove(value: Tensor, at: Tensor) -> Tensor:
        value = value.clone()
        value[torch.arange(len(value)), at] = 0
        return value

    return name, remove


def _effects(model: Any, tokens: Tensor, clean: Tensor, remover: tuple[str, Any]) -> Floats:
    """[written, reader] fall of the log probability of what follows each reader; NaN at the last.

    Raises:
        UsageError: removing a token changes what came before it, or removing any changes nothing: the hook is not where
        the layer keeps what it reads.
    """
    name, remove = remover
    T = tokens.shape[1]
    out = np.full((T, T), np.nan, np.float32)
    for start in range(0, T, AT_ONCE):
        at = torch.arange(start, min(T, start + AT_ONCE))
        rows = tokens.expand(len(at), -1)
        logits = model.run_with_hooks(
            rows, fwd_hooks=[(name, lambda value, hook, at=at: remove(value, at))], use_cache=False
        )
        out[at.numpy(), :-1] = (clean[None] - _following(logits, rows)).numpy()
    earlier = np.abs(np.tril(out[:, :-1], -1)).max(initial=0)
    if earlier > LARGEST_BEFORE or np.nanmax(np.abs(out)) < LEAST:
        raise UsageError(
            f"removing a token at {name} changes {'what came before it' if earlier > LARGEST_BEFORE else 'nothing'}:"
            f" what {model.cfg.architecture} keeps is not what is read there. Choose another layer or model."
        )
    return out


def _of_attention(index: int, pattern: Tensor, effect: Floats) -> LayerMemory:
    share = pattern.float().mean(0)
    if not torch.allclose(share.sum(-1), torch.ones(len(share)), atol=1e-3):
        raise UsageError(
            f"attention of layer {index} does not sum to 1 over the positions it reads, so its pattern is not shown."
            " Choose another layer or model."
        )
    return LayerMemory(index, "attention", share.numpy(), effect, heads=pattern.float().numpy())


def _of_state(
    index: int, kind: str, layer: RecurrentLayer, seen: dict[str, Tensor], effect: Floats, dictionary: Any
) -> LayerMemory:
    f = layer.factors_of(seen[f"{layer.path}.hook_in"], seen[layer.hook("conv")])
    T = f.shape[1]
    norms = torch.stack([received(f, i)[0].flatten(1).norm(dim=1) for i in range(T)])  # [reader, written]
    total = norms.sum(1, keepdim=True)
    share = norms / torch.where(total > 0, total, torch.ones_like(total))
    square = (f.write_key[0].square().sum(-1)[..., None] * f.write_value[0].square()).flatten(1)  # [T, H * V]
    whole = square.sum(1, keepdim=True)
    top = square.topk(min(CHANNELS, square.shape[1]), dim=1)
    weight = top.values / torch.where(whole > 0, whole, torch.ones_like(whole))
    return LayerMemory(
        index,
        kind,
        share.float().numpy(),
        effect,
        survival=survival(f)[0].float().numpy(),
        channels=top.indices.numpy().astype(np.int32),
        weight=weight.float().numpy(),
        atoms=[] if dictionary is None else _atoms(dictionary, f),
    )


def _atoms(dictionary: Any, f: Any) -> list[list[tuple[int, float]]]:
    """The atoms of each write, strongest first, with their activations."""
    rows = torch.cat([f.write_key[0].flatten(1), f.write_value[0].flatten(1)], 1)
    values, indices = dictionary.encode_sparse(dictionary.writes(rows))
    out = []
    for v, i in zip(values, indices, strict=True):
        on = [(int(j), float(a)) for a, j in zip(v, i, strict=True) if a > 0]
        out.append(sorted(on, key=lambda x: -x[1])[:CHANNELS])
    return out
