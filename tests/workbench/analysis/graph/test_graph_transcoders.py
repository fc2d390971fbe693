"""Through transcoders a frozen model is linear: taking a part away moves a later latent by exactly its edge."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from sae.activation import TopK
from sae.errors import ConfigError, UsageError
from sae.transcoder import Transcoder
from workbench.analysis.graph.trace import frozen_hooks
from workbench.analysis.graph.transcoders import trace_transcoders
from workbench.cli import app
from workbench.models import load_model
from workbench.provenance import write_manifest
from workbench.workspace import Workspace

READ = "blocks.{}.ln2.hook_out"


def random_transcoder(width: int, seed: int, *, skip: bool) -> Transcoder:
    out = Transcoder(width, 64, TopK(4), skip=skip)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (out.enc_FD, out.dec_FD):
            p.copy_(torch.nn.functional.normalize(torch.randn(p.shape, generator=g), dim=1))
        out.b_dec.copy_(0.1 * torch.randn(width, generator=g))
        if out.skip_DD is not None:
            out.skip_DD.copy_(0.02 * torch.randn(out.skip_DD.shape, generator=g))
    return out.requires_grad_(False)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "skip"])
def traced(request):
    model = load_model("mini-pythia")
    tokens = torch.randint(1, 500, (1, 6), generator=torch.Generator().manual_seed(3))
    tokens[0, 0] = 0
    transcoders = {READ.format(layer): random_transcoder(128, layer, skip=request.param) for layer in range(3)}
    return model, tokens, transcoders, trace_transcoders(model, transcoders, tokens, batch=16)


def frozen_run(model, tokens, transcoders, change):
    """Inputs of all transcoders and the logits, all where-information at the clean run's values and MLP outputs changed
    by ``change``.
    """
    names = frozen_hooks(model)
    writes = {read: read.replace("ln2.hook_out", "hook_mlp_out") for read in transcoders}
    with torch.no_grad():
        _, clean = model.run_with_cache(tokens, names_filter=[*names, *writes.values(), *transcoders])
        seen = {}

        def remember(value, hook):
            seen[hook.name] = value

        hooks = [(n, lambda value, hook: clean[hook.name]) for n in names] + [(read, remember) for read in transcoders]
        for read, write in writes.items():

            def replace(value, hook, read=read, write=write):
                out = clean[write].clone()
                past = transcoders[read].skip(seen[read] - clean[read])
                zero = transcoders[read].skip(torch.zeros_like(clean[read]))
                return change(write, out if past is None else out + past - zero)

            hooks.append((write, replace))
        with model.hooks(fwd_hooks=hooks):
            logits = model(tokens)
    return seen, logits


def test_an_edge_is_what_taking_the_source_away_takes_from_the_target(traced):
    model, tokens, transcoders, graph = traced
    reads = list(transcoders)
    base, logits = frozen_run(model, tokens, transcoders, lambda name, x: x)
    sources = [i for i, n in enumerate(graph.nodes) if n.stage == 1 and n.kind == "latent" and n.position > 0][::4]
    assert len(sources) >= 4
    for i in sources:
        node = graph.nodes[i]

        def without(name, x, node=node):
            if name == reads[0].replace("ln2.hook_out", "hook_mlp_out"):
                x[0, node.position] -= node.value * transcoders[reads[0]].W_dec[node.index]
            return x

        after, after_logits = frozen_run(model, tokens, transcoders, without)
        for j, target in enumerate(graph.nodes):
            if target.kind == "latent" and target.stage > 1:
                read = reads[target.stage - 1]
                z = (base[read] - after[read])[0, target.position] @ transcoders[read].W_enc[:, target.index]
                assert float(graph.weights[j, i]) == pytest.approx(float(z), abs=2e-4)
            if target.kind == "logit":
                moved = (logits - after_logits)[0, -1]
                assert float(graph.weights[j, i]) == pytest.approx(float(moved[target.index] - moved.mean()), abs=2e-4)
    reach = {(graph.nodes[s].stage, graph.nodes[t].stage) for t, s in zip(*graph.weights.nonzero(), strict=True)}
    assert (1, 3) in reach and (0, 4) in reach and all(s < t for s, t in reach), (
        "edges skip layers, and only run forward"
    )


def test_widths_and_hooks_are_checked(traced):
    model, tokens, _, _ = traced
    with pytest.raises(UsageError, match="L0TC"):
        trace_transcoders(model, {}, tokens)
    with pytest.raises(UsageError, match="no hook"):
        trace_transcoders(model, {"blocks.9.ln2.hook_out": random_transcoder(128, 0, skip=False)}, tokens)
    with pytest.raises(ConfigError, match="d_in = 64"):
        trace_transcoders(model, {READ.format(0): random_transcoder(64, 0, skip=False)}, tokens)


def test_the_command_draws_transcoders_of_a_workspace(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    for layer in range(2):
        id = f"mini-pythia.L{layer}TC-1x"
        folder = random_transcoder(128, layer, skip=False).save(workspace.path("dictionaries", id))
        about = {
            "model_name": "mini-pythia",
            "hook_name": READ.format(layer),
            "site": f"L{layer}TC",
            "kind": "transcoder",
        }
        write_manifest(folder, "dictionaries", id, command="test", metadata=about)
    args = ["graph", "def __init__(self", "--site", "TC", "--node-share", "1", "-w", str(workspace.root), "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "ws" / "graphs" / json.loads(result.stdout)["id"] / "graph.json").read_text())
    assert {n["feature_type"] for n in document["nodes"]} >= {"cross layer transcoder", "logit"} and document["links"]
    missing = CliRunner().invoke(app, ["graph", "x = 1", "-m", "mini-mamba", "--site", "TC", "-w", str(workspace.root)])
    assert missing.exit_code == 1 and "transcoders" in missing.output
