"""Continuing a text with latents pushed or held, and how much of a push does what.

The dictionary enters every forward pass by the error-preserving splice, at every token that is data and at every token
that is made, so nothing changes but the latents asked for. Tokens are made one at a time with the model's own running
state (keys and values of a Transformer, convolution and state of a Mamba), so that the prompt is read once. The state's
first step is compared with a whole pass; a model whose state does not give the same logits reads the whole text for
every token instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from workbench.analysis.splice import Edit, clamp, splice, steer
from workbench.models.reading import token_contract
from workbench.stats import interval95, resample_weights

DOSE_MEASURES = ("kl", "logit", "probability", "perplexity")
STATES = ("past_key_values", "cache_params")  # what Hugging Face's models call their running state
SAME = 1e-3  # largest difference of logits between a running state and a whole pass, relative to the largest logit


@dataclass(frozen=True)
class Change:
    """Of one latent, at every position: ``amount`` added to its activation, or put in its place."""

    latent: int
    amount: float
    replace: bool = False


@dataclass(frozen=True)
class Continuation:
    """Tokens that follow a prompt, and the perplexity that the model without any change gives them."""

    seed: int
    ids: list[int]
    text: str
    perplexity: float | None  # None where no token was made


@dataclass(frozen=True)
class Dose:
    """One strength of a push, on the prompt's next token: what it does to the distribution and to one token, and what
    the model without it thinks of the continuation. Over several texts the means of these, with 95 % bootstrap
    intervals over texts.
    """

    amount: float
    kl: float  # nats, from the unchanged next-token distribution to the steered one
    logit: float  # of the target token less the mean logit
    probability: float  # of the target token
    perplexity: float | None
    kl_low: float | None = None
    kl_high: float | None = None
    logit_low: float | None = None
    logit_high: float | None = None
    probability_low: float | None = None
    probability_high: float | None = None
    perplexity_low: float | None = None
    perplexity_high: float | None = None


def edit_of(changes: Sequence[Change]) -> Edit | None:
    """All changes as one edit of codes, each latent in one of them; None where there are none."""
    if not changes:
        return None
    held = [c for c in changes if c.replace]
    add = steer({c.latent: c.amount for c in changes if not c.replace})
    hold = clamp([c.latent for c in held], torch.tensor([c.amount for c in held]))
    return lambda codes, hook: hold(add(codes, hook), hook)


class Steered:
    """A model with a dictionary at its hook, ready to continue one prompt.

    Args:
        at: hook name -> dictionary, as for :func:`workbench.analysis.splice.splice`.
        ids: [1, S] the prompt by the model's contract.

    Raises:
        UsageError: a latent the dictionary does not have.
    """

    def __init__(self, model: Any, at: Mapping[str, Any], ids: Tensor, changes: Sequence[Change] = ()):
        self.model, self.at, self.ids, self.edit = model, dict(at), ids, edit_of(changes)
        for hook, dictionary in self.at.items():
            width = int(dictionary.W_dec.shape[0])
            if wrong := [c.latent for c in changes if not 0 <= c.latent < width]:
                raise UsageError(f"latent {wrong[0]} is not in the dictionary at {hook} (0 to {width - 1}).")
        contract = token_contract(model)
        self.rows = torch.as_tensor(contract.is_row(ids.numpy()))
        self.room = math.inf if contract.longest is None else contract.longest - ids.shape[1]
        self.known = contract.vocabulary or None  # ids beyond the tokenizer are never made
        self.reads_once: bool | None = None  # whether continuations go on from a running state; None: not tried yet

    def _open(self, rows: Tensor | None) -> Any:
        if self.edit is None:
            return nullcontext()
        return splice(self.model, self.at, self.edit, keep_error=True, first_position=0, rows=rows)

    @torch.no_grad()
    def whole(self, ids: Tensor) -> Tensor:
        """Logits [S, V] of a whole pass over the prompt and what was made of it so far, [1, S]."""
        made = torch.ones(1, ids.shape[1] - self.ids.shape[1], dtype=torch.bool)
        with self._open(torch.cat([self.rows, made], 1)):
            return self.model(ids, use_cache=False)[0].double()

    def tokens(self, n: int, *, temperature: float = 0.0, seed: int = 0) -> Iterator[int]:
        """Up to ``n`` tokens, one at a time; it ends early at the tokenizer's end of text, and may be stopped.

        Args:
            temperature: 0 takes the likeliest. seed: of the draws otherwise.

        Raises:
            UsageError: the model has no room for so many; nothing is made.
        """
        if n > self.room:
            raise UsageError(
                f"{n} more tokens do not fit: the prompt leaves {max(0, int(self.room))} of the model's positions. Ask"
                " for fewer, or shorten the prompt."
            )
        generator, end = torch.Generator().manual_seed(seed), self.model.tokenizer.eos_token_id
        ids, state = self.ids, _State(self)
        logits = state.begin()
        for made in range(n):
            token = choose(logits[: self.known], temperature, generator)
            if token == end:
                return
            yield token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
            if made + 1 < n:
                logits = state.step(ids)

    def perplexity(self, made: Sequence[int]) -> float | None:
        """Of tokens after the prompt, under the model without any change."""
        if not made:
            return None
        ids = torch.cat([self.ids, torch.tensor([list(made)])], 1)
        with torch.no_grad():
            logp = torch.log_softmax(self.model(ids, use_cache=False)[0].double(), -1)
        at = torch.arange(self.ids.shape[1] - 1, ids.shape[1] - 1)
        return float(torch.exp(-logp[at, torch.tensor(list(made))].mean()))

    def continuation(self, n: int, *, temperature: float = 0.0, seed: int = 0) -> Continuation:
        """A whole continuation with its perplexity."""
        made = list(self.tokens(n, temperature=temperature, seed=seed))
        text = self.model.tokenizer.decode(made, clean_up_tokenization_spaces=False)
        return Continuation(seed, made, text, self.perplexity(made))


class _State:
    """The model's running state over a text that grows; whole passes where it has none that is right."""

    def __init__(self, steered: Steered):
        self.of = steered
        self.cache: dict[str, Any] = {}  # under the name the model gives its state
        self.hf = getattr(steered.model, "original_model", None)

    @torch.no_grad()
    def _read(self, ids: Tensor, rows: Tensor | None) -> Tensor:
        with self.of._open(rows):
            out = self.hf(input_ids=ids, use_cache=True, **self.cache)  # type: ignore[misc]
        self.cache = {name: state for name in STATES if (state := getattr(out, name, None)) is not None}
        return out.logits[0, -1].double()

    def begin(self) -> Tensor:
        """Logits [V] after the prompt. The first time, the state's are held against those of a whole pass."""
        if self.of.reads_once is None:
            want, have = self.of.whole(self.of.ids)[-1], self._tried()
            self.of.reads_once = have is not None and float((have - want).abs().max()) <= SAME * float(want.abs().max())
            return have if have is not None and self.of.reads_once else want
        return self._prompt() if self.of.reads_once else self.of.whole(self.of.ids)[-1]

    def _prompt(self) -> Tensor:
        """The prompt into the state: all but its last token, then that one as a step."""
        self._read(self.of.ids[:, :-1], self.of.rows[:, :-1])
        return self._read(self.of.ids[:, -1:], self.of.rows[:, -1:])

    def _tried(self) -> Tensor | None:
        """:meth:`_prompt`, or None where the model has no such state."""
        if self.hf is None or self.of.ids.shape[1] < 2:
            return None
        try:
            logits = self._prompt()
        except (
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
        ):  # no state of this kind, or hooks that need it whole
            return None
        return logits if self.cache else None

    def step(self, ids: Tensor) -> Tensor:
        """Logits [V] after the last token of ``ids``."""
        return self._read(ids[:, -1:], None) if self.of.reads_once else self.of.whole(ids)[-1]


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    """A token by its logits [V]: the likeliest at temperature 0, else drawn."""
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial(torch.softmax(logits / temperature, -1), 1, generator=generator))


