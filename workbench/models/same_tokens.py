"""Whether models mean the same tokens by the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from sae.errors import MissingError, UsageError
from workbench.models.load import load_tokenizer


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of which token has which id: two models whose digests differ cannot read each other's ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def check_same_tokens(models: Iterable[tuple[str, str | None]], what: str) -> None:
    """Refuse models (name, revision) that are to read the same token ids and mean different tokens by them; one without
    a tokenizer is taken at its word.

    Raises:
        UsageError: two tokenizers differ; the message names both models.
    """
    first: tuple[str, str] | None = None
    for name, revision in dict(models).items():  # snapshots of one model share its tokenizer
        try:
            digest = vocabulary_digest(load_tokenizer(name, revision))
        except MissingError:
            continue
        if first is None:
            first = name, digest
        elif digest != first[1]:
            raise UsageError(
                f"{first[0]} and {name} have different tokenizers, so the same ids are other tokens to each of them:"
                f" {what}. Choose models that share one."
            )
