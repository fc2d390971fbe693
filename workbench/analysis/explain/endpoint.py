"""Talking to an OpenAI-compatible chat endpoint: rate-limited, retried, its use counted and its price estimated first.

The key is read from an environment variable when a request is sent and is stored nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field

from sae.errors import MissingError, UsageError, UserError
from sae.strict import StrictConfig

Messages = list[dict[str, str]]
CHARACTERS_PER_TOKEN = 3.0  # on the safe side for code and odd tokens


class EndpointConfig(StrictConfig):
    """Where to ask, whom, and how fast. ``base_url`` ends before ``/chat/completions``, e.g.

    ``http://127.0.0.1:8000/v1``.
    """

    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    requests_per_minute: float = Field(default=60, gt=0)
    timeout: float = Field(default=60, gt=0, description="seconds per request")
    retries: int = Field(default=4, ge=0, description="after 429, 5xx and network errors")
    temperature: float = Field(default=0, ge=0)
    usd_per_million_in: float | None = Field(default=None, ge=0)
    usd_per_million_out: float | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class Answer:
    """One completion. Token counts are the endpoint's own, None where it gives none."""

    text: str
    model: str
    tokens_in: int | None = None
    tokens_out: int | None = None


class Completer(Protocol):
    """Whoever answers: :class:`Endpoint`, a local model, or a test's stand-in."""

    name: str

    def complete(self, messages: Messages, *, max_tokens: int) -> Answer: ...


class EndpointError(UserError):
    """The endpoint refused or could not be reached; the message quotes its words. What was answered so far is kept."""