def dose_response(
    model: Any,
    at: Mapping[str, Any],
    ids: Tensor,
    latents: Sequence[int],
    amounts: Sequence[float],
    *,
    target: int | None = None,
    tokens: int = 0,
    seed: int = 0,
    held: Sequence[Change] = (),
    step: Callable[[], object] = lambda: None,
) -> tuple[list[Dose], int]:
    """(what each amount added to ``latents`` does after a prompt, the token that was followed).

    Args:
        held: changes that hold at every amount. step: called after each amount.
        target: token whose logit is followed; None: the one that the largest amount raises most. tokens: length of the
            continuations (the likeliest ones) whose perplexity is measured; 0 = not.
    """
    runs = {a: Steered(model, at, ids, [*held, *([Change(l, a) for l in latents] if a else [])]) for a in amounts}
    plain = Steered(model, at, ids).whole(ids)[-1]
    logits = {a: run.whole(ids)[-1] for a, run in runs.items()}
    if target is None:
        largest = max(amounts, key=abs)
        target = int((torch.softmax(logits[largest], -1) - torch.softmax(plain, -1))[: runs[largest].known].argmax())
    before = torch.log_softmax(plain, -1)
    found = []
    for amount, run in runs.items():
        after = torch.log_softmax(logits[amount], -1)
        found.append(
            Dose(
                amount,
                float((before.exp() * (before - after)).sum()),
                float(logits[amount][target] - logits[amount].mean()),
                float(after[target].exp()),
                run.continuation(tokens, seed=seed).perplexity if tokens else None,
            )
        )
        step()
    return found, target


def over_texts(of_texts: Sequence[Sequence[Dose]], *, seed: int = 0) -> list[Dose]:
    """Means over texts of doses of the same amounts, with 95 % bootstrap intervals over texts; of the perplexity the
    geometric mean, over the texts that were continued at every amount, so that a curve is of the same texts.
    """
    found = []
    continued = [all(d.perplexity is not None for d in doses) for doses in of_texts]
    for doses in zip(*of_texts, strict=True):
        numbers: dict[str, float | None] = {}
        for name in DOSE_MEASURES:
            of = [d for d, on in zip(doses, continued, strict=True) if on or name != "perplexity"]
            values = np.array([v for d in of if (v := getattr(d, name)) is not None], float)
            if not len(values):
                numbers[name] = None
                continue
            values = np.log(values) if name == "perplexity" else values
            draws = resample_weights(len(values), seed=seed) @ values / len(values)
            ends: list[float] = [float(values.mean()), *interval95(draws)]
            ends = [float(np.exp(v)) for v in ends] if name == "perplexity" else ends
            numbers |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        found.append(Dose(amount=doses[0].amount, **numbers))  # type: ignore[arg-type]
    return found
