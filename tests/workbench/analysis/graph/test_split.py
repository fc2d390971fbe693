"""Edges by heads and channels, scores by pairs of latents: the parts add up, on both architectures and by hand."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sae import TopKSAE
from sae.errors import UsageError
from tests.workbench.analysis.graph.test_graph import random_dictionaries
from tests.workbench.bridges import bridge
from tests.workbench.handmade import VOCAB, induction_transformer, storing_mamba
from workbench.analysis.graph import run as graph_run
from workbench.analysis.graph.scores import ScoreSplitter
from workbench.analysis.graph.split import OTHERS, PAST, listed, split_graph
from workbench.analysis.graph.trace import trace
from workbench.cli import app
from workbench.models import load_model
from workbench.provenance import write_manifest
from workbench.workspace import Workspace


def names(graph):
    return [graph.name(i) for i in range(len(graph.nodes))]


@pytest.fixture(scope="module", params=["mini-pythia", "mini-mamba", "mini-hybrid"])
def case(request):
    model = load_model(request.param)
    tokens = torch.randint(1, 500, (1, 7), generator=torch.Generator().manual_seed(3))
    tokens[0, 0] = 0
    dictionaries = random_dictionaries(model, (0, 2))  # two blocks between them: a split for each
    full = trace(model, dictionaries, tokens)
    latents = [[full.name(i) for i, n in enumerate(full.nodes) if n.kind == "latent" and n.stage == s] for s in (1, 2)]
    kept = [full.name(i) for i, n in enumerate(full.nodes) if n.kind in ("embedding", "error")]
    kept += latents[0][-6:] + latents[1][-6:]
    return model, dictionaries, tokens, full, kept, split_graph(model, dictionaries, tokens, full, kept)


def test_parts_of_every_edge_add_up_to_it(case):
    _, _, _, full, kept, found = case
    assert found.gap <= 1e-5 and found.score_gap <= 1e-5
    whole = {(full.name(s), full.name(t)): full.weights[t, s] for t, s in zip(*full.weights.nonzero(), strict=True)}
    sums = found.edges.groupby(["source", "target", "layer"])["value"].sum()
    size = float(np.abs(full.weights).max())
    assert len(sums) >= 10
    for (source, target, _layer), value in sums.items():
        assert value == pytest.approx(whole[source, target], abs=1e-5 * size)
    kept_edges = {(s, t) for (s, t) in whole if s in kept and t in kept}
    assert set(found.edges[["source", "target"]].itertuples(index=False, name=None)) == kept_edges
    assert found.edges.groupby(["source", "target", "layer"])["unit"].apply(lambda u: PAST in set(u)).all()
    assert set(found.edges["layer"]) == {0, 1, 2}


def test_a_head_or_channel_that_is_held_takes_its_part_with_it(case):
    """Held at zero gradient by hand: the edge that is left is the edge less the unit's part."""
    model, dictionaries, tokens, full, _, found = case
    rows = found.edges[~found.edges["unit"].isin([PAST, OTHERS]) & (found.edges["layer"] == 2)]
    row = rows.loc[rows["value"].abs().idxmax()]
    unit, kind = int(row["unit"][1:]), row["unit"][0]
    shown = {"H": "attn.hook_z", "C": "mixer.hook_y", "S": "linear_attn.recurrence.hook_y"}
    hook = f"blocks.2.{shown[kind]}"

    def hold(value, hook):
        value = value.clone()
        value[:, :, unit] = value[:, :, unit].detach()
        return value

    with model.hooks(fwd_hooks=[(hook, hold)]):
        without = trace(model, dictionaries, tokens)
    s, t = names(full).index(row["source"]), names(full).index(row["target"])
    assert names(without) == names(full)
    left = float(full.weights[t, s]) - float(without.weights[t, s])
    assert left == pytest.approx(row["value"], abs=1e-5 * float(np.abs(full.weights).max()))


