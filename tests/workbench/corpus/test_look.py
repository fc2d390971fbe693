"""``workbench text``: the numbers are those of the harvest's own plan, and the windows are as a model reads them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from workbench.activations import HarvestRecipe
from workbench.activations.harvesting.run import look, prepare
from workbench.cli import app


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    rng = np.random.default_rng(0)
    words = ["river", "stone", "walks", "over", "the", "old", "bridge", "and", "sings", "café"]
    texts = [" ".join(rng.choice(words, 40)) for _ in range(80)]
    lines = [{"text": t} for t in [*texts, *texts[:5]]] + [{"text": None}] * 2
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = folder / "r.toml"
    path.write_text(
        'id = "own"\nhooks = ["L0R"]\nn_seq = 40\nctx = 32\n[corpus]\nkind = "jsonl"\nsplit = "all"\n'
        f'paths = [{json.dumps(str(folder / "a.jsonl"))}]\n[[sources]]\nmodel = "mini-pythia"\n'
    )
    return path


def test_the_document_is_that_of_the_harvest(recipe):
    out = CliRunner().invoke(app, ["text", str(recipe), "--windows", "3", "--json"])
    assert out.exit_code == 0, out.stderr
    found = json.loads(out.stdout)
    from workbench.config import read_recipe

    spec, plan, _ = prepare(read_recipe(HarvestRecipe, recipe))
    assert found["documents"] == 85 and found["near_duplicates"] == 5 and found["passes"] == 1
    assert found["records"] == {"read": 87, "null": 2} and found["heldout_windows"] == spec.heldout_seqs == 4
    no_row = np.isin(plan.tokens[:, 1:], spec.exclude_ids)
    assert found["rows"] == no_row.size - no_row.sum() and found["tokens"] == plan.tokens.size
    assert found["contract"] == spec.plan["contract"] and len(found["windows"]) == 3
    for w in found["windows"]:
        assert len(w["tokens"]) == 32 and w["tokens"][0] == "<|bos|>" and "\ufffd" not in "".join(w["tokens"])
        assert w["heldout"] == (w["number"] >= 36)


def test_it_says_in_words_what_a_newcomer_must_know(recipe):
    out = CliRunner().invoke(app, ["text", str(recipe)])
    for said in (
        *("85 documents", "first token: 0", "near-copies", "null: 2", "longest context: 1,024", "window ", "⟦<|bos|>⟧"),
        *("jsonl a.jsonl: 40 windows", "per document", "passes over the training text: 1", "special ids: 0 (<|bos|>)"),
    ):
        assert said in out.stderr, said


def test_a_split_that_leaves_documents_out_is_said(recipe):
    part = recipe.with_name("part.toml")
    part.write_text(recipe.read_text().replace('split = "all"', 'split = "train"').replace("n_seq = 40", "n_seq = 20"))
    for path, split in ((part, "train"), (recipe, "all")):
        out = CliRunner().invoke(app, ["text", str(path), "--json"])
        found = json.loads(out.stdout)["corpora"][0]
        assert found["split"] == split and (found["documents"] < 85) == (split == "train")
        said = CliRunner().invoke(app, ["text", str(path)]).stderr
        assert ('split = "all" reads every one' in said) == (split == "train")


def test_what_the_harvest_would_refuse_is_refused(recipe):
    long = recipe.with_name("long.toml")
    long.write_text(recipe.read_text().replace("ctx = 32", "ctx = 4096"))
    out = CliRunner().invoke(app, ["text", str(long)])
    assert out.exit_code != 0 and "1,024 positions" in out.stderr
    much = recipe.with_name("much.toml")
    much.write_text(recipe.read_text().replace("n_seq = 40", "n_seq = 1000"))
    out = CliRunner().invoke(app, ["text", str(much)])
    assert out.exit_code != 0 and "gone through" in out.stderr


def test_streamed_text_can_be_looked_at(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"text": f"text {i} " * 40}) for i in range(60)))
    values = {"id": "x", "hooks": ["L0R"], "n_seq": 20, "ctx": 32, "sources": [{"model": "mini-pythia"}]}
    values["corpus"] = {"kind": "hub", "dataset": str(folder), "packing": "documents"}
    found = look(HarvestRecipe.model_validate(values), shown=1)
    assert found.numbers["windows_total"] == 20 and "tokens_per_document" not in found.numbers  # cut when tokenised
    values["corpus"] = {"kind": "hub", "dataset": str(folder)}
    found = look(HarvestRecipe.model_validate(values), shown=1)
    low, middle, high = found.numbers["tokens_per_document"]
    assert 40 < low <= middle <= high and found.numbers["corpora"][0]["documents"] == found.numbers["documents"]


def test_ids_without_rows_are_those_of_the_recipe(recipe):
    own = recipe.with_name("ids.toml")
    own.write_text(recipe.read_text().replace("ctx = 32", "ctx = 32\nexclude_ids = [0, 65]"))
    from workbench.config import read_recipe

    found = look(read_recipe(HarvestRecipe, own))
    assert found.contract.excluded_ids == (0, 65)
    assert found.numbers["rows"] == (~np.isin(found.plan.tokens[:, 1:], (0, 65))).sum()
