"""Edges are derivatives, pruning keeps the shares it says, and the file follows the published schema."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sae import TopKSAE
from sae.errors import UsageError
from workbench.analysis.graph.prune import prune
from workbench.analysis.graph.trace import Graph, Node, trace
from workbench.cli import app
from workbench.models import load_model
from workbench.provenance import write_manifest
from workbench.workspace import Workspace


def random_dictionaries(model, layers=(0, 1)):
    """Top-K dictionaries with random directions; nothing here needs them to be trained."""
    out = {}
    for layer in layers:
        sae = TopKSAE(model.cfg.d_model, 64, 4)
        g = torch.Generator().manual_seed(layer)
        with torch.no_grad():
            sae.dec_FD.copy_(torch.nn.functional.normalize(torch.randn(64, model.cfg.d_model, generator=g), dim=1))
            sae.enc_FD.copy_(sae.dec_FD)
        out[f"blocks.{layer}.hook_resid_post"] = sae.requires_grad_(False)
    return out


@pytest.fixture(scope="module", params=["mini-pythia", "mini-mamba"])
def traced(request):
    model = load_model(request.param)
    tokens = torch.randint(1, 500, (1, 7), generator=torch.Generator().manual_seed(3))
    tokens[0, 0] = 0
    dictionaries = random_dictionaries(model)
    return model, tokens, dictionaries, trace(model, dictionaries, tokens, freeze=False, batch=8)


def test_edges_are_the_effect_of_a_small_change(traced):
    """Scaling one latent by 1 + h at its hook moves a latent's pre-activation two blocks later by h × edge."""
    model, tokens, dictionaries, graph = traced
    hooks = list(dictionaries)
    first = [i for i, n in enumerate(graph.nodes) if n.kind == "latent" and n.stage == 1][::5][:4]
    encoder = dictionaries[hooks[1]].W_enc
    h = 3e-2
    for i in first:
        source = graph.nodes[i]
        after = {}
        for sign in (1, -1):

            def change(x, hook, sign=sign, source=source):
                x = x.clone()
                x[0, source.position] += sign * h * source.value * dictionaries[hooks[0]].W_dec[source.index]
                return x

            with torch.no_grad():
                _, cache = model.run_with_hooks(tokens, fwd_hooks=[(hooks[0], change)]), None
                with model.hooks(fwd_hooks=[(hooks[0], change)]):
                    _, cache = model.run_with_cache(tokens, names_filter=[hooks[1]])
            after[sign] = cache[hooks[1]][0]
        slope = ((after[1] - after[-1]) / (2 * h)) @ encoder  # [S, F]
        targets = [j for j, n in enumerate(graph.nodes) if n.kind == "latent" and n.stage == 2]
        want = torch.tensor([slope[graph.nodes[j].position, graph.nodes[j].index] for j in targets])
        got = torch.tensor(graph.weights[targets, i])
        assert want.abs().max() > 1e-3
        torch.testing.assert_close(got, want, atol=2e-2 * float(want.abs().max()), rtol=5e-2)


def test_parts_add_up_and_time_runs_forward(traced):
    _, tokens, dictionaries, graph = traced
    assert sum(n.kind == "embedding" for n in graph.nodes) == tokens.shape[1]
    assert sum(n.kind == "error" for n in graph.nodes) == tokens.shape[1] * len(dictionaries)
    targets, sources = graph.weights.nonzero()
    for t, s in zip(targets, sources, strict=True):
        assert graph.nodes[s].stage == graph.nodes[t].stage - 1 and graph.nodes[s].position <= graph.nodes[t].position


def test_freezing_changes_edges_but_not_nodes(traced):
    model, tokens, dictionaries, graph = traced
    frozen = trace(model, dictionaries, tokens, freeze=True)
    assert [n.index for n in frozen.nodes] == [n.index for n in graph.nodes]
    assert not np.allclose(frozen.weights, graph.weights, atol=1e-4)


def test_pruning_keeps_what_it_promises():
    nodes = [
        Node("embedding", 0, 0),
        Node("embedding", 0, 1),
        Node("latent", 1, 1, 5, 1.0),
        Node("latent", 1, 1, 6, 1.0),
        Node("logit", 2, 1, 9, 1.0),
    ]
    weights = np.zeros((5, 5), np.float32)
    weights[4, 2], weights[4, 3] = 9.0, -1.0
    weights[2, 0], weights[2, 1], weights[3, 0] = 3.0, 1.0, 1.0
    whole = Graph(nodes, weights, ["h"], [0, 1], 1.0)
    small = prune(whole, node_share=0.8, edge_share=1.0)
    assert [n.index for n in small.nodes if n.kind == "latent"] == [5]  # 0.9 of the logit's input
    assert small.influence[[n.index for n in small.nodes].index(5)] == pytest.approx(0.9)
    assert small.kept_nodes >= 0.8
    everything = prune(whole, node_share=1.0, edge_share=1.0)
    assert len(everything.nodes) == 5 and np.array_equal(everything.weights, weights)


