"""``workbench info``: what a workspace holds, with its numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, verb

SHOWN = {
    "models": ("parameters", "heldout_loss", "tokens"),
    "stores": ("rows", "shards", "bytes"),
    "dictionaries": ("d_sae", "k", "explained_variance", "l0", "dead_share", "n_heldout"),
    "latents": ("n_latents", "l0", "dead_share", "ultra_dense_share", "n_tokens"),
}


@verb
def info(
    directory: Annotated[Path, typer.Argument(help="The workspace folder.")] = DEFAULT_WORKSPACE,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """List the models, stores, dictionaries and analyses of a workspace with their numbers.

    A value that was not computed is absent, never zero. `--json` gives everything the manifests say.

    Example: `workbench info workspace`
    """
    from sae.errors import MissingError
    from workbench.workspace import KINDS, Workspace

    workspace = Workspace(directory, create=False)
    if not (workspace.root / "workspace.json").exists() and not any((workspace.root / kind).is_dir() for kind in KINDS):
        raise MissingError(
            f"{directory} is a folder, but not a workspace (it has no workspace.json). Name the folder that holds the"
            " results."
        )
    found = {kind: [_about(item) for item in workspace.items(kind)] for kind in KINDS}
    document = {"workspace": directory.name, **{kind: items for kind, items in found.items() if items}}
    if not json_output:
        _print(document, directory)
    return document


def _about(item: Any) -> dict[str, Any]:
    """One result as the document lists it. Stores carry a seal instead of a manifest."""
    if item.kind == "stores":
        from workbench.activations import describe_store

        return {"id": item.id, **describe_store(item.path)}
    manifest = item.manifest
    return {"id": item.id, "version": item.version, "numbers": manifest.numbers, "metadata": manifest.metadata}


def _print(document: dict[str, Any], directory: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 140)
    kinds = [k for k in document if k != "workspace"]
    if not kinds:
        console.print(f"{directory} is an empty workspace. `workbench demo --workspace {directory}` fills it.")
    for kind in kinds:
        items = document[kind]
        columns = (
            SHOWN.get(kind)
            or tuple(
                sorted({k for i in items for k, v in i.get("numbers", {}).items() if isinstance(v, (int, float))})
            )[:6]
        )
        table = Table(title=kind, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("id", no_wrap=True)
        table.add_column("version")
        for c in columns:
            table.add_column(c.replace("_", " "), justify="right")
        for item in items:
            numbers = item.get("numbers", {})
            table.add_row(item["id"], str(item.get("version", "")), *(_number(numbers.get(c)) for c in columns))
        console.print(table)
        console.print()


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        value = value.get("value")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
