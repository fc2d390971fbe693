"""Interventions: by hand on hooks, predicted by edges where the map is linear, and through the verb."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sae.errors import ConfigError, UsageError
from tests.workbench.analysis.graph.test_graph import random_dictionaries
from tests.workbench.analysis.graph.test_graph_sums import WRITE, transcoders
from tests.workbench.analysis.graph.test_split import tokens_of_stream
from tests.workbench.bridges import bridge, tiny
from tests.workbench.handmade import induction_transformer
from workbench.analysis.graph.intervene import (
    Bench,
    Effect,
    agreement,
    edge_effects,
    intervene,
    parse_changes,
    predicted,
)
from workbench.analysis.graph.prune import scores
from workbench.analysis.graph.trace import Graph, Node, trace
from workbench.analysis.graph.transcoders import trace_transcoders
from workbench.cli import app
from workbench.models import load_model
from workbench.provenance import write_manifest
from workbench.workspace import Workspace


@pytest.fixture(scope="module", params=["mini-pythia", "mini-mamba"])
def case(request):
    model = load_model(request.param)
    tokens = torch.randint(1, 500, (1, 7), generator=torch.Generator().manual_seed(3))
    tokens[0, 0] = 0
    dictionaries = random_dictionaries(model, (0, len(model.blocks) - 1))
    return model, tokens, dictionaries, trace(model, dictionaries, tokens, freeze=True)


def of_stage(graph, stage):
    return [i for i, n in enumerate(graph.nodes) if n.kind == "latent" and n.stage == stage]


def test_a_change_is_the_same_as_adding_its_direction_by_hand(case):
    """No dictionary, no splice: the model with value × decoder row added at the node's hook and position."""
    model, tokens, dictionaries, graph = case
    i, j = of_stage(graph, 1)[3], of_stage(graph, 1)[9]
    found = Bench(model, dictionaries, tokens, freeze=False).run(graph, [{i: 0.0}, {i: 2.5, j: 0.0}, {}])

    def by_hand(changes):
        def add(x, hook):
            x = x.clone()
            for k, to in changes.items():
                node = graph.nodes[k]
                x[0, node.position] += (to - node.value) * dictionaries["blocks.0.hook_resid_post"].W_dec[node.index]
            return x

        with torch.no_grad():
            return model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", add)])[0, -1]

    for row, changes in zip(found, ({i: 0.0}, {i: 2.5, j: 0.0}, {}), strict=True):
        torch.testing.assert_close(row, by_hand(changes), atol=2e-4, rtol=1e-4)


def test_frozen_edges_into_the_targets_are_what_the_model_does(case):
    """Behind the last block the frozen map is linear: every edge is its ablation's effect, on both architectures."""
    model, tokens, dictionaries, graph = case
    effects = edge_effects(Bench(model, dictionaries, tokens), graph)
    fit = agreement(effects)
    assert fit.n == len(effects) >= 20 and fit.r > 0.999 and fit.low <= fit.r <= fit.high
    assert all(e.predicted == pytest.approx(e.measured, abs=2e-3) for e in effects)
    free = agreement(edge_effects(Bench(model, dictionaries, tokens, freeze=False), graph))
    assert free.n == fit.n and free.r < fit.r  # the norm moves with what it divides


def test_predictions_carry_through_latents_on_the_way():
    """By hand: 2 units of a move b by 2 × (3 / 2) and the target directly by 2 × (1 / 2), b carries it on by 4 / 5."""
    nodes = [
        Node("embedding", 0, 1),
        Node("latent", 1, 1, 7, 2.0),
        Node("latent", 2, 1, 8, 5.0),
        Node("logit", 3, 1, 9, 0.5),
    ]
    weights = np.zeros((4, 4), np.float32)
    weights[2, 1], weights[3, 1], weights[3, 2] = 3.0, 1.0, 4.0
    graph = Graph(nodes, weights, ["blocks.0.x", "blocks.1.x"], [0, 1], 1.0)
    assert predicted(graph, {1: 0.0}).tolist() == pytest.approx([0, -2, -3, -1 - 3 / 5 * 4])
    assert predicted(graph, {1: 0.0, 2: 5.0}).tolist() == pytest.approx(
        [0, -2, 0, -1]
    )  # b is held, and carries nothing
    assert predicted(graph, {}).tolist() == [0, 0, 0, 0]


