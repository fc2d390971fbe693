"""Corpora and token plans: pure functions, disjoint splits, no lost bytes, errors that name the thing."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from sae.errors import ConfigError, CorruptError, MissingError, UsageError
from sae.strict import parse_config
from workbench.config import data_dir
from workbench.corpus import (
    CorpusConfig,
    bos_id,
    documents,
    in_split,
    mixed_windows,
    plan_tokens,
    stdlib_documents,
    text_stream,
)
from workbench.corpus.synthetic import agreement_window, sentence, snippet_window, tiled_window
from workbench.models.tokenizer import read_tokenizer, train_tokenizer
from workbench.run import showing


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(data_dir() / "tokenizer")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    words = ["river", "stone", "walks", "over", "the", "old", "bridge", "and", "sings"]
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"text {i}: " + " ".join(rng.choice(words, 300)))
    return CorpusConfig(kind="text", paths=(str(folder),), tiled_share=0.12, snippet_share=0.28, agreement_share=0.05)


class Shown:
    """Bars that only remember how far they came."""

    def __init__(self):
        self.reached, self.totals = {}, {}

    @contextlib.contextmanager
    def bar(self, label, total=None, unit="it"):
        self.totals[label] = total
        yield SimpleNamespace(
            update=lambda n=1: self.reached.update({label: self.reached.get(label, 0) + n}),
            reach=lambda done, total: self.reached.update({label: done}),
        )


def test_reading_and_cutting_text_says_how_far_it_is(tokenizer, tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"text {i}: " + " ".join(f"w{i}{j}" for j in range(300)))
    whole = CorpusConfig(kind="text", paths=(str(tmp_path),), split="all")
    size = sum(p.stat().st_size for p in tmp_path.iterdir())
    shown, packed = Shown(), Shown()
    with showing(shown.bar):
        plan_tokens(whole, tokenizer, n_seq=4, ctx=32)
    assert set(shown.totals) == {"reading text", "looking for copies", "cutting text into tokens"}
    assert shown.reached == shown.totals == dict.fromkeys(shown.totals, size)
    with showing(packed.bar):
        plan_tokens(whole.model_copy(update={"packing": "documents"}), tokenizer, n_seq=3, ctx=32)
    assert packed.reached == packed.totals == {"cutting text into tokens": 3}


def test_plan_is_a_pure_function_of_its_arguments(tokenizer, local):
    a, b = (plan_tokens(local, tokenizer, n_seq=120, ctx=64) for _ in range(2))
    other = plan_tokens(local.model_copy(update={"seed": 1}), tokenizer, n_seq=120, ctx=64)
    assert a.digest == b.digest != other.digest
    assert a.tokens.shape == (120, 64) and a.tokens.dtype == np.int32 and (a.tokens[:, 0] == 0).all()
    assert set(a.kinds.tolist()) == {0, 1, 2} and a.about["documents"] == len(documents(local))
    longer = plan_tokens(local, tokenizer, n_seq=150, ctx=64)
    assert (longer.tokens[:120] == a.tokens).all() and (longer.doc_ids[:120] == a.doc_ids).all()


def test_windows_do_not_depend_on_how_they_are_batched(tokenizer, local):
    whole = mixed_windows(local, tokenizer, first=0, n=12, length=50)
    parts = [mixed_windows(local, tokenizer, first=f, n=4, length=50) for f in (0, 4, 8)]
    for i in range(3):
        assert (whole[i] == np.concatenate([p[i] for p in parts])).all()


def test_text_windows_of_an_epoch_do_not_overlap(tokenizer, local):
    text = local.model_copy(update={"tiled_share": 0.0, "snippet_share": 0.0, "agreement_share": 0.0})
    stream = text_stream(text, tokenizer)
    length = 50
    blocks = (len(stream.tokens) - length) // length
    tokens, docs, _ = mixed_windows(text, tokenizer, first=0, n=blocks, length=length)
    flat, where = stream.tokens.tolist(), set()
    for row, doc in zip(tokens[:40].tolist(), docs[:40], strict=True):
        at = [p for p in range(len(flat) - length) if flat[p : p + 8] == row[:8] and flat[p : p + length] == row]
        assert len(at) == 1 and stream.document(at[0]) == doc
        where |= set(range(at[0], at[0] + length))
    assert len(where) == 40 * length


def test_splits_are_disjoint_and_follow_the_name():
    names = [n for n, _ in stdlib_documents()]
    train, heldout = [n for n in names if in_split(n, "train")], [n for n in names if in_split(n, "heldout")]
    assert not set(train) & set(heldout) and len(train) + len(heldout) == len(names)
    assert 0.02 < len(heldout) / len(names) < 0.09
    assert not any(n.startswith("test/") or "site-packages" in n for n in names)


def test_prose_is_documentation_only():
    name, text = next(stdlib_documents(prose=True))
    code = dict(itertools.islice(stdlib_documents(), 3))[name]
    assert len(text) < len(code) / 2 and "= _Feature(" in code and "= _Feature((" not in text
    assert all(line.strip() in code for line in text.splitlines()[:20])


def test_no_byte_is_lost_and_bos_never_comes_from_text(tokenizer):
    text = "def f():\n\treturn 'h\u00e9llo \u4e16\u754c' # <|bos|>\r\n\x00\x7f" + "".join(map(chr, range(32, 127)))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and 0 not in ids and max(ids) < len(tokenizer) == 512
    assert tokenizer(text)["input_ids"] == [0, *ids] and bos_id(tokenizer) == 0


def test_tokenizer_training_needs_room_for_the_bytes():
    assert len(train_tokenizer(["some text some text"] * 5, 262)) == 262
    with pytest.raises(ValueError, match="256 bytes"):
        train_tokenizer(["x"], 200)


def test_synthetic_windows(tokenizer):
    p = np.zeros(512)
    p[10:400] = np.random.default_rng(0).dirichlet(np.ones(390))
    rng = np.random.default_rng(1)
    tiled = tiled_window(p, 100, rng, 29)
    assert (tiled[29:58] == tiled[:29]).all() and tiled.min() >= 10 and tiled.max() < 400
    copied = [_explained(snippet_window(p, 256, rng)) for _ in range(30)]
    assert np.mean(copied) > 0.35, "too few repeated tokens are followed by their earlier successor"
    text = tokenizer.decode(agreement_window(tokenizer, 200, rng, "train"))
    assert text.startswith("The ") and text.count(".") >= 3


def _explained(row: np.ndarray) -> float:
    """Share of positions whose pair (token, next) occurred before."""
    seen: set[tuple[int, int]] = set()
    hits = 0
    for pair in zip(row[:-1].tolist(), row[1:].tolist(), strict=True):
        hits += pair in seen
        seen.add(pair)
    return hits / (len(row) - 1)


def test_heldout_sentences_are_never_trained_on():
    rng = np.random.default_rng(0)
    train = {" ".join(sentence(rng, "train")[0].split()[:5]) for _ in range(3000)}
    heldout = {" ".join(sentence(rng, "heldout")[0].split()[:5]) for _ in range(500)}
    full = {s for s in heldout if len(s.split()) == 5}
    assert len(full) > 100 and not full & train


def test_agreement_is_balanced():
    rng = np.random.default_rng(0)
    plural = [right in (" are", " were", " have") for _, right, _, _ in (sentence(rng, "heldout") for _ in range(400))]
    assert 0.42 < np.mean(plural) < 0.58


def test_jsonl_and_parquet(tokenizer, tmp_path):
    records = [{"text": f"record {i} " + "words of it " * 30} for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    pd.DataFrame(records).to_parquet(tmp_path / "a.parquet")
    lines = documents(CorpusConfig(kind="jsonl", paths=(str(tmp_path / "a.jsonl"),)))
    rows = documents(CorpusConfig(kind="parquet", paths=(str(tmp_path / "a.parquet"),)))
    assert next(t for _, t in lines).startswith("record") and len(lines) + len(rows) > 60
    with pytest.raises(CorruptError, match="'body'"):
        documents(CorpusConfig(kind="jsonl", paths=(str(tmp_path / "a.jsonl"),), text_field="body"))
    with pytest.raises(CorruptError, match="'body'"):
        documents(CorpusConfig(kind="parquet", paths=(str(tmp_path / "a.parquet"),), text_field="body"))


def test_bad_input_is_named(tokenizer, tmp_path):
    with pytest.raises(MissingError, match="nowhere"):
        documents(CorpusConfig(kind="text", paths=(str(tmp_path / "nowhere"),)))
    with pytest.raises(MissingError, match="holds no text files"):
        documents(CorpusConfig(kind="text", paths=(str(tmp_path),)))
    (tmp_path / "one.txt").write_text("a single document")
    assert in_split("one.txt", "train")
    with pytest.raises(UsageError, match="too few documents"):
        documents(CorpusConfig(kind="text", paths=(str(tmp_path / "one.txt"),), split="heldout"))
    with pytest.raises(ConfigError, match="more than 1"):
        parse_config(CorpusConfig, {"tiled_share": 0.9, "snippet_share": 0.9}, where="r.toml")
    with pytest.raises(ConfigError, match="did you mean 'seed'"):
        parse_config(CorpusConfig, {"sead": 1}, where="r.toml")
    with pytest.raises(ConfigError, match="at least one path"):
        parse_config(CorpusConfig, {"kind": "text"}, where="r.toml")


def test_held_out_windows_come_from_documents_of_their_own(tokenizer, tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"word{i}x{j}" for j in range(120)))
    corpus = {"kind": "text", "paths": (str(tmp_path),), "split": "all", "heldout": "documents"}
    corpus |= {"tiled_share": 0.0, "snippet_share": 0.0, "agreement_share": 0.0}
    config = CorpusConfig.model_validate(corpus)
    plan = plan_tokens(config, tokenizer, n_seq=30, ctx=33)
    text = [tokenizer.decode(row[1:]) for row in plan.tokens]
    owners = [set(re.findall(r"word(\d+)x", t)) for t in text]
    train, heldout = set().union(*owners[:27]), set().union(*owners[27:])
    assert train and heldout and not train & heldout
    assert len({tuple(row) for row in plan.tokens.tolist()}) == 30, "a window came twice"
    assert (plan_tokens(config, tokenizer, n_seq=30, ctx=33).tokens == plan.tokens).all()
    with pytest.raises(UsageError, match=r"too few to hold|gone through"):
        plan_tokens(config, tokenizer, n_seq=30_000, ctx=33)
    with pytest.raises(ConfigError, match="fits into memory"):
        parse_config(CorpusConfig, corpus | {"tiled_share": 0.1}, where="r.toml")


def test_a_plain_corpus_keeps_the_digest_it_had():
    assert "heldout" not in CorpusConfig().model_dump(mode="json")
