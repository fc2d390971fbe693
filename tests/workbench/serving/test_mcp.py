"""``workbench serve --mcp``, asked by a real client over a real pipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from tests.ui.synthetic import make_workspace, vocabulary
from tests.ui.synthetic_results import add_all
from workbench.cli import app
from workbench.exporting.figures import build
from workbench.exporting.spec import FigureSpec
from workbench.results.matches import MatchRecords
from workbench.results.records import LatentRecords
from workbench.serving.answers import QUESTIONS
from workbench.workspace import Workspace

pytest.importorskip("mcp", reason="the extra `mcp` is not installed")
ROOT = Path(__file__).resolve().parents[3]
MATCH = "mini-pythia.L2R-8x__mini-mamba.L2R-8x"


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Every kind of result, every token an attack or a control character."""
    made = make_workspace(tmp_path_factory.mktemp("mcp") / "ws", latents=64, hostile=True)
    add_all(made, vocab=vocabulary(hostile=True), text="</script>\x1b[31m")
    return made


def asked(folder: Path, *questions: tuple[str, dict[str, Any]]) -> list[Any]:
    """The results of some calls in one session of the library's client, which starts the server as an agent does."""
    from mcp import ClientSession, StdioServerParameters, stdio_client

    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "workbench", "serve", "--mcp", "--workspace", str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    async def talk() -> list[Any]:
        with open(os.devnull, "w") as quiet:
            async with stdio_client(command, errlog=quiet) as pipes, ClientSession(*pipes) as session:
                await session.initialize()
                return [await session.list_tools(), *[await session.call_tool(n, a) for n, a in questions]]

    return anyio.run(talk)


def good(answer: Any) -> dict[str, Any]:
    assert not answer.is_error, answer.content
    assert json.loads(answer.content[0].text) == answer.structured_content
    return answer.structured_content


def test_a_client_finds_reads_and_compares_what_the_workspace_holds(ws: Workspace) -> None:
    id = "mini-pythia.L2R-8x"
    records = LatentRecords.open(ws.path("latents", id))
    peak = str(records.row(3)["peak_text"])
    best = MatchRecords.open(ws.path("matches", MATCH)).best
    row = best[(best["direction"] == "ab") & best["r"].notna()].iloc[0]
    two = {
        "comparison": MATCH,
        "dictionary_a": id,
        "latent_a": int(row["latent"]),
        "dictionary_b": row["partner_dictionary"],
        "latent_b": int(row["partner"]),
    }
    tools, *answers = asked(
        ws.root,
        ("list_results", {}),
        ("search_latents", {"dictionary": id, "text": peak, "limit": 200}),
        ("search_latents", {"dictionary": id, "sort": "max", "limit": 5}),
        ("latent_card", {"dictionary": id, "latent": 3}),
        ("matches", {"comparison": MATCH, "dictionary": id, "latent": int(row["latent"])}),
        ("pair", two),
        ("evolution", {"id": "mini-pythia.L1R"}),
        ("evolution", {"id": "mini-pythia.L1R", "latent": 2}),
        ("circuits", {"id": "mini-pythia.induction"}),
        ("figures", {}),
        ("figure_data", {"figure": "evolution_phases", "source": "evolution/mini-pythia.L1R"}),
        ("manifest", {"kind": "latents", "id": id}),
    )
    assert {t.name for t in tools.tools} == {q.__name__ for q in QUESTIONS}
    assert all(t.annotations.read_only_hint and len(t.description) > 80 for t in tools.tools)
    assert all("workspace" not in t.input_schema["properties"] for t in tools.tools)
    whole, found, sorted_, card, pairs, both, phases, one, effects, figures, table, manifest = map(good, answers)

    here = ws.get("latents", id)
    assert [x["id"] for x in whole["results"]["latents"]] == [i.id for i in ws.items("latents")]
    assert 3 in [x["latent"] for x in found["latents"]] and found["version"] == here.version and found["of"] == 64
    values = [x["max"] for x in sorted_["latents"]]
    assert values == records.table["max"].nlargest(5).tolist()
    top = records.contexts(3, "top", 5)
    assert [c["value"] for c in card["contexts"]["top"]["contexts"]] == pytest.approx([c.value for c in top])
    assert card["contexts"]["top"]["available"] == records.available(3, "top")
    assert card["n_tokens"] == records.n_tokens and card["latent"]["n_fired"] == records.row(3)["n_fired"]
    assert pairs["best"][0]["r"] == pytest.approx(float(row["r"])) and "token" in pairs["trap"]
    measured = MatchRecords.open(ws.path("matches", MATCH)).pair(*list(two.values())[1:])
    assert both["r"] == pytest.approx(measured.r) and both["n_tokens"] == measured.n_tokens
    assert both["n_cofire"] == measured.n_cofire
    assert len(phases["snapshots"]) == len(phases["steps"]) == len(one["norms"]["training"])
    assert {"value", "n", "verdict"} <= set(phases["statistics"][0])
    assert abs(effects["effects"][0]["effect"]) == max(abs(x["effect"]) for x in effects["effects"])
    assert "latents_page" not in figures["figures"] and figures["figures"]["evolution_phases"]["sources"]
    drawn = build(FigureSpec(figure="evolution_phases", source="evolution/mini-pythia.L1R"), ws).data
    assert table["found"] == len(drawn) and len(table["rows"]) == min(100, len(drawn))
    assert manifest["manifest"]["files"]["latents.parquet"]["sha256"]
    text = json.dumps([a.structured_content for a in answers], ensure_ascii=False)
    assert not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in text)


