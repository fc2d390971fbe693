"""``workbench trust`` on a small store of a bundled model: what is missing is made, what is there is reused."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import workbench
from sae.errors import MismatchError, UsageError
from workbench.activations import HarvestRecipe, harvest
from workbench.analysis.trust.needs import _plan_of, find_or_make, settings_of
from workbench.analysis.trust.run import held_out
from workbench.cli import app
from workbench.corpus import TokenPlan
from workbench.dictionaries.recipe import TrainRecipe
from workbench.dictionaries.reference import find_dictionary
from workbench.dictionaries.train import train_recipe
from workbench.exporting.bundles import bundle
from workbench.exporting.figures import build
from workbench.exporting.spec import FigureSpec
from workbench.models import load_model
from workbench.results.trust import FIELDS, Trust
from workbench.workspace import Workspace

ID = "mini-pythia.L1R-1x"
TEXT = "def f(self, x):\n    return self.name + [x] * 42\n\nclass Big(object):\n    '''The name of the thing.'''\n"
RECIPE = {"id": "small", "hooks": ["L1R"], "n_seq": 80, "ctx": 32, "seqs_per_shard": 80}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A store of 80 short sequences and one dictionary on it."""
    ws = Workspace(tmp_path_factory.mktemp("trust") / "ws")
    model = load_model("mini-pythia")
    ids = model.tokenizer(TEXT * 60, add_special_tokens=False)["input_ids"]
    starts = np.random.default_rng(0).integers(0, len(ids) - 40, 80)
    tokens = np.stack([[0, *ids[a : a + 31]] for a in starts]).astype(np.int32)
    plan = TokenPlan(tokens, np.arange(80, dtype=np.int32), np.zeros(80, np.uint8), {"made": "by a test"})
    harvest(HarvestRecipe.model_validate({**RECIPE, "sources": [{"model": "mini-pythia"}]}), ws, plan=plan)
    train_recipe(TrainRecipe(store="small", expansions=(1,), ks=(4,), batch_size=256, tokens=256 * 20), ws)
    return ws


def test_without_training_what_is_missing_is_said_and_nothing_is_made(ws: Workspace) -> None:
    item = workbench.trust(ws, ID, train=False)
    found = Trust.open(item.path)
    assert set(found.metadata["missing"]) == {"seed", "model_seed", "untrained", "label"}
    assert found.cards[["seed_r", "untrained_r", "label_f1", "score"]].isna().all().all()
    assert found.cards["word"].isna().all() and found.cards["effect"].notna().any()
    assert [i.id for i in ws.items("dictionaries")] == [ID] and not ws.items("explanations")
    assert item.manifest.command == f"workbench trust {ID} --no-train"
    with pytest.raises(MismatchError, match="--replace"):
        workbench.trust(ws, ID)


