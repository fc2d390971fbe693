"""``workbench plan``: what a recipe costs before it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, verb


@verb
def plan(
    recipe: Annotated[str, typer.Argument(help="A pretrain, harvest or train recipe: a file, or the name of a bundled one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    machine: Annotated[str, typer.Option(help="here (measured now), a100, h100 or h200.")] = "here",
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Say what a recipe costs before anything runs: steps, tokens, arithmetic, memory, disk, hours, and what binds.

    Counts are exact; times are a roofline at the machine's rates, so read them as orders of magnitude.

    Example: `workbench plan mini-train --machine h200`
    """
    from workbench.planning import as_json, machine_named, plan_recipe
    from workbench.workspace import Workspace

    described = machine_named(machine)
    document = as_json(plan_recipe(recipe, Workspace(workspace)), described)
    if not json_output:
        _print(recipe, document)
    return document


def _print(recipe: str, document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    counts = Table(
        title=f"{document['kind']} {recipe}", title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
    )
    for key in ("dictionaries", "sources", "tokens", "rows", "shards", "steps", "snapshots", "parameters"):
        if key in document:
            counts.add_row(key, f"{document[key]:,}")
    counts.add_row("arithmetic", f"{document['flops'] / 1e12:,.2f} TFLOP")
    counts.add_row("on disk", f"{document['disk_bytes'] / 2**20:,.0f} MiB")
    counts.add_row("peak memory", f"{document['memory_bytes'] / 2**20:,.0f} MiB" + ("" if document["fits_in_memory"] else "  does not fit"))
    console.print(counts)
    parts = Table(title=f"on {document['machine']}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("part", "seconds", "bound by"):
        parts.add_column(column, justify="right" if column == "seconds" else "left")
    for name, part in document["parts"].items():
        parts.add_row(name, f"{part['seconds']:,.2f}", part["bound_by"])
    parts.add_row("together", f"{document['seconds']:,.1f}", document["binding"])
    console.print(parts)
