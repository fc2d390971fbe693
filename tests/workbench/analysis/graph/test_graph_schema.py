"""``graph.json`` is what Neuronpedia and circuit-tracer take.

The requirements below say in our words what two published files ask for: Neuronpedia's
``apps/webapp/app/api/graph/graph-schema.json`` ("Anthropic Attribution Graph", version 1.0.0, at commit b8efe843 of
hijohnnylin/neuronpedia) and the pydantic models of circuit-tracer 0.5.0 (``circuit_tracer/frontend/graph_models.py``),
which want a little more: a number for every node's feature, layers as text, all query parameters, a list of
transcoders. ``tools/peers_read.py`` has circuit-tracer's own classes read a graph.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from tests.workbench.analysis.graph.test_graph import random_dictionaries
from tests.workbench.analysis.graph.test_graph_sums import transcoders
from tests.workbench.bridges import bridge, tiny
from workbench.analysis.graph.prune import prune
from workbench.analysis.graph.run import neuronpedia
from workbench.analysis.graph.trace import trace
from workbench.analysis.graph.transcoders import trace_transcoders
from workbench.models import load_model
from workbench.results.labels import GraphLabels, Subgraph, with_labels

TEXT, WHOLE, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}
MAYBE = {"type": ["number", "null"]}


def of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


ABOUT = {"slug": TEXT, "scan": TEXT, "prompt": TEXT, "prompt_tokens": listed(TEXT), "node_threshold": NUMBER}
NODE = {"node_id": TEXT, "ctx_idx": WHOLE, "feature_type": TEXT, "jsNodeId": TEXT, "clerp": TEXT}
NODE |= {"influence": MAYBE, "activation": MAYBE}
KEYS = ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp")
LINK = of({"source": TEXT, "target": TEXT, "weight": NUMBER}, "source", "target", "weight")
NEURONPEDIA = of(
    {
        "metadata": of(ABOUT, "slug", "scan", "prompt_tokens", "prompt"),
        "qParams": of({"pinnedIds": listed(TEXT), "supernodes": {"type": "array"}, "clickedId": TEXT, "sg_pos": TEXT}),
        "nodes": listed(
            of(NODE | {"feature": {"type": ["integer", "null"]}, "layer": {"type": ["string", "integer"]}}, *KEYS)
        ),
        "links": listed(LINK),
    },
    *("metadata", "qParams", "nodes", "links"),
)
QUERY = {
    "pinnedIds": listed(TEXT),
    "supernodes": listed(listed(TEXT)),
    "linkType": TEXT,
    "clickedId": TEXT,
    "sg_pos": TEXT,
}
CIRCUIT_TRACER = of(
    {
        "metadata": of(ABOUT | {"transcoder_list": listed(TEXT)}, "slug", "scan", "transcoder_list", "prompt_tokens"),
        "qParams": of(QUERY, *QUERY),
        "nodes": listed(
            of(
                NODE | {"feature": WHOLE, "layer": TEXT, "token_prob": NUMBER, "is_target_logit": {"type": "boolean"}},
                *("node_id", "feature", "layer", "ctx_idx", "feature_type"),
            )
        ),
        "links": listed(LINK),
    },
    *("metadata", "qParams", "nodes", "links"),
)


def document_of(kind: str) -> dict[str, Any]:
    tokens = torch.tensor([[0, 7, 3, 7, 12, 3]])
    if kind == "transcoders":
        model = bridge(tiny("neox", scale=0.2, num_hidden_layers=3))
        graph = trace_transcoders(model, transcoders(16, range(3)), tokens)
    else:
        model = load_model("mini-mamba")
        graph = trace(model, random_dictionaries(model, (0, 2)), tokens)
    graph = prune(graph, node_share=1.0, edge_share=1.0)
    words = ["x" if n.kind == "logit" else "" for n in graph.nodes]
    document = neuronpedia(
        graph,
        slug="a.b",
        scan="m",
        prompt="a b",
        strings=["a"] * 6,
        words=words,
        settings={"node_share": 0.8, "edge_share": 0.98},
    )
    document["metadata"]["transcoder_list"] = []
    return document


@pytest.mark.parametrize("kind", ["residual", "transcoders"])
def test_a_graph_is_what_both_take(kind: str) -> None:
    document = document_of(kind)
    some = [n["node_id"] for n in document["nodes"] if n["activation"]][:3]
    mine = GraphLabels(graph="a.b", subgraph=Subgraph(pins=some, groups={"two of them": some[:2]}))
    for one in (document, with_labels(document, mine, "12345678")):
        for schema in (NEURONPEDIA, CIRCUIT_TRACER):
            assert [e.message for e in Draft202012Validator(schema).iter_errors(one)] == []
    assert with_labels(document, mine, "12345678")["qParams"]["supernodes"] == [["two of them", *some[:2]]]
    kinds = {n["feature_type"]: n for n in document["nodes"]}
    assert set(kinds) == {"embedding", "cross layer transcoder", "mlp reconstruction error", "logit"}
    assert kinds["mlp reconstruction error"]["feature"] == -1
    broken = copy.deepcopy(document)
    broken["nodes"][0]["feature"], broken["links"][0]["weight"] = None, "1"
    assert not Draft202012Validator(CIRCUIT_TRACER).is_valid(broken)
    assert not Draft202012Validator(NEURONPEDIA).is_valid(broken)
