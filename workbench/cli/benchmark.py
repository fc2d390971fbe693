"""``workbench benchmark``: dictionaries of every kind where the truth is known, beside published numbers and peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DebugOption, JsonOption, bar, say, verb

COLUMNS = ("who", "kind", "setting", "f1", "f1_matched", "mcc", "ev", "l0", "dead", "uniqueness", "split", "absorbed")


@verb
def benchmark(
    what: Annotated[
        str,
        typer.Argument(
            help=(
                "synth: worlds of planted features (SynthSAEBench's definitions). trust: does the score of `workbench"
                " trust` tell planted latents from junk, and mean what it says?"
            )
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="One world and 300 steps instead of three and 2,000: minutes on two cores.")
    ] = False,
    world: Annotated[
        str, typer.Option(help="small (2,048 features in 128 dimensions), small-wide, small-narrow, or synth-16k.")
    ] = "small",
    latents: Annotated[int | None, typer.Option(min=1, help="Latents of every dictionary; default 512.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="L0 at which all are compared; default 9.")] = None,
    steps: Annotated[int | None, typer.Option(min=10, help="Steps of 1,024 rows.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Worlds; numbers are means over them.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="Only this kind; may be repeated.")] = None,
    peers: Annotated[
        Path | None,
        typer.Option(help="An environment with SAELens, dictionary_learning, sparsify (see benchmarks/peers.sh)."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Time a few steps of every kind and say what all of it would take.")
    ] = False,
    log: Annotated[
        Path | None, typer.Option(help="Keep finished runs in this file (JSON lines), and go on from those in it.")
    ] = None,
    write: Annotated[Path | None, typer.Option(help="Write the table into this Markdown file.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Train every activation on worlds whose features are known and say how well each found them.

    Published numbers stand beside ours, and those of other libraries on the same rows where `--peers` names an
    environment that has them (nothing is installed, nothing fetched). Values that are not known are null.

    `trust` takes `--quick` and `--write` alone.

    Example: `workbench benchmark synth --quick`, or `workbench benchmark trust --quick`
    """
    from dataclasses import replace

    from sae.errors import UsageError
    from sae.strict import nearest
    from sae.worlds import WORLDS
    from sae.worlds.benchmark import KINDS, QUICK, Budget, Kept, run
    from sae.worlds.published import published
    from workbench.runs.peers import peer_rows

    if what == "trust":
        return _trust(quick, write, quiet=json_output)
    if what != "synth":
        raise UsageError(
            f"benchmark {what!r} does not exist; there is `workbench benchmark synth`, and `workbench benchmark trust`."
        )
    if world not in WORLDS:
        raise UsageError(f"world {world!r} does not exist ({nearest(world, list(WORLDS))}).")
    for wrong in set(kind or ()) - set(KINDS):
        raise UsageError(f"kind {wrong!r} does not exist ({nearest(wrong, list(KINDS))}).")
    asked = {"world": world, "latents": latents, "k": k, "steps": steps, "seeds": seeds}
    budget = replace(QUICK if quick else Budget(), **{n: v for n, v in asked.items() if v is not None})  # type: ignore[arg-type]
    if budget.k > budget.latents:
        raise UsageError(f"--k {budget.k} latents cannot be on of --latents {budget.latents}.")
    kinds = tuple(x for x in KINDS if not kind or x in kind)
    settings = ("few-steps",) if quick else ("defaults", "few-steps", "faithful")
    if plan:
        return _plan(budget, settings, kinds, quiet=json_output)
    kept = Kept(log)
    with bar("benchmark synth", budget.seeds * len(kinds) * len(settings), "run") as shown:

        def done(name: str) -> None:
            shown.update()
            say(name)

        rows = run(budget, settings, kinds, done, kept)
    if peers is not None:
        rows += peer_rows(peers, budget, kinds, quick=quick, say=say, kept=kept)
    document: dict[str, Any] = {"benchmark": what, "budget": vars(budget), "rows": rows + published()}
    if write is not None:
        write.write_text(markdown(document), encoding="utf-8")
        say(f"{write}: written")
    if not json_output:
        _print(document["rows"])
    return document


def _plan(budget: Any, settings: tuple[str, ...], kinds: tuple[str, ...], *, quiet: bool) -> dict[str, Any]:
    """The hours of one thread that the benchmark would take."""
    from sae.worlds.plan import plan

    with bar("benchmark synth --plan", len(settings) * len(kinds), "kind") as shown:
        rows = plan(budget, settings, kinds, shown.update)
    hours = sum(r["hours"] for r in rows)
    if not quiet:
        for r in rows:
            step = f"{r['step_s'] * 1000:9.1f} ms a step" if r["step_s"] else ""
            print(f"{r['kind']:16} {r['setting']:10} {r['hours']:9.3f} h  {step}")
        print(f"{'together':27} {hours:9.3f} h of one thread")
    return {"benchmark": "synth", "budget": vars(budget), "plan": rows, "hours": hours}


def _trust(quick: bool, write: Path | None, *, quiet: bool) -> dict[str, Any]:
    """The calibration of the cards' score."""
    from workbench.analysis.trust.calibrate import markdown, report, runs

    with bar("benchmark trust", runs(quick), "world") as shown:

        def done(name: str) -> None:
            shown.update()
            say(name)

        document = report(quick=quick, done=done)
    page = markdown(document)
    if write is not None:
        write.write_text(page, encoding="utf-8")
        say(f"{write}: written")
    if not quiet:
        print(page)
    return document


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column)
    for r in rows:
        table.add_row(*(_shown(r.get(c)) for c in COLUMNS))
    Console(width=150, highlight=False).print(table)


def markdown(document: dict[str, Any]) -> str:
    """The table as a page of the documentation."""
    import platform
    from datetime import date

    import torch

    b = document["budget"]
    head = (
        "# Worlds with known features\n\n"
        f"Written by `workbench benchmark synth --write` on {date.today().isoformat()}: {platform.machine()}, torch"
        f" {torch.__version__}. World `{b['world']}`, {b['seeds']} of them with seeds that no setting was chosen on;"
        f" {b['latents']} latents, {b['steps']:,} steps of {b['batch']:,} rows, compared at an L0 of {b['k']}."
        " `published` rows are another world and budget (SynthSAEBench-16k, 4,096 latents, 200 million rows) and stand"
        " here for their order, not for their height. Definitions: `sae/worlds/scoring.py`.\n\n"
    )
    lines = ["| " + " | ".join((*COLUMNS, "CPU s")) + " |", "|" + "---|" * (len(COLUMNS) + 1)]
    for r in document["rows"]:
        lines.append("| " + " | ".join(_shown(r.get(c)) for c in (*COLUMNS, "cpu_s")) + " |")
    return head + "\n".join(lines) + "\n"