def test_the_verb_writes_the_published_schema(tmp_path):
    ws = Workspace(tmp_path / "ws")
    for hook, sae in random_dictionaries(load_model("mini-pythia")).items():
        layer = hook.split(".")[1]
        folder = ws.path("dictionaries", f"mini-pythia.L{layer}R-1x")
        sae.save(folder)
        about = {"model_name": "mini-pythia", "revision": None, "hook_name": hook, "site": f"L{layer}R", "kind": "sae"}
        write_manifest(folder, "dictionaries", folder.name, metadata=about)
    args = ["graph", "def f(x):", "--model", "mini-pythia", "-w", str(ws.root), "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    document = json.loads((ws.path("graphs", said["id"]) / "graph.json").read_text())
    assert set(document) == {"metadata", "qParams", "nodes", "links"}
    assert {"slug", "scan", "prompt_tokens", "prompt"} <= set(document["metadata"])
    ids = [n["node_id"] for n in document["nodes"]]
    assert len(set(ids)) == len(ids) == said["nodes"]
    assert all(
        {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"} <= set(n)
        for n in document["nodes"]
    )
    assert all(link["source"] in ids and link["target"] in ids for link in document["links"]) and document["links"]
    assert CliRunner().invoke(app, args).stdout == result.stdout  # reused
    empty = CliRunner().invoke(app, ["graph", " ", "-w", str(ws.root)])
    assert empty.exit_code == 2 and "empty" in empty.output


def test_only_residual_hooks_make_a_graph(traced):
    model, tokens, dictionaries, _ = traced
    with pytest.raises(UsageError, match="hook_in"):
        trace(model, {"blocks.0.hook_in": next(iter(dictionaries.values()))}, tokens)


@pytest.mark.parametrize("freeze", [True, False])
def test_running_from_the_cut_to_the_target_gives_what_the_whole_model_gives(traced, freeze, monkeypatch):
    from workbench.analysis.graph import trace as module

    model, tokens, dictionaries, _ = traced
    cut = trace(model, dictionaries, tokens, freeze=freeze, batch=8)

    def refuse(*given):
        raise UsageError("this model does more than its blocks")

    monkeypatch.setattr(module, "Tail", refuse)
    whole = trace(model, dictionaries, tokens, freeze=freeze, batch=8)
    assert [n.index for n in cut.nodes] == [n.index for n in whole.nodes]
    np.testing.assert_allclose(cut.weights, whole.weights, atol=1e-5 * np.abs(whole.weights).max())


def test_no_block_before_the_cut_or_behind_the_target_runs(traced):
    from workbench.analysis.graph.trace import Runner, clean_run

    model, tokens, dictionaries, graph = traced
    hooks = list(dictionaries)
    runner = Runner(model, hooks, clean_run(model, dictionaries, hooks, tokens), dictionaries, True)
    ran: list[int] = []
    handles = [b.register_forward_pre_hook(lambda *a, i=i: ran.append(i)) for i, b in enumerate(model.blocks)]
    try:
        for stage, expected in ((1, [0]), (2, [1]), (3, list(range(2, len(model.blocks))))):
            ran.clear()
            runner.gradients(
                stage, [next(n for n in graph.nodes if n.stage == stage and n.kind in ("latent", "logit"))]
            )
            assert ran == expected, stage
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", ["R", "TC"])
def test_following_influential_targets_changes_no_edge_and_leaves_out_no_node_that_is_kept(kind):
    model = load_model("mini-pythia")
    tokens = torch.randint(1, 500, (1, 7), generator=torch.Generator().manual_seed(3))
    if kind == "R":
        run, dictionaries = trace, random_dictionaries(model, (0, 1, 2))
    else:
        from tests.workbench.analysis.graph.test_graph_transcoders import READ, random_transcoder
        from workbench.analysis.graph.transcoders import trace_transcoders

        run = trace_transcoders
        dictionaries = {READ.format(l): random_transcoder(model.cfg.d_model, l, skip=False) for l in range(3)}
    every = run(model, dictionaries, tokens)
    some = run(model, dictionaries, tokens, follow_share=0.5, node_share=0.5)
    targets = np.array([n.kind in ("latent", "logit") for n in every.nodes])
    assert (
        not every.unfollowed.any() and 0 < some.unfollowed.sum() < targets.sum() and not some.unfollowed[~targets].any()
    )
    size = np.abs(every.weights).max()
    np.testing.assert_allclose(some.weights[~some.unfollowed], every.weights[~some.unfollowed], atol=1e-5 * size)
    assert not some.weights[some.unfollowed].any()
    kept = prune(some, node_share=0.5)
    left_out = {some.name(i) for i in np.flatnonzero(some.unfollowed)}
    assert not left_out & {kept.name(i) for i in range(len(kept.nodes))}
    assert prune(every, node_share=0.5).influence.sum() >= kept.influence.sum() - 1e-6


def test_short_prompts_are_followed_whole_and_dear_ones_are_not(monkeypatch):
    from workbench.analysis.graph import trace as module

    model = load_model("mini-pythia")
    tokens = torch.randint(1, 500, (1, 7), generator=torch.Generator().manual_seed(3))
    assert not trace(model, random_dictionaries(model, (0, 1, 2)), tokens).unfollowed.any()
    monkeypatch.setattr(module, "FOLLOW_ALL_FLOPS", 1.0)
    assert trace(model, random_dictionaries(model, (0, 1, 2)), tokens).unfollowed.any()
