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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.circuits.tail import Tail
from workbench.models.anatomy import anatomy_of
from workbench.models.recurrent import Factors, RecurrentLayer, recurrent_layers
from workbench.models.recurrent.algebra import received_and_survival

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Kept = tuple[int, str, RecurrentLayer | None]
CHANNELS = 4  # of a write are kept, the strongest
MOST_READS = 1 << 25  # numbers of what is read of every write that are held at once
AT_ONCE = 64  # rows of a pass in which one write each is removed
MOST_NUMBERS = 1 << 25  # of logits that are held at once
NEAR = 1e-4  # of the largest entry of the stream at that position before the norm: less is rounding
LARGEST_BEFORE = 1e-3  # nats that removing a write may change before it was made: rounding
LEAST = 1e-6  # of the largest entry of the stream: less than that no removal moves anything
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


def kept_layers(model: Any) -> list[Kept]:
    """(index, kind, its state or None for attention) of the layers that keep something, in order.

    Raises:
        UsageError: none does, or one cannot be read; the message says why.
    """
    recurrent = {layer.index: layer for layer in recurrent_layers(model)}
    found: list[Kept] = []
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


def text_memory(model: Any, ids: Ids, *, dictionaries: dict[int, Any] | None = None) -> TextMemory:
    """:func:`text_memories` of one text."""
    return text_memories(model, [ids], dictionaries=dictionaries)[0]


