"""What an installation brings: the same import names from a wheel and from a checkout, beside a stranger's ``ui``."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sae", "crosscoders", "workbench", "workbench_ui")

# Without site-packages and environment (-I -S), so that nothing but the folder under test can answer.
ASK = """
import importlib, importlib.util, site, sys
site.addsitedir(sys.argv[1])
for name in sys.argv[2:]:
    print(importlib.util.find_spec(name).origin)
print(importlib.util.find_spec("workbench_ui.server").origin)
import ui, workbench_ui
print(ui.WHOSE, workbench_ui.__name__)
"""


@pytest.fixture(scope="module", params=["standard", "editable"])
def installed(request, tmp_path_factory) -> tuple[str, Path]:
    """A folder as pip leaves it after installing a wheel, or the checkout in editable mode, and a stranger's ``ui``."""
    built, site = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "hatchling", "build", "-t", f"wheel:{request.param}", "-d", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert not (site / "ui").exists()
    (site / "ui").mkdir()
    (site / "ui" / "__init__.py").write_text("WHOSE = 'a stranger'\n")
    return request.param, site


def test_the_pages_do_not_take_the_name_ui(installed):
    kind, site = installed
    command = [sys.executable, "-I", "-S", "-c", ASK, str(site), *NAMES]
    done = subprocess.run(command, cwd=site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *origins, server, names = done.stdout.splitlines()
    where = {name: (site if kind == "standard" else ROOT) / name for name in NAMES}
    if kind == "editable":
        where["workbench_ui"] = ROOT / "ui" / "workbench_ui"
    assert [Path(o).parent for o in origins] == list(where.values())
    assert Path(server).parent == where["workbench_ui"]
    assert names == "a stranger workbench_ui"


def test_what_the_pages_read_is_installed_with_them(installed):
    """Style, pictures, scripts of the browser and Streamlit's settings lie beside the modules, in a wheel too."""
    kind, site = installed
    here = ROOT / "ui" / "workbench_ui"
    there = site / "workbench_ui" if kind == "standard" else here
    kept = {p.relative_to(here) for p in here.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert Path(".streamlit", "config.toml") in kept
    assert {p for p in kept if not (there / p).is_file()} == set()
