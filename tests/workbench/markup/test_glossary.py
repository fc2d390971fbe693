"""Every column, number and axis says what it is, from one source."""

from __future__ import annotations

import ast
import html
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sae.errors import UserError
from tests.ui.synthetic import make_workspace
from tests.ui.synthetic_results import add_all
from workbench.exporting.figures import axis_words, build, figure_kinds
from workbench.exporting.spec import FigureSpec
from workbench.markup.glossary import (
    LABELS,
    READ_ON,
    TERMS,
    anchor,
    badge,
    header,
    link_to,
    meaning,
    pattern_lines,
    standing_alone,
    term,
    used_in,
    words,
)
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

    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = {
        t.id: n.value for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("table", "as_table", "stats"):
                yield from words(named.get(getattr(node.args[0], "id", ""), node.args[0]))
            if name == "Column" and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") in ("columns", "items") for t in node.targets):
            yield from words(node.value)


@pytest.mark.parametrize("room", ["ui/workbench_ui", "workbench/markup", "workbench/exporting/documents"])
def test_every_column_and_number_of_a_page_is_explained(room: str) -> None:
    seen = {word: path.name for path in (ROOT / room).rglob("*.py") for word in headings(path)}
    assert len(seen) > 8
    assert {word: where for word, where in seen.items() if not meaning(word) and word.lower() not in PLAIN} == {}


def test_every_badge_is_explained_and_made_in_one_place() -> None:
    files = [p for room in ("ui/workbench_ui", "workbench") for p in (ROOT / room).rglob("*.py")]
    by_hand = [p.name for p in files if p.name != "glossary.py" and "wb-badge" in p.read_text(encoding="utf-8")]
    assert by_hand == []
    asked = [
        node.args[0]
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "badge"
    ]
    assert len(asked) >= 10
    unsaid = [ast.unparse(a) for a in asked if not (isinstance(a, ast.Constant) and meaning(str(a.value)))]
    assert unsaid == []


def test_words_columns_and_badges_link_to_their_line_and_nothing_does_that_stands_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workbench.markup.glossary._LINKS", [])
    assert "href" not in term("twin") + header("twin r") + badge("stale", "stale")
    link_to("/docs/")
    for made, at in (
        (term("twin"), "word-twin"),
        (header("twin r"), "column-twin-r"),
        (badge("data version", "0123", "v"), "word-data-version"),
        (table(["δ loss"], [["1"]]), "column-δ-loss"),
    ):
        assert f'href="/docs/glossary.html#{at}" target="_blank"' in made
    assert header("nothing known") == "nothing known"
    with standing_alone():
        assert "href" not in term("twin") + header("twin r") + badge("stale", "stale")


def test_every_line_of_the_pages_stands_in_the_site_under_its_anchor_once() -> None:
    pages = runpy.run_path(str(ROOT / "tools" / "docs_pages.py"))
    page = pages["glossary"]()
    anchors = [anchor(word) for word in words()]
    assert len(set(anchors)) == len(anchors)
    assert all(page.count(f'<span id="{a}"></span>') == 1 and str(meaning(w)) in page for a, w in zip(anchors, words()))
    assert all(line in page for _, line in pattern_lines())
    assert set(READ_ON) <= set(TERMS) and all((ROOT / "docs" / target).is_file() for target in READ_ON.values())


def test_help_says_what_its_words_mean_in_the_same_lines() -> None:
    from workbench.cli import VERBS, app

    assert [w for w, _ in used_in("Match twins by MPPC; a hook-like `latent`.")] == ["twin", "MPPC"]
    said = " ".join(CliRunner().invoke(app, ["compare", "--help"]).output.split())
    assert TERMS["MPPC"] in said and "workbench docs compare" in said and TERMS["completeness"] not in said
    assert len(VERBS) > 20


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


def test_a_line_is_one_line_and_stands_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*TERMS.values(), *LABELS.values()]
    assert all("\n" not in line and 10 < len(line) < 170 for line in lines)
    assert all(line.endswith(".") and line[0].isupper() for line in TERMS.values())
    assert not any(line.endswith(".") for line in LABELS.values())
    assert not {k.lower() for k in TERMS} & {k.lower() for k in LABELS}
    monkeypatch.setattr("workbench.markup.glossary._LINKS", [])
    shown = table(["latent", "r", "nothing known"], [["1", "2", "3"]])
    assert shown.count("title=") == 2 and html.escape(TERMS["r"]) in shown
    assert term("<b>") == "&lt;b&gt;" and TERMS["chance"] in term("Chance, 99 %")