class Endpoint:
    """A chat endpoint. ``clock`` and ``sleep`` can be replaced in tests.

    Raises:
        UsageError: its address is none of http or https.
    """

    def __init__(
        self,
        config: EndpointConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        import httpx

        address = urlsplit(config.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise UsageError(f"endpoint {config.base_url!r} is not an address such as http://127.0.0.1:8000/v1.")
        self.config, self.name = config, config.model
        self._clock, self._sleep, self._next = clock, sleep, 0.0
        self._client = httpx.Client(timeout=config.timeout, follow_redirects=False)

    def complete(self, messages: Messages, *, max_tokens: int) -> Answer:
        """One answer.

        Raises:
            EndpointError: refused, unreachable after all retries, or an answer that is no chat completion.
        """
        import httpx

        body = {
            "model": self.config.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": self.config.temperature,
        }
        url = self.config.base_url.rstrip("/") + "/chat/completions"
        problem = ""
        for attempt in range(self.config.retries + 1):
            self._wait_turn()
            pause = min(60.0, 2.0**attempt)
            try:
                reply = self._client.post(url, json=body, headers=self._headers())
            except httpx.HTTPError as e:
                problem = f"{type(e).__name__}: {e}"
            else:
                if reply.status_code == 200:
                    return self._parse(reply)
                problem = f"HTTP {reply.status_code}: {reply.text[:200]}"
                if reply.status_code != 429 and reply.status_code < 500:
                    raise EndpointError(
                        f"{url} refused the request ({problem}). Check --endpoint, --llm and the key in"
                        f" ${self.config.key_env}."
                    )
                pause = _retry_after(reply.headers.get("retry-after"), pause)
            if attempt < self.config.retries:
                self._sleep(pause)
        raise EndpointError(
            f"{url} did not answer after {self.config.retries + 1} attempts ({problem}). Run the same command again to"
            " go on."
        )

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.config.key_env, "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _wait_turn(self) -> None:
        now = self._clock()
        if now < self._next:
            self._sleep(self._next - now)
        self._next = max(now, self._next) + 60.0 / self.config.requests_per_minute

    def _parse(self, reply: Any) -> Answer:
        try:
            body = reply.json()
            text = body["choices"][0]["message"]["content"]
            usage = body.get("usage") or {}
            if not isinstance(text, str):
                raise TypeError("content is not text")
            return Answer(
                text,
                str(body.get("model", self.config.model)),
                usage.get("prompt_tokens"),
                usage.get("completion_tokens"),
            )
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
            raise EndpointError(
                f"{self.config.base_url} answered with something that is no chat completion: {reply.text[:200]!r}"
            ) from e


def _retry_after(header: str | None, otherwise: float) -> float:
    try:
        return min(300.0, max(0.0, float(header))) if header is not None else otherwise
    except ValueError:
        return otherwise


@dataclass(frozen=True)
class Cost:
    """What a run would use; ``usd`` is None where no price was given."""

    requests: int
    tokens_in: int
    tokens_out: int
    minutes: float
    usd: float | None


def estimate(prompts: Sequence[Messages], max_tokens: Sequence[int], config: EndpointConfig) -> Cost:
    """Upper estimate from the prompts' characters and the answers' limits."""
    characters = sum(len(m["content"]) for p in prompts for m in p)
    tokens_in, tokens_out = int(characters / CHARACTERS_PER_TOKEN), int(sum(max_tokens))
    usd = None
    if config.usd_per_million_in is not None and config.usd_per_million_out is not None:
        usd = (tokens_in * config.usd_per_million_in + tokens_out * config.usd_per_million_out) / 1e6
    return Cost(len(prompts), tokens_in, tokens_out, len(prompts) / config.requests_per_minute, usd)


def local_model(name: str) -> Completer:
    """A local transformers model as explainer (folder, or hub model in the cache).

    Raises:
        MissingError: it is not there.
    """
    from workbench.models import load_hf, load_tokenizer

    model, tokenizer = load_hf(name), load_tokenizer(name)
    if tokenizer is None:
        raise MissingError(f"{name} has no tokenizer, so it cannot be asked. Choose another with --llm.")
    return Local(name, model, tokenizer)


class Local:
    """A transformers model on this machine, greedy; the chat template is used where the tokenizer has one.

    Beside :meth:`complete` it says what only who sees probabilities can say: :meth:`yes` and :meth:`levels`.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any):
        self.name, self._model, self._tokenizer = name, model, tokenizer

    def _read(self, messages: Messages) -> Any:
        if getattr(self._tokenizer, "chat_template", None):
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(m["content"] for m in messages) + "\n\nAnswer:"
        return self._tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]

    def complete(self, messages: Messages, *, max_tokens: int) -> Answer:
        """One answer, deterministic."""
        import torch

        ids = self._read(messages)
        with torch.inference_mode():
            out = self._model.generate(
                ids, max_new_tokens=max_tokens, do_sample=False, pad_token_id=self._tokenizer.pad_token_id or 0
            )
        new = out[0, ids.shape[1] :]
        return Answer(self._tokenizer.decode(new, skip_special_tokens=True), self.name, int(ids.shape[1]), len(new))

    def yes(self, messages: Messages) -> Answer:
        """ "yes" or "no", whichever is the more probable next word (over their usual spellings)."""
        import torch

        ids = self._read(messages)
        with torch.inference_mode():
            logits = self._model(input_ids=ids).logits[0, -1].float()
        weight = {word: max(float(logits[t]) for t in self._firsts(word)) for word in ("yes", "no")}
        return Answer("yes" if weight["yes"] > weight["no"] else "no", self.name, int(ids.shape[1]), 1)

    def levels(self, messages: Messages, tokens: Sequence[str]) -> Answer:
        """An activation for each of the tokens that the last message writes as lines "token<tab>unknown": the expected
        value of the distribution over the digits after each tab, all in one pass (Bills et al. 2023; a 10 is no single
        token of most vocabularies, so the largest is 9).
        """
        import torch

        ids, tabs = self._read(messages[:-1])[0].tolist(), []
        for token in tokens:
            ids += self._ids(f"{token}\t")
            tabs.append(len(ids) - 1)
            ids += self._ids("unknown\n")
        digits = torch.tensor([self._ids(str(d))[-1] for d in range(10)])
        with torch.inference_mode():
            logits = self._model(input_ids=torch.tensor([ids])).logits[0, tabs].float()
        expected = torch.softmax(logits[:, digits], -1) @ torch.arange(10.0)
        return Answer(",".join(f"{v:.4f}" for v in expected.tolist()), self.name, len(ids), len(tokens))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _firsts(self, word: str) -> set[int]:
        return {self._ids(spelled)[0] for spelled in (word, word.capitalize(), f" {word}", f" {word.capitalize()}")}
