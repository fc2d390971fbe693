"""What an installation brings: the same import names from a wheel and from a checkout, beside a stranger's ``ui``."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
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


@pytest.mark.parametrize("installed", ["standard"], indirect=True)
def test_the_container_builds_from_what_it_copies(installed, tmp_path):
    """The wheel made of the files the Containerfile names has the files of the checkout's."""
    _, site = installed
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    copied = [line.split()[1:] for line in lines if line.startswith("COPY ")]
    assert copied
    ignored = shutil.ignore_patterns("__pycache__")
    for *sources, target in copied:
        for name in sources:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tmp_path / target, ignore=ignored)
            else:
                shutil.copy(ROOT / name, tmp_path / target)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel:standard", "-d", str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        built = {name for name in archive.namelist() if not name.endswith("/")}
    have = {p.relative_to(site).as_posix() for p in site.rglob("*") if p.is_file()} - {"ui/__init__.py"}
    assert built == {name for name in have if "__pycache__" not in name}


def test_a_wheel_carries_the_documentation_that_was_built(tmp_path):
    """What `make docs` left in ``workbench/_site``, although git ignores it, in the wheel and in the sources."""
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("sae", "crosscoders", "workbench", "ui/workbench_ui", "data"):
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").touch()
    shutil.copy(ROOT / "workbench" / "version.py", tmp_path / "workbench")
    built = tmp_path / "workbench" / "_site" / "assets"
    built.mkdir(parents=True)
    for name in ("../index.html", "page.js"):
        (built / name).write_text("x")
    for target, kind in (("wheel", "*.whl"), ("sdist", "*.tar.gz")):
        command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(tmp_path / "dist")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (made,) = (tmp_path / "dist").glob(kind)
        shutil.unpack_archive(made, tmp_path / target, "zip" if target == "wheel" else "gztar")
        found = {p.name for p in (tmp_path / target).rglob("*") if p.is_file() and "_site" in p.parts}
        assert found == {"index.html", "page.js"}


def test_one_version_everywhere():
    from workbench.version import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_python_that_is_promised_is_in_the_workflow_and_the_table():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = [
        c.rpartition(" ")[2] for c in about["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    ]
    assert promised == ["3.11", "3.12", "3.13", "3.14"]
    assert about["requires-python"] == ">=3.11,<3.15"
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert f"python: [{', '.join(f'{p!r}' for p in promised)}]".replace("'", '"') in workflow
    assert all(f"{system}-latest" in workflow for system in ("ubuntu", "macos", "windows"))
    page = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    assert "| | " + " | ".join(promised) + " |" in page


HEADLESS = """
import sys
for name in ("streamlit", "plotly", "altair", "umap", "pynndescent"):
    sys.modules[name] = None
import workbench
from workbench.activations import HarvestRecipe
from workbench.dictionaries.recipe import TrainRecipe
store = HarvestRecipe(id="small", sources=[{"model": "mini-pythia"}], hooks=["L1R"], n_seq=24, ctx=32)
workbench.harvest("workspace", store)
recipe = TrainRecipe(store="small", sites=["L1R"], expansions=[2], ks=[4], batch_size=64, tokens=640)
print(workbench.train("workspace", recipe).path)
"""


def test_a_machine_without_a_screen_needs_no_pages_and_no_map(tmp_path):
    """Stores and dictionaries are made where Streamlit, Plotly and UMAP are not installed."""
    done = subprocess.run([sys.executable, "-c", HEADLESS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "workspace" / "dictionaries" / "mini-pythia.L1R-2x" / "manifest.json").is_file(), done.stdout
