"""Pre-training: same recipe, same bits; resumed or not; what decides the weights may not change under a run."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from sae.errors import ConfigError, CorruptError, MismatchError, NonFiniteError
from sae.strict import parse_config
from workbench.cli import app
from workbench.config import data_dir, read_recipe
from workbench.corpus import CorpusConfig
from workbench.models import load_model, revisions
from workbench.models.pretrain import Pretraining, PretrainRecipe, batch_at, build_model, hf_config, make_optimizer
from workbench.models.pretrained import open_run
from workbench.models.tokenizer import read_tokenizer
from workbench.workspace import Workspace


@pytest.fixture(scope="module")
def tokenizer():
    return read_tokenizer(data_dir() / "tokenizer")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    for i in range(60):
        (folder / f"{i}.txt").write_text(f"Text number {i} speaks of rivers, stones and old bridges. " * 20)
    return CorpusConfig(kind="text", paths=(str(folder),), tiled_share=0.2, snippet_share=0.2, agreement_share=0.1)


def _recipe(texts: CorpusConfig, **changes) -> PretrainRecipe:
    values = {
        "name": "tiny",
        "architecture": "mamba",
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 2,
        "state_size": 4,
        "ctx": 24,
        "batch": 3,
        "steps": 6,
    }
    return PretrainRecipe(**{**values, "warmup": 2, "snapshots": (0, 2), "corpus": texts, **changes})


def _weights(run: Pretraining) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in run.model.named_parameters()}


@pytest.mark.parametrize("architecture", ["gpt_neox", "mamba", "olmo_hybrid"])
def test_a_resumed_run_gives_the_same_bits(tokenizer, texts, tmp_path, architecture):
    recipe = _recipe(texts, architecture=architecture)
    whole = Pretraining(recipe, tmp_path / "whole", tokenizer)
    list(whole.run())
    list(Pretraining(recipe, tmp_path / "parts", tokenizer).run(until=2))
    second = Pretraining(recipe, tmp_path / "parts", tokenizer)
    assert second.step == 2
    steps = [out["step"] for out in second.run()]
    assert steps == [3, 4, 5, 6]
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(second)[name]), name
    assert (whole.losses == second.losses)[~np.isnan(whole.losses)].all() and len(second.losses) == 6
    for step in (0, 2, 6):
        a, b = (load_file(tmp_path / part / f"step{step}" / "model.safetensors") for part in ("whole", "parts"))
        assert all(torch.equal(a[k], b[k]) and a[k].dtype == torch.float16 for k in a)


def test_training_learns_and_snapshots_differ(tokenizer, texts, tmp_path):
    run = Pretraining(_recipe(texts, steps=40, lr=1e-2, snapshots=(0, 20)), tmp_path, tokenizer)
    first = run.heldout_loss(4)
    list(run.run())
    assert run.heldout_loss(4) < first - 0.5
    a, b = (load_file(tmp_path / f"step{s}" / "model.safetensors") for s in (20, 40))
    assert any(not torch.equal(a[k], b[k]) for k in a)


def test_batches_depend_on_corpus_seed_and_step_only(tokenizer, texts):
    a = batch_at(_recipe(texts), tokenizer, 3)[0]
    assert torch.equal(a, batch_at(_recipe(texts, architecture="gpt_neox", seed=9, lr=1e-4), tokenizer, 3)[0])
    assert not torch.equal(a, batch_at(_recipe(texts), tokenizer, 4)[0])
    assert not torch.equal(a, batch_at(_recipe(texts.model_copy(update={"seed": 1})), tokenizer, 3)[0])
    starts = torch.cat([batch_at(_recipe(texts, batch=40), tokenizer, s)[0][:, 0] for s in range(3)])
    assert 0.8 < (starts == 0).float().mean() < 1.0


def test_initialisation_is_seeded_and_leaves_the_global_state_alone():
    config = hf_config(PretrainRecipe(name="x", architecture="mamba", steps=1, d_model=16), 64)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a, b, c = (build_model(config, seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(
        a["backbone.embeddings.weight"], c["backbone.embeddings.weight"]
    )


def test_weight_decay_spares_what_it_should():
    recipe = PretrainRecipe(name="x", architecture="mamba", steps=1, d_model=16)
    model = build_model(hf_config(recipe, 64))
    decayed = {id(p) for p in make_optimizer(model, recipe).param_groups[0]["params"]}
    names = {n.split(".")[-2] + "." + n.split(".")[-1] for n, p in model.named_parameters() if id(p) in decayed}
    assert names == {"in_proj.weight", "x_proj.weight", "dt_proj.weight", "out_proj.weight"}


def test_a_hybrid_is_three_delta_nets_to_one_attention_with_open_convolutions():
    recipe = PretrainRecipe(name="x", architecture="olmo_hybrid", steps=1, d_model=32, n_layers=8, n_heads=2)
    config = hf_config(recipe, 64)
    assert config.layer_types == (["linear_attention"] * 3 + ["full_attention"]) * 2
    model = build_model(config)
    mixers = [layer.linear_attn for layer in model.model.layers if hasattr(layer, "linear_attn")]
    assert len(mixers) == 6
    assert {(m.num_v_heads, m.head_k_dim, m.head_v_dim) for m in mixers} == {(2, recipe.state_size, 16)}
    for mixer in mixers:
        taps = mixer.conv1d.weight.detach()
        assert 0.2 < float(taps.std()) < 0.4  # uniform on +-1/2, not transformers' 0.02


def test_learning_rate_warms_up_stays_and_falls_to_zero(texts):
    recipe = _recipe(texts, steps=100, warmup=10, decay_share=0.25, lr=1.0)
    rates = [recipe.learning_rate(s) for s in range(100)]
    again = _recipe(texts, steps=120, warmup=10, decay_share=0.25, lr=1.0, cycles=((100, 0.5),))
    assert [again.learning_rate(s) for s in range(100)] == rates
    assert again.learning_rate(100) == 0.5 and again.learning_rate(119) == pytest.approx(0.025)
    assert rates[0] == pytest.approx(0.1) and set(rates[9:75]) == {1.0} and rates[-1] == pytest.approx(1 / 25)


def test_kinds_can_count_more_from_a_step_on(tokenizer, texts, tmp_path):
    recipe = _recipe(texts, kind_weights=((2, 1, 4, 1), (5, 1, 1, 6)))
    assert [recipe.weight(1, s) for s in (0, 1, 2, 4, 5)] == [1, 1, 4, 4, 1] and recipe.weight(2, 5) == 6
    plain, weighted = (
        Pretraining(r, tmp_path / n, tokenizer) for r, n in ((_recipe(texts), "plain"), (recipe, "weighted"))
    )
    for until, same in ((2, True), (6, False)):
        list(plain.run(until=until)), list(weighted.run(until=until))
        assert all(torch.equal(v, _weights(weighted)[k]) for k, v in _weights(plain).items()) == same
    assert (plain.losses[:3] == weighted.losses[:3])[:, 0].all()


def test_a_run_is_not_continued_with_another_recipe(tokenizer, texts, tmp_path):
    list(Pretraining(_recipe(texts), tmp_path, tokenizer).run(until=2))
    with pytest.raises(MismatchError, match=r"lr: 0\.002 there, 0\.0001 asked.*--replace"):
        Pretraining(_recipe(texts, lr=1e-4), tmp_path, tokenizer)
    other = texts.model_copy(update={"seed": 5})
    with pytest.raises(MismatchError, match=r"corpus\.seed: 0 there, 5 asked"):
        Pretraining(_recipe(other), tmp_path, tokenizer)
    assert (
        Pretraining(_recipe(texts, steps=8, snapshots=(0,)), tmp_path, tokenizer).step == 2
    )  # only longer: the past is the same
    longer = _recipe(texts, steps=9, cycles=((6, 1e-3),))
    list(Pretraining(_recipe(texts), tmp_path, tokenizer).run())
    with pytest.raises(MismatchError, match="steps: 6 there, 8 asked"):
        Pretraining(_recipe(texts, steps=8), tmp_path, tokenizer)
    assert Pretraining(longer, tmp_path, tokenizer).step == 6  # the first decay is kept, a second one follows
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(CorruptError, match="cannot be resumed"):
        Pretraining(_recipe(texts), tmp_path, tokenizer)


def test_replace_trains_an_interrupted_run_of_another_recipe_anew(tokenizer, texts, tmp_path):
    ws, apart = Workspace(tmp_path / "ws"), Workspace(tmp_path / "apart")
    list(open_run(_recipe(texts), ws, tokenizer).run(until=2))
    changed = _recipe(texts.model_copy(update={"seed": 5}))
    with pytest.raises(MismatchError, match=r"corpus\.seed"):
        open_run(changed, ws, tokenizer)
    again, undisturbed = open_run(changed, ws, tokenizer, replace=True), open_run(changed, apart, tokenizer)
    assert again.step == 0
    for run in (again, undisturbed):
        list(run.run())
    last = f"step{changed.steps}/model.safetensors"
    assert (again.work / last).read_bytes() == (undisturbed.work / last).read_bytes()


def test_divergence_is_an_error_not_a_result(tokenizer, texts, tmp_path):
    run = Pretraining(_recipe(texts), tmp_path, tokenizer)
    with torch.no_grad():
        next(run.model.parameters())[0, 0] = float("nan")
        next(run.model.parameters())[:, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="diverged"):
        list(run.run())
    assert not list(tmp_path.glob("step*/model.safetensors")) and not (tmp_path / "state.safetensors").exists()


def test_recipes_are_checked():
    for values, words in (
        ({"architecture": "lstm"}, "architecture"),
        ({"architecture": "mamba", "stepz": 3}, "did you mean 'steps'"),
        ({"architecture": "mamba", "snapshots": [0, 20]}, "outside"),
        ({"architecture": "gpt_neox", "d_model": 30}, "multiple"),
        ({"architecture": "olmo_hybrid", "d_model": 30}, "multiple"),
        ({"architecture": "olmo_hybrid", "n_layers": 1}, "at least 2"),
        ({"architecture": "mamba", "cycles": [[10, 1e-3]]}, "ascending order"),
        ({"architecture": "mamba", "kind_weights": [[5, 1, 1, 1], [2, 1, 1, 1]]}, "in the order"),
        ({"architecture": "mamba", "corpus": {"kind": "mini", "seeed": 1}}, "did you mean 'seed'"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse_config(PretrainRecipe, {"name": "x", "steps": 10, **values}, where="r.toml")


def test_bundled_recipes_share_their_batches_and_sizes_fit():
    recipes = {
        p.stem: read_recipe(PretrainRecipe, p.stem)
        for p in (data_dir() / "recipes").glob("mini-*.toml")
        if re.search(r"^architecture = ", p.read_text(), re.MULTILINE)
    }
    assert {"mini-pythia", "mini-mamba", "mini-hybrid", "mini-pythia-s1", "mini-mamba-s1", "mini-pythia-prose"} <= set(
        recipes
    )
    assert all(r.name == stem for stem, r in recipes.items())
    a, b, c = (recipes[f"mini-{kind}"] for kind in ("pythia", "mamba", "hybrid"))
    assert (a.corpus, a.batch, a.ctx) == (b.corpus, b.batch, b.ctx) == (c.corpus, c.batch, c.ctx)
    for r, n in ((a, 14), (b, 14), (c, 8)):
        assert {0, 512} <= set(r.saved_steps) and len(r.saved_steps) >= n
        assert 400_000 < sum(p.numel() for p in build_model(hf_config(r, 512)).parameters()) < 750_000
    assert {recipes["mini-pythia-s1"].seed, recipes["mini-mamba-s1"].seed} == {1} and recipes[
        "mini-pythia-prose"
    ].start == "mini-pythia"


def test_verb_trains_reuses_and_writes_a_loadable_model(texts, tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\narchitecture = "gpt_neox"\nd_model = 16\nn_heads = 2\nn_layers = 2\nctx = 24\nbatch = 2\nsteps'
        f' = 4\nsnapshots = [0, 2]\n[corpus]\nkind = "text"\npaths = [{json.dumps(texts.paths[0])}]\n'
    )
    command = ["pretrain", str(recipe), "--workspace", str(tmp_path / "ws"), "--no-criteria", "--json"]
    out = CliRunner().invoke(app, command)
    assert out.exit_code == 0, out.output
    about = json.loads(out.stdout)
    assert about["snapshots"] == 3 and about["tokens"] == 4 * 2 * 24 and about["final"] == "step4"
    folder = Workspace(tmp_path / "ws").get("models", "tiny").path
    assert revisions(folder) == ["step0", "step2", "step4"] and load_model(folder).cfg.n_layers == 2
    card = json.loads((folder / "card.json").read_text())
    assert card["recipe"]["steps"] == 4 and card["corpus_digest"] and "criteria" not in card
    assert "workbench pretrain tiny" in (folder / "README.md").read_text()
    assert not list((tmp_path / "ws" / "models").glob(".*"))
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert (
        json.loads(CliRunner().invoke(app, command).stdout) == about
        and (folder / "manifest.json").stat().st_mtime_ns == before
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mini-pythia", "mini-mamba"])
def test_the_first_tenth_of_the_cards_loss_curve_is_reproduced(name, tmp_path):
    """Same interpreter and corpus: the curve agrees within the tolerance the card states."""
    card = json.loads((data_dir() / "models" / name / "card.json").read_text())
    recipe = read_recipe(PretrainRecipe, name)
    run = Pretraining(recipe, tmp_path, read_tokenizer(data_dir() / "tokenizer"))
    steps = recipe.steps // 10
    for _ in run.run(until=steps):
        pass
    means = run.losses[: steps // 10 * 10, 0].reshape(-1, 10).mean(1)
    want = np.asarray(card["loss_curve"]["loss"][: len(means)])
    assert np.abs(means - want).max() < card["loss_curve"]["tolerance"]
