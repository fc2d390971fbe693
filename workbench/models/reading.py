"""How a loaded model reads text: TransformerLens' bridge with this program's one rule for tokens."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _reading_class() -> type[Any]:
    """The bridge's class with the rule; made on first use, because importing TransformerLens takes seconds."""
    from transformer_lens.model_bridge import TransformerBridge

    from workbench.corpus.records import prompt_text

    class ReadingBridge(TransformerBridge):
        """A ``TransformerBridge`` whose prompts are texts as :mod:`workbench.corpus.records` has them."""

        def to_tokens(self, input: Any, *args: Any, **options: Any) -> Any:
            """Token ids [batch, positions]; see ``TransformerBridge.to_tokens``.

            Raises:
                UsageError: an empty text, or none.
            """
            text = prompt_text(input) if isinstance(input, str) else [prompt_text(t) for t in input]
            return super().to_tokens(text, *args, **options)

    return ReadingBridge


def reads_text(model: Any) -> Any:
    """The same bridge, changed in place, reading text by the rule."""
    model.__class__ = _reading_class()
    return model
