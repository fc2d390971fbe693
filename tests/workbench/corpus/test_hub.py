"""Streamed text: packing rules, seeded order, a dataset folder in place of the hub, and clear refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from sae.errors import ConfigError, MissingError, UsageError
from sae.strict import parse_config
from workbench.config import data_dir
from workbench.corpus import CorpusConfig, bos_id, documents, in_split, plan_tokens
from workbench.corpus.hub import hub_documents, packed
from workbench.corpus.records import Tally, as_document
from workbench.models.tokenizer import read_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(data_dir() / "tokenizer")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "texts"
    folder.mkdir()
    words = ["river", "stone", "walks", "over", "the", "old", "bridge", "and", "sings"]
    rng = np.random.default_rng(0)
    records = [{"text": f"{i} " + " ".join(rng.choice(words, 10 if i % 3 == 0 else 90)), "meta": i} for i in range(120)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    return folder


def test_documents_are_cut_to_one_window_each_and_short_ones_left_out(tokenizer):
    texts = [("a", "one two three four five six"), ("b", "one"), ("c", "seven eight nine ten eleven twelve thirteen")]
    tokens, owners, about, rows = packed(iter(texts), tokenizer, 0, n_seq=2, ctx=5, whole_documents=True)
    assert rows is None
    for row, text in zip(tokens, (texts[0][1], texts[2][1]), strict=True):
        assert row[0] == 0 and row[1:].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"][:4]
    assert owners.tolist() == [0, 2] and about["short_documents"] == 1 and about["documents"] == 3


def test_a_stream_loses_no_token_and_knows_each_windows_document(tokenizer):
    texts = [(str(i), f"document number {i} says something short") for i in range(40)]
    flat = [t for _, text in texts for t in [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]]
    width, n = 7, len(flat) // 7
    tokens, owners, _, _ = packed(iter(texts), tokenizer, 0, n_seq=n, ctx=width + 1, whole_documents=False)
    assert tokens[:, 1:].flatten().tolist() == flat[: n * width] and (tokens[:, 0] == 0).all()
    starts = np.cumsum([0] + [1 + len(tokenizer(t, add_special_tokens=False)["input_ids"]) for _, t in texts])
    assert owners.tolist() == [int(np.searchsorted(starts, w * width, side="right") - 1) for w in range(n)]


def test_a_dataset_folder_is_read_like_the_hub(dataset, tokenizer):
    values = {"kind": "hub", "dataset": str(dataset), "packing": "documents"}
    config = parse_config(CorpusConfig, values, where="x")
    plan = plan_tokens(config, tokenizer, n_seq=20, ctx=48)
    assert (plan.tokens[:, 0] == bos_id(tokenizer)).all() and (plan.kinds == 0).all()
    assert plan.about["short_documents"] > 0 and plan.about["dataset_commit"] is None
    assert plan.digest == plan_tokens(config, tokenizer, n_seq=20, ctx=48).digest
    assert (plan_tokens(config, tokenizer, n_seq=10, ctx=48).tokens == plan.tokens[:10]).all()
    shuffled = config.model_copy(update={"shuffle_buffer": 50, "seed": 3})
    assert plan_tokens(shuffled, tokenizer, n_seq=20, ctx=48).digest != plan.digest


def test_the_split_depends_on_the_texts_alone(dataset, tokenizer, tmp_path):
    """Not on where the folder lies, nor on the order the records come in: else one seed's training texts are another's
    held-out ones.
    """
    values = {"kind": "hub", "dataset": str(dataset), "packing": "documents"}
    config = parse_config(CorpusConfig, values, where="x")
    held = config.model_copy(update={"split": "heldout"})
    plan = plan_tokens(config, tokenizer, n_seq=20, ctx=48)
    moved = shutil.copytree(dataset, tmp_path / "elsewhere")
    assert (
        plan_tokens(config.model_copy(update={"dataset": str(moved)}), tokenizer, n_seq=20, ctx=48).digest
        == plan.digest
    )

    def texts(config):
        return {text for name, text in hub_documents(config) if in_split(name, config.split)}

    shuffled = [{"shuffle_buffer": 50, "seed": seed} for seed in (3, 4)]
    assert texts(held) and texts(held) | texts(config) == {t for _, t in hub_documents(config)}
    assert all(texts(held.model_copy(update=s)) == texts(held) for s in shuffled)
    assert not any(texts(config.model_copy(update=s)) & texts(held) for s in shuffled)
    assert plan_tokens(held, tokenizer, n_seq=2, ctx=48).tokens.shape == (2, 48)


def test_refusals_name_the_remedy(dataset, tokenizer):
    hub = CorpusConfig.model_validate({"kind": "hub", "dataset": "nobody/nothing", "packing": "documents"})
    with pytest.raises(MissingError, match="hf download nobody/nothing --repo-type dataset"):
        plan_tokens(hub, tokenizer, n_seq=1, ctx=8)
    here = hub.model_copy(update={"dataset": str(dataset)})
    with pytest.raises(UsageError, match=r"gives \d+ windows of 48 tokens.*not the 1,000"):
        plan_tokens(here, tokenizer, n_seq=1000, ctx=48)
    with pytest.raises(MissingError, match="does not exist"):
        plan_tokens(hub.model_copy(update={"dataset": "/nowhere/at/all"}), tokenizer, n_seq=1, ctx=8)
    with pytest.raises(UsageError, match="piece by piece"):
        documents(hub)
    with pytest.raises(ConfigError, match="synthetic"):
        parse_config(CorpusConfig, {"kind": "hub", "dataset": "a/b", "tiled_share": 0.5}, where="x")
    with pytest.raises(ConfigError, match="takes a dataset"):
        parse_config(CorpusConfig, {"kind": "hub"}, where="x")


def test_older_digests_stay_and_conversations_become_text():
    assert "packing" not in CorpusConfig().model_dump(mode="json")
    said = CorpusConfig.model_validate({"kind": "hub", "dataset": "a/b"}).model_dump(mode="json")
    assert said["dataset"] == "a/b" and CorpusConfig.model_validate(said).dataset == "a/b"
    assert (
        as_document([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}], "here", Tally())
        == "user: hi\n\nassistant: yes"
    )
