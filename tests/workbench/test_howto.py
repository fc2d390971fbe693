"""Python on a page of the documentation runs as it stands there, or the page says why it is not run."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

import workbench
from workbench.activations import HarvestRecipe
from workbench.dictionaries.recipe import TrainRecipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NOT_RUN = "<!-- not run: "
ELSEWHERE = {  # page -> the test that runs its blocks
    "store-format.md": "activations/test_format_document.py",
    **{f"tutorials/{p.name}": "test_tutorials.py" for p in (DOCS / "tutorials").glob("*.md")},
}
BLOCKS = [
    (page.relative_to(DOCS).as_posix(), before.strip().splitlines()[-1] if before.strip() else "", code)
    for page in sorted(DOCS.rglob("*.md"))
    for before, code in re.findall(r"(.*?)```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
]
HERE = [(page, code) for page, before, code in BLOCKS if page not in ELSEWHERE and not before.startswith(NOT_RUN)]
SLOW = {"how-to/trust.md"}  # trains what its cards are held against


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands who has run the demo, a hundredth of its size."""
    made = tmp_path_factory.mktemp("howto")
    home = workbench.Workspace(made / "workspace")
    workbench.harvest(
        home, HarvestRecipe(id="demo", sources=[{"model": "mini-pythia"}], hooks=["L1R"], n_seq=40, ctx=64)
    )
    recipe = {"store": "demo", "sites": ["L1R"], "expansions": [8], "ks": [16], "batch_size": 128, "tokens": 2560}
    workbench.features(home, workbench.train(home, TrainRecipe(**recipe)).id)
    lines = [
        f"{key} = {value!r}" if not isinstance(value, str) else f'{key} = "{value}"' for key, value in recipe.items()
    ]
    (made / "mini-train").write_text("\n".join(lines).replace("'", '"') + "\n", encoding="utf-8")
    return made


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(BLOCKS) >= 35 and len(HERE) >= 4
    for page, test in ELSEWHERE.items():
        assert (DOCS / page).is_file() and (ROOT / "tests" / "workbench" / test).is_file()
    for page, before, _ in BLOCKS:
        assert not before.startswith(NOT_RUN) or before.endswith(" -->"), page


@pytest.mark.parametrize(
    "page, code",
    [pytest.param(p, c, id=p, marks=[pytest.mark.slow] if p in SLOW else []) for p, c in HERE],
)
def test_a_block_runs(page: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    exec(compile(code, page, "exec"), {"__name__": "howto"})
