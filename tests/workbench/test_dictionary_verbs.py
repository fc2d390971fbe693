"""features, evaluate, explain and map from the command line, on a real store of a bundled model."""

import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sae import TopKSAE
from sae.errors import UsageError
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.analysis.splice import splice
from workbench.cli import app
from workbench.corpus import TokenPlan
from workbench.dictionaries.recipe import TrainRecipe
from workbench.dictionaries.train import train_recipe
from workbench.models import load_model
from workbench.provenance import check_files
from workbench.results.records import LatentRecords
from workbench.workspace import Workspace

NARROW, WIDE = "mini-pythia.L1R-1x", "mini-pythia.L1R-2x"


def call(*args, code=0):
    out = CliRunner().invoke(app, [str(a) for a in args])
    assert out.exit_code == code, out.output + str(out.exception)
    return out


@pytest.fixture(scope="module")
def ws(tmp_path_factory):
    """A store of 64 sequences of real text pieces and two small dictionaries on it."""
    ws = Workspace(tmp_path_factory.mktemp("verbs") / "ws")
    model = load_model("mini-pythia")
    text = "def f(self, x):\n    return self.name + [x] * 42\n\nclass Big(object):\n    '''The name of the thing.'''\n"
    ids = model.tokenizer(text * 60, add_special_tokens=False)["input_ids"]
    rng = np.random.default_rng(0)
    tokens = np.stack([[0, *ids[a : a + 39]] for a in rng.integers(0, len(ids) - 40, 64)]).astype(np.int32)
    plan = TokenPlan(tokens, np.arange(64, dtype=np.int32), np.zeros(64, np.uint8), {"made": "by a test"})
    recipe = {
        "id": "small",
        "hooks": ["L1R"],
        "n_seq": 64,
        "ctx": 40,
        "seqs_per_shard": 64,
        "sources": [{"model": "mini-pythia"}],
    }
    harvest(HarvestRecipe.model_validate(recipe), ws, plan=plan)
    sae = {"lr": 1e-3}  # twenty steps at a higher rate leave the model no worse on so plain a text
    train_recipe(TrainRecipe(store="small", expansions=(1, 2), ks=(4,), batch_size=256, tokens=256 * 20, sae=sae), ws)
    return ws


def test_features_writes_records_of_the_stores_own_rows_and_reuses_them(ws):
    made = json.loads(call("features", WIDE, "-w", ws.root, "--window", 16, "--json").stdout)
    records = LatentRecords.open(made["path"], verify=True)
    assert (
        records.version == made["version"]
        and records.metadata["hook"] == "blocks.1.hook_resid_post"
        and records.metadata["site"] == "L1R"
    )
    store, sae = ActivationStore.open(ws.path("stores", "small")), TopKSAE.load(ws.path("dictionaries", WIDE))
    assert records.n_tokens == len(store) == 64 * 39
    latent = int(records.table.sort_values("n_fired")["latent"].iloc[-1])
    for c in records.contexts(latent, "q3", 3):
        f = sae.encode(store.sequence(c.seq, "L1R" if "L1R" in store.hooks else store.hooks[0]))[:, latent]
        np.testing.assert_allclose(c.acts, f[c.start - 1 : c.start - 1 + len(c.acts)], rtol=1e-4, atol=1e-4)
        assert c.ids == store.sequence_tokens(c.seq)[c.start : c.start + len(c.ids)].tolist()
    model = load_model("mini-pythia")
    effects = records.logits(latent)
    direction = sae.W_dec[latent].detach()
    logits = (direction - direction.mean()) * model.ln_final.original_component.weight @ model.W_U
    token, _, value = effects.promoted[0]
    assert (
        value == pytest.approx(float((logits - logits.mean()).detach()[token]), rel=1e-4)
        and "LayerNorm folded" in effects.note
    )
    manifest = (ws.path("latents", WIDE) / "manifest.json").stat().st_mtime_ns
    assert (
        json.loads(call("features", WIDE, "-w", ws.root, "--window", 16, "--json").stdout)["version"] == made["version"]
    )
    assert (ws.path("latents", WIDE) / "manifest.json").stat().st_mtime_ns == manifest, "complete records are reused"