@pytest.mark.parametrize(
    ("question", "parameters", "words"),
    [
        ("latent_card", {"dictionary": "mini-pythia.L2R-8", "latent": 0}, "mini-pythia.L2R-8x"),
        ("latent_card", {"dictionary": "mini-pythia.L2R-8x", "latent": 64}, "latent 64 is not in"),
        ("latent_card", {"dictionary": "../../etc/passwd", "latent": 0}, "is not an id"),
        ("search_latents", {"dictionary": "mini-pythia.L2R-8x", "limit": 0}, "choose 1 to 200"),
        ("search_latents", {"dictionary": "mini-pythia.L2R-8x", "sort": "maxx"}, "'maxx' is not a column"),
        ("matches", {"comparison": MATCH, "latent": 1}, "say whose latent"),
        ("circuits", {"id": "mini-pythia.induction", "analysis": "nope"}, "'nope' is not an analysis"),
        ("figure_data", {"figure": "evolution_phase"}, "evolution_phases"),
        ("list_results", {"kind": "latent"}, "latents"),
    ],
)
def test_what_is_wrong_is_a_tool_error_in_one_line(
    ws: Workspace, question: str, parameters: dict[str, Any], words: str
) -> None:
    from mcp.server.mcpserver.exceptions import ToolError

    from workbench.cli.common import message_of
    from workbench.serving.mcp import server

    with pytest.raises(ToolError, match=r"\S") as error:
        anyio.run(server(ws, message_of).call_tool, question, parameters)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_error_reaches_the_client_and_the_session_goes_on(ws: Workspace) -> None:
    (ws.root / "latents" / "half").mkdir(exist_ok=True)  # a result that is not complete
    _, bad, again = asked(ws.root, ("latent_card", {"dictionary": "half", "latent": 0}), ("list_results", {}))
    assert bad.is_error and "latents/half is not in" in bad.content[0].text and "\n" not in bad.content[0].text
    assert "half" not in [x["id"] for x in good(again)["results"]["latents"]]


def test_stdout_is_the_protocol_alone_and_nothing_is_written(ws: Workspace) -> None:
    before = {p: p.stat().st_mtime_ns for p in ws.root.rglob("*")}
    lines = [
        {"id": 1, "method": "initialize", "params": {"protocolVersion": "2025-06-18", "capabilities": {}}},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "list_results", "arguments": {}}},
    ]
    lines[0]["params"]["clientInfo"] = {"name": "test", "version": "0"}  # type: ignore[index]
    out = subprocess.Popen(
        [sys.executable, "-m", "workbench", "serve", "--mcp", "--workspace", str(ws.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert out.stdin is not None and out.stdout is not None
    for line in lines:
        out.stdin.write(json.dumps({"jsonrpc": "2.0", **line}) + "\n")
    out.stdin.flush()
    answers = [json.loads(out.stdout.readline()) for _ in range(2)]
    rest, said = out.communicate(timeout=60)  # closes its stdin: the server ends
    assert [a["id"] for a in answers] == [1, 2] and not rest and out.returncode == 0
    assert "Traceback" not in said and "answering on stdin and stdout" in said
    assert {p: p.stat().st_mtime_ns for p in ws.root.rglob("*")} == before


Invoke = Callable[..., Any]


def test_the_verb_refuses_in_one_line_and_prints_its_questions(ws: Workspace, tmp_path: Path) -> None:
    run: Invoke = CliRunner().invoke
    assert run(app, ["serve", "-w", str(ws.root)]).exit_code == 2
    missing = run(app, ["serve", "--mcp", "-w", str(tmp_path / "none")])
    assert missing.exit_code == 1 and "does not exist" in missing.stderr and not missing.stdout
    shown = run(app, ["serve", "--mcp", "--json", "-w", str(ws.root)])
    named = {t["name"]: t["parameters"] for t in json.loads(shown.stdout)["tools"]}
    assert set(named) == {q.__name__ for q in QUESTIONS}
    assert set(named["latent_card"]["required"]) == {"dictionary", "latent"}
