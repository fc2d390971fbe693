"""One contract for tokens: what a model reads of a text, and which rows of it are data.

Everything that turns text into tokens, or rows back into text, asks here: harvesting, the text probe, evaluation,
graphs, circuits, records and exports. A store keeps the contract it was cut by; who reads the store with another
tokenizer is told so.

The rule. A sequence begins with the id the tokenizer itself puts first; else with its BOS; else with its EOS, which
separates documents in models that have no BOS (GPT-2, Pythia, Qwen); else with nothing. Rows of the first position, and
of every BOS, EOS and pad wherever it stands, are no data: models park attention there, and its norm is several times
that of any word.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from sae.errors import UsageError
from sae.strict import StrictConfig
from workbench.corpus.records import prompt_text

_PROBE = "a"


class TokenContract(StrictConfig):
    """How one tokenizer's text becomes the rows of one kind of model. Made by :func:`contract_of`.

    Attributes:
        first: id every sequence begins with; None: there is none. first_from: what says so.
        excluded_ids: ids whose rows are no data, wherever they stand. excluded_positions: whatever stands there.
        special: all ids that no ordinary text gives. vocabulary: ids the tokenizer knows; a model may have more rows.
        longest: positions of the model; None: not limited. chat_template: digest of the tokenizer's; empty: none.
        roles: whose words alone are rows, of conversations; empty: everybody's.
        tokenizer: digest of the whole tokenizer. words: digest of what each of the ``vocabulary`` ids stands for.
    """

    version: Literal[1] = 1
    first: int | None = None
    first_from: Literal["tokenizer", "bos", "eos", "none"] = "none"
    excluded_ids: tuple[int, ...] = ()
    excluded_positions: tuple[int, ...] = (0,)
    special: tuple[int, ...] = ()
    vocabulary: int = Field(0, ge=0)
    longest: int | None = None
    chat_template: str = ""
    roles: tuple[str, ...] = ()
    tokenizer: str = ""
    words: str = ""

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """``roles`` are written where they say something, so that stores without keep their ids."""
        return {k: v for k, v in handler(self).items() if k != "roles" or v}

    def check(self, tokenizer: Any, who: str, what: str) -> None:
        """Refuse a tokenizer whose ids mean something else than those of tokens cut by this contract.

        Raises:
            UsageError: it does; ``who`` reads ``what``.
        """
        if self.words and words_digest(tokenizer, self.vocabulary) != self.words:
            raise UsageError(
                f"{who} has another tokenizer than {what} was cut with, so the stored token ids are other words to it."
                f" Harvest the text for {who}, into a store of its own."
            )

    def sequence(self, ids: Any) -> list[int]:
        """Ids of a text as the model reads them: what comes first, then the text."""
        return [*([] if self.first is None else [self.first]), *(int(i) for i in ids)]

    def encode(self, tokenizer: Any, text: str) -> list[int]:
        """Ids of a prompt, as the model reads it.

        Raises:
            UsageError: not a text, an empty one, or one longer than the model's positions.
        """
        ids = tokenizer(prompt_text(text), add_special_tokens=False)["input_ids"]
        if not ids:
            raise UsageError("the text is empty. Type or give one.")
        whole = self.sequence(ids)
        if self.longest is not None and len(whole) > self.longest:
            raise UsageError(
                f"the text has {len(whole):,} tokens; the model has {self.longest:,} positions. Shorten it."
            )
        return whole

    def is_row(self, ids: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Which tokens are data: bool like ``ids`` [..., positions].

        Args:
            positions: of the last axis; default: from 0 on.
        """
        ids = np.asarray(ids)
        positions = np.arange(ids.shape[-1]) if positions is None else np.asarray(positions)
        return ~np.isin(ids, self.excluded_ids) & ~np.isin(positions, self.excluded_positions)

    def lines(self, tokenizer: Any = None) -> list[str]:
        """The contract for people, one fact per line."""

        def name(i: int) -> str:
            return f"{i} ({tokenizer.convert_ids_to_tokens(int(i))})" if tokenizer is not None else str(i)

        def listed(ids: tuple[int, ...]) -> str:
            more = f" and {len(ids) - 12} more" if len(ids) > 12 else ""
            return (", ".join(map(name, ids[:12])) or "none") + more

        why = {
            "tokenizer": "the tokenizer puts it first",
            "bos": "its BOS, which the tokenizer leaves to the caller",
            "eos": "its EOS; it has no BOS",
            "none": "the tokenizer has neither BOS nor EOS",
        }[self.first_from]
        return [
            f"first token: {'none' if self.first is None else name(self.first)} ({why})",
            f"no rows: positions {list(self.excluded_positions)}, ids {listed(self.excluded_ids)}",
            f"special ids: {listed(self.special)}",
            f"vocabulary: {self.vocabulary:,} ids",
            f"longest context: {f'{self.longest:,}' if self.longest else 'no limit'}",
            f"chat template: {'yes' if self.chat_template else 'none'}",
            *([f"rows of roles: the words of {' and '.join(self.roles)} alone"] if self.roles else []),
        ]


def contract_of(tokenizer: Any, *, longest: int | None = None) -> TokenContract:
    """The contract of a tokenizer, established from what it does rather than from what its settings say.

    Raises:
        UsageError: it puts more than one token before a text.
    """
    first, why = _first(tokenizer)
    named = [getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")]
    template = getattr(tokenizer, "chat_template", None)
    return TokenContract(
        first=first,
        first_from=why,
        excluded_ids=_ids([first, *named]),
        special=_ids([first, *named, *getattr(tokenizer, "all_special_ids", ())]),
        vocabulary=len(tokenizer),
        longest=longest,
        chat_template=hashlib.sha256(json.dumps(template).encode()).hexdigest()[:16] if template else "",
        tokenizer=tokenizer_digest(tokenizer),
        words=words_digest(tokenizer, len(tokenizer)),
    )


def _ids(values: Any) -> tuple[int, ...]:
    return tuple(sorted({int(v) for v in values if v is not None}))


def _first(tokenizer: Any) -> tuple[int | None, Literal["tokenizer", "bos", "eos", "none"]]:
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(_PROBE)["input_ids"])
    at = next((k for k in range(len(whole) - len(bare) + 1) if whole[k : k + len(bare)] == bare), 0)
    if at > 1:
        raise UsageError(
            f"the tokenizer puts {at} tokens before a text ({tokenizer.convert_ids_to_tokens(whole[:at])}); sequences"
            " here begin with one at most. Use a tokenizer that adds one."
        )
    if at == 1:
        return int(whole[0]), "tokenizer"
    if (bos := getattr(tokenizer, "bos_token_id", None)) is not None:
        return int(bos), "bos"
    if (eos := getattr(tokenizer, "eos_token_id", None)) is not None:
        return int(eos), "eos"
    return None, "none"


def words_digest(tokenizer: Any, size: int) -> str:
    """Hex SHA-256 of what the first ``size`` ids stand for; ids added after them do not change it."""
    words = sorted((int(i), t) for t, i in tokenizer.get_vocab().items() if int(i) < size)
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex SHA-256 of everything that decides a text's ids: vocabulary, merges, normaliser, splitting, added tokens.

    Padding and truncation are settings of a call, not of the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = sorted(tokenizer.get_vocab().items())
    else:
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()