def test_through_transcoders_predictions_follow_the_model():
    """Sequential blocks with a transcoder for every MLP: ablations far from the target go through later MLPs."""
    model = bridge(tiny("neox", scale=0.2, num_hidden_layers=3, use_parallel_residual=False))
    tokens = torch.tensor([[0, 7, 3, 7, 12, 3]])
    dictionaries = transcoders(16, range(3))
    graph = trace_transcoders(model, dictionaries, tokens)
    with pytest.raises(ConfigError, match="hook_name_out"):  # or its latents would be written where they are read
        edge_effects(Bench(model, dictionaries, tokens), graph)
    for layer, made in enumerate(dictionaries.values()):
        made.metadata = {"hook_name_out": WRITE.format(layer)}
    effects = edge_effects(Bench(model, dictionaries, tokens), graph)
    assert {int(e.node.split("_")[0]) for e in effects} == {0, 1, 2}
    last = [e for e in effects if e.node.startswith("2_")]
    assert agreement(last).r > 0.999  # nothing but the frozen norm behind them


def test_what_is_asked_for_is_read_or_refused(case):
    _, _, _, graph = case
    a, b = of_stage(graph, 1)[:2]
    names, values = [graph.name(i) for i in (a, b)], [graph.nodes[i].value for i in (a, b)]
    assert parse_changes(graph, [f"{names[0]}=0"]) == {a: 0.0}
    assert parse_changes(graph, [f"{names[0]},{names[1]}=x2"]) == {a: 2 * values[0], b: 2 * values[1]}
    assert parse_changes(graph, [], [f"{names[0]}={names[1]}"]) == {a: values[1], b: values[0]}
    for sets, swaps, says in (
        (["0_9999_3=0"], [], "0_9999_3"),
        (["E_1=0"], [], "E_1"),
        ([f"{names[0]}=much"], [], "NODE=x2"),
        ([names[0]], [], "NODE=x2"),
        ([f"{names[0]}=nan"], [], "NODE=x2"),
        ([f"{names[0]}=0"], [f"{names[0]}={names[1]}"], "changed twice"),
        ([], [names[0]], "A=B"),
        ([], [f"{names[0]},{names[1]}={names[1]}"], "2 latents on the left, 1 on the right"),
        (["@none=0"], [], "no group 'none'"),
    ):
        with pytest.raises(UsageError, match=says):
            parse_changes(graph, sets, swaps)


def test_groups_change_and_swap_as_one(case):
    """A group stands for its latents; a swap of groups exchanges them one by one, and does what both swaps do."""
    model, tokens, dictionaries, graph = case
    a, b, c, d = of_stage(graph, 1)[:4]
    n = {i: graph.name(i) for i in (a, b, c, d)}
    groups = {"first ones": [n[a], n[b], "E_1"], "others": [n[c], n[d]]}
    value = {i: graph.nodes[i].value for i in n}
    assert parse_changes(graph, ["@first ones=x3"], (), groups) == {a: 3 * value[a], b: 3 * value[b]}
    assert parse_changes(graph, [f"@others,{n[a]}=0"], (), groups) == {a: 0.0, c: 0.0, d: 0.0}
    swapped = {a: value[c], c: value[a], b: value[d], d: value[b]}
    assert parse_changes(graph, [], ["@first ones=@others"], groups) == swapped
    assert parse_changes(graph, [], [f"{n[a]},{n[b]}={n[c]},{n[d]}"]) == swapped
    together = Bench(model, dictionaries, tokens, freeze=False).run(graph, [swapped])[0]

    def add(x, hook):
        x = x.clone()
        for i, to in swapped.items():
            node = graph.nodes[i]
            x[0, node.position] += (to - node.value) * dictionaries["blocks.0.hook_resid_post"].W_dec[node.index]
        return x

    with torch.no_grad():
        by_hand = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", add)])[0, -1]
    torch.testing.assert_close(together, by_hand, atol=2e-4, rtol=1e-4)


