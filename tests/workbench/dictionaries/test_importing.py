"""References to other libraries' dictionaries, from a folder to a complete result."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import sae
from sae.errors import MismatchError, MissingError, UsageError
from workbench.cli import app
from workbench.dictionaries.importing import import_dictionary, parse_reference, push_to_hub
from workbench.dictionaries.reference import find_dictionary
from workbench.run import Run
from workbench.workspace import Workspace

GOLDEN = Path(__file__).resolve().parents[2] / "sae" / "golden"


def test_references():
    scope = parse_reference("fnlp/Llama-Scope:L15R-8x")
    assert (scope.repository, scope.folder) == ("fnlp/Llama3_1-8B-Base-LXR-8x", "Llama3_1-8B-Base-L15R-8x")
    assert scope.id == "Llama-3.1-8B.L15R-8x"
    assert parse_reference("fnlp/Llama-Scope:L0TC-32x").repository == "fnlp/Llama3_1-8B-Base-LXTC-32x"
    other = parse_reference("EleutherAI/sae-pythia-160m-32k:layers.6")
    assert other.folder == "layers.6" and other.id == "sae-pythia-160m-32k.layers.6"
    for bad in ("nothing", "a/b", "fnlp/Llama-Scope:L15X-8x", "a/b:../../etc", "a/b:c d"):
        with pytest.raises(UsageError):
            parse_reference(bad)


@pytest.mark.parametrize("name", ["saelens-jumprelu", "sparsify-sae"])
def test_a_folder_becomes_a_complete_dictionary(tmp_path, name):
    ws = Workspace(tmp_path / "ws")
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / "layers.3"))
    item = import_dictionary(ws, str(folder), id="theirs", model="EleutherAI/pythia-70m")
    want = load_file(folder / "expected.safetensors")
    ours = sae.load(item.path)
    torch.testing.assert_close(ours(want["x"]), want["y"], atol=1e-5, rtol=1e-5)
    about = item.manifest.metadata
    assert about["model_name"] == "EleutherAI/pythia-70m" and about["kind"] == "sae"
    if name == "sparsify-sae":
        assert about["hook_name"] == "blocks.3.hook_resid_post" and about["site"] == "L3R"
    before = item.digest
    assert import_dictionary(ws, str(folder), id="theirs", model="EleutherAI/pythia-70m").digest == before  # reused
    (folder / "cfg.json").write_text((folder / "cfg.json").read_text() + " ")
    with pytest.raises(MismatchError, match=r"imported/layers\.3: version .*--id"):
        import_dictionary(ws, str(folder), id="theirs", model="EleutherAI/pythia-70m")


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ({"model": "mini-pythia"}, {"model": "mini-mamba"}, "model: mini-pythia there, mini-mamba asked"),
        ({"model": "mini-pythia"}, {}, "model: mini-pythia there, nothing asked"),
        ({"revision": "step512"}, {"revision": "step9000"}, "revision: step512 there, step9000 asked"),
        ({"revision": "step512"}, {}, "revision: step512 there, nothing asked"),
        ({}, {"revision": "step512"}, "revision: null there, step512 asked"),
        ({"hook": "blocks.1.hook_resid_post"}, {"hook": "blocks.2.hook_resid_post"}, "hook: blocks.1.hook_resid_post"),
    ],
)
def test_another_model_revision_or_hook_is_refused_by_name(tmp_path, first, then, says):
    ws, folder = Workspace(tmp_path / "ws"), Path(shutil.copytree(GOLDEN / "sparsify-sae", tmp_path / "layers.3"))
    import_dictionary(ws, str(folder), id="theirs", **first)
    with pytest.raises(MismatchError, match=says):
        import_dictionary(ws, str(folder), id="theirs", **then)
    item = import_dictionary(ws, str(folder), id="theirs", run=Run(replace=True), **then)
    about = item.manifest.metadata
    assert (about.get("model_name"), about.get("revision")) == (then.get("model"), then.get("revision"))


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("skip", [True, False])
def test_a_sparsify_transcoder_hangs_between_the_mlp_s_input_and_output(tmp_path, skip):
    folder = Path(shutil.copytree(GOLDEN / "sparsify-transcoder", tmp_path / "layers.1.mlp"))
    if not skip:
        edit(folder / "cfg.json", skip_connection=False)
        tensors = load_file(folder / "sae.safetensors")
        del tensors["W_skip"]
        save_file(tensors, folder / "sae.safetensors")
    item = import_dictionary(Workspace(tmp_path / "ws"), str(folder), id="theirs", model="mini-pythia")
    about = item.manifest.metadata
    assert about["kind"] == "transcoder" and about["site"] == "L1TC"
    assert (about["hook_name"], about["hook_name_out"]) == ("blocks.1.ln2.hook_out", "blocks.1.hook_mlp_out")


def test_the_model_is_kept_as_the_dictionary_needs_it(tmp_path):
    ws = Workspace(tmp_path / "ws")
    folder = Path(shutil.copytree(GOLDEN / "saelens-topk-plain", tmp_path / "theirs"))
    meta = {"model_name": "mini-pythia", "hook_name": "blocks.1.hook_resid_post", "prepend_bos": False}
    meta |= {"context_size": 64, "model_from_pretrained_kwargs": {"revision": "step512"}}
    edit(folder / "cfg.json", metadata=meta)
    about = import_dictionary(ws, str(folder), id="kept").manifest.metadata
    assert (about["revision"], about["prepend_bos"], about["context_size"]) == ("step512", False, 64)
    given = import_dictionary(ws, str(folder), id="given", revision="step8").manifest.metadata
    assert given["revision"] == "step8"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_on_disk_and_computed_in_float32(tmp_path, dtype):
    folder = Path(shutil.copytree(GOLDEN / "saelens-topk-plain", tmp_path / "theirs"))
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    ws = Workspace(tmp_path / "ws")
    item = import_dictionary(ws, str(folder), id="half")
    kept = load_file(item.path / "sae_weights.safetensors")
    assert {v.dtype for v in kept.values()} == {dtype}
    want = load_file(folder / "expected.safetensors")
    ours = find_dictionary(ws, "half").load()
    assert ours.enc_FD.dtype == torch.float32
    error = (ours(want["x"]) - want["y"]).norm() / want["y"].norm()
    assert error < 8 * torch.finfo(dtype).eps


def test_the_hub_is_off_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    ws = Workspace(tmp_path / "ws")
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE=0"):
        import_dictionary(ws, "fnlp/Llama-Scope:L15R-8x")
    assert ws.items("dictionaries") == []
    result = CliRunner().invoke(app, ["import", "no-such-folder", "-w", str(ws.root)])
    assert result.exit_code == 2 and "no-such-folder" in result.output


def test_the_verb_prints_one_document(tmp_path):
    args = [
        "import",
        str(GOLDEN / "dl-jumprelu"),
        "--hook",
        "blocks.3.hook_resid_post",
        "-w",
        str(tmp_path / "ws"),
        "--json",
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["id"] == "dl-jumprelu" and said["metadata"]["site"] == "L3R" and said["d_sae"] == 12


def test_push_sends_the_saelens_folder(tmp_path):
    ws = Workspace(tmp_path / "ws")
    item = import_dictionary(ws, str(GOLDEN / "saelens-topk"))
    sent = {}
    api = SimpleNamespace(
        create_repo=lambda *a, **k: sent.update(repo=a[0], **k), upload_folder=lambda **k: sent.update(k) or "commit"
    )
    assert push_to_hub(ws, item.id, "me/saes", api=api) == "commit"
    assert (
        sent["repo"] == "me/saes"
        and sent["private"]
        and sent["path_in_repo"] == item.id
        and "cfg.json" in sent["allow_patterns"]
    )
    with pytest.raises(UsageError, match="switched off"):
        push_to_hub(ws, item.id, "me/saes")


def test_export_uploads_a_dictionary(tmp_path, monkeypatch):
    """The verb's option reaches the hub's interface, and says what it wants where something else is asked for."""
    import huggingface_hub

    ws = Workspace(tmp_path / "ws")
    item = import_dictionary(ws, str(GOLDEN / "saelens-topk"))
    sent = {}
    api = SimpleNamespace(
        create_repo=lambda *a, **k: sent.update(repo=a[0], **k), upload_folder=lambda **k: sent.update(k) or "commit"
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    args = ["export", "--workspace", str(tmp_path / "ws"), "--hub", "me/saes", "--public", "--json"]
    result = CliRunner().invoke(app, [*args, "--source", f"dictionaries/{item.id}"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["commit"] == "commit" and sent["repo"] == "me/saes" and sent["private"] is False
    refused = CliRunner().invoke(app, [*args, "--source", "latents/x"])
    assert refused.exit_code == 2 and "--source dictionaries/ID" in refused.output
