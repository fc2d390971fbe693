"""How a loaded model reads text: TransformerLens' bridge with this program's one contract for tokens."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from workbench.corpus.contract import TokenContract, contract_of
from workbench.corpus.records import prompt_text
from workbench.corpus.shown import shown_tokens
from workbench.models.limits import longest_context

if TYPE_CHECKING:
    import torch


def token_contract(model: Any) -> TokenContract:
    """The contract of a loaded model; without a tokenizer only position 0 is known to be no data."""
    found = getattr(model, "token_contract", None)
    if isinstance(found, TokenContract):
        return found
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        return TokenContract(longest=longest_context(model))
    return contract_of(tokenizer, longest=longest_context(model))


@cache
def _reading_class() -> type[Any]:
    """The bridge's class with the contract; made on first use, because importing TransformerLens takes seconds."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    class ReadingBridge(TransformerBridge):
        """A ``TransformerBridge`` that reads and shows text by :attr:`token_contract`, as harvests and analyses do."""

        token_contract: TokenContract

        def to_tokens(
            self,
            input: Any,
            prepend_bos: bool | None = None,
            padding_side: str | None = None,
            move_to_device: bool = True,
            truncate: bool = True,
        ) -> torch.Tensor:
            """Token ids int64 [batch, positions] of a text or a list of texts, shorter ones padded.

            Args:
                prepend_bos: False leaves the first token of the contract out; see ``TransformerBridge.to_tokens``.

            Raises:
                UsageError: an empty text, none, or one longer than the model's positions (with ``truncate`` cut).
            """
            texts, longest = [input] if isinstance(input, str) else list(input), self.token_contract.longest
            rows = [self.tokenizer(prompt_text(t), add_special_tokens=False)["input_ids"] for t in texts]
            rows = rows if prepend_bos is False else [self.token_contract.sequence(ids) for ids in rows]
            rows = [ids[:longest] for ids in rows] if truncate and longest else rows
            width = max(map(len, rows), default=0)
            pad = next((p for p in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if p is not None), 0)
            left = (padding_side or getattr(self.tokenizer, "padding_side", "right")) == "left"
            fill = [[pad] * (width - len(ids)) for ids in rows]
            tokens = torch.tensor([f + ids if left else ids + f for f, ids in zip(fill, rows, strict=True)])
            return tokens.to(self.cfg.device) if move_to_device and self.cfg.device else tokens

        def to_str_tokens(
            self, input: Any, prepend_bos: bool | None = None, padding_side: str | None = None
        ) -> list[Any]:
            """What a person sees of a text or of ids, token by token; nothing is shown as U+FFFD."""
            if isinstance(input, list):
                return [self.to_str_tokens(item, prepend_bos, padding_side) for item in input]
            if isinstance(input, str):
                input = self.to_tokens(input, prepend_bos=prepend_bos, padding_side=padding_side)[0]
            return shown_tokens(self.tokenizer, torch.as_tensor(input).reshape(-1).tolist())

    return ReadingBridge


def reads_text(model: Any, contract: TokenContract) -> Any:
    """The same bridge, changed in place, reading text by a contract: that of the tokenizer as it was before the bridge
    had it, because TransformerLens gives tokenizers tokens of its own.
    """
    model.__class__ = _reading_class()
    model.token_contract = contract
    model.cfg.default_prepend_bos = contract.first is not None
    return model
