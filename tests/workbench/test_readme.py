"""The script in the README runs as it stands there, and its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_script_trains_a_dictionary(tmp_path):
    script = re.search(r"```python\n(.*?)```", README, re.S)[1]
    assert len(script.strip().splitlines()) <= 24
    out = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert float(re.search(r"explained variance ([\d.]+)", out.stdout)[1]) > 0.7
    assert (tmp_path / "my-sae" / "sae_weights.safetensors").exists()


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
