"""The miniature models' tokenizer: byte-level BPE, trained once on the training split of the standard library.

Every byte has its own token, so any text survives encoding and decoding; id 0 is the BOS token and never comes from
text. ``python -m workbench.models.tokenizer FOLDER`` trains it again from the running Python.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

BOS = "<|bos|>"


def train_tokenizer(texts: list[str], vocab: int = 512) -> Any:
    """A ``PreTrainedTokenizerFast`` with ``vocab`` tokens: BOS, the 256 bytes, and merges by frequency.

    Raises:
        ValueError: ``vocab`` leaves no room for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab < 257:
        raise ValueError(f"vocab = {vocab}: the 256 bytes and BOS need at least 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrap(tokenizer)


def wrap(tokenizer: Any) -> Any:
    """A ``tokenizers.Tokenizer`` as transformers' fast tokenizer, which puts BOS first (not with
    ``add_special_tokens=False``).

    ``<|bos|>`` written in a text is plain text, not BOS. A tokenizer that has no such token is wrapped as it is.
    """
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    if tokenizer.token_to_id(BOS) is None:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    options = {
        "bos_token": BOS,
        "eos_token": BOS,
        "pad_token": BOS,
        "add_bos_token": True,
        "split_special_tokens": True,
        "name_or_path": "",
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)
    return fast


def read_tokenizer(folder: str | Path) -> Any:
    """Read a folder's ``tokenizer.json`` of this kind.

    Raises:
        MissingError: no such file. CorruptError: not a tokenizer.
    """
    from tokenizers import Tokenizer

    from sae.errors import CorruptError, MissingError

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise MissingError(f"{path} does not exist.")
    try:
        return wrap(Tokenizer.from_file(str(path)))
    except Exception as e:
        raise CorruptError(f"{path} is not a tokenizer: {e}") from e


def main(folder: str) -> None:
    """Train the bundled tokenizer and write ``tokenizer.json`` into ``folder``."""
    from workbench.corpus import CorpusConfig, documents

    tokenizer = train_tokenizer([text for _, text in documents(CorpusConfig())])
    Path(folder).mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(Path(folder) / "tokenizer.json"))


if __name__ == "__main__":
    main(sys.argv[1])