def text_memories(model: Any, texts: Sequence[Ids], *, dictionaries: dict[int, Any] | None = None) -> list[TextMemory]:
    """What every layer keeps of texts of T tokens each; those of one length go through the model together.

    Args:
        dictionaries: of writes, by layer: a write is then told by its atoms too.

    Raises:
        UsageError: a layer cannot be read, a text has fewer than 3 or more than :data:`MOST_TOKENS` tokens, or the
            model does more than its blocks, final norm and unembedding.
    """
    if strange := [len(ids) for ids in texts if not 3 <= len(ids) <= MOST_TOKENS]:
        raise UsageError(f"a text of {strange[0]} tokens: 3 to {MOST_TOKENS} can be followed. Give another.")
    kept = kept_layers(model)
    widest = max((state.heads * state.values for _, _, state in kept if state is not None), default=1)
    together: list[list[int]] = []
    for length in dict.fromkeys(map(len, texts)):
        at = [i for i, ids in enumerate(texts) if len(ids) == length]
        size = max(1, min(MOST_READS // (length * length * widest), MOST_NUMBERS // (length * int(model.cfg.d_vocab))))
        together += [at[start : start + size] for start in range(0, len(at), size)]
    found: dict[int, TextMemory] = {}
    for at in together:
        tokens = torch.as_tensor(np.stack([texts[i] for i in at]), dtype=torch.int64)
        found |= dict(zip(at, _of_one_length(model, kept, tokens, dictionaries or {}), strict=True))
    return [found[i] for i in range(len(texts))]


@torch.no_grad()
def _of_one_length(model: Any, kept: list[Kept], tokens: Tensor, dictionaries: dict[int, Any]) -> list[TextMemory]:
    """Texts [P,T] as :func:`text_memories` says."""
    seen: dict[str, Tensor] = {}
    hooks = [(name, lambda value, hook: seen.update({hook.name: value.detach()})) for name in _wanted(kept)]
    with model.hooks(fwd_hooks=hooks):
        tail = Tail(model, tokens, check=False)
    logits = tail.run(0, torch.arange(len(tokens)), every=True)
    if not torch.allclose(logits[:, -1].float(), tail.logits.float(), atol=1e-3, rtol=1e-3):
        raise UsageError(f"{model.cfg.architecture} does more than its blocks, final norm and unembedding.")
    clean = _following(logits, tokens)
    layers: list[list[LayerMemory]] = []  # by layer, by text
    for i, kind, state in kept:
        if state is None:
            effect = _effects(tail, clean, i, f"blocks.{i}.attn.hook_v", _without_value)
            patterns = seen[f"blocks.{i}.attn.hook_pattern"]
            layers.append([_of_attention(i, p, e) for p, e in zip(patterns, effect, strict=True)])
            continue
        f = state.factors_of(seen[f"{state.path}.hook_in"], seen[state.hook("conv")])
        reads, lives = received_and_survival(f)
        effect = _effects(tail, clean, i, state.hook("y"), _Unread(reads))
        layers.append(_of_state(i, kind, f, reads, lives, effect, dictionaries.get(i)))
    best = logits.argmax(-1).numpy()
    return [
        TextMemory(ids.numpy(), clean[p].numpy(), best[p], [of[p] for of in layers]) for p, ids in enumerate(tokens)
    ]


def _wanted(kept: list[Kept]) -> list[str]:
    names: list[str] = []
    for index, _, state in kept:
        own = [f"blocks.{index}.attn.hook_pattern"] if state is None else [f"{state.path}.hook_in", state.hook("conv")]
        names += own
    return names


def _following(logits: Tensor, tokens: Tensor) -> Tensor:
    """[B, T - 1] log probabilities of the next tokens."""
    return logits[:, :-1].float().log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


def _without_value(value: Tensor, text: Tensor, written: Tensor) -> Tensor:
    """Values [R,T,KV,e] of attention without that of one position per row."""
    value = value.clone()
    value[torch.arange(len(value)), written] = 0
    return value


class _Unread:
    """What a recurrent layer reads [R,T,H,V] less what it reads of one position's write per row: the sum over writes
    is y, so this is the layer without that write, and no state has to be made again.
    """

    def __init__(self, reads: Tensor):
        self.reads = reads  # [P, reader, written, H, V]

    def __call__(self, value: Tensor, text: Tensor, written: Tensor) -> Tensor:
        return value - self.reads[text, :, written].to(value.dtype)


def _effects(tail: Tail, clean: Tensor, index: int, name: str, remove: Callable[..., Tensor]) -> Floats:
    """[P, written, reader] fall of the log probability of what follows each reader; NaN at the last.

    Only what comes after the layer runs again, and only positions whose stream moved are taken to logits: before a
    removal nothing may.

    Raises:
        UsageError: removing a token changes what came before it, or removing any changes nothing: the hook is not where
        the layer keeps what it reads.
    """
    P, T = tail.tokens.shape
    out: Floats = np.zeros((P * T, T), np.float32)
    out[:, -1] = np.nan
    last = tail.stream(tail.n_layers - 1, torch.arange(P))[:, :-1]
    size, felt = float(last.abs().amax()), 0.0
    places, after = torch.arange(P * T), torch.arange(T - 1)
    for text, written in zip((places // T).split(AT_ONCE), (places % T).split(AT_ONCE), strict=True):
        hook = (name, lambda value, hook, text=text, written=written: remove(value, text, written))
        stream = tail.stream(index, text, [hook])[:, :-1]
        change = (stream - last[text]).abs().amax(-1)
        felt = max(felt, float(change.max()))
        moved = (after >= written[:, None]) | (change > NEAR * last[text].abs().amax(-1))
        row, reader = moved.nonzero(as_tuple=True)
        for some in torch.arange(len(row)).split(max(1, MOST_NUMBERS // int(tail.model.cfg.d_vocab))):
            r, i = row[some], reader[some]
            logits = tail.to_logits(stream[r, i][None])[0].float()
            found = logits.log_softmax(-1).gather(-1, tail.tokens[text[r], i + 1][:, None])[:, 0]
            out[(text * T + written)[r].numpy(), i.numpy()] = (clean[text[r], i] - found).numpy()
    out = out.reshape(P, T, T)
    earlier = np.abs(np.tril(out[:, :, :-1], -1)).max(initial=0)
    if earlier > LARGEST_BEFORE or felt <= LEAST * size:
        raise UsageError(
            f"removing a token at {name} changes {'what came before it' if earlier > LARGEST_BEFORE else 'nothing'}:"
            f" what {tail.model.cfg.architecture} keeps is not what is read there. Choose another layer or model."
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
    index: int, kind: str, f: Factors, reads: Tensor, lives: Tensor, effect: Floats, dictionary: Any
) -> list[LayerMemory]:
    """By text; ``reads`` [P, reader, written, H, V], ``lives`` [P, written, offset]."""
    norms = reads.flatten(3).norm(dim=-1)  # [P, reader, written]
    total = norms.sum(-1, keepdim=True)
    share = norms / torch.where(total > 0, total, torch.ones_like(total))
    square = (f.write_key.square().sum(-1)[..., None] * f.write_value.square()).flatten(2)  # [P, T, H * V]
    whole = square.sum(-1, keepdim=True)
    top = square.topk(min(CHANNELS, square.shape[-1]), dim=-1)
    weight = top.values / torch.where(whole > 0, whole, torch.ones_like(whole))
    return [
        LayerMemory(
            index,
            kind,
            share[p].float().numpy(),
            effect[p],
            survival=lives[p].float().numpy(),
            channels=top.indices[p].numpy().astype(np.int32),
            weight=weight[p].float().numpy(),
            atoms=[] if dictionary is None else _atoms(dictionary, f, p),
        )
        for p in range(len(share))
    ]


def _atoms(dictionary: Any, f: Factors, p: int) -> list[list[tuple[int, float]]]:
    """The atoms of each write of text p, strongest first, with their activations."""
    rows = torch.cat([f.write_key[p].flatten(1), f.write_value[p].flatten(1)], 1)
    values, indices = dictionary.encode_sparse(dictionary.writes(rows))
    out = []
    for v, i in zip(values, indices, strict=True):
        on = [(int(j), float(a)) for a, j in zip(v, i, strict=True) if a > 0]
        out.append(sorted(on, key=lambda x: -x[1])[:CHANNELS])
    return out
