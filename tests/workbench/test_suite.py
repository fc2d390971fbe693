"""The suite in small: one recipe makes the store, SAEs and transcoders, their evaluations and the figure; run again it
reuses all.
"""

from __future__ import annotations

import json

import pytest

import sae
from sae.errors import ConfigError
from workbench import Run, train
from workbench.activations import ActivationStore
from workbench.config import read_recipe
from workbench.dictionaries.recipe import TrainRecipe, jobs_of
from workbench.workspace import Workspace

HARVEST = """
id = "tiny"
n_seq = 40
ctx = 32
seqs_per_shard = 20
[corpus]
kind = "mini"
[[sources]]
model = "mini-pythia"
hooks = ["L1R", "L1TC"]
[[sources]]
model = "mini-mamba"
hooks = ["L0S"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tiny.toml").write_text(HARVEST)
    recipe = TrainRecipe(
        store="tiny",
        harvest=str(folder / "tiny.toml"),
        expansions=(2,),
        ks=(4,),
        batch_size=128,
        tokens=128 * 10,
        evaluate=2,
        summary=True,
        sae={"activation": "batchtopk", "skip": True},
    )
    ws = Workspace(folder / "ws")
    return recipe, ws, [item.id for item in train(ws, recipe).all]


def test_every_site_is_trained_measured_and_drawn(made):
    recipe, ws, ids = made
    assert sorted(ids) == ["mini-mamba.L0S-2x", "mini-pythia.L1M-2x", "mini-pythia.L1R-2x", "mini-pythia.L1TC-2x"]
    for id in ids:
        numbers = ws.get("evaluations", id).manifest.numbers
        assert numbers["ev"]["n"] == 2 * 30 and numbers["delta_ce"]["value"] is not None
    tc = ws.get("dictionaries", "mini-pythia.L1TC-2x")
    assert (
        tc.manifest.metadata["hook_name"] == "blocks.1.ln2.hook_out"
        and tc.manifest.metadata["hook_name_out"] == "blocks.1.hook_mlp_out"
    )
    loaded = sae.load(tc.path)
    assert (
        isinstance(loaded, sae.Transcoder)
        and loaded.skip_DD is not None
        and tc.manifest.metadata["kind"] == "transcoder"
    )
    (figure,) = ws.items("exports")
    table = (figure.path / "data.csv").read_text()
    assert all(id in table for id in ids) and (figure.path / "figure.pdf").is_file()
    assert json.loads((figure.path / "provenance.json").read_text())["figure"] == "suite_summary"
    before = {id: ws.get("dictionaries", id).digest for id in ids}
    said: list[str] = []
    assert [item.id for item in train(ws, recipe, run=Run(say=said.append)).all] == ids and sum(
        "reused" in line for line in said
    ) == len(ids)
    assert before == {id: ws.get("dictionaries", id).digest for id in ids}


def test_presets_and_contradictions(made):
    recipe, ws, _ = made
    store = ActivationStore.open(ws.path("stores", "tiny"))

    def configs(**values):
        return {j.site: j.config for j in jobs_of(recipe.model_copy(update={"sae": values}), store)}

    paper, code = configs(preset="llama-scope-paper")["L1R"], configs(preset="llama-scope-code", lr=1e-3)["L1R"]
    assert (
        paper.activation.kind == "norm-topk" and paper.start.norm == 1.0 and paper.k_start == 128 and paper.k_aux == 0
    )
    assert (code.lr, code.beta2, code.start.norm, code.k_start, code.details.end_factor) == (
        1e-3,
        0.9999,
        0.5,
        64,
        0.01,
    )
    assert configs(preset="llama-scope-paper")["L1TC"].start.encoder == "fitted"
    few = configs(preset="few-steps", details={"bias_rate": 0.2})["L1R"]
    assert (few.beta1, few.beta2, few.details.encoder_rate, few.details.bias_rate) == (0.5, 0.95, 0.6, 0.2)
    plain = configs(preset="few-steps", activation="l1")["L1R"]
    assert few.dead_after == plain.dead_after == 20_000 and not plain.details.clip
    l1 = configs(preset="faithful", activation="l1", details={"bias_rate": 0.3})
    assert (l1["L1R"].start.norm, l1["L1R"].start.encoder, l1["L1TC"].start.encoder) == (0.1, "tied", "fitted")
    assert l1["L1R"].details.clip == 1 / l1["L1R"].d_in and l1["L1R"].details.bias_rate == 0.3
    of_batch = configs(preset="few-steps", activation={"kind": "batchtopk", "decay": 0.9})["L1R"]
    assert of_batch.lr == few.lr and of_batch.dead_after == 88 * of_batch.d_sae // of_batch.k < 20_000
    for own in ({}, {"activation": "matryoshka"}):
        faithful = configs(preset="faithful", **own)["L1R"]
        assert faithful.activation.kind == "matryoshka" and faithful.dead_after == of_batch.dead_after
        assert faithful.lr == 2 * few.lr and faithful.details.encoder_rate == few.details.encoder_rate / 2
    assert configs(preset="faithful", activation="jumprelu")["L1R"].activation.kind == "jumprelu"
    assert configs(preset="faithful")["L1TC"].activation.kind == "matryoshka"
    for values, message in (
        ({"preset": "llama-scop"}, "did you mean 'llama-scope-"),
        ({"activation": "btchtopk"}, "activation"),
        ({"activaton": "l1"}, "did you mean 'activation'"),
    ):
        with pytest.raises(ConfigError, match=message):
            configs(**values)
    with pytest.raises(ConfigError, match="evaluate = 32"):
        TrainRecipe(store="tiny", summary=True)


def test_the_bundled_suite_names_what_it_makes():
    from workbench.activations import HarvestRecipe

    recipe = read_recipe(TrainRecipe, "mini-llama-scope")
    assert (
        read_recipe(HarvestRecipe, recipe.harvest).id == recipe.store
        and recipe.expansions == (8, 32)
        and recipe.summary
    )