def test_a_dictionary_may_be_a_path_and_a_wrong_name_gets_a_hint(ws, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(ws.path("dictionaries", NARROW), copy)
    (copy / "manifest.json").unlink()
    made = json.loads(call("features", copy, "-w", ws.root, "--json").stdout)
    assert made["id"] == "elsewhere" and made["numbers"]["n_latents"] == 128
    assert "did you mean" in call("features", "mini-pythia.L1R-3x", "-w", ws.root, code=1).output
    cfg = json.loads((copy / "cfg.json").read_text())
    cfg["metadata"]["store"] = None
    (copy / "cfg.json").write_text(json.dumps(cfg))
    assert (
        "does not say its store" in call("features", copy, "-w", ws.root, "--contexts", 3, "--replace", code=2).output
    )


def test_evaluate_agrees_with_the_store_and_takes_other_snapshots(ws, tmp_path):
    made = json.loads(call("evaluate", WIDE, "-w", ws.root, "--json").stdout)
    metrics = made["metrics"]
    assert metrics["delta_ce"]["value"] > 0 and metrics["l0"]["value"] <= 4 and 0 < metrics["ev"]["value"] < 1
    assert made["metadata"]["n_sequences"] == 6 and metrics["delta_ce"]["n"] == 6 * 38
    assert metrics["dead_share"]["unit"].endswith("in 2,496 tokens)")
    other = json.loads(call("evaluate", WIDE, "-w", ws.root, "--revision", "step0", "--json").stdout)
    assert other["id"] == f"{WIDE}.at-step0" and other["metrics"]["ev"]["value"] < metrics["ev"]["value"]
    item = ws.get("evaluations", WIDE)
    assert check_files(item.path) == [] and item.manifest.numbers["ev"] == metrics["ev"]
    text = tmp_path / "story.txt"
    text.write_text("The cat sat on the mat, and the dog saw it. " * 400)
    longer = json.loads(
        call("evaluate", WIDE, "-w", ws.root, "--ctx", 60, "--corpus", text, "--sequences", 4, "--json").stdout
    )
    assert longer["metrics"]["l0"]["n"] == 4 * 58
    folder = ws.path("evaluations", longer["id"])
    assert all(
        str(tmp_path) not in (folder / f).read_text().replace(ws.get("evaluations", longer["id"]).manifest.command, "")
        for f in ("manifest.json", "metrics.json")
    )


def test_longer_contexts_need_to_know_their_text(ws):
    assert "--corpus" in call("evaluate", WIDE, "-w", ws.root, "--ctx", 64, code=1).output


def test_explain_by_rule_labels_and_the_records_show_them(ws):
    made = json.loads(call("explain", NARROW, "-w", ws.root, "--min-f1", 0.3, "--json").stdout)
    call("features", NARROW, "-w", ws.root)
    records = LatentRecords.open(ws.path("latents", NARROW))
    assert made["numbers"]["n_labelled"] == records.table["label"].notna().sum() > 5
    assert set(records.table["label_source"].dropna()) == {"rules"}
    best = records.table.loc[records.table["label_score"].idxmax()]
    said = call("explain", NARROW, "-w", ws.root, "--min-f1", 0.3).output
    assert f"{best['label_score']:.2f}" in said.split(" tokens\n")[1].splitlines()[0] and said.count("  #") == 5


def test_estimates_ask_nothing(ws):
    out = call(
        "explain",
        NARROW,
        "-w",
        ws.root,
        "--endpoint",
        "http://127.0.0.1:9/v1",
        "--llm",
        "x",
        "--sample",
        5,
        "--estimate",
        "--price-in",
        1,
        "--price-out",
        2,
        "--json",
    )
    cost = json.loads(out.stdout)
    assert 0 < cost["requests"] == 3 * cost["latents"] and cost["usd"] > 0
    refused = call(
        "explain", NARROW, "-w", ws.root, "--endpoint", "http://127.0.0.1:9/v1", "--llm", "x", "--max-usd", 1, code=2
    )
    assert "price unknown" in refused.output
    assert (
        "not a list of numbers"
        in call("explain", NARROW, "-w", ws.root, "--llm", "x", "--latents", "a,b", code=2).output
    )


def test_a_local_model_can_be_asked(ws):
    """A miniature model writes no labels worth having; they are refused or kept by the same rules, and
    nothing breaks.
    """
    made = json.loads(call("explain", NARROW, "-w", ws.root, "--llm", "mini-pythia", "--sample", 2, "--json").stdout)
    n = made["numbers"]
    assert n["n_latents"] == 2 and n["n_labelled"] + n["n_refused"] == 2
    assert len((ws.path("explanations", made["id"]) / "answers.jsonl").read_text().splitlines()) >= 4


def test_map_of_two_widths_without_layout(ws):
    made = json.loads(call("map", NARROW, WIDE, "-w", ws.root, "--no-layout", "--json").stdout)
    pair = made["numbers"][f"{NARROW}->{WIDE}"]
    assert pair["n_narrow"] == 128 and pair["n_wide"] == 256 and 0 <= pair["share_with_parent"] <= 1
    folder = ws.path("maps", f"{NARROW}__{WIDE}")
    assert (folder / "families.parquet").is_file() and not (folder / "umap.npy").exists(), (
        "what was not computed is absent"
    )
    assert "distinct" in call("map", WIDE, WIDE, "-w", ws.root, "--no-layout", code=2).output


def test_a_dictionary_without_a_store_is_read_on_text_as_it_would_be_from_one(ws, tmp_path):
    """The same text, harvested or computed while it is read, gives the same codes; blocks straddle forward passes."""
    from workbench.analysis.latents.encoded import encode_store
    from workbench.analysis.latents.live import LiveRows

    store, sae = ActivationStore.open(ws.path("stores", "small")), TopKSAE.load(ws.path("dictionaries", WIDE))
    tokens = np.stack([store.sequence_tokens(i) for i in range(64)])
    live = LiveRows(load_model("mini-pythia"), "blocks.1.hook_resid_post", tokens, batch=16)
    a, b = encode_store(sae, store, store.hooks[0]), encode_store(sae, live, live.hook, block=333)
    for name in ("ids", "seq", "pos"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    difference = abs(a.matrix() - b.matrix())
    assert (difference > 1e-2).sum() < 0.01 * len(a.value), (
        "only near-ties may differ: the store was computed in other batches"
    )
    copy = tmp_path / "foreign"
    shutil.copytree(ws.path("dictionaries", WIDE), copy)
    (copy / "manifest.json").unlink()
    cfg = json.loads((copy / "cfg.json").read_text())
    cfg["metadata"]["store"] = None
    (copy / "cfg.json").write_text(json.dumps(cfg))
    text = tmp_path / "story.txt"
    text.write_text("The cat sat on the mat, and the dog saw it. " * 400)
    made = json.loads(
        call("features", copy, "-w", ws.root, "--corpus", text, "--tokens", 2000, "--ctx", 60, "--json").stdout
    )
    assert made["metadata"]["text"] == "story.txt" and made["numbers"]["n_tokens"] == 33 * 59
    assert (
        json.loads(call("explain", copy, "-w", ws.root, "--corpus", text, "--tokens", 2000, "--json").stdout)[
            "numbers"
        ]["n_judged"]
        > 0
    )


def test_a_crosscoder_over_snapshots_has_records_too(ws):
    """Two snapshots in one store; the latents read both, their logit effects are those on the last."""
    from crosscoders import Crosscoder, CrosscoderConfig
    from sae import train

    small = ActivationStore.open(ws.path("stores", "small"))
    tokens = np.stack([small.sequence_tokens(i) for i in range(12)])
    plan = TokenPlan(tokens, np.arange(12, dtype=np.int32), np.zeros(12, np.uint8), {"made": "by a test"})
    sources = [{"model": "mini-pythia", "revision": r} for r in ("step0", "step512")]
    recipe = {"id": "two", "hooks": ["L1R"], "n_seq": 12, "ctx": 40, "seqs_per_shard": 12, "sources": sources}
    harvest(HarvestRecipe.model_validate(recipe), ws, plan=plan)
    store = ActivationStore.open(ws.path("stores", "two"))
    hook, names = store.hooks[0], store.sources
    metadata = {"model_name": "mini-pythia", "hook_name": "blocks.1.hook_resid_post", "store": "two"}
    config = CrosscoderConfig(widths=[store.width(hook, n) for n in names], sources=("step0", "step512"), d_sae=64, k=4)
    train(
        config,
        store.batches(hook, 64, seed=0, source=names),
        total_steps=8,
        out=ws.root / "dictionaries" / "cc",
        metadata=metadata,
    )
    made = json.loads(call("features", ws.root / "dictionaries" / "cc", "-w", ws.root, "--json").stdout)
    records = LatentRecords.open(made["path"])
    assert (
        made["metadata"]["source"] == ["mini-pythia@step0", "mini-pythia@step512"]
        and made["metadata"]["logits_of"] == "mini-pythia@step512"
    )
    cc = Crosscoder.load(ws.root / "dictionaries" / "cc")
    f = cc.encode(store.read(hook, source=names)).detach()
    np.testing.assert_array_equal(records.table["n_fired"], (f > 0).sum(0))
    token, _, value = records.logits(5).promoted[0]
    model = load_model("mini-pythia", "step512")
    direction = cc.decoder_blocks(raw=True)[1][5]
    logits = ((direction - direction.mean()) * model.ln_final.original_component.weight @ model.W_U).detach()
    assert value == pytest.approx(float((logits - logits.mean())[token]), rel=1e-3)
    assert "several sources" in call("evaluate", ws.root / "dictionaries" / "cc", "-w", ws.root, code=2).output


@pytest.mark.parametrize(
    "name, hook",
    [
        ("mini-pythia", "blocks.1.hook_resid_post"),
        ("mini-pythia", "blocks.1.attn.hook_z"),
        ("mini-mamba", "blocks.1.hook_mixer_out"),
    ],
)
def test_the_splice_is_exact_in_real_models_of_both_architectures(name, hook):
    model = load_model(name, "step0")
    tokens = torch.randint(1, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    width = {}
    with model.hooks([(hook, lambda x, hook: width.setdefault("d", x[0, 0].numel()) and None)]):
        clean = model(tokens)
    sae = TopKSAE(width["d"], 64, 4).requires_grad_(False)
    for p in sae.parameters():
        p.normal_(generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), splice(model, {hook: sae}, keep_error=True):
        assert torch.equal(model(tokens), clean)
    with torch.no_grad(), splice(model, {hook: sae}, keep_error=False):
        assert not torch.allclose(model(tokens)[:, 1:], clean[:, 1:], atol=1e-3)


def test_a_hook_that_is_switched_off_is_named():
    model = load_model("mini-pythia", "step0")
    with (
        pytest.raises(UsageError, match="use_hook_mlp_in"),
        splice(model, {"blocks.0.hook_mlp_in": TopKSAE(128, 8, 2)}, keep_error=True),
    ):
        pass