def test_loadings_are_sums_over_all_sources(case):
    _, _, _, full, _, found = case
    for (target, _layer), part in found.loadings.groupby(["target", "layer"]):
        whole = float(full.weights[names(full).index(target)].sum(dtype=np.float64))
        assert float(part["value"].sum()) == pytest.approx(whole, rel=1e-4, abs=1e-4)
    heads = found.reads.groupby(["target", "layer", "unit"])["value"].sum()
    loads = found.loadings.set_index(["target", "layer", "unit"])["value"]
    shared = heads.index.intersection(loads.index)
    assert len(shared) >= 5
    np.testing.assert_allclose(heads[shared], loads[shared], rtol=1e-4, atol=1e-4)


def test_pairs_of_query_and_key_make_the_models_own_score(case):
    model, _, tokens, _, _, found = case
    if "blocks.0.attn.hook_z" not in model.hook_dict:
        assert found.scores.empty
        return
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    assert len(found.scores.groupby("target")) >= 3
    for (_t, layer, unit, q, k), part in found.scores.groupby(["target", "layer", "unit", "query", "key"]):
        score = float(cache[f"blocks.{layer}.attn.hook_attn_scores"][0, int(unit[1:]), q, k])
        assert float(part["value"].sum()) == pytest.approx(score, abs=1e-4) == part["score"].iloc[0]
        pattern = float(cache[f"blocks.{layer}.attn.hook_pattern"][0, int(unit[1:]), q, k])
        assert part["pattern"].iloc[0] == pytest.approx(pattern, abs=1e-5)


def tokens_of_stream(model, d: int, width: int, hook: str) -> dict:
    """A dictionary whose latents are the coordinates of the stream."""
    sae = TopKSAE(d, d, width)
    with torch.no_grad():
        sae.enc_FD.copy_(torch.eye(d))
        sae.dec_FD.copy_(torch.eye(d))
        sae.b_dec.zero_()
    return {hook: sae.requires_grad_(False)}


def test_the_induction_head_is_named_with_what_it_matches():
    """… 7 3 … 7 -> 3: the answer comes through L1H1 from the position of 3, because there the previous token is 7."""
    model = bridge(induction_transformer())
    tokens = torch.tensor([[1, 7, 3, 5, 9, 7]])
    dictionaries = tokens_of_stream(model, 96, 8, "blocks.0.hook_resid_post")
    full = trace(model, dictionaries, tokens)
    found = split_graph(model, dictionaries, tokens, full, names(full))
    target = next(full.name(i) for i, n in enumerate(full.nodes) if n.kind == "logit" and n.index == 3)
    carried = found.edges[(found.edges["target"] == target) & (found.edges["unit"] == "H1")]
    strongest = carried.loc[carried["value"].idxmax()]
    assert strongest["source"] == "0_3_2"  # the token 3 itself, where it stands
    loads = found.loadings[found.loadings["target"] == target].set_index("unit")["value"]
    assert loads["H1"] > 0 and all(abs(loads.get(u, 0.0)) < 1e-5 for u in ("H0", "H2"))
    pairs = found.scores[found.scores["target"] == target]
    assert (pairs["query"] == 5).all() and (pairs["key"] == 2).all() and pairs["pattern"].iloc[0] > 0.9
    best = pairs.loc[pairs["value"].idxmax()]
    assert (best["query_part"], best["key_part"]) == ("0_7_5", f"0_{VOCAB + 7}_2")  # "7" here, "7 before" there


def test_the_channel_that_stores_is_named():
    """storing_mamba keeps (A -> B) in the value channel of B: the answer comes through that channel alone."""
    model = bridge(storing_mamba(1))
    tokens = torch.tensor([[1, 7, 3, 5, 9, 7]])
    dictionaries = tokens_of_stream(model, 48, 4, "blocks.0.hook_resid_post")
    full = trace(model, dictionaries, tokens)
    found = split_graph(model, dictionaries, tokens, full, names(full))
    target = next(n for i, n in enumerate(names(full)) if full.nodes[i].kind == "latent" and n == "0_19_5")
    carried = found.edges[(found.edges["target"] == target) & ~found.edges["unit"].isin([PAST, OTHERS])]
    assert carried.loc[carried["value"].abs().idxmax(), "unit"] == "C3"  # value channel of token 3
    assert carried.loc[carried["value"].abs().idxmax(), "source"] == "E_2"
    reads = found.reads[(found.reads["target"] == target) & (found.reads["unit"] == "C3")]
    assert reads.loc[reads["value"].abs().idxmax(), "position"] == 2


