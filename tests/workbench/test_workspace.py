"""A workspace: results are complete or absent, ids cannot leave it, a newer one is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sae.errors import CorruptError, MissingError, NewerSchemaError, UsageError, UserError
from workbench.provenance import check_files, read_manifest
from workbench.workspace import Workspace, check_id, dictionary_id


@pytest.fixture
def ws(tmp_path):
    return Workspace(tmp_path / "ws")


def make(ws, id="mini-pythia.L2R-8x", kind="dictionaries", **about):
    with ws.create(kind, id, command="test", numbers=lambda: {"l0": 16.0}, **about) as folder:
        (folder / "weights.bin").write_bytes(b"abc")
    return ws.get(kind, id)


def test_processes_that_begin_together_all_make_the_workspace(tmp_path, monkeypatch):
    """Those torchrun starts: another one makes the folder between this one's look and its own making."""
    real = Path.mkdir

    def beaten(self, *args, **kwargs):
        if not self.is_dir():
            os.makedirs(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", beaten)
    assert Workspace(tmp_path / "ws").root.is_dir()


def test_create_then_get(ws):
    item = make(ws)
    assert item.manifest.numbers == {"l0": 16.0} and len(item.version) == 8
    assert check_files(item.path) == []
    assert [i.id for i in ws.items("dictionaries")] == [item.id]


def test_same_content_same_version(tmp_path):
    a, b = make(Workspace(tmp_path / "a")), make(Workspace(tmp_path / "b"))
    assert a.digest == b.digest


def test_flipped_byte_is_noticed(ws):
    item = make(ws)
    (item.path / "weights.bin").write_bytes(b"abd")
    assert check_files(item.path) == ["weights.bin"]


def test_half_written_results_do_not_exist(ws):
    with pytest.raises(RuntimeError), ws.create("latents", "x") as folder:
        (folder / "a").write_text("a")
        raise RuntimeError
    (ws.root / "latents" / "y").mkdir(parents=True)
    assert ws.items("latents") == [] and not ws.complete("latents", "y")


def test_missing_names_the_nearest(ws):
    make(ws)
    with pytest.raises(MissingError, match=r"mini-pythia\.L2R-8x"):
        ws.get("dictionaries", "mini-pythia.L2R-9x")


@pytest.mark.faults
@pytest.mark.parametrize(
    "bad", ["../x", "/abs", "..\\x", "a\0b", "a\nb", "x" * 300, "a/b", "\u202ex", "", ".hidden", "a__b__c", "a..b"]
)
def test_hostile_ids_are_refused(ws, bad):
    with pytest.raises(UsageError):
        ws.path("latents", bad)


@pytest.mark.faults
def test_symlinked_results_are_passed_over(ws, tmp_path):
    make(Workspace(tmp_path / "other"), id="real")
    (ws.root / "dictionaries").mkdir(exist_ok=True)
    os.symlink(tmp_path / "other" / "dictionaries" / "real", ws.root / "dictionaries" / "link")
    assert ws.items("dictionaries") == []


def test_newer_schema_is_refused(ws, tmp_path):
    item = make(ws)
    manifest = json.loads((item.path / "manifest.json").read_text())
    manifest["workbench_schema"] = 99
    (item.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NewerSchemaError, match="schema 99"):
        read_manifest(item.path)
    (ws.root / "workspace.json").write_text('{"schema": 7}')
    with pytest.raises(NewerSchemaError, match="schema 7"):
        Workspace(ws.root)


def test_not_a_manifest(ws):
    item = make(ws)
    (item.path / "manifest.json").write_text("[]")
    with pytest.raises(CorruptError):
        read_manifest(item.path)


def test_workspace_is_a_folder(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="is a file"):
        Workspace(tmp_path / "f")
    with pytest.raises(MissingError, match="workbench demo"):
        Workspace(tmp_path / "none", create=False)


def test_dictionary_ids():
    assert dictionary_id("mini-mamba", "L1S", 8, revision="step512", seed=1) == "mini-mamba@step512.L1S-8x.s1"
    assert check_id(dictionary_id("mini-pythia", "L2R", 32)) == "mini-pythia.L2R-32x"