def test_known_numbers_of_a_circuit_made_by_hand():
    """… 7 3 … 7 -> 3 by induction. Without the 3 that is brought nothing is written, and all 16 tokens are equally
    likely; without the 7 that asks, the head brings all that is there alike; with the other token gone nothing changes.
    """
    model = bridge(induction_transformer())
    tokens = torch.tensor([[1, 7, 3, 5, 9, 7]])
    dictionaries = tokens_of_stream(model, 96, 8, "blocks.0.hook_resid_post")
    graph = trace(model, dictionaries, tokens)
    bench = Bench(model, dictionaries, tokens, freeze=False)

    def answer(sets=(), groups=None):
        return bench.run(graph, [parse_changes(graph, sets, (), groups or {})])[0].softmax(-1)

    plain = answer()
    assert int(plain.argmax()) == 3 and float(plain[3]) > 0.7
    torch.testing.assert_close(answer(["0_3_2=0"]), torch.full((16,), 1 / 16), atol=1e-5, rtol=0)
    unasked = answer(["0_7_5=0"])
    there, absent = unasked[[1, 7, 3, 5, 9]], unasked[[0, 2, 4, 6, 8]]
    torch.testing.assert_close(there, there[:1].expand(5), atol=1e-5, rtol=0)
    assert float(there[0]) > 2 * float(absent.max())
    torch.testing.assert_close(answer(["0_5_3=0"]), plain, atol=1e-5, rtol=0)
    both = {"asked and brought": ["0_3_2", "0_7_5", "E_1"]}
    torch.testing.assert_close(answer(["@asked and brought=0"], both), answer(["0_3_2,0_7_5=0"]))
    assert float(answer(["0_3_2=x2"])[3]) > 0.9


def test_an_intervention_reports_the_next_token(case):
    model, tokens, dictionaries, graph = case
    bench = Bench(model, dictionaries, tokens, freeze=False)
    i = max(of_stage(graph, 2), key=lambda i: graph.nodes[i].value if graph.nodes[i].position == 6 else 0)
    made = intervene(bench, graph, {i: 0.0})
    with torch.no_grad():
        clean = model(tokens)[0, -1].softmax(-1)
    assert made.before == pytest.approx(clean[made.tokens].tolist(), rel=1e-4) and made.kl > 0
    shift = np.subtract(made.after, made.before)
    assert (np.diff(shift) <= 1e-12).all() and made.changes == {graph.name(i): 0.0}
    assert intervene(bench, graph, {i: graph.nodes[i].value}).kl == pytest.approx(0, abs=1e-8)


def test_scores_are_the_published_ones():
    """A graph small enough to do by hand: the logit is half latent, half error; the latent is all embedding."""
    nodes = [
        Node("embedding", 0, 1),
        Node("latent", 1, 1, 7, 2.0),
        Node("error", 1, 1),
        Node("logit", 2, 1, 9, 1.0),
    ]
    weights = np.zeros((4, 4), np.float32)
    weights[1, 0], weights[3, 1], weights[3, 2] = 3.0, 2.0, -2.0
    found = scores(Graph(nodes, weights, ["blocks.0.x"], [0, 1], 1.0))
    assert found["replacement"] == pytest.approx(0.5)  # .5 from the embedding, .5 from the error
    # influence: logit 1, latent .5, error .5, embedding .5; the logit's input is half error
    assert found["completeness"] == pytest.approx((1 * 0.5 + 0.5 + 0.5 + 0.5) / 2.5)


def test_agreement_needs_edges_that_vary():
    few = [Effect("a", "t", float(i), 2.0 * i) for i in range(3)]
    assert math.isnan(agreement(few).r) and agreement(few).n == 3
    assert math.isnan(agreement([Effect("a", "t", 1.0, float(i)) for i in range(9)]).r)
    noisy = agreement([Effect("a", "t", float(i), i + (-1.0) ** i) for i in range(30)])
    assert 0.9 < noisy.low < noisy.r < noisy.high < 1


def test_the_verb_runs_interventions(tmp_path):
    ws = Workspace(tmp_path / "ws")
    for hook, sae in random_dictionaries(load_model("mini-pythia"), (0, 1, 2)).items():
        layer = hook.split(".")[1]
        folder = ws.path("dictionaries", f"mini-pythia.L{layer}R-1x")
        sae.save(folder)
        about = {"model_name": "mini-pythia", "revision": None, "hook_name": hook, "site": f"L{layer}R", "kind": "sae"}
        write_manifest(folder, "dictionaries", folder.name, metadata=about)
    args = ["graph", "def f(x):", "--model", "mini-pythia", "-w", str(ws.root), "--json"]
    plain = json.loads(CliRunner().invoke(app, args).stdout)
    assert 0 <= plain["replacement"] <= 1 and 0 <= plain["completeness"] <= 1
    document = json.loads((ws.path("graphs", plain["id"]) / "graph.json").read_text())
    node = next(n["node_id"] for n in document["nodes"] if n["activation"])
    result = CliRunner().invoke(app, [*args, "--set", f"{node}=x0", "--check"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["id"] == plain["id"] and said["intervention"]["changes"] == {node: 0.0}
    assert said["agreement"]["r"] > 0.99 and said["agreement"]["n"] == len(said["effects"])
    refused = CliRunner().invoke(app, [*args, "--set", "0_1_99=0"])
    assert refused.exit_code == 2 and "0_1_99" in refused.output
