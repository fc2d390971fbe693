"""Which latents fire where on a text, and what pushing one of them does to the next token.

The text goes through the language model once; its activations at the dictionary's hook are encoded. Steering adds to
one latent on every position of the error-preserving splice, so nothing but that latent's direction changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sae.errors import UsageError
from workbench.analysis.splice import splice, steer
from workbench.corpus.records import prompt_text
from workbench.corpus.shown import shown_token, shown_tokens
from workbench.dictionaries.reference import DictionaryRef
from workbench.models.reading import token_contract

MAX_TOKENS = 256
_ONE_AT_A_TIME = threading.Lock()  # a model's hooks are global to it


@dataclass(frozen=True)
class Probe:
    """Latents of one dictionary on one text. T tokens (BOS first), K active latents per token."""

    tokens: list[str]
    values: np.ndarray  # [T, K] float32; 0 = not active, and on tokens that are no data (BOS, pads)
    indices: np.ndarray  # [T, K] int64
    next_tokens: list[tuple[str, float]]  # most probable continuations with their probabilities
    cut: int  # characters of the text beyond the token limit

    def latents(self, n: int = 20) -> list[tuple[int, float, int]]:
        """(latent, largest activation, token index of it), strongest first."""
        best: dict[int, tuple[float, int]] = {}
        for t in range(len(self.tokens)):
            for latent, value in zip(self.indices[t].tolist(), self.values[t].tolist(), strict=True):
                if value > best.get(latent, (0.0, 0))[0]:
                    best[latent] = value, t
        return [(latent, v, t) for latent, (v, t) in sorted(best.items(), key=lambda x: -x[1][0])[:n]]

    def activations(self, latent: int) -> list[float]:
        """The latent's activation on every token."""
        return np.where(self.indices == latent, self.values, 0.0).max(1, initial=0.0).tolist()


def fires_on(found: Probe, tokens: Iterable[int]) -> list[tuple[int, float]]:
    """(latent, largest activation) of what fires on some tokens of a text."""
    best: dict[int, float] = {}
    for t in tokens:
        for latent, value in zip(found.indices[t].tolist(), found.values[t].tolist(), strict=True):
            if value > best.get(latent, 0.0):
                best[latent] = value
    return list(best.items())


def by_share(latents: Iterable[tuple[int, float]], maximum: Callable[[int], float]) -> list[tuple[int, float]]:
    """Latents with their activations, that nearest to its own ``maximum`` first; by activation where that is 0."""
    known = [(latent, value, maximum(latent)) for latent, value in latents]
    ranked = sorted(known, key=lambda x: (x[2] <= 0, -(x[1] / x[2] if x[2] > 0 else x[1]), -x[1]))
    return [(latent, value) for latent, value, _ in ranked]


@dataclass(frozen=True)
class Steered:
    """Next-token distributions without and with the push, over the tokens that moved most."""

    tokens: list[str]
    before: list[float]
    after: list[float]
    kl: float  # nats, from before to after


def encode_text(model: Any, text: str) -> tuple[torch.Tensor, list[str], int]:
    """(token ids [1, T] by the model's contract, displayed tokens, characters cut off).

    Raises:
        UsageError: the text is empty, or the model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UsageError(
            "this model has no tokenizer, so it cannot read a text. Use a model folder with tokenizer.json."
        )
    text, contract = prompt_text(text), token_contract(model)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UsageError("the text is empty. Type or give one.")
    kept = ids[: min(MAX_TOKENS, contract.longest or MAX_TOKENS) - int(contract.first is not None)]
    whole = contract.sequence(kept)
    cut = len(text) - len(tokenizer.decode(kept, clean_up_tokenization_spaces=False)) if len(kept) < len(ids) else 0
    return torch.tensor([whole]), shown_tokens(tokenizer, whole), max(0, cut)


@torch.no_grad()
def probe(model: Any, dictionary: Any, reference: DictionaryRef, text: str, *, n_next: int = 10) -> Probe:
    """Run ``text`` and encode it with the dictionary ``subject`` describes.

    Raises:
        UsageError: no text, no tokenizer, or a dictionary over several hooks.
    """
    hook = one_hook(reference)
    ids, shown, cut = encode_text(model, text)
    with _ONE_AT_A_TIME, splice(model, {hook: dictionary}, keep_error=True, record=True) as handle:
        logits = model(ids)[0, -1]
    seen = handle.seen[hook]
    values, indices = seen.values[0].float().numpy().copy(), seen.indices[0].numpy().astype(np.int64)
    values[~token_contract(model).is_row(ids[0].numpy())] = 0.0
    p = torch.softmax(logits.float(), -1)
    top = torch.topk(p, min(n_next, len(p)))
    continuations = [(_show(model, int(i)), float(v)) for v, i in zip(top.values, top.indices, strict=True)]
    return Probe(shown, values, indices, continuations, cut)


@torch.no_grad()
def push(
    model: Any, dictionary: Any, reference: DictionaryRef, text: str, latent: int, amount: float, *, n: int = 12
) -> Steered:
    """The next-token distribution after ``text`` with ``amount`` added to ``latent`` on every position.

    Raises:
        UsageError: no such latent.
    """
    hook = one_hook(reference)
    width = int(dictionary.W_dec.shape[0])
    if not 0 <= latent < width:
        raise UsageError(f"latent {latent} is not in {reference.id} (0 to {width - 1}).")
    ids, _, _ = encode_text(model, text)
    with _ONE_AT_A_TIME:
        before = torch.log_softmax(model(ids)[0, -1].double(), -1)
        with splice(model, {hook: dictionary}, steer({latent: amount}), keep_error=True):
            after = torch.log_softmax(model(ids)[0, -1].double(), -1)
    moved = torch.topk((after.exp() - before.exp()).abs(), min(n, len(after))).indices
    order = moved[torch.argsort(after[moved] - before[moved], descending=True)]
    return Steered(
        tokens=[_show(model, int(i)) for i in order],
        before=before[order].exp().tolist(),
        after=after[order].exp().tolist(),
        kl=float((before.exp() * (before - after)).sum()),
    )


def _show(model: Any, token: int) -> str:
    return shown_token(model.tokenizer, token)


def one_hook(reference: DictionaryRef) -> str:
    """The hook of a dictionary that reads one.

    Raises:
        UsageError: it reads several.
    """
    if not isinstance(reference.hook, str) or reference.metadata.get("kind") == "crosscoder":
        raise UsageError(
            f"{reference.id} is a crosscoder (it reads several places at once); the text probe shows dictionaries of"
            " one hook."
        )
    return reference.hook
