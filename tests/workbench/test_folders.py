"""The page of folder formats is held against folders: every file, column and key that is written is described."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.ui.synthetic import make_workspace
from tests.ui.synthetic_results import add_all
from workbench.results.records import ARRAYS
from workbench.workspace import KINDS, Workspace

ROOT = Path(__file__).resolve().parents[2]
PAGES = runpy.run_path(str(ROOT / "tools" / "docs_pages.py"))
FORMATS: dict[str, Any] = PAGES["folder_formats"]()
CHECKPOINTS = "checkpoints/"


def found(names: Any, name: str) -> str | None:
    """The entry that describes a name: itself, else the first pattern that fits."""
    return name if name in names else next((p for p in names if "*" in p and fnmatchcase(name, p)), None)


def undescribed(folder: Path, kind: str) -> Iterator[str]:
    """What a result folder holds that the page does not say, or says wrongly."""
    about = FORMATS[kind]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(CHECKPOINTS):
            continue
        if name in ("manifest.json", "seal.json"):
            document = json.loads(path.read_text(encoding="utf-8"))
            for part in ("numbers", "metadata"):
                said = about.get(part, {})
                yield from (f"{kind} {part}.{k}" for k in document[part] if not found(said, k))
            continue
        entry = found(about.get("files", {}), name)
        if entry is None:
            yield f"{kind} {name}"
            continue
        table = about["files"][entry]
        if path.suffix == ".parquet" and isinstance(table, dict):
            columns = table["columns"].split()
            yield from (f"{kind} {name}: {c}" for c in pq.read_schema(path).names if not found(columns, c))
        if path.suffix == ".npy" and (said := table.split()[0]).rstrip("0123456789") in ("int", "uint", "float"):
            array = np.load(path, mmap_mode="r")
            if array.dtype != said or ("[" in table and array.ndim != table[: table.index("]")].count(",") + 1):
                yield f"{kind} {name}: {array.dtype} {array.shape}, described as {table!r}"


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("folders") / "ws", latents=16)
    add_all(made)
    return made


def test_every_kind_is_described_with_every_column() -> None:
    assert set(FORMATS) == {*KINDS, "columns"}
    empty = []
    for kind in KINDS:
        assert FORMATS[kind]["about"].endswith(".") and FORMATS[kind]["id"]
        for name, table in FORMATS[kind].get("files", {}).items():
            if isinstance(table, dict):
                columns = table["columns"].split()
                empty += [f"{kind} {name}: {c}" for c in columns if not PAGES["column_line"](FORMATS, table, c)]
                stray = set(table) - {"about", "columns", *columns}
                assert not stray, f"{kind} {name}: {stray} are no columns of it"
                assert len(columns) == len(set(columns))
    assert empty == []


def test_everything_in_a_workspace_is_described(ws: Workspace) -> None:
    items = [item for kind in KINDS for item in ws.items(kind)]
    assert len({item.kind for item in items}) >= 10
    assert sorted({x for item in items for x in undescribed(item.path, item.kind)}) == []


def test_a_column_or_file_that_nobody_described_is_found(ws: Workspace, tmp_path: Path) -> None:
    (tmp_path / "new.parquet").write_bytes(b"")
    np.save(tmp_path / "hist.npy", np.zeros((2, 64), np.int64))
    told = list(undescribed(tmp_path, "latents"))
    assert told[0].startswith("latents hist.npy: int64") and told[1:] == ["latents new.parquet"]


def test_bundled_models_and_arrays_of_records_are_as_described() -> None:
    models = [p.parent for p in (ROOT / "data" / "models").glob("*/manifest.json")]
    assert models and sorted({x for m in models for x in undescribed(m, "models")}) == []
    files = FORMATS["latents"]["files"]
    for name, (dtype, shape) in ARRAYS.items():
        said = files[f"{name}.npy"]
        assert said.startswith(f"{dtype} [{', '.join(map(str, shape))}] "), (name, said)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_everything_in_the_demo_is_described(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from workbench.cli import app

    done = CliRunner().invoke(app, ["demo", "--no-ui", "--workspace", str(tmp_path / "ws")])
    assert done.exit_code == 0, done.output[-2000:]
    items = [item for kind in KINDS for item in Workspace(tmp_path / "ws").items(kind)]
    assert sorted({x for item in items for x in undescribed(item.path, item.kind)}) == []
