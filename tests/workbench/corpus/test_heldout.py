"""No document on both sides, copies together, large files in sections, and text that runs out says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sae.errors import UsageError
from sae.strict import parse_config
from workbench.config import data_dir
from workbench.corpus import CorpusConfig, documents, plan_tokens, text_stream
from workbench.corpus.duplicates import first_copies
from workbench.corpus.heldout import partition
from workbench.corpus.sections import sections
from workbench.models.tokenizer import read_tokenizer

WORDS = np.array(["".join(w) for w in np.random.default_rng(9).choice(list("abcdefghijklmnopqrstuvwxyz"), (600, 6))])


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(data_dir() / "tokenizer")


def words(rng, n):
    return " ".join(rng.choice(WORDS, n))


def config(path, **more):
    kind = "jsonl" if path.suffix == ".jsonl" else "text"
    return parse_config(CorpusConfig, {"kind": kind, "paths": [str(path)], "split": "all", **more}, where="x")


def grams(rows, n=16):
    return {tuple(w[i : i + n]) for w in rows.tolist() for i in range(1, len(w) - n + 1)}


def one_file(tmp_path, rng):
    (tmp_path / "one.txt").write_text(words(rng, 6000))
    return tmp_path / "one.txt"


def many_records(tmp_path, rng):
    texts = [words(rng, 120) for _ in range(60)]
    texts += texts[:20] + [t + " and one word more" for t in texts[20:30]]  # copies and near-copies
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return tmp_path / "many.jsonl"


@pytest.mark.parametrize("make", [one_file, many_records])
@pytest.mark.parametrize("more", [{}, {"split": "train"}, {"tiled_share": 0.3}, {"dedupe": True}], ids=str)
def test_held_out_windows_share_no_text_with_the_others(make, more, tokenizer, tmp_path):
    corpus = config(make(tmp_path, np.random.default_rng(0)), **more)
    n, held = 60, 6
    plan = plan_tokens(corpus, tokenizer, n_seq=n, ctx=64, heldout=held)
    train, last = plan.tokens[:-held], plan.tokens[-held:]
    assert plan.tokens.shape == (n, 64) and len(grams(last)) > 100
    text = plan.kinds[-held:] == 0
    shared = grams(last[text]) & grams(train[plan.kinds[:-held] == 0])
    assert len(shared) == 0
    assert not set(plan.doc_ids[:-held].tolist()) & set(plan.doc_ids[-held:].tolist())
    assert plan.about["heldout_windows"] == held and plan.about["passes"] == 1
    assert plan.digest == plan_tokens(corpus, tokenizer, n_seq=n, ctx=64, heldout=held).digest


def test_a_section_begins_anew_only_where_the_one_before_is_elsewhere(tokenizer, tmp_path):
    corpus = config(one_file(tmp_path, np.random.default_rng(0)))
    stream = text_stream(corpus, tokenizer)
    assert (stream.tokens == stream.first).sum() == 1 and len(stream.names) > 20
    parts = partition(stream, 20, 63)
    for part in parts:
        goes_on = np.append(False, np.diff(part.numbers) == 1)
        assert ((part.tokens[part.starts] == stream.first) == ~goes_on).all()
        assert (part.tokens == stream.first).sum() == (~goes_on).sum()
    assert sum(len(p.names) for p in parts) == len(stream.names)


def test_the_bundled_mixture_keeps_its_training_windows(tokenizer):
    plain = plan_tokens(CorpusConfig(), tokenizer, n_seq=80, ctx=64)
    plan = plan_tokens(CorpusConfig(), tokenizer, n_seq=80, ctx=64, heldout=8)
    assert (plan.tokens[:72] == plain.tokens[:72]).all() and (plan.doc_ids[:72] == plain.doc_ids[:72]).all()
    assert not set(plan.doc_ids[:72].tolist()) & set(plan.doc_ids[72:].tolist())
    assert not grams(plan.tokens[72:][plan.kinds[72:] == 0]) & grams(plan.tokens[:72])


def test_streamed_text_holds_documents_out(tokenizer, tmp_path):
    rng = np.random.default_rng(1)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": words(rng, 60)}) for _ in range(300)))
    for packing in ("documents", "stream"):
        values = {"kind": "hub", "dataset": str(folder), "packing": packing}
        plan = plan_tokens(parse_config(CorpusConfig, values, where="x"), tokenizer, n_seq=60, ctx=48, heldout=6)
        assert not set(plan.doc_ids[:-6].tolist()) & set(plan.doc_ids[-6:].tolist())
        assert not grams(plan.tokens[-6:]) & grams(plan.tokens[:-6])


def test_text_that_runs_out_says_so_and_repeats_only_when_told(tokenizer, tmp_path):
    path = one_file(tmp_path, np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"gone through 3 times.*epochs = 3") as e:
        plan_tokens(config(path), tokenizer, n_seq=1200, ctx=64, heldout=40)
    assert "n_seq to at most" in str(e.value)
    plan = plan_tokens(config(path, epochs=3), tokenizer, n_seq=1200, ctx=64, heldout=40)
    assert plan.about["passes"] == 3 and plan.about["config"]["epochs"] == 3
    assert not grams(plan.tokens[-40:]) & grams(plan.tokens[:-40])
    assert len({tuple(w) for w in plan.tokens[-40:].tolist()}) == 40
    with pytest.raises(UsageError, match="too few to hold"):
        plan_tokens(config(path, epochs=99), tokenizer, n_seq=1200, ctx=64, heldout=1100)
    with pytest.raises(UsageError, match="gone through"):  # without held-out windows too
        plan_tokens(config(path), tokenizer, n_seq=1200, ctx=64)


def test_sections_lose_nothing_and_small_documents_stay_whole():
    rng = np.random.default_rng(2)
    one = words(rng, 3000)
    pieces = sections([("a", one)])
    assert 20 < len(pieces) < 80 and "".join(t for _, t in pieces) == one and pieces[0][0] == "a§1"
    paragraphs = "\n\n".join(words(rng, 40) for _ in range(60))
    assert all(t.rstrip("\n") in paragraphs.split("\n\n") or "\n\n" in t for _, t in sections([("a", paragraphs)]))
    many = [(str(i), words(rng, 50)) for i in range(60)]
    assert sections(many) == many
    assert sections([("nothing to cut at", "x" * 9000)])[0][1].strip("x") == ""


def test_near_copies():
    rng = np.random.default_rng(3)
    a, b = words(rng, 300), words(rng, 300)
    licence = words(rng, 60)
    texts = [
        a,
        b,
        a,
        a[:-40] + " changed",
        a + " " + b,
        licence + " " + words(rng, 400),
        licence + words(rng, 400),
        "hi",
        "hi",
    ]
    assert first_copies(texts).tolist() == [0, 1, 0, 0, 4, 5, 6, 7, 7]
    assert first_copies([]).tolist() == []


def test_copies_are_left_out_or_counted(tokenizer, tmp_path):
    path = many_records(tmp_path, np.random.default_rng(0))
    assert len(documents(config(path))) == 90 and len(documents(config(path, dedupe=True))) == 60
    assert plan_tokens(config(path), tokenizer, n_seq=20, ctx=64).about["near_duplicates"] == 30
    about = plan_tokens(config(path, dedupe=True), tokenizer, n_seq=20, ctx=64).about
    assert "near_duplicates" not in about and about["near_duplicates_left_out"] == 30
