"""Conversations as a model was trained to read them: through its tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sae.errors import UsageError
from workbench.corpus.config import CorpusConfig
from workbench.corpus.records import Tally


def tally_for(config: CorpusConfig, tokenizer: Any) -> Tally:
    """What counts a corpus' records; of a chat it renders them by the tokenizer's template.

    Raises:
        UsageError: the tokenizer has no chat template.
    """
    return Tally(config.on_bad, render=_template(tokenizer) if config.kind == "chat" else None)


def _template(tokenizer: Any) -> Callable[[list[dict[str, Any]]], str]:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the tokenizer has no chat template, so a corpus of kind 'chat' cannot be read as the model was trained to."
            " Choose a chat model, or read the messages as plain text: kind = 'jsonl', text_field = 'messages'."
        )
    bos = getattr(tokenizer, "bos_token", None) or ""

    def render(messages: list[dict[str, Any]]) -> str:
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as e:  # templates raise what they like where roles do not alternate
            raise UsageError(f"the tokenizer's chat template refuses a conversation: {str(e).splitlines()[0]}") from e
        return text.removeprefix(bos) if bos else text  # every sequence begins with it anyway

    return render
