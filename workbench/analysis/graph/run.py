"""``workbench graph`` as a function: choose dictionaries, trace, prune, write ``graphs/<id>/``.

``graph.json`` follows the attribution-graph schema that Neuronpedia publishes (version 1.0.0: metadata, qParams, nodes,
links) and the one circuit-tracer 0.5.0 serves, so a graph can be opened in either as it is; ``edges.parquet`` holds the
same links as a table (source, target, weight, layers, positions).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae.errors import UsageError
from sae.files import sha256_json, write_json
from workbench.analysis.graph.choose import dictionaries_named, dictionaries_of
from workbench.analysis.graph.follow import NODE_SHARE
from workbench.analysis.graph.intervene import (
    Agreement,
    Bench,
    Effect,
    Intervention,
    agreement,
    edge_effects,
    intervene,
    parse_changes,
)
from workbench.analysis.graph.prune import prune, scores
from workbench.analysis.graph.split import split_graph
from workbench.analysis.graph.split_transcoders import split_transcoder_graph
from workbench.analysis.graph.trace import Graph, node_id, trace
from workbench.analysis.graph.transcoders import trace_transcoders
from workbench.corpus.records import mended
from workbench.corpus.shown import shown_token, shown_tokens
from workbench.dictionaries.reference import find_dictionary
from workbench.models.pointers import by_id
from workbench.models.weights import model_inputs
from workbench.results.labels import read_labels
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.version import __version__
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    from torch import Tensor

FEATURE_TYPES = {
    "embedding": "embedding",
    "latent": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "logit": "logit",
}


def make_graph(
    workspace: Workspace,
    prompt: str,
    model_name: str,
    *,
    revision: str | None = None,
    site: str = "R",
    dictionaries: Sequence[str] = (),
    node_share: float = NODE_SHARE,
    edge_share: float = 0.98,
    freeze: bool = True,
    max_tokens: int = 64,
    split: bool = False,
    run: Run = QUIET,
) -> Item:
    """Trace and prune the graph of a prompt and write it; a complete one is reused.

    Args:
        split: take every edge apart by heads or channels (``splits``, ``loadings``, ``reads``, ``scores`` as Parquet,
            see :mod:`workbench.analysis.graph.split`); a graph that is there without is made again with them.
        site: ``R`` for SAEs on the residual stream, ``TC`` for transcoders. dictionaries: ids; where given, they decide
        instead.

    Raises:
        UsageError: an empty prompt, or one longer than ``max_tokens``, or a split of what does not add up.
        UserError: see :mod:`workbench.analysis.graph.choose`.
    """
    from workbench.models import load_model, model_id

    prompt, model_name, site, items = chosen(workspace, prompt, model_name, revision, site, dictionaries, run)
    recipe = {
        "prompt": prompt,
        "model": model_name,
        "revision": revision,
        "node_share": node_share,
        "edge_share": edge_share,
        "freeze": freeze,
    } | ({} if site == "R" else {"site": site})
    inputs = [item.as_input() for item in items.values()]
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:32] or "prompt"
    key = sha256_json([recipe, [i.digest for i in inputs]])[:8]
    id = f"{model_id(model_name)}{'@' + revision if revision else ''}.{slug}.{key}"
    inputs += model_inputs([(model_name, revision)])
    if split and not freeze:
        raise UsageError(
            "--split divides edges by attention heads and state channels, which needs attention patterns held fixed."
            " Leave out --split, or draw the graph with --freeze."
        )
    split_there = workspace.complete("graphs", id) and bool(workspace.get("graphs", id).manifest.recipe.get("split"))
    recipe |= {"split": True} if split_there else {}
    if (have := reusable(workspace, "graphs", id, recipe=recipe, inputs=inputs, run=run)) is not None:
        if split_there or not split:
            return have
        run.say(f"{id}: made again, with its split")
    recipe |= {"split": True} if split else {}
    model = load_model(model_name, revision)
    tokens = read_prompt(model, prompt, max_tokens)
    full, loaded = traced(workspace, model, items, tokens, site=site, freeze=freeze, node_share=node_share)
    graph = prune(full, node_share=node_share, edge_share=edge_share)
    strings = shown_tokens(model.tokenizer, tokens[0].tolist())
    vocabulary = [shown_token(model.tokenizer, n.index) if n.kind == "logit" else "" for n in graph.nodes]
    document = neuronpedia(
        graph, slug=id, scan=model_id(model_name), prompt=prompt, strings=strings, words=vocabulary, settings=recipe
    )
    document["metadata"]["transcoder_list"] = [item.id for item in items.values()] if site == "TC" else []
    numbers = {
        "nodes": len(graph.nodes),
        "edges": len(document["links"]),
        "nodes_before": len(full.nodes),
        "edges_before": int((full.weights != 0).sum()),
        "node_influence_kept": round(graph.kept_nodes, 4),
        "edge_influence_kept": round(graph.kept_edges, 4),
        "logit_probability_covered": round(graph.logit_share, 4),
        "n_tokens": int(tokens.shape[1]),
    } | {name: round(value, 4) for name, value in scores(full).items()}
    if left := int(full.unfollowed.sum()):
        wanted = sum(n.kind in ("latent", "logit") for n in full.nodes)
        numbers |= {"targets": wanted, "targets_unfollowed": left}
    if full.largest_gap is not None:
        numbers["largest_gap"] = float(f"{full.largest_gap:.3g}")
    split_edges = split_graph if site == "R" else split_transcoder_graph
    parts = (
        split_edges(model, loaded, tokens, full, [graph.name(i) for i in range(len(graph.nodes))]) if split else None
    )
    if parts is not None:
        numbers |= {"split_gap": float(f"{parts.gap:.2g}"), "score_gap": float(f"{parts.score_gap:.2g}")}
    about = {
        "model": model_name,
        "revision": revision,
        "dictionaries": {hook: item.id for hook, item in items.items()},
        "prompt": prompt,
        "site": site,
    }
    with workspace.create(
        "graphs", id, replace=True, command=run.command, recipe=recipe, inputs=inputs, numbers=numbers, metadata=about
    ) as folder:
        write_json(folder / "graph.json", document)
        _table(graph, document).to_parquet(folder / "edges.parquet", index=False)
        if parts is not None:
            for name, frame in parts.tables().items():
                frame.to_parquet(folder / f"{name}.parquet", index=False)
    made = workspace.get("graphs", id)
    _LAST[:] = [(_key(workspace, made), Traced(model, loaded, tokens, full, freeze))]
    return made


def chosen(
    workspace: Workspace,
    prompt: str,
    model_name: str,
    revision: str | None,
    site: str,
    dictionaries: Sequence[str],
    run: Run,
) -> tuple[str, str, str, dict[str, Item]]:
    """(prompt, model's name here, kind of site, hook a dictionary reads -> dictionary) of what was asked for.

    Raises:
        UsageError: an empty prompt. UserError: see :mod:`workbench.analysis.graph.choose`.
    """
    prompt = mended(prompt)
    if not prompt.strip():
        raise UsageError("the prompt is empty. Give a text whose next token you want explained.")
    model_name = by_id(workspace, model_name, run=run)
    if dictionaries:
        site, items = dictionaries_named(workspace, dictionaries, model_name, revision)
    else:
        items = dictionaries_of(workspace, model_name, revision, site)
    return prompt, model_name, site, items


def read_prompt(model: Any, prompt: str, max_tokens: int) -> Tensor:
    """Token ids [1, S] by the model's contract.

    Raises:
        UsageError: no tokenizer, or a longer prompt.
    """
    import torch

    from workbench.models.reading import token_contract

    if model.tokenizer is None:
        raise UsageError(
            "this model has no tokenizer, so it cannot read a prompt. Use a model folder with tokenizer.json."
        )
    tokens = torch.tensor([token_contract(model).encode(model.tokenizer, prompt)])
    if tokens.shape[1] > max_tokens:
        raise UsageError(
            f"the prompt has {tokens.shape[1]} tokens; graphs are drawn up to {max_tokens}. Shorten it, or raise"
            " --max-tokens."
        )
    return tokens


def traced(
    workspace: Workspace,
    model: Any,
    items: Mapping[str, Item],
    tokens: Tensor,
    *,
    site: str,
    freeze: bool,
    node_share: float,
) -> tuple[Graph, dict[str, Any]]:
    """(the whole graph, hook -> loaded dictionary)."""
    loaded = {hook: find_dictionary(workspace, item.path).load() for hook, item in items.items()}
    follow = trace if site == "R" else trace_transcoders
    return follow(model, loaded, tokens, freeze=freeze, node_share=node_share), loaded


def neuronpedia(
    graph: Graph, *, slug: str, scan: str, prompt: str, strings: list[str], words: list[str], settings: dict[str, Any]
) -> dict[str, Any]:
    """The graph in Neuronpedia's schema. ``words``: the token of each logit node, empty for others."""
    nodes: list[dict[str, Any]] = []
    layers = graph.layers
    for i, node in enumerate(graph.nodes):
        nodes.append(
            {
                "node_id": node_id(node, layers),
                # circuit-tracer wants a number of every node: a token's place, -1 for an error (Neuronpedia takes it)
                "feature": node.position if node.kind == "embedding" else node.index,
                "layer": "E" if node.kind == "embedding" else str(layers[node.stage]),
                "ctx_idx": node.position,
                "feature_type": FEATURE_TYPES[node.kind],
                "jsNodeId": node_id(node, layers),
                "clerp": f"output {words[i]!r} (p = {node.value:.3f})" if node.kind == "logit" else "",
                "influence": float(graph.influence[i]),
                "activation": node.value if node.kind == "latent" else None,
                "token_prob": node.value if node.kind == "logit" else 0.0,
                "is_target_logit": node.kind == "logit",
            }
        )
    targets, sources = graph.weights.nonzero()
    links = [
        {"source": nodes[s]["node_id"], "target": nodes[t]["node_id"], "weight": float(graph.weights[t, s])}
        for t, s in zip(targets.tolist(), sources.tolist(), strict=True)
    ]
    metadata = {
        "slug": slug,
        "scan": scan,
        "prompt_tokens": strings,
        "prompt": prompt,
        "node_threshold": settings["node_share"],
        "info": {"generator": {"name": "Interpretability Workbench", "version": __version__}},
        "pruning_settings": {"node_threshold": settings["node_share"], "edge_threshold": settings["edge_share"]},
    }
    return {
        "metadata": metadata,
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": nodes,
        "links": links,
    }


def _table(graph: Graph, document: dict[str, Any]) -> pd.DataFrame:
    """Links as a table, strongest first."""
    layers = graph.layers
    by_id = {node_id(n, layers): n for n in graph.nodes}
    rows = [
        {
            **link,
            "source_stage": by_id[link["source"]].stage,
            "target_stage": by_id[link["target"]].stage,
            "source_position": by_id[link["source"]].position,
            "target_position": by_id[link["target"]].position,
        }
        for link in document["links"]
    ]
    columns = ["source", "target", "weight", "source_stage", "target_stage", "source_position", "target_position"]
    return pd.DataFrame(rows, columns=columns).sort_values(
        "weight", key=abs, ascending=False, kind="stable", ignore_index=True
    )


@dataclass
class Traced:
    """A graph as interventions need it: the whole one, with the model, its dictionaries and the prompt."""

    model: Any
    dictionaries: dict[str, Any]
    tokens: Tensor
    whole: Graph
    frozen: bool  # whether it was drawn with patterns, norms and gates held
    benches: dict[bool, Bench] = field(default_factory=dict)

    def bench(self, freeze: bool) -> Bench:
        """The bench on which changes are tried, kept."""
        if freeze not in self.benches:
            self.benches[freeze] = Bench(self.model, self.dictionaries, self.tokens, freeze=freeze)
        return self.benches[freeze]


_LAST: list[tuple[tuple[str, str, str], Traced]] = []  # what this process traced last, so that nothing is traced twice


def _key(workspace: Workspace, item: Item) -> tuple[str, str, str]:
    return str(workspace.root), item.id, item.digest


def traced_again(workspace: Workspace, id: str, *, max_tokens: int = 64, run: Run = QUIET) -> Traced:
    """A graph of the workspace, whole: as this process traced it last, or traced again.

    Raises:
        MissingError: no such graph, or a dictionary of it is gone.
    """
    from workbench.models import load_model

    item = workspace.get("graphs", id)
    if _LAST and _LAST[0][0] == _key(workspace, item):
        return _LAST[0][1]
    about, recipe = item.manifest.metadata, item.manifest.recipe or {}
    model = load_model(by_id(workspace, str(about["model"]), run=run), about.get("revision") or None)
    tokens = read_prompt(model, str(about["prompt"]), max_tokens)
    items = {hook: workspace.get("dictionaries", name) for hook, name in about["dictionaries"].items()}
    site, held = str(about.get("site") or "R"), bool(recipe.get("freeze", True))
    share = float(recipe.get("node_share", NODE_SHARE))
    whole, dictionaries = traced(workspace, model, items, tokens, site=site, freeze=held, node_share=share)
    found = Traced(model, dictionaries, tokens, whole, held)
    _LAST[:] = [(_key(workspace, item), found)]
    return found


@dataclass(frozen=True)
class Intervened:
    """What :func:`intervene_on` found.

    ``words``: how the intervention's tokens are shown; ``frozen``: whether patterns, norms and gates were held.
    """

    frozen: bool
    intervention: Intervention | None = None
    words: list[str] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    agreement: Agreement | None = None


def intervene_on(
    workspace: Workspace,
    id: str,
    *,
    sets: Sequence[str] = (),
    swaps: Sequence[str] = (),
    check: bool = False,
    freeze: bool | None = None,
    max_tokens: int = 64,
    run: Run = QUIET,
) -> Intervened:
    """Interventions on a graph of the workspace: on the whole one, so that nodes which pruning left out can be changed,
    too, and carry what passes through them.

    Raises:
        MissingError: no such graph, or a dictionary of it is gone. UsageError: see
        :func:`workbench.analysis.graph.intervene.parse_changes`.
    """
    recipe = workspace.get("graphs", id).manifest.recipe or {}
    shares = float(recipe.get("node_share", NODE_SHARE)), float(recipe.get("edge_share", 0.98))
    found = traced_again(workspace, id, max_tokens=max_tokens, run=run)
    groups = read_labels(workspace.root, id).subgraph.groups if "@" in "".join([*sets, *swaps]) else {}
    return touch(found, sets, swaps, check=check, freeze=freeze, shares=shares, groups=groups)


def touch(
    on: Traced,
    sets: Sequence[str],
    swaps: Sequence[str] = (),
    *,
    check: bool = False,
    freeze: bool | None = None,
    shares: tuple[float, float] = (NODE_SHARE, 0.98),
    groups: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> Intervened:
    """Change latents of a traced graph; ``shares`` of nodes and edges, as it was pruned, say what ``check`` looks at;
    ``groups``: what ``@NAME`` stands for.

    Raises:
        UsageError: see :func:`workbench.analysis.graph.intervene.parse_changes`.
    """
    whole, held = on.whole, on.frozen if freeze is None else freeze
    changes = parse_changes(whole, sets, swaps, groups)
    bench = on.bench(held)
    made = intervene(bench, whole, changes) if changes else None
    effects: list[Effect] = []
    if check:
        kept = prune(whole, node_share=shares[0], edge_share=shares[1])
        effects = edge_effects(bench, whole, {kept.name(i) for i in range(len(kept.nodes))})
    return Intervened(
        held,
        made,
        [shown_token(on.model.tokenizer, t) for t in made.tokens] if made else [],
        effects,
        agreement(effects) if check else None,
    )
