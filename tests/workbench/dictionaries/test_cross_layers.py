"""A cross-layer transcoder in a workspace: one dictionary per layer for its records, and out again as it came."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import workbench
from sae.errors import CorruptError, MismatchError, MissingError, UsageError
from sae.formats import CrossLayer, read_cross_layer, write_cross_layer, write_transcoder_set
from sae.formats.normal import NormalForm
from workbench.activations import ActivationStore, HarvestRecipe
from workbench.analysis.latents.logits import readout
from workbench.cli import app
from workbench.dictionaries.cross_layers import all_decoders, export_circuit_tracer, gathered
from workbench.dictionaries.reference import find_dictionary
from workbench.models import load_model
from workbench.results.records import LatentRecords
from workbench.workspace import Workspace

GOLDEN = Path(__file__).parents[2] / "sae" / "golden"
L, D, F = 4, 128, 24


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A cross-layer transcoder over the bundled model, in circuit-tracer's files."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    about = {"model_name": "mini-pythia", "feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}
    decoders = tuple(draw(F, L - i, D) for i in range(L))
    clt = CrossLayer(draw(L, D, F), draw(L, F) - 8, decoders, draw(L, D), draw(L, F).abs(), None, about)
    return write_cross_layer(clt, tmp_path_factory.mktemp("clt") / "theirs")


@pytest.fixture(scope="module")
def ws(tmp_path_factory, theirs):
    ws = Workspace(tmp_path_factory.mktemp("layers") / "ws")
    recipe = {"id": "rows", "hooks": ["blocks.1.ln2.hook_out"], "n_seq": 24, "ctx": 32, "corpus": {"kind": "mini"}}
    workbench.harvest(ws, HarvestRecipe.model_validate(recipe | {"sources": [{"model": "mini-pythia"}]}))
    workbench.import_dictionary(ws, str(theirs), store="rows")
    return ws


def test_one_dictionary_per_layer_with_the_latents_of_the_whole(ws, theirs):
    again = workbench.import_dictionary(ws, str(theirs), store="rows")
    assert [i.id for i in again.all] == [f"theirs.L{i}" for i in range(L)]
    clt, x = read_cross_layer(theirs), torch.randn(L, 7, D, generator=torch.Generator().manual_seed(1)) * 3
    f = clt.encode(x)
    assert 0 < float((f > 0).float().mean()) < 0.9
    for i in range(L):
        reference = find_dictionary(ws, f"theirs.L{i}")
        dictionary = reference.load(latents_only=True)
        assert (reference.hook, reference.hook_out) == (f"blocks.{i}.ln2.hook_out", f"blocks.{i}.hook_mlp_out")
        torch.testing.assert_close(dictionary.encode(x[i]), f[i], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(all_decoders(dictionary, reference.path), clt.W_dec[i])
        assert reference.metadata["cross_layer"] == {"layer": i, "n_layers": L, "id": "theirs"}


def test_records_of_a_layer_count_everything_its_latents_write(ws, theirs):
    workbench.features(ws, "theirs.L1", tokens=500, contexts=4)
    records = LatentRecords.open(ws.path("latents", "theirs.L1"))
    clt, store = read_cross_layer(theirs), ActivationStore.open(ws.path("stores", "rows"))
    rows = torch.cat([torch.as_tensor(store.sequence(i, "blocks.1.ln2.hook_out")).float() for i in range(24)])
    f = clt.encode(rows[None].expand(L, -1, -1))[1]
    fired = int(records.table["max"].argmax())
    assert 0 < records.table["max"][fired] <= float(f[:, fired].max()) + 1e-3
    np.testing.assert_allclose(records.table["decoder_norm"], clt.W_dec[1].flatten(1).norm(dim=1), rtol=1e-5)
    W = readout(load_model("mini-pythia")).W
    token, _, value = records.logits(fired).promoted[0]
    of_all, of_own = clt.W_dec[1].sum(1)[fired] @ W, clt.W_dec[1][:, 0][fired] @ W
    assert value == pytest.approx(float(of_all[token]), abs=1e-3) and abs(value - float(of_own[token])) > 1e-2


def test_one_layer_is_never_decoded_as_if_it_were_the_whole(ws):
    for verb in ("evaluate", "verify"):
        said = CliRunner().invoke(app, [verb, "theirs.L1", "-w", str(ws.root)])
        assert said.exit_code == 2 and "layer 1 of a cross-layer transcoder of 4" in said.stderr
        assert len(said.stderr.strip().splitlines()) == 1


def test_out_again_as_it_came(ws, theirs, tmp_path):
    at = ["--source", "dictionaries/theirs", "-w", str(ws.root), "--circuit-tracer"]
    said = CliRunner().invoke(app, ["export", *at, str(tmp_path / "out"), "--json"])
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout)["files"] == sorted(p.name for p in theirs.iterdir())
    for file in theirs.iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    again = CliRunner().invoke(app, ["export", *at, str(tmp_path / "out")])
    assert again.exit_code == 2 and "is there already" in again.stderr


@pytest.mark.parametrize("kind", ["clt-relu", "clt-jumprelu", "clt-relu-bfloat16"])
def test_a_library_s_own_files_come_back_bit_for_bit(tmp_path, kind):
    golden, ws = GOLDEN / f"circuit-tracer-0.5.0-{kind}", Workspace(tmp_path / "ws")
    workbench.import_dictionary(ws, str(golden), id="theirs")
    export_circuit_tracer(ws, ["theirs"], tmp_path / "out")
    for file in golden.glob("W_*.safetensors"):
        theirs, ours = load_file(file), load_file(tmp_path / "out" / file.name)
        assert all(torch.equal(theirs[k], ours[k]) and theirs[k].dtype == ours[k].dtype for k in theirs)


def test_what_cannot_go_out_is_refused_by_name(ws, tmp_path):
    home = Workspace(tmp_path / "ws")
    workbench.import_dictionary(
        home, str(GOLDEN / "gemma-scope-2-clt-affine"), id="gemma", model="google/gemma-3-1b-pt"
    )
    assert find_dictionary(home, "gemma.L2").hook == "blocks.2.ln2.hook_out"
    with pytest.raises(UsageError, match="skip connection"):
        export_circuit_tracer(home, ["gemma"], tmp_path / "skip")
    workbench.import_dictionary(home, str(GOLDEN / "gemma-scope-2-clt"), id="plain", model="google/gemma-3-1b-pt")
    export_circuit_tracer(home, ["plain"], tmp_path / "plain")
    assert "feature_input_hook: mlp.hook_in" in (tmp_path / "plain" / "config.yaml").read_text()
    (home.path("dictionaries", "plain.L1") / "cross_layer.safetensors").unlink()
    with pytest.raises(MissingError, match=r"cross_layer\.safetensors"):
        export_circuit_tracer(home, ["plain"], tmp_path / "lost")
    shutil.rmtree(home.path("dictionaries", "plain.L1"))
    with pytest.raises(MissingError, match=r"plain\.L1"):
        gathered(home, "plain")
    workbench.import_dictionary(home, str(GOLDEN / "saelens-topk"), id="sae", model="gpt2")
    with pytest.raises(UsageError, match="of kind sae"):
        export_circuit_tracer(home, ["sae"], tmp_path / "sae")
    assert not any((tmp_path / n).exists() for n in ("skip", "lost", "sae"))


def test_layers_of_two_imports_are_not_one(tmp_path):
    home, golden = Workspace(tmp_path / "ws"), GOLDEN / "circuit-tracer-0.5.0-clt-relu"
    workbench.import_dictionary(home, str(golden), id="theirs")
    other = Path(shutil.copytree(golden, tmp_path / "other"))
    part = load_file(other / "W_enc_1.safetensors")
    save_file(part | {"b_enc_1": part["b_enc_1"] + 1}, other / "W_enc_1.safetensors")
    with pytest.raises(MismatchError):
        workbench.import_dictionary(home, str(other), id="theirs")
    workbench.import_dictionary(home, str(other), id="other")
    shutil.rmtree(home.path("dictionaries", "theirs.L1"))
    shutil.copytree(home.path("dictionaries", "other.L1"), home.path("dictionaries", "theirs.L1"))
    with pytest.raises((CorruptError, MissingError), match=r"theirs"):
        gathered(home, "theirs")


def test_a_set_of_transcoders_goes_out_as_it_came(tmp_path):
    g = torch.Generator().manual_seed(0)

    def form(layer):
        parts = [torch.randn(s, generator=g) for s in ((6, 12), (12,), (12, 6), (6,))]
        ends = {"hook_name": f"blocks.{layer}.mlp.hook_in", "hook_name_out": f"blocks.{layer}.hook_mlp_out"}
        about = ends | {"kind": "transcoder", "model_name": "gpt2"}
        return NormalForm("jumprelu", *parts, threshold=torch.rand(12, generator=g), metadata=about)

    theirs, ws = write_transcoder_set([form(0), form(1)], tmp_path / "set"), Workspace(tmp_path / "ws")
    for i in range(2):
        workbench.import_dictionary(ws, str(theirs / f"layer_{i}.safetensors"), id=f"tc{i}")
    source = "dictionaries/tc0,tc1"
    said = CliRunner().invoke(
        app, ["export", "--source", source, "-w", str(ws.root), "--circuit-tracer", str(tmp_path / "out")]
    )
    assert said.exit_code == 0, said.output
    for file in theirs.iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    wrong = CliRunner().invoke(app, ["export", "--source", "latents/x", "--circuit-tracer", str(tmp_path / "no")])
    assert wrong.exit_code == 2 and "dictionaries/ID" in wrong.stderr
