"""``workbench plan``: what a recipe costs before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def plan(
    recipe: Annotated[
        str, typer.Argument(help="A pretrain, harvest, train or evolve recipe: a file, or the name of a bundled one.")
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    machine: Annotated[
        str, typer.Option(help="here (measured now), cpu, a100, h100, h200, or a TOML file that describes one.")
    ] = "here",
    devices: Annotated[int, typer.Option(min=1, help="Devices; the fastest layout that fits is taken.")] = 1,
    online: Annotated[
        bool, typer.Option("--online", help="Rows come from the models as needed, not from a store (train recipes).")
    ] = False,
    sweep: Annotated[
        str, typer.Option(help="A range of devices such as 1..1024, powers of two, instead of one number.")
    ] = "",
    write: Annotated[Path | None, typer.Option(help="With --sweep: draw it into this .svg, .pdf or .png file.")] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Say what a recipe costs before anything runs: steps, tokens, arithmetic, memory, disk, communication, hours, and
    what binds.

    Counts are exact; times are a model of the machine's rates.

    Example: `workbench plan llama-scope-8x --machine h200 --devices 64`
    """
    from sae.errors import UsageError
    from workbench.planning import machine_named, measured_here, planned_recipe
    from workbench.planning import sweep as sweeps
    from workbench.workspace import Workspace

    if write is not None and not sweep:
        raise UsageError("--write draws a sweep; give --sweep 1..1024 as well.")
    ws = Workspace(workspace)
    numbers = sweeps.counts(sweep) if sweep else [devices]
    if machine != "here":
        machine_named(machine)  # an unknown name is told before the recipe is read
    planned = planned_recipe(recipe, ws, online=online)
    described = measured_here(planned, ws) if machine == "here" else machine_named(machine)
    if sweep:
        rows = sweeps.sweep(planned, described, numbers)
        if write is not None:
            sweeps.draw(rows, f"{Path(recipe).stem} on {described.name}", write)
            say(f"{write}: drawn")
        if not json_output:
            print(sweeps.as_markdown(rows))
        return {"recipe": recipe, "kind": planned.kind, "sweep": rows, "rates": described.model_dump()}
    candidates = [planned.plan(layout).on(described) for layout in sweeps.layouts(planned, devices)]
    if not candidates:
        raise UsageError(f"{devices} devices cannot share this recipe evenly; take a power of two, such as 8.")
    document = min(
        candidates, key=lambda c: (not c["fits_in_memory"], c["seconds"] if c["fits_in_memory"] else c["memory_bytes"])
    )
    if not json_output:
        _print(recipe, document)
    return document | {"rates": described.model_dump()}


def _print(recipe: str, document: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from workbench.planning.cost import size

    console = Console(highlight=False)
    counts = Table(
        title=f"{document['kind']} {recipe}",
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=False,
    )
    for key in ("dictionaries", "sources", "passes", "tokens", "rows", "shards", "steps", "snapshots", "parameters"):
        if key in document:
            counts.add_row(key, f"{document[key]:,}")
    counts.add_row("arithmetic", f"{document['flops'] / 1e12:,.2f} TFLOP")
    counts.add_row("on disk", size(document["disk_bytes"]))
    fits = "" if document["fits_in_memory"] else "  does not fit"
    counts.add_row(
        "peak memory",
        size(document["memory_bytes"]) + (" per device" if document["layout"]["devices"] > 1 else "") + fits,
    )
    for item, amount in document["memory"].items():
        counts.add_row(f"  {item}", size(amount))
    if document["layout"]["devices"] > 1:
        counts.add_row("layout", " x ".join(f"{k} {v}" for k, v in document["layout"].items() if k != "devices"))
        counts.add_row("sent per step", size(document["sent_per_step"]) + " per device")
    console.print(counts)
    parts = Table(title=f"on {document['machine']}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("part", "seconds", "bound by"):
        parts.add_column(column, justify="right" if column == "seconds" else "left")
    for name, part in document["parts"].items():
        parts.add_row(name, f"{part['seconds']:,.2f}", part["bound_by"])
    hours = f" ({document['hours']:,.1f} hours)" if document["hours"] > 1 else ""
    parts.add_row("together", f"{document['seconds']:,.1f}{hours}", document["binding"])
    console.print(parts)
    for note in document["notes"]:
        console.print(f"note: {note}")
