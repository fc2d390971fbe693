"""The face: every name is callable whatever was imported before, typed, documented, and records its own command."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import crosscoders
import sae
import workbench
from sae import TopKSAE
from workbench.cli import app
from workbench.run import Run, command_of, recorded
from workbench.workspace import Item, Workspace

VERBS = (
    *("harvest", "train", "evaluate", "features", "import_dictionary", "compare", "circuits", "evolve", "explain"),
    *("graph", "map", "reproduce", "export", "trust", "score", "states"),
)
OPTIONAL = ("workbench.models.scan_cuda", "sae.backends.triton")  # need a GPU's packages


def test_no_submodule_takes_the_place_of_a_function():
    """A package bears no module called like a function that it exports: importing the one would hide the other."""
    for package in (workbench, sae, crosscoders):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name not in OPTIONAL and "__main__" not in found.name:
                importlib.import_module(found.name)
    for name in VERBS:
        assert callable(getattr(workbench, name)), name
    for package in (sae, crosscoders, workbench):
        for name in package.__all__:
            assert not inspect.ismodule(getattr(package, name)), f"{package.__name__}.{name}"


def test_importing_the_face_loads_neither_torch_nor_h5py():
    script = "import sys, workbench, sae, crosscoders; sys.exit(bool({'torch', 'h5py'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False).returncode == 0


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_one_shape(name):
    """``f(workspace, what, *, <typed options>, run=None) -> Item``, with a docstring that says when it raises."""
    function = getattr(workbench, name)
    parameters = list(inspect.signature(function).parameters.values())
    workspace, what, *options = parameters
    assert workspace.name == "workspace" and what.kind is what.POSITIONAL_OR_KEYWORD
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in options)
    assert options[-1].name == "run" and options[-1].default is None
    hints = typing.get_type_hints(inspect.unwrap(function))
    assert hints["return"] is Item and all(p.name in hints for p in parameters)
    text = inspect.getdoc(function) or ""
    assert "Raises:" in text and re.search(r"Examples?:", text) and ">>> " in text


@pytest.mark.parametrize("name", VERBS)
def test_examples_in_docstrings_are_calls_that_bind(name):
    """The example's call fits the signature; :mod:`tests.examples` runs whole ones."""
    import ast

    text = inspect.getdoc(getattr(workbench, name)) or ""
    lines = [line.split(">>> ")[-1].split("... ")[-1] for line in text.splitlines() if ">>> " in line or "... " in line]
    tree = ast.parse("\n".join(lines))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == name]
    assert len(calls) == 1
    call = calls[0]
    inspect.signature(getattr(workbench, name)).bind(
        *[object()] * len(call.args), **{k.arg: object() for k in call.keywords if k.arg}
    )


def test_the_recorded_command_is_the_call(tmp_path):
    """What differs from the defaults, in the words of the shell; a path by its last part."""
    said: list[str] = []

    @recorded("toy", unrecorded=("workers",))
    def toy(workspace, what, *, tokens=10, codes=True, probing=False, names=(), latents=(), workers=0, run=None):
        said.append(run.command)
        return workspace

    assert isinstance(toy(tmp_path / "ws", "a b"), Workspace)
    toy(
        tmp_path / "ws", ("a", "b"), tokens=20, codes=False, probing=True, names=("x", "y z"), latents=(1, 2), workers=3
    )
    toy(tmp_path / "ws", tmp_path / "recipe.toml")
    toy(tmp_path / "ws", "a", run=Run(command="workbench other"))
    assert said == [
        "workbench toy 'a b'",
        "workbench toy a b --tokens 20 --no-codes --probing --names x --names 'y z' --latents 1,2",
        "workbench toy recipe.toml",
        "workbench other",
    ]
    assert command_of("export", ["f"], {"set": {"latents": "[1]"}}, {}) == "workbench export f --set 'latents=[1]'"


def test_a_verb_in_python_and_in_the_shell_record_the_same(tmp_path):
    torch.manual_seed(0)
    ws = Workspace(tmp_path / "ws")
    for id in ("a", "b"):
        dictionary = TopKSAE(16, 64, 4)
        for p in dictionary.parameters():
            p.data = torch.randn_like(p)
        dictionary.metadata = {"model_name": "mini-pythia", "hook_name": "blocks.1.hook_resid_post"}
        dictionary.save(tmp_path / id)
        workbench.import_dictionary(ws, str(tmp_path / id), id=f"theirs-{id}")
    made = workbench.map(ws, ["theirs-a", "theirs-b"], layout=False, seed=3)
    assert made.manifest.command == "workbench map theirs-a theirs-b --no-layout --seed 3"
    other = Workspace(tmp_path / "other")
    for id in ("a", "b"):
        workbench.import_dictionary(other, str(tmp_path / id), id=f"theirs-{id}")
    typed = shlex.split(made.manifest.command)[1:]
    done = CliRunner().invoke(app, [*typed, "--workspace", str(other.root)])
    assert done.exit_code == 0, done.output
    assert other.get("maps", made.id).digest == made.digest
