"""Displayed tokens beside each other: the characters their bytes make up, as for the tokens themselves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.workbench.corpus.test_contract import byte_level, sentencepiece
from tests.workbench.fakes import FakeDictionary, FakeStore
from workbench.analysis.latents.records_build import build_records
from workbench.corpus.shown import shown_token, shown_tokens
from workbench.provenance import write_manifest
from workbench.results.characters import cells_of, joined, whole_characters
from workbench.results.records import LatentRecords

TEXT = "Über 中文 and 🎉 ★ ñ"


def hexes(text: str) -> list[str]:
    return [f"<{b:02X}>" for b in text.encode()]


@pytest.mark.parametrize("make", [byte_level, sentencepiece], ids=["byte-level", "byte fallback"])
def test_what_is_shown_alone_becomes_what_is_shown_of_a_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    alone = [shown_token(tokenizer, i) for i in ids]
    assert whole_characters(alone) == shown_tokens(tokenizer, ids) != alone
    assert joined(alone).strip() == TEXT
    rng = np.random.default_rng(0)
    for _ in range(200):  # any tokens in any order
        some = [alone[i] for i in rng.integers(0, len(alone), 9)]
        found = whole_characters(some)
        assert len(found) == len(some) and "".join(found).encode("utf-8")  # no halves of surrogates
        assert [s for s in some if "<" not in s] == [f for s, f in zip(some, found, strict=True) if "<" not in s]


def test_bytes_that_make_up_no_character_stay():
    assert whole_characters(["a", *hexes("日")[:2], "b", "<A5>"]) == ["a", "<E6>", "<97>", "b", "<A5>"]
    assert whole_characters(["<E6>", "<E6><97>", "<A5><C3>", "<A9>"]) == ["<E6>", "<E6><97>", "日<C3>", "é"]
    assert joined(["x", *hexes("日"), "<E6>", "<B>"]) == "x日<E6><B>"
    assert whole_characters(["<b>", "<|bos|>"]) == ["<b>", "<|bos|>"]


def test_contexts_and_snippets_of_records_are_text(tmp_path):
    store = FakeStore.random()
    vocab = [f"tok{i}" for i in range(47)] + hexes("日")
    assert not {47, 48, 49} - set(store.ids.ravel().tolist())
    for row in store.ids:  # wherever the first of the three bytes stands, the others follow
        at = np.flatnonzero(row[:-2] == 47)
        for i in at:
            row[i : i + 3] = 47, 48, 49
    built = build_records(FakeDictionary(), store, "h", vocab, k=6, window=16)
    (tmp_path / "d").mkdir()
    built.write(tmp_path / "d")
    write_manifest(tmp_path / "d", "latents", "d", numbers=built.numbers, metadata=built.metadata)
    records = LatentRecords.open(tmp_path / "d")
    found = [c for latent in range(len(records)) for c in records.contexts(latent)]
    whole = [c for c in found if [47, 48, 49] in [c.ids[i : i + 3] for i in range(len(c.ids))]]
    assert whole and all("日" in c.tokens and len(c.tokens) == len(c.ids) for c in whole)
    assert any("日" in s for s in records.snippets(3, 8, 4))


@pytest.mark.parametrize("make", [byte_level, sentencepiece], ids=["byte-level", "byte fallback"])
def test_tokens_of_a_text_become_the_cells_one_sees(make):
    tokenizer = make()
    shown = shown_tokens(tokenizer, tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    found = cells_of(shown, TEXT)
    assert [i for _, places in found for i in places] == list(range(len(shown)))
    assert not any(word.startswith("<") for word, _ in found) and any(len(places) > 1 for _, places in found)
    if make is byte_level:
        assert "".join(word for word, _ in found) == TEXT
    literal = "<E4> and <E4>"
    assert cells_of(["<E4>", " and ", "<E4>"], literal) == [("<E4>", [0]), (" and ", [1]), ("<E4>", [2])]
    assert cells_of(["<E4>", "x"], "x") == [("<E4>", [0]), ("x", [1])]  # bytes that make up nothing stay as they are