def test_units_beyond_the_list_are_summed():
    rows = listed(["H0", "H1", "H2", PAST], np.array([1.0, -3.0, 0.5, 2.0]), most=1)
    assert rows == [
        {"unit": "H1", "value": -3.0},
        {"unit": OTHERS, "value": 1.5},
        {"unit": PAST, "value": 2.0},
    ]
    assert listed(["H0", PAST], np.array([0.0, 2.0])) == [{"unit": PAST, "value": 2.0}]


def test_scores_that_are_no_products_are_refused(case, monkeypatch):
    model, dictionaries, tokens, full, kept, found = case
    if found.scores.empty:
        pytest.skip("states have no scores")
    made = ScoreSplitter.pairs

    def capped(self, *args):
        score = made(self, *args)
        return type(score)(score.query, score.key, score.value, score.score + 1.0, score.pattern)

    monkeypatch.setattr(ScoreSplitter, "pairs", capped)
    with pytest.raises(UsageError, match="not products of queries and keys"):
        split_graph(model, dictionaries, tokens, full, kept)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    ws = Workspace(tmp_path_factory.mktemp("ws"))
    model = load_model("mini-mamba")
    for hook, sae in random_dictionaries(model, (0, 1)).items():
        layer = hook.split(".")[1]
        sae.metadata = {"model_name": "mini-mamba", "hook_name": hook, "site": f"L{layer}R"}
        id = f"mini-mamba.L{layer}R-1x"
        sae.save(ws.path("dictionaries", id))
        write_manifest(ws.path("dictionaries", id), "dictionaries", id, metadata=sae.metadata | {"kind": "sae"})
    return ws


def test_the_verb_splits_and_changes_without_tracing_twice(workspace, monkeypatch):
    times = []
    made = graph_run.traced
    monkeypatch.setattr(graph_run, "traced", lambda *a, **k: times.append(1) or made(*a, **k))
    words = ["graph", "def read(self", "-m", "mini-mamba", "-w", str(workspace.root), "--node-share", "1.0", "--json"]
    plain = CliRunner().invoke(app, words, catch_exceptions=False)
    first = json.loads(plain.stdout)
    assert len(times) == 1 and "split_gap" not in first
    nodes = json.loads((workspace.path("graphs", first["id"]) / "graph.json").read_text())["nodes"]
    latent = next(n["node_id"] for n in nodes if n["activation"])
    changed = CliRunner().invoke(app, [*words, "--set", f"{latent}=0"], catch_exceptions=False)
    assert json.loads(changed.stdout)["intervention"]["kl"] >= 0 and len(times) == 1  # traced once for both
    anew = CliRunner().invoke(app, [*words, "--node-share", "0.7", "--split", "--set", f"{latent}=0"])
    assert anew.exit_code == 0 and len(times) == 2
    split = CliRunner().invoke(app, [*words, "--split"], catch_exceptions=False)
    done = json.loads(split.stdout)
    folder = workspace.path("graphs", done["id"])
    assert done["id"] == first["id"] and done["split_gap"] <= 1e-5 and "made again" in split.stderr
    assert {f"{n}.parquet" for n in ("splits", "loadings", "reads", "scores")} <= {p.name for p in folder.iterdir()}
    assert set(pd.read_parquet(folder / "splits.parquet")["unit"].str[0]) <= {"C", "p", "o"}
    again = json.loads(CliRunner().invoke(app, words, catch_exceptions=False).stdout)
    assert again["version"] == done["version"]  # what holds more serves who asks for less
    refused = CliRunner().invoke(app, [*words, "--split", "--no-freeze"])
    assert refused.exit_code == 2 and "--freeze" in refused.output
