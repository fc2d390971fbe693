"""Every column, number and axis says what it is, from one source."""

from __future__ import annotations

import ast
import html
import importlib
import itertools
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from sae.errors import UserError
from tests.ui.synthetic import make_workspace
from tests.ui.synthetic_results import add_all
from workbench.claims.curves import CURVES
from workbench.exporting.figures import FigureData, Kind, Panel, axis_labels, axis_words, build, figure_kinds
from workbench.exporting.kinds.evolution import UNITS, WORDS
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


def first_that_shows(ws: Workspace, kind: Kind) -> FigureData | None:
    """A figure of this kind of the first result that holds what it shows."""
    for item in ws.items(kind.source):
        try:
            return build(FigureSpec(figure=kind.name, source=f"{kind.source}/{item.id}"), ws)
        except UserError:  # the made-up result has no numbers for it
            continue
    return None


def test_every_axis_of_a_figure_is_explained(ws: Workspace) -> None:
    kinds = [k for k in figure_kinds().values() if not k.document]
    drawn = {k.name: made for k in kinds if (made := first_that_shows(ws, k)) is not None}
    assert len(drawn) >= len(kinds) - 9
    for name, made in drawn.items():
        labels = {label for _, label in axis_labels(made.panels)}
        assert labels == {label for label, _ in axis_words(made)}, name


def written_labels() -> dict[str, str]:
    """Every label of an axis as it stands in the code of a figure, with "1" where a value is put in -> file."""
    found: dict[str, str] = {}
    files = [p for room in ("exporting/kinds", "claims") for p in (ROOT / "workbench" / room).glob("*.py")]
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for call in ast.walk(tree):
            if not (isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Panel"):
                continue
            for key in call.keywords:
                if key.arg in ("x_label", "y_label", "value_label"):
                    found |= dict.fromkeys(texts(key.value, tree, vars(module)), path.name)
    return found


def texts(node: ast.AST | None, tree: ast.Module, module: dict[str, Any]) -> set[str]:
    """What an expression may say: constants, both sides of a choice, what names are set to, values of tables."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.JoinedStr(values=parts):
            said = [
                texts(getattr(p, "value", p), tree, module) or {"1"}
                if isinstance(p, ast.FormattedValue)
                else {str(p.value)}
                for p in parts
            ]
            return set(map("".join, itertools.product(*said)))
        case ast.IfExp(body=one, orelse=other):
            return texts(one, tree, module) | texts(other, tree, module)
        case ast.Dict(values=values):
            return {text for v in values for text in texts(v, tree, module)}
        case ast.Subscript(value=table) | ast.Call(func=ast.Attribute(value=table, attr="get")):
            return texts(table, tree, module)
        case ast.Name(id=name) if isinstance(module.get(name), str):
            return {module[name]}
        case ast.Name(id=name) if isinstance(module.get(name), dict):
            return {v for v in module[name].values() if isinstance(v, str)}
        case ast.Name(id=name):
            assigned = [
                n.value for n in ast.walk(tree) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name
            ]
            return {text for value in assigned for text in texts(value, tree, module)}
    return set()


def test_every_label_that_a_figure_can_have_is_explained() -> None:
    """Those of figures too that the made-up results cannot fill."""
    found = written_labels()
    found |= dict.fromkeys((*WORDS.values(), *(unit for _, unit in UNITS)), "evolution.py")
    found |= dict.fromkeys((label for c in CURVES.values() for label in (c.x_label, c.y_label)), "curves.py")
    assert len(found) > 60
    assert {label: where for label, where in found.items() if label.strip() and not meaning(label)} == {}


def test_axes_of_a_chart_are_links_to_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench_ui.kit.figures import axes_line

    monkeypatch.setattr("workbench.markup.glossary._LINKS", [])
    frame = pd.DataFrame({"x": [1], "y": [2]})
    panels = [Panel("line", frame, "x", "y", x_label="training step", y_label=y) for y in ("nats of it", "task metric")]
    plain = axes_line(panels, {"nats of it": "unit of a claim"})
    assert (
        plain.count(">training step<") == 1 and "href" not in plain and html.escape(LABELS["unit of a claim"]) in plain
    )
    link_to("/docs/")
    linked = axes_line(panels, {"nats of it": "unit of a claim"})
    for label, at in (
        ("training step", "training-step"),
        ("nats of it", "unit-of-a-claim"),
        ("task metric", "task-metric"),
    ):
        assert f'href="/docs/glossary.html#column-{at}" target="_blank">{label}</a>' in linked
    assert axes_line([Panel("scatter", frame, "x", "y")]) == ""


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
