"""The door: what is no text is left out and counted, or refused by line; what needs mending is mended."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from sae.errors import CorruptError, UsageError
from sae.strict import parse_config
from workbench.config import data_dir
from workbench.corpus import CorpusConfig, documents, plan_tokens
from workbench.corpus.records import Tally, as_document, prompt_text
from workbench.models.tokenizer import read_tokenizer

BAD = {
    "null": None,
    "NaN": float("nan"),
    "empty": " \n\t",
    "no text": {"x": 1},
    "lone surrogate": "cut \ud83d here",
    "byte order mark": "\ufeffa text",
}


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(data_dir() / "tokenizer")


def config(path, **more):
    kind = {".txt": "text", ".tsv": "csv"}.get(path.suffix, path.suffix[1:])
    return parse_config(CorpusConfig, {"kind": kind, "paths": [str(path)], "split": "all", **more}, where="x")


def read(path, **more):
    tally = Tally(more.get("on_bad", "skip"))
    return [t for _, t in documents(config(path, **more), tally)], tally.counts


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", 3.5, 3, True, ["a", "b"], {"x": 1}, [], b"x"])
def test_what_is_no_text_never_becomes_one(value):
    tally = Tally()
    assert as_document(value, "here", tally) is None and tally.left_out == 1
    with pytest.raises(CorruptError, match=r"here: .*on_bad = 'skip'"):
        as_document(value, "here", Tally("refuse"))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("form", ["jsonl", "json", "parquet", "csv"])
def test_every_kind_in_every_form_is_counted_or_refused_by_line(kind, form, tmp_path):
    values = ["one", BAD[kind], "None", "nan"]
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps({"text": v}) for v in values))
    elif form == "json":
        path.write_text(json.dumps([{"text": v} for v in values], indent=1))
        path = path.rename(tmp_path / "list.jsonl")
    elif kind in ("no text", "lone surrogate") or (form == "csv" and kind in ("null", "NaN")):
        pytest.skip("this form cannot hold it")
    elif form == "parquet":
        pd.DataFrame({"text": values}).to_parquet(path)
    else:
        pd.DataFrame({"text": values, "n": range(4)}).to_csv(path, index=False)
    texts, counts = read(path)
    assert (
        counts == {"null" if (form, kind) == ("parquet", "NaN") else kind: 1}
        and texts[0] == "one"
        and texts[-2:] == ["None", "nan"]
    )  # written words stay words
    assert not any("\ufeff" in t or any("\ud800" <= c <= "\udfff" for c in t) for t in texts)
    if kind == "byte order mark":
        assert len(read(path, on_bad="refuse")[0]) == 4
    else:
        with pytest.raises(CorruptError, match=r"(line|row) 2"):
            read(path, on_bad="refuse")


def test_bytes_that_are_no_utf8(tmp_path):
    for name, data in {
        "a.txt": b"caf\xe9 au lait",
        "a.jsonl": b'{"text": "caf\xe9"}\n{"text": "b"}',
        "a.csv": b"text\ncaf\xe9\nb",
    }.items():
        (tmp_path / name).write_bytes(data)
        texts, counts = read(tmp_path / name)
        assert texts[0].startswith("caf\ufffd") and sum(counts.values()) == 1
        with pytest.raises(CorruptError, match=name):
            read(tmp_path / name, on_bad="refuse")
    (tmp_path / "wide.txt").write_text("text", encoding="utf-16")
    with pytest.raises(CorruptError, match="iconv"):
        read(tmp_path / "wide.txt")


def test_csv_fields_tabs_and_headers(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines, one field"\n2,\n3,NA\n')
    assert read(tmp_path / "a.csv") == (["two\nlines, one field", "NA"], {"empty": 1})
    (tmp_path / "a.tsv").write_text("id\tbody\n1\tone, two\n")
    assert read(tmp_path / "a.tsv", text_field="body")[0] == ["one, two"]
    with pytest.raises(CorruptError, match=r"no column 'text'.*body"):
        read(tmp_path / "a.tsv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(CorruptError, match="no column"):
        read(tmp_path / "empty.csv")


def test_records_without_the_field_are_counted_unless_none_has_it(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"other": 1}\n')
    assert read(tmp_path / "a.jsonl") == (["a"], {"no such field": 1})
    (tmp_path / "b.jsonl").write_text('{"other": "a"}\n{"other": "b"}\n')
    with pytest.raises(CorruptError, match="none of its 2 records has the field 'text'"):
        read(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").write_text('{"text": "a"}\n{"text": "b"\n')
    with pytest.raises(CorruptError, match="line 2: not JSON"):
        read(tmp_path / "c.jsonl")


def test_the_plan_says_what_was_left_out(tokenizer, tmp_path):
    lines = [{"text": f"a record of some words, number {i}"} for i in range(30)] + [{"text": None}] * 3
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    plan = plan_tokens(config(tmp_path / "a.jsonl"), tokenizer, n_seq=4, ctx=32)
    assert plan.about["records"] == {"read": 33, "null": 3}
    assert "records" not in plan_tokens(CorpusConfig(), tokenizer, n_seq=2, ctx=32).about


def test_own_text_has_no_synthetic_windows_and_no_padding(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "mine.txt").write_text(" ".join(rng.choice(["alpha", "beta", "gamma", "delta"], 9000)))
    plan = plan_tokens(CorpusConfig(kind="text", paths=(str(tmp_path),), split="all"), tokenizer, n_seq=60, ctx=64)
    no_word = plan.tokens[:, 1:] == 0  # where a section of the file begins
    assert (plan.kinds == 0).all() and not (no_word[:, 1:] & no_word[:, :-1]).any() and no_word.mean() < 0.01
    named = CorpusConfig(kind="text", paths=(str(tmp_path),), split="all", tiled_share=0.5)
    assert 0.2 < (plan_tokens(named, tokenizer, n_seq=60, ctx=64).kinds == 1).mean() < 0.8
    assert CorpusConfig(kind="prose").synthetic_share == 0 < CorpusConfig().synthetic_share
    (tmp_path / "mine.txt").write_text("too short for a window")
    with pytest.raises(UsageError, match=r"fewer than one window.*not padded"):
        plan_tokens(CorpusConfig(kind="text", paths=(str(tmp_path),), split="all"), tokenizer, n_seq=2, ctx=64)


def test_prompts():
    assert prompt_text("caf\udce9") == "caf\ufffd"
    for nothing in ("", "  \n"):
        with pytest.raises(UsageError, match="empty"):
            prompt_text(nothing)
    with pytest.raises(UsageError, match="NoneType"):
        prompt_text(None)