def test_what_is_missing_is_made_at_its_own_settings_and_every_field_has_a_number(ws: Workspace) -> None:
    done = CliRunner().invoke(app, ["trust", ID, "-w", str(ws.root), "--replace", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    others = said["metadata"]["others"]
    assert others == {
        "seed": f"{ID}.s1",
        "model_seed": "mini-pythia-s1.L1R-1x",
        "untrained": "mini-pythia@step0.L1R-1x",
    }
    own = find_dictionary(ws, ID)
    assert all(settings_of(find_dictionary(ws, id)) == settings_of(own) for id in others.values())
    stores = [ws.get("stores", f"small.{name}.L1R") for name in ("mini-pythia-s1", "mini-pythia@step0")]
    assert len({find_dictionary(ws, i).store(ws).spec.plan["digest"] for i in [ID, *others.values()]}) == 1
    assert len(stores) == 2 and not said["metadata"]["missing"]

    cards = Trust.open(said["path"]).cards
    judged = cards[cards["n_fired"] >= 20]
    assert len(judged) == said["numbers"]["n_judged"] > 3
    for f in FIELDS:
        if not f.value.startswith("label"):  # a rule needs firings in both halves of its own text
            assert judged[f.value].notna().all(), f.value
    assert judged["score"].between(0, 1).all() and judged["word"].notna().all()
    first = said["latents"][0]
    assert first["index"] == 0 and {"seed_r", "model_seed_r", "untrained_r", "effect", "word"} <= set(first)
    rare = cards[cards["n_fired"] < 20]
    assert rare["seed_r"].isna().all() and rare["word"].isna().all()

    again = workbench.trust(ws, ID)
    assert again.version == said["version"], "complete cards are reused"


def test_a_dictionary_of_other_settings_is_no_twin(ws: Workspace) -> None:
    train_recipe(TrainRecipe(store="small", expansions=(1,), ks=(4,), seeds=(7,), batch_size=256, tokens=256 * 10), ws)
    needs = find_or_make(ws, find_dictionary(ws, f"{ID}.s7"), make=False)
    assert needs.found == {} and "no dictionary of another seed of the dictionary" in needs.missing["seed"]


def test_a_card_reads_as_plain_values(ws: Workspace) -> None:
    found = Trust.open(ws.get("trust", ID).path)
    card = found.card(int(found.cards["n_fired"].idxmax()))
    assert json.dumps(card) and isinstance(card["takers"], list)
    assert not any(v is pd.NA or (isinstance(v, float) and np.isnan(v)) for v in card.values())
    with pytest.raises(UsageError, match="latent 999"):
        found.card(999)


def test_a_transcoder_has_cards_without_what_needs_one_space(ws: Workspace) -> None:
    store = find_dictionary(ws, ID).store(ws)
    recipe = {**RECIPE, "id": "mlp", "hooks": ["L1TC"], "sources": [{"model": "mini-pythia"}]}
    harvest(HarvestRecipe.model_validate(recipe), ws, plan=_plan_of(store))
    (id,) = train_recipe(
        TrainRecipe(store="mlp", sites=("L1TC",), expansions=(1,), ks=(4,), batch_size=256, tokens=256 * 10), ws
    )
    found = Trust.open(workbench.trust(ws, id, train=False).path)
    cards = found.cards
    judged = cards[cards["n_fired"] >= 20]
    assert len(judged) and judged["effect"].notna().all() and judged["stability"].notna().all()
    assert cards[["agreement", "absorbed_share", "score"]].isna().all().all() and cards["word"].isna().all()
    assert "writes another" in found.metadata["missing"]["absorbed"]


def test_the_figure_of_a_card_is_a_bundle_with_every_field_and_its_n(ws: Workspace) -> None:
    found = Trust.open(ws.get("trust", ID).path)
    latent = int(found.cards["n_fired"].idxmax())
    spec = FigureSpec(figure="latent_evidence", source=f"trust/{ID}", options={"latent": latent})
    data = build(spec, ws)
    assert data.table["evidence"].tolist() == [f.name for f in FIELDS]
    assert data.table["n"].dropna().tolist() == [found.card(latent)[f.n] for f in FIELDS]
    shown = data.panels[0].frame
    assert set(shown["series"]) == {"this latent", "chance"} and "Effect on the loss" not in set(shown["evidence"])
    files = bundle(spec, ws).files
    assert {"figure.svg", "data.csv", "table.tex", "reproduce.sh"} <= set(files) and b"753.000" not in files[
        "table.tex"
    ]
    assert re.search(rb"& \d+ & tokens both fire on", files["table.tex"])


def test_a_crosscoder_and_a_store_without_held_out_text_are_refused(ws: Workspace, tmp_path) -> None:
    reference = find_dictionary(ws, ID)
    store = reference.store(ws)
    store.spec = store.spec.model_copy(update={"heldout_seqs": 2})
    with pytest.raises(UsageError, match="holds 2 sequences out"):
        held_out(store, 1000)
    reference.metadata["sources"] = ["a", "b"]
    from workbench.analysis.trust.run import TrustRecipe, make_trust

    with pytest.raises(UsageError, match="it reads several sources"):
        make_trust(ws, reference, TrustRecipe())
