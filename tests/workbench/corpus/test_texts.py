"""Texts by name: results hold no place, find their text again on this machine, and notice that it is another one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import workbench
from sae.errors import MismatchError
from workbench.activations import HarvestRecipe
from workbench.activations.format.errors import StoreMismatch
from workbench.cli import app
from workbench.config import as_recipe
from workbench.corpus import CorpusConfig
from workbench.results.reuse import by_name
from workbench.workspace import Workspace


def lines(seed: int, n: int = 300) -> list[str]:
    words = np.array(["".join(w) for w in np.random.default_rng(9).choice(list("abcdefghijklmnop"), (400, 5))])
    return [" ".join(np.random.default_rng([seed, i]).choice(words, 40)) for i in range(n)]


def files(folder: Path, seed: int = 0) -> dict[str, dict[str, object]]:
    """A corpus of every kind that reads files of this machine, by the kind of its name in results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("\n".join(lines(seed)))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines(seed + 1)))
    (folder / "set").mkdir(exist_ok=True)
    (folder / "set" / "train.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in lines(seed + 2)))
    text = {"kind": "text", "paths": [str(folder / "a.txt")], "split": "all"}
    records = {"kind": "jsonl", "paths": [str(folder / "b.jsonl")], "split": "all"}
    return {
        "text": text,
        "documents": {**records, "packing": "documents"},
        "mix": {"kind": "mix", "parts": [text, records], "split": "all"},
        "hub": {"kind": "hub", "dataset": str(folder / "set")},
    }


def recipe(corpus: dict[str, object], id: str = "own") -> HarvestRecipe:
    values = {"id": id, "hooks": ["L0R"], "n_seq": 16, "ctx": 24, "sources": [{"model": "mini-pythia"}]}
    return HarvestRecipe.model_validate({**values, "corpus": corpus})


@pytest.mark.parametrize("kind", ["text", "documents", "mix", "hub"])
def test_a_store_names_its_text_and_finds_it_again(kind: str, tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    corpus = files(tmp_path / "here")[kind]
    item = workbench.harvest(ws, recipe(corpus))
    for path in item.path.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path
    assert workbench.harvest(ws, recipe(corpus)).digest == item.digest, "the same text is reused"
    again = as_recipe(HarvestRecipe, "stores/own", ws)
    assert again.corpus == CorpusConfig.model_validate(corpus), "its recipe has the places of this machine"
    assert workbench.harvest(ws, "stores/own").digest == item.digest
    if kind == "hub":
        return  # a dataset is known by its commit
    moved = files(tmp_path / "there")[kind]
    assert workbench.harvest(ws, recipe(moved)).digest == item.digest, "the same text elsewhere is reused, too"
    with pytest.raises(StoreMismatch, match=r"text of .*: [0-9a-f]{12}.* there, [0-9a-f]{12} asked"):
        workbench.harvest(ws, recipe(files(tmp_path / "here", seed=5)[kind]))


def test_the_stores_own_text_is_cut_anew_where_it_is_known(tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "ws")
    workbench.harvest(ws, recipe(files(tmp_path / "here")["text"]))
    train = {"store": "own", "expansions": (1,), "ks": (4,), "batch_size": 64, "tokens": 64}
    id = workbench.train(ws, workbench.dictionaries.recipe.TrainRecipe(**train)).id
    found = workbench.evaluate(ws, id, ctx=16, sequences=2)
    assert found.manifest.numbers
    (tmp_path / "here" / "a.txt").unlink()
    run = CliRunner().invoke(app, ["evaluate", id, "--ctx", "12", "--sequences", "2", "-w", str(ws.root)])
    assert run.exit_code == 1 and "a.txt' does not exist" in run.output


def test_recipes_that_held_paths_are_compared_by_name() -> None:
    old = {"corpus": {"kind": "text", "paths": ["/home/a/x.txt"]}, "sources": [{"model": "/m/mine"}]}
    assert by_name(old) == {"corpus": {"kind": "text", "paths": ["x.txt"]}, "sources": [{"model": "mine"}]}
    hub = {"kind": "hub", "paths": ["data/*.json"]}
    assert by_name(hub) == hub


def test_the_other_text_of_an_evolution_is_refused(tmp_path: Path) -> None:
    from workbench.analysis.evolution.recipe import EvolveRecipe

    ws = Workspace(tmp_path / "ws")
    values = {"revisions": ("step0", "step512"), "tokens": 256, "batch_size": 64, "n_seq": 64, "ctx": 16, "k": 4}
    values |= {"expansion": 1, "heldout_seqs": 8, "loss_seqs": 0, "ngram_seqs": 8, "contexts": 0, "prompts": 0}
    values |= {"permutations": 0, "draws": 1, "attribution": "none"}
    split = {"split": "train"}
    made = workbench.evolve(
        ws, EvolveRecipe.model_validate({**values, "corpus": {**files(tmp_path / "here")["text"], **split}})
    )
    for path in ws.root.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path
    again = as_recipe(EvolveRecipe, f"evolution/{made.id}", ws)
    assert again.corpus.paths == (str(tmp_path / "here" / "a.txt"),)
    with pytest.raises(MismatchError, match=r"texts/a\.txt: version"):
        corpus = {**files(tmp_path / "here", seed=5)["text"], **split}
        workbench.evolve(ws, EvolveRecipe.model_validate({**values, "corpus": corpus}))
