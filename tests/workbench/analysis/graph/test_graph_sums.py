"""A graph over transcoders adds up to the model, its edges are closed forms, and the verb carries it into the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from sae.activation import TopK
from sae.transcoder import Transcoder
from tests.workbench.analysis.graph.test_graph import random_dictionaries
from tests.workbench.bridges import bridge, tiny
from tests.workbench.models.zoo import ZOO, perturbed
from workbench.analysis.graph.split import OTHERS, PAST
from workbench.analysis.graph.split_transcoders import split_transcoder_graph
from workbench.analysis.graph.transcoders import trace_transcoders
from workbench.cli import app
from workbench.models import load, load_model
from workbench.models.anatomy import anatomy_of
from workbench.models.mamba import repair_mamba
from workbench.provenance import write_manifest
from workbench.workspace import Workspace

READ, WRITE = "blocks.{}.ln2.hook_out", "blocks.{}.hook_mlp_out"


def transcoders(width, layers, *, skip=False, d_sae=24, k=4):
    """Random ones; every tensor is filled, so that leaving one out shows."""
    out = {}
    for layer in layers:
        g = torch.Generator().manual_seed(layer)
        made = Transcoder(width, d_sae, TopK(k), skip=skip)
        for p in made.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=g)
        out[READ.format(layer)] = made.requires_grad_(False)
    return out


@pytest.fixture(scope="module", params=["parallel", "sequential"])
def model(request):
    return bridge(tiny("neox", scale=0.2, num_hidden_layers=3, use_parallel_residual=request.param == "parallel"))


@pytest.fixture(scope="module")
def tokens():
    return torch.tensor([[0, 7, 3, 7, 12, 3]])


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_sources_add_up_to_every_target(model, tokens, skip):
    """Embeddings + latents + errors + biases = the pre-activation that the untouched model gives the transcoder."""
    dictionaries = transcoders(16, range(3), skip=skip)
    graph = trace_transcoders(model, dictionaries, tokens, batch=5, max_logits=4)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens)
    made = graph.weights.sum(1, dtype=np.float64) + graph.constants
    seen = {"latent": 0, "logit": 0}
    for i, node in enumerate(graph.nodes):
        if node.kind == "latent":
            want = dictionaries[READ.format(node.stage - 1)].pre_activations(cache[READ.format(node.stage - 1)][0])[
                node.position, node.index
            ]
        elif node.kind == "logit":
            want = logits[0, -1, node.index] - logits[0, -1].mean()
        else:
            continue
        seen[node.kind] += 1
        assert made[i] == pytest.approx(float(want), abs=1e-4)
        assert np.abs(graph.weights[i]).max() > 1e-3
    assert seen == {"latent": 3 * 5 * 4, "logit": 4}  # none at BOS
    assert graph.largest_gap is not None and graph.largest_gap < 1e-5


def test_only_frozen_edges_are_shares(model, tokens):
    """The sum fails where it must: with patterns and norms free, edges are slopes, and no check is claimed."""
    dictionaries = transcoders(16, range(3))
    free, frozen = (trace_transcoders(model, dictionaries, tokens, freeze=freeze) for freeze in (False, True))
    assert free.largest_gap is None and [n.index for n in free.nodes] == [n.index for n in frozen.nodes]
    assert np.abs(free.weights - frozen.weights).max() > 1e-2


@pytest.mark.parametrize("skip", [False, True], ids=["plain", "skip"])
def test_heads_and_what_goes_past_them_add_up_to_every_edge(model, tokens, skip):
    """For each layer of attention that a source's output enters, in both kinds of block; a head held at zero gradient
    by hand takes its part with it.
    """
    dictionaries = transcoders(16, range(3), skip=skip)
    full = trace_transcoders(model, dictionaries, tokens, max_logits=3)
    names = [full.name(i) for i in range(len(full.nodes))]
    found = split_transcoder_graph(model, dictionaries, tokens, full, names)
    size = float(np.abs(full.weights).max())
    assert found.gap <= 1e-5 and found.scores.empty
    whole = {(names[s], names[t]): full.weights[t, s] for t, s in zip(*full.weights.nonzero(), strict=True)}
    sums = found.edges.groupby(["source", "target", "layer"])["value"].sum()
    for (source, target, _layer), value in sums.items():
        assert value == pytest.approx(whole[source, target], abs=1e-5 * size)
    seen = set(found.edges[["source", "target"]].itertuples(index=False, name=None))
    last = {name for name, n in zip(names, full.nodes, strict=True) if n.stage == 3}  # no attention behind it
    assert seen == {(s, t) for (s, t) in whole if s not in last}
    through = found.edges[~found.edges["unit"].isin([PAST, OTHERS])]
    spread = through.groupby(["source", "target"])["layer"].nunique()
    assert set(through["unit"]) == {"H0", "H1"} and spread.max() == 3  # an embedding's edge crosses all three layers
    row = through[through["layer"] == 1].loc[lambda rows: rows["value"].abs().idxmax()]
    head = int(row["unit"][1:])

    def hold(value, hook):
        value = value.clone()
        value[:, :, head] = value[:, :, head].detach()
        return value

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", hold)]):
        without = trace_transcoders(model, dictionaries, tokens, max_logits=3)
    s, t = names.index(row["source"]), names.index(row["target"])
    left = float(full.weights[t, s]) - float(without.weights[t, s])
    assert left == pytest.approx(row["value"], abs=1e-5 * size)


@pytest.mark.filterwarnings("ignore")
def test_channels_of_a_mamba_and_what_goes_past_them_add_up_to_every_edge(tokens):
    """Jamba's layers are Mambas and attention, with an MLP each: channels of a state and heads in one graph."""
    config = ZOO["jamba"]()
    config.num_experts = 1
    torch.manual_seed(0)
    hf = perturbed(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    model = load.bridge(repair_mamba(hf), name="jamba")
    layers = anatomy_of(model).layers
    assert [layer.kind for layer in layers] == ["Mamba", "attention", "Mamba", "attention"]
    dictionaries = {}
    for i in (0, 3):
        made = Transcoder(48, 24, TopK(3))
        for p in made.parameters():
            p.data = 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
        dictionaries[layers[i].sites["TC"][0]] = made.requires_grad_(False)
    full = trace_transcoders(model, dictionaries, tokens, max_logits=2)
    names = [full.name(i) for i in range(len(full.nodes))]
    found = split_transcoder_graph(model, dictionaries, tokens, full, names)
    size = float(np.abs(full.weights).max())
    assert found.gap <= 1e-5
    whole = {(names[s], names[t]): full.weights[t, s] for t, s in zip(*full.weights.nonzero(), strict=True)}
    for (source, target, _layer), value in found.edges.groupby(["source", "target", "layer"])["value"].sum().items():
        assert value == pytest.approx(whole[source, target], abs=1e-5 * size)
    units = found.edges[~found.edges["unit"].isin([PAST, OTHERS])]
    assert {(layer, unit[0]) for layer, unit in zip(units["layer"], units["unit"], strict=True)} == {
        (0, "C"),
        (1, "H"),
        (2, "C"),
        (3, "H"),
    }
    row = units[units["layer"] == 2].loc[lambda rows: rows["value"].abs().idxmax()]
    channel = int(row["unit"][1:])

    def hold(value, hook):
        value = value.clone()
        value[:, :, :, channel] = value[:, :, :, channel].detach()
        return value

    with model.hooks(fwd_hooks=[("blocks.2.mixer.recurrence.hook_y", hold)]):
        without = trace_transcoders(model, dictionaries, tokens, max_logits=2)
    s, t = names.index(row["source"]), names.index(row["target"])
    left = float(full.weights[t, s]) - float(without.weights[t, s])
    assert left == pytest.approx(row["value"], abs=1e-5 * size)


def test_edge_of_one_latent_is_its_decoder_through_the_norm(tokens):
    """In a parallel block the next MLP reads the last one's output through its norm alone, at the same position."""
    model = bridge(tiny("neox", scale=0.2, num_hidden_layers=3))
    dictionaries = transcoders(16, (0, 1))
    graph = trace_transcoders(model, dictionaries, tokens)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    scale = cache["blocks.1.ln2.hook_scale"][0]
    gain = model.blocks[1].ln2.original_component.weight.detach()
    first, second = (dictionaries[READ.format(layer)] for layer in (0, 1))
    pairs = [
        (s, t)
        for s, a in enumerate(graph.nodes)
        for t, b in enumerate(graph.nodes)
        if a.kind == b.kind == "latent" and (a.stage, b.stage) == (1, 2)
    ]
    for s, t in pairs:
        source, target = graph.nodes[s], graph.nodes[t]
        d = first.W_dec[source.index]
        want = source.value * float((d - d.mean()) * gain @ second.W_enc[:, target.index] / scale[source.position])
        assert graph.weights[t, s] == pytest.approx(
            want if source.position == target.position else 0.0, rel=1e-4, abs=1e-6
        )


def test_without_a_transcoder_everywhere_no_sum_is_claimed(model, tokens):
    """The MLP that is left enters by its gradient."""
    assert trace_transcoders(model, transcoders(16, (0, 2)), tokens).largest_gap is None


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Residual SAEs of layers 0 and 1 and transcoders of all layers of mini-pythia."""
    ws = Workspace(tmp_path_factory.mktemp("graph") / "ws")
    model = load_model("mini-pythia")
    for made in (random_dictionaries(model), transcoders(model.cfg.d_model, range(3), skip=True, d_sae=64)):
        for hook, dictionary in made.items():
            layer, kind = hook.split(".")[1], "TC" if "ln2" in hook else "R"
            about = {
                "model_name": "mini-pythia",
                "revision": None,
                "hook_name": hook,
                "site": f"L{layer}{kind}",
                "kind": dictionary.kind,
            }
            about |= {"hook_name_out": WRITE.format(layer)} if kind == "TC" else {}
            dictionary.metadata = dict(about)
            folder = ws.path("dictionaries", f"mini-pythia.L{layer}{kind}-1x")
            dictionary.save(folder)
            write_manifest(folder, "dictionaries", folder.name, metadata=about)
    return ws


def run(workspace, *args):
    return CliRunner().invoke(app, ["graph", *args, "-w", str(workspace.root), "--json"])


def test_the_verb_draws_over_transcoders(workspace):
    whole = ("--node-share", "1", "--edge-share", "1")
    result = run(workspace, "def f(x):", "--site", "TC", *whole)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    document = json.loads((workspace.get("graphs", said["id"]).path / "graph.json").read_text())
    assert said["largest_gap"] < 1e-4
    assert document["metadata"]["transcoder_list"] == [f"mini-pythia.L{layer}TC-1x" for layer in range(3)]
    assert {n["layer"] for n in document["nodes"] if n["feature_type"] == "mlp reconstruction error"} == {"0", "1", "2"}
    some = json.loads(
        run(workspace, "def f(x):", "-d", "mini-pythia.L2TC-1x", "-d", "mini-pythia.L0TC-1x", *whole).stdout
    )
    nodes = json.loads((workspace.get("graphs", some["id"]).path / "graph.json").read_text())["nodes"]
    assert {n["layer"] for n in nodes if n["feature_type"] == "cross layer transcoder"} == {
        "0",
        "2",
    } and "largest_gap" not in some


def test_named_residual_dictionaries_keep_their_layer(workspace):
    result = run(workspace, "def f(x):", "--dictionary", "mini-pythia.L1R-1x", "--node-share", "1")
    document = json.loads((workspace.get("graphs", json.loads(result.stdout)["id"]).path / "graph.json").read_text())
    assert {n["layer"] for n in document["nodes"] if n["feature_type"] == "cross layer transcoder"} == {"1"}
    assert document["metadata"]["transcoder_list"] == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-d", "mini-pythia.L0R-1x", "-d", "mini-pythia.L2TC-1x"), "one graph holds one kind"),
        (("-d", "mini-pythia.L0TC-1x", "--model", "mini-mamba"), "--model mini-pythia"),
        (
            (
                "-d",
                "mini-pythia.L7TC-1x",
            ),
            "mini-pythia.L7TC-1x",
        ),
        (("--site", "M"), "'M' is no kind"),
        (("--site", "TC", "--model", "mini-mamba"), "no transcoders of mini-mamba"),
    ],
)
def test_a_choice_that_cannot_be_drawn_says_why(workspace, args, said):
    result = run(workspace, "def f(x):", *args)
    assert result.exit_code in (1, 2) and said in " ".join(result.output.split())
    assert "Traceback" not in result.output
