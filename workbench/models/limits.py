"""How long a sequence a model reads: the positions its configuration states."""

from __future__ import annotations

from typing import Any

from sae.errors import UsageError

_NAMES = ("max_position_embeddings", "n_positions")


def longest_context(model: Any) -> int | None:
    """Positions of a bridge, a Hugging Face model or its configuration; None where it states none (Mamba, ALiBi).

    Beyond learned positions there is no embedding to read; beyond rotary ones nothing was ever trained. TransformerLens
    gives models without positions a made-up number, so the configuration of the model itself is asked.
    """
    config = getattr(model, "original_model", model)
    config = getattr(config, "config", config)
    text = getattr(config, "get_text_config", None)
    config = text() if callable(text) else config
    found = [getattr(config, name, None) for name in _NAMES]
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def check_context(model: Any, ctx: int, name: str, option: str = "ctx") -> None:
    """Refuse a context longer than the model's positions, before any work.

    Raises:
        UsageError: it is.
    """
    longest = longest_context(model)
    if longest is not None and ctx > longest:
        raise UsageError(
            f"{option} = {ctx:,} is longer than the {longest:,} positions of {name}. Give at most {longest:,}."
        )
