"""``workbench demo``: the whole main job, then the browser."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    terminal_run,
    verb,
)


@verb
def demo(
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    model: Annotated[
        str, typer.Option(help="A real language model instead: smollm2-135m (make demo-real), a folder, a GGUF file.")
    ] = "",
    text: Annotated[
        Path | None, typer.Option(help="With --model: a folder or file of your own text, instead of documentation.")
    ] = None,
    ui: Annotated[bool, typer.Option("--ui/--no-ui", help="Open the browser app at the end.")] = True,
    port: Annotated[int, typer.Option(help="Port of the browser app.", min=1, max=65535)] = 8501,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any] | None:
    """Run the whole main job on the bundled models: activations of a Transformer and a Mamba, a dictionary on every
    residual layer of both, the records of every latent, matches between the two, induction circuits, a crosscoder over
    training; then open the browser.

    Complete results are reused, so a second run takes seconds, and an interrupted one goes on where it stopped.
    Needs no download and about three minutes on two cores. With --model: dictionaries on three layers of that model
    and a transcoder in the middle, their records, labels, evaluations, a map and a graph.

    Example: `workbench demo`, or `workbench demo --model path/to/model --text path/to/text --workspace mine`
    """
    import time

    from sae.errors import UsageError
    from workbench.runs.demo import run_demo
    from workbench.runs.real import run_real_demo
    from workbench.workspace import Workspace

    begin = time.perf_counter()
    if text is not None and not model:
        raise UsageError("--text is for a real model. Say which: --model smollm2-135m.")
    ws = Workspace(workspace)
    run = terminal_run(replace=replace)
    made = run_real_demo(ws, model, text, run) if model else run_demo(ws, run)
    if not json_output:
        _summary(ws, workspace, made, time.perf_counter() - begin, bundled=not model)
    if ui and not json_output:
        from workbench.cli.ui import ui as open_browser

        open_browser(workspace=workspace, port=port, browser=True, debug=debug)
    return {"workspace": str(workspace), "seconds": round(time.perf_counter() - begin, 1), "steps": made}


def _summary(ws: Any, workspace: Any, made: dict[str, Any], seconds: float, *, bundled: bool) -> None:
    """What exists now, where, and what to try next."""
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout)
    table = Table(title="Dictionaries", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("id", "latents", "k", "explained variance", "L0", "dead", "held-out rows"):
        table.add_column(column, justify="left" if column == "id" else "right")
    for item in ws.items("dictionaries"):
        n = item.manifest.numbers
        if "explained_variance" not in n:
            continue
        row = (
            f"{n['d_sae']:,}",
            str(n["k"]),
            f"{n['explained_variance']:.3f}",
            f"{n['l0']:.1f}",
            f"{n['dead_share']:.1%}",
            f"{n['n_heldout']:,}",
        )
        table.add_row(item.id, *row)
    console.print(table)
    for title, about in made.items():
        console.print(f"{title:<16} {about['seconds']:>6.1f} s   {len(about['ids'])} ready")
    console.print(
        f"\nDone in {seconds:.0f} s. Everything is in {workspace}/ (a plain folder; copy it where you like).\n"
    )
    console.print("Try next:", style="bold")
    lines = [
        f"workbench ui --workspace {workspace}                 browse the latents",
        f"workbench info {workspace}                           what is there, with numbers",
        f"workbench train mini-train --workspace {workspace}    train your own dictionaries",
        f"workbench reproduce --quick --workspace {workspace}   re-run the findings of three papers",
    ]
    for line in lines if bundled else lines[:2]:
        console.print("  " + line, highlight=False, soft_wrap=True)
