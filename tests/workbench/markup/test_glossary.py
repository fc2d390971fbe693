"""Every column, number and axis says what it is, from one source."""

from __future__ import annotations

import ast
import html
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae.errors import UserError
from tests.ui.synthetic import make_workspace
from tests.ui.synthetic_results import add_all
from workbench.exporting.figures import axis_words, build, figure_kinds
from workbench.exporting.spec import FigureSpec
from workbench.markup.glossary import LABELS, TERMS, meaning, term
from workbench.markup.tables import table
from workbench.workspace import Workspace

ROOT = Path(__file__).resolve().parents[3]
PLAIN = {  # say what they are
    *(
        "",
        "about",
        "above",
        "after",
        "before",
        "architecture",
        "axis",
        "bytes",
        "can be browsed",
        "claim",
        "comparison",
    ),
    *(
        "correlation with",
        "dictionary",
        "does",
        "file",
        "from",
        "to",
        "higher",
        "lower",
        "id",
        "in the zip",
        "key",
        "made by",
    ),
    *("model", "note", "of", "of its maximum", "rank", "result", "side", "source", "what it fires on", "what it means"),
    *(
        "what it needs",
        "which",
        "evolution",
        "circuits",
        "between",
        "task",
        "prompts",
        "hook",
        "findings",
        "open",
        "no.",
    ),
    *(
        "remove",
        "data",
        "ce_bigram",
        "ce_unigram",
        "h1",
        "h2",
    ),  # the last ones are keys of numbers, not names on a page
    "change in percentage points, largest first",
}


def headings(path: Path) -> Iterator[str]:
    """Headers of tables, names of statistics and titles of columns that stand in a file as they are."""

    def words(node: ast.AST) -> Iterator[str]:
        for e in getattr(node, "elts", ()):
            first = e.elts[0] if isinstance(e, ast.Tuple) and e.elts else e
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("table", "as_table", "stats"):
                yield from words(node.args[0])
            if name == "Column" and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") in ("columns", "items") for t in node.targets):
            yield from words(node.value)


@pytest.mark.parametrize("room", ["ui/workbench_ui", "workbench/markup", "workbench/exporting/documents"])
def test_every_column_and_number_of_a_page_is_explained(room: str) -> None:
    seen = {word: path.name for path in (ROOT / room).rglob("*.py") for word in headings(path)}
    assert len(seen) > 8
    assert {word: where for word, where in seen.items() if not meaning(word) and word.lower() not in PLAIN} == {}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = make_workspace(tmp_path_factory.mktemp("glossary") / "ws", latents=16)
    add_all(made)
    return made


def test_every_axis_of_a_figure_is_explained(ws: Workspace) -> None:
    drawn = 0
    for name, kind in figure_kinds().items():
        if kind.document or kind.source not in ("latents", "matches", "circuits", "evolution", "maps"):
            continue
        source = f"{kind.source}/{ws.items(kind.source)[0].id}"
        try:
            made = build(FigureSpec(figure=name, source=source), ws)
        except UserError:  # the made-up workspace has no numbers for it
            continue
        drawn += 1
        labels = {
            x for p in made.panels if p.kind != "strips" for x in (p.x_label, p.y_label, p.value_label) if x.strip()
        }
        known = {label for label, _ in axis_words(made)}
        assert {x for x in labels - known if x.lower() not in PLAIN} == set(), name
    assert drawn >= 12


def test_a_line_is_one_line_and_stands_once() -> None:
    lines = [*TERMS.values(), *LABELS.values()]
    assert all("\n" not in line and 10 < len(line) < 170 for line in lines)
    assert all(line.endswith(".") and line[0].isupper() for line in TERMS.values())
    assert not any(line.endswith(".") for line in LABELS.values())
    assert not {k.lower() for k in TERMS} & {k.lower() for k in LABELS}
    shown = table(["latent", "r", "nothing known"], [["1", "2", "3"]])
    assert shown.count("title=") == 2 and html.escape(TERMS["r"]) in shown
    assert term("<b>") == "&lt;b&gt;" and TERMS["chance"] in term("Chance, 99 %")
