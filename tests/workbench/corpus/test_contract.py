"""The token contract over tokenizers of every kind, and what is shown of their ids."""

from __future__ import annotations

import numpy as np
import pytest

from sae.errors import UsageError
from workbench.config import data_dir
from workbench.corpus import CorpusConfig, contract_of, plan_tokens
from workbench.corpus.contract import TokenContract, words_digest
from workbench.corpus.shown import displayed_vocab, shown_token, shown_tokens
from workbench.models.tokenizer import read_tokenizer

TEXT = "naïve café — 日本語 € 🙂 plain"


def byte_level(specials=(), first=(), **named):
    """A byte-level BPE with special tokens, some of which it puts before a text itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    t.train_from_iterator([TEXT, "plain words in plain text " * 9], trainer)
    if first:
        known = [(f, t.token_to_id(f)) for f in first]
        t.post_processor = processors.TemplateProcessing(single=f"{' '.join(first)} $A", special_tokens=known)
    return PreTrainedTokenizerFast(tokenizer_object=t, **named)


def sentencepiece():
    """A vocabulary of words with bytes to fall back on, as SentencePiece writes it; BOS first by itself."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        "▁plain",
        *"abcdefghijklmnopqrstuvwxyz",
    ]
    t = Tokenizer(models.Unigram([(w, -1.0 - i / 1e3) for i, w in enumerate(words)], unk_id=0, byte_fallback=True))
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = {
    "none": (lambda: byte_level(), None, "none", ()),
    "bos, put first": (lambda: byte_level(["<s>"], ["<s>"], bos_token="<s>"), 0, "tokenizer", (0,)),
    "bos, left to the caller": (lambda: byte_level(["<s>"], bos_token="<s>"), 0, "bos", (0,)),
    "eos only": (lambda: byte_level(["</s>"], eos_token="</s>"), 0, "eos", (0,)),
    "both and pad": (
        lambda: byte_level(["<p>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>", pad_token="<p>"),
        1,
        "bos",
        (0, 1, 2),
    ),
    "sentencepiece": (sentencepiece, 1, "tokenizer", (1, 2)),
    "bundled": (lambda: read_tokenizer(data_dir() / "tokenizer"), 0, "tokenizer", (0,)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_first_and_what_is_no_data(kind, tmp_path):
    make, first, why, excluded = KINDS[kind]
    tokenizer = make()
    c = contract_of(tokenizer, longest=32)
    assert (c.first, c.first_from, c.excluded_ids) == (first, why, excluded)
    assert TokenContract.model_validate(c.model_dump(mode="json")) == c
    ids = c.encode(tokenizer, "plain text")
    assert ids == ([] if first is None else [first]) + tokenizer("plain text", add_special_tokens=False)["input_ids"]
    with pytest.raises(UsageError, match="32 positions"):
        c.encode(tokenizer, "plain " * 400)
    rows = c.is_row(np.array([[9, 5, *excluded, 7]]))
    assert rows.tolist() == [[False, True, *(False for _ in excluded), True]]
    (tmp_path / "a.txt").write_text("plain text of words " * 80)
    corpus = CorpusConfig(kind="text", paths=(str(tmp_path),), split="all")
    tokens = plan_tokens(corpus, tokenizer, n_seq=4, ctx=16).tokens
    assert tokens.shape == (4, 16) and (tokens[:, 0] == first).all() == (first is not None)
    assert any("first token" in line for line in c.lines(tokenizer))


def test_two_tokens_before_a_text_are_refused():
    with pytest.raises(UsageError, match="puts 2 tokens before"):
        contract_of(byte_level(["<a>", "<s>"], ["<a>", "<s>"], bos_token="<s>"))


@pytest.mark.parametrize("make", [byte_level, sentencepiece], ids=["byte-level", "byte fallback"])
def test_characters_of_several_tokens_stand_with_the_token_that_completes_them(make):
    tokenizer = make()
    shown = shown_tokens(tokenizer, tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert not any("\ufffd" in s for s in shown)
    import re

    assert re.sub(r"<[0-9A-F]{2}>", "", "".join(shown)).strip() == TEXT  # bytes beside, the text is whole
    assert "".join(s for s in shown if "語" in s) and not any("\ufffd" in s for s in displayed_vocab(tokenizer, 300))


def test_broken_bytes_and_ids_beyond_the_tokenizer():
    tokenizer = byte_level(["</s>"], eos_token="</s>")
    euro = tokenizer("€", add_special_tokens=False)["input_ids"]
    half = tokenizer.convert_tokens_to_ids(["â"])  # byte E2 alone
    assert shown_tokens(tokenizer, [*half, 0, *half, *tokenizer("a", add_special_tokens=False)["input_ids"]]) == [
        "<E2>",
        "</s>",
        "<E2>",
        "a",
    ]
    assert shown_tokens(tokenizer, euro)[-1] == "€"
    assert shown_token(tokenizer, 5000) == shown_tokens(tokenizer, [5000])[0] == "⟨5000⟩"
    assert displayed_vocab(tokenizer, len(tokenizer) + 2)[-1] == f"⟨{len(tokenizer) + 1}⟩"


def test_another_tokenizer_is_refused_and_added_words_are_not():
    a, b = byte_level(["<s>"], bos_token="<s>"), read_tokenizer(data_dir() / "tokenizer")
    c = contract_of(a)
    c.check(a, "a", "x")
    with pytest.raises(UsageError, match="b has another tokenizer than store"):
        c.check(b, "b", "store 'x'")
    a.add_tokens(["<new>"])
    c.check(a, "a", "x")
    assert words_digest(a, len(a)) != c.words
