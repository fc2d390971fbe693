"""The script in the README runs as it stands there, and its commands exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import workbench
from workbench.activations import HarvestRecipe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


def run(script: str, folder: Path) -> str:
    """What a snippet prints, run as it stands in a folder."""
    out = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_every_snippet_is_tried_and_none_hides_a_package():
    assert len(SNIPPETS) == 2
    for script in SNIPPETS:
        named = {
            t.id
            for n in ast.walk(ast.parse(script))
            if isinstance(n, ast.Assign)
            for t in n.targets
            if isinstance(t, ast.Name)
        }
        assert not named & {"sae", "crosscoders", "workbench", "workbench_ui"}


def test_the_script_trains_a_dictionary(tmp_path):
    assert len(SNIPPETS[0].strip().splitlines()) <= 24
    printed = run(SNIPPETS[0], tmp_path)
    assert float(re.search(r"explained variance ([\d.]+)", printed)[1]) > 0.7
    assert (tmp_path / "my-sae" / "sae_weights.safetensors").exists()


def test_the_verbs_make_what_the_shell_makes(tmp_path):
    """On a store and a recipe a hundredth of the size, which lie where the snippet looks for them."""
    store = HarvestRecipe(id="demo", sources=[{"model": "mini-pythia"}], hooks=["L1R"], n_seq=40, ctx=64)
    workbench.harvest(tmp_path / "workspace", store)
    (tmp_path / "mini-train").write_text(
        'store = "demo"\nsites = ["L1R"]\nexpansions = [2]\nks = [4]\nbatch_size = 128\ntokens = 2560\n'
    )
    printed = run(SNIPPETS[1], tmp_path)
    assert re.fullmatch(r"mini-pythia\.L1R-2x 0\.\d+ \S+latents/mini-pythia\.L1R-2x\n", printed)


def test_it_is_a_screen_and_a_half_with_one_picture():
    assert len(README.split()) <= 900 and len(re.findall(r"^!\[", README, re.M)) == 1


def test_every_verb_and_recipe_the_readme_names_exists():
    from workbench.cli import available
    from workbench.config import find_recipe

    verbs = set(re.findall(r"workbench +([a-z]+)\b", README)) - {"is"}
    assert verbs <= {*available(), "tests"}, verbs
    for recipe in re.findall(r"workbench (?:harvest|train|pretrain|plan) +(mini-[a-z-]+)", README):
        find_recipe(recipe)


def test_links_and_images_of_the_readme_exist():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
