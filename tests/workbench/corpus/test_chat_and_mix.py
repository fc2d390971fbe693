"""Conversations through the tokenizer's template, and several corpora by weight."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sae.errors import ConfigError, CorruptError, UsageError
from sae.strict import parse_config
from workbench.config import data_dir
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.models.tokenizer import read_tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"


@pytest.fixture
def tokenizer():
    found = read_tokenizer(data_dir() / "tokenizer")
    found.chat_template = TEMPLATE
    return found


def talk(i, n=6):
    return [
        {"role": "user", "content": f"question {i} " * n},
        {"role": "assistant", "content": f"answer {i} " * n},
        {"role": "assistant", "content": None, "tool_calls": []},
    ]


def config(values):
    return parse_config(CorpusConfig, {"split": "all", **values}, where="x")


def test_a_chat_is_read_by_the_template(tokenizer, tmp_path):
    records = [{"messages": talk(i)} for i in range(40)] + [{"messages": None}, {"messages": []}, {"messages": "hi"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    chat = config({"kind": "chat", "paths": [str(tmp_path / "a.jsonl")]})
    plan = plan_tokens(chat, tokenizer, n_seq=20, ctx=64, heldout=2)
    text = tokenizer.decode(plan.tokens.ravel())
    assert "<user>question" in text and "</assistant>" in text and "None" not in text
    assert "<|bos|><|bos|>" not in text.replace("\n", "")  # the template's own BOS is not doubled
    assert plan.about["records"] == {"read": 43, "null": 1, "no text": 2}
    with pytest.raises(CorruptError, match="line 41"):
        plan_tokens(chat.model_copy(update={"on_bad": "refuse"}), tokenizer, n_seq=4, ctx=64)
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template"):
        plan_tokens(chat, tokenizer, n_seq=4, ctx=64)


def test_a_template_that_refuses_is_one_line(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk(1)}))
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UsageError, match="roles must alternate"):
        plan_tokens(config({"kind": "chat", "paths": [str(tmp_path)]}), tokenizer, n_seq=4, ctx=64)


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    parts = []
    for name in ("alpha", "beta"):
        lines = [{"text": " ".join(f"{name}{x}" for x in rng.integers(0, 99, 40))} for _ in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        parts.append({"kind": "jsonl", "paths": [str(tmp_path / f"{name}.jsonl")]})
    return parts


def test_a_mix_has_each_part_by_weight_and_holds_out_of_each(two):
    tokenizer = read_tokenizer(data_dir() / "tokenizer")
    mix = config({"kind": "mix", "parts": two, "weights": [3, 1]})
    plan = plan_tokens(mix, tokenizer, n_seq=80, ctx=64, heldout=8)
    of = ["alpha" in tokenizer.decode(row) for row in plan.tokens]
    assert sum(of) == 60 and sum(of[-8:]) == 6 and 0 < sum(of[:20]) < 20  # by weight on both sides, not in blocks
    assert not set(plan.doc_ids[:-8].tolist()) & set(plan.doc_ids[-8:].tolist())
    assert [p["windows"] for p in plan.about["parts"]] == [60, 20] and plan.about["documents"] == 120
    assert plan.digest == plan_tokens(mix, tokenizer, n_seq=80, ctx=64, heldout=8).digest
    assert CorpusConfig.model_validate(mix.model_dump()) == mix
    assert [p["paths"] for p in mix.model_dump(mode="json")["parts"]] == [["alpha.jsonl"], ["beta.jsonl"]]  # no places
    assert "parts" not in CorpusConfig().model_dump(mode="json") and "weights" not in CorpusConfig().model_dump()


def test_a_mix_that_makes_no_sense_is_refused(two):
    for values in (
        {"kind": "mix"},
        {"kind": "mix", "parts": two, "weights": [1]},
        {"kind": "mix", "parts": two, "weights": [1, -1]},
        {"kind": "mix", "parts": [{"kind": "mix", "parts": two}]},
        {"kind": "text", "paths": ["x"], "parts": two},
    ):
        with pytest.raises(ConfigError):
            config(values)


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_what_one_corpus_of_a_mix_holds_out_no_other_trains_on(packing, tmp_path):
    """The same 100 texts in two corpora; the second has more held-out windows than the first."""
    tokenizer, rng = read_tokenizer(data_dir() / "tokenizer"), np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdefgh"), 5)) for _ in range(60)) for _ in range(100)]
    for name, order in (("a", texts), ("b", texts[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in order))
    parts = [{"kind": "jsonl", "paths": [str(tmp_path / f"{name}.jsonl")]} for name in "ab"]
    parts[0]["packing"] = packing
    n, held = (400, 40) if packing == "stream" else (80, 8)
    plan = plan_tokens(
        config({"kind": "mix", "parts": parts, "weights": [1, 3]}), tokenizer, n_seq=n, ctx=64, heldout=held
    )
    grams = [
        {tuple(r[i : i + 16]) for r in rows.tolist() for i in range(1, 48)}
        for rows in np.split(plan.tokens, [n - held])
    ]
    assert len(grams[1]) > 300 and not grams[0] & grams[1]


IDLE = [
    ({"kind": "mini"}, {"dedupe": True}),
    ({"kind": "mini"}, {"epochs": 4}),
    ({"kind": "prose"}, {"on_bad": "refuse"}),
    ({"kind": "text", "paths": ["x"]}, {"text_field": "body"}),
    ({"kind": "text", "paths": ["x"]}, {"shuffle_buffer": 4}),
    ({"kind": "jsonl", "paths": ["x"]}, {"subset": "en"}),
    ({"kind": "hub", "dataset": "x"}, {"dedupe": True}),
    ({"kind": "hub", "dataset": "x"}, {"epochs": 2}),
    ({"kind": "text", "paths": ["x"], "packing": "documents"}, {"dedupe": True}),
    ({"kind": "mix", "parts": [{"kind": "mini"}]}, {"dedupe": True}),
    ({"kind": "mix", "parts": [{"kind": "mini"}]}, {"parts": [{"kind": "mini", "split": "all"}]}),
    ({"kind": "mix", "parts": [{"kind": "mini"}]}, {"parts": [{"kind": "text", "paths": ["x"], "epochs": 3}]}),
]


@pytest.mark.parametrize(("values", "idle"), IDLE, ids=str)
def test_an_option_that_would_do_nothing_is_refused(values, idle):
    CorpusConfig.model_validate(values)
    with pytest.raises(ConfigError, match=r"does nothing|gone through once|belongs to the mix"):
        parse_config(CorpusConfig, {**values, **idle}, where="x")


def test_a_part_may_say_what_its_mix_says(two):
    said = {"split": "all", "epochs": 2}
    mix = parse_config(CorpusConfig, {"kind": "mix", "parts": [{**p, **said} for p in two], **said}, where="x")
    assert mix == parse_config(CorpusConfig, {"kind": "mix", "parts": two, **said}, where="x")
    assert CorpusConfig.model_validate(mix.model_dump()) == mix
    CorpusConfig.model_validate({**mix.model_dump(), "split": "heldout"})  # as an evaluation cuts the text anew
