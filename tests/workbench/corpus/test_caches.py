"""A cache is known by everything that changes its content: the whole tokenizer, and the files of a corpus."""

from __future__ import annotations

import os

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors

from workbench.config import data_dir
from workbench.corpus import CorpusConfig, text_stream
from workbench.corpus.stream import tokenizer_key
from workbench.models.tokenizer import wrap


def _tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(data_dir() / "models" / "mini-pythia" / "tokenizer.json"))


CHANGES = {
    "normaliser": lambda t: setattr(t, "normalizer", normalizers.Lowercase()),
    "pre-tokeniser": lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "post-processor": lambda t: setattr(t, "post_processor", processors.ByteLevel(trim_offsets=True)),
    "added token": lambda t: t.add_tokens([AddedToken("old", normalized=False)]),
    "merges": lambda t: setattr(t.model, "dropout", 0.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_part_of_a_tokenizer_is_in_its_key(name):
    one, two = _tokenizer(), _tokenizer()
    assert tokenizer_key(_fast(one)) == tokenizer_key(_fast(two))
    CHANGES[name](two)
    assert tokenizer_key(_fast(one)) != tokenizer_key(_fast(two))


def _fast(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_a_call_with_padding_changes_no_key():
    tokenizer = wrap(_tokenizer())
    plain = tokenizer_key(tokenizer)
    tokenizer(["a text", "a longer text"], padding=True, truncation=True, max_length=3)
    tokenizer(["a text"])
    assert tokenizer_key(tokenizer) == plain


def test_tokens_are_the_tokenizers_own_and_the_texts_own(tmp_path):
    path = tmp_path / "caps.txt"
    path.write_text("The Quick BROWN Fox JUMPS Over The LAZY Dog. " * 40)
    config = CorpusConfig(kind="text", paths=(str(path),), split="all")
    one, two = _tokenizer(), _tokenizer()
    two.normalizer = normalizers.Lowercase()  # the same vocabulary, other tokens
    mine, theirs = text_stream(config, wrap(one)).tokens, text_stream(config, wrap(two)).tokens
    assert not np.array_equal(mine, theirs)
    own = wrap(two)(path.read_text(), add_special_tokens=False)["input_ids"]
    assert theirs[0] == 0 and theirs[1:].tolist() == own, "cut into sections or not, the tokens are those of the text"
    path.write_text("Another text. " * 40)
    os.utime(path, ns=(1, 1))
    assert "Another text." in wrap(one).decode(text_stream(config, wrap(one)).tokens)
