"""``workbench info``: what a workspace holds, with its numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, say, verb

SHOWN = {
    "models": ("parameters", "heldout_loss", "tokens"),
    "stores": ("rows", "shards", "bytes"),
    "dictionaries": ("d_sae", "k", "explained_variance", "l0", "dead_share", "n_heldout"),
    "latents": ("n_latents", "l0", "dead_share", "ultra_dense_share", "n_tokens"),
    "evaluations": ("ev", "l0", "delta_ce", "ce_recovered_zero", "kl", "dead_share"),
}
TITLES = {
    "d_sae": "latents",
    "n_latents": "latents",
    "l0": "L0",
    "ev": "explained variance",
    "delta_ce": "Δ loss, nats",
    "ce_recovered_zero": "loss recovered",
    "kl": "KL, nats",
    "ultra_dense_share": "share on > 10 % of tokens",
    "n_heldout": "held-out rows",
    "n_tokens": "tokens",
    "heldout_loss": "held-out loss",
}


@verb
def info(
    directory: Annotated[Path, typer.Argument(help="The workspace folder.")] = DEFAULT_WORKSPACE,
    stale: Annotated[
        bool,
        typer.Option(
            "--stale",
            help="Only what rests on something that was made again, and the commands that bring it up to date.",
        ),
    ] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """List the models, stores, dictionaries and analyses of a workspace with their numbers.

    A value that was not computed is absent, never zero. `--json` gives everything the manifests say. A result is
    *stale* where an input was made again after it; `workbench refresh` runs the commands that `--stale` lists.

    Examples: `workbench info workspace`, `workbench info workspace --stale`
    """
    from sae.errors import MissingError
    from workbench.results.stale import known_results, stale_results
    from workbench.workspace import KINDS, Workspace

    workspace = Workspace(directory, create=False)
    if not (workspace.root / "workspace.json").exists() and not any((workspace.root / kind).is_dir() for kind in KINDS):
        raise MissingError(
            f"{directory} is a folder, but not a workspace (it has no workspace.json). Name the folder that holds the"
            " results."
        )
    known = known_results(workspace)
    old = stale_results(known)
    if stale:
        return describe_stale(known, old, json_output=json_output)
    found = {
        kind: [
            _about(item) | ({"stale": list(old[kind, item.id].why)} if (kind, item.id) in old else {})
            for item in workspace.items(kind)
        ]
        for kind in KINDS
    }
    document = {"workspace": directory.name, **{kind: items for kind, items in found.items() if items}}
    if not json_output:
        _print(document, directory)
        if old:
            say(f"{len(old)} results are stale: `workbench info {directory} --stale` says why and what to run.")
    return document


def describe_stale(known: Any, old: Any, *, json_output: bool) -> dict[str, Any]:
    """The stale results and what to run, as lines and as a document."""
    from workbench.results.stale import commands

    todo = commands(known, old)
    if not json_output:
        for line in map(str, old.values()):
            print(line)
        print("\nIn this order:" if todo else "Nothing is stale." if not old else "")
        for command, names in todo:
            print(f"  {command or '(no command is recorded)'} --replace    # {', '.join(names)}")
    return {
        "stale": [{"kind": s.kind, "id": s.id, "why": list(s.why), "by": s.by} for s in old.values()],
        "commands": [{"command": c, "makes": list(names)} for c, names in todo],
    }


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
            or tuple(sorted({k for i in items for k, v in i.get("numbers", {}).items() if _is_number(v)}))[:6]
        )
        table = Table(title=kind, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("id", no_wrap=True)
        table.add_column("version")
        for c in columns:
            table.add_column(TITLES.get(c, c.replace("_", " ")), justify="right")
        for item in items:
            numbers = item.get("numbers", {})
            shown = f"{item['id']}  (stale)" if "stale" in item else item["id"]
            table.add_row(shown, str(item.get("version", "")), *(_number(numbers.get(c)) for c in columns))
        console.print(table)
        console.print()


def _is_number(value: Any) -> bool:
    """A number, or an estimate with its interval."""
    return isinstance(value.get("value") if isinstance(value, dict) else value, (int, float))


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        value = value.get("value")
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
