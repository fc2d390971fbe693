"""``workbench export``: a figure as a bundle for a paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DEFAULT_WORKSPACE, DebugOption, JsonOption, WorkspaceOption, say, verb


@verb
def export(
    spec: Annotated[str, typer.Argument(help="A .toml or .json spec, or the name of a bundled one.")] = "",
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    source: Annotated[str, typer.Option(help="Result to show, as kind/id; wins over the spec's.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the figure, as key=value (value in JSON or plain).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the zip to this file, or into this folder.")] = None,
    expect: Annotated[str, typer.Option(help="Fail unless the data have this SHA-256 (reproduce.sh).")] = "",
    list_: Annotated[bool, typer.Option("--list", help="List figures, their options and the bundled specs.")] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Write a figure as a bundle: PDF, SVG, PNG, CSV, Parquet, LaTeX table, BibTeX, caption, provenance, reproduce.sh.

    Two exports are documents instead: `latents_page` (one HTML file) and `neuronpedia` (its feature schema).

    Example: `workbench export latents_page --source latents/mini-pythia.L1R-8x --set 'latents=[3,17]'`
    """
    from sae.errors import CorruptError, UsageError
    from sae.files import disk_errors, write_bytes
    from workbench.exporting.bundles import bundle, write_bundle
    from workbench.exporting.spec import read_spec
    from workbench.workspace import Workspace

    if list_:
        return _list()
    if not spec:
        raise UsageError(
            "say what to export: a spec file or the name of a bundled spec. `workbench export --list` names them."
        )
    wanted = read_spec(spec)
    changes: dict[str, Any] = {"source": source} if source else {}
    if set_:
        changes["options"] = {**wanted.options, **dict(_pair(s) for s in set_)}
    ws = Workspace(workspace)
    wanted = type(wanted).model_validate({**wanted.model_dump(), **changes})
    made = bundle(wanted, ws)
    if expect and made.data_sha256 != expect:
        raise CorruptError(
            f"the data of {made.name} have SHA-256 {made.data_sha256}, expected {expect}: the results in {ws.root} are"
            " not the same."
        )
    item = write_bundle(made, ws, command=f"workbench export {spec}")
    if out is not None:
        out = out / f"{made.name}.zip" if out.is_dir() else out
        with disk_errors(str(out)):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, made.zip)
    id, path = item.id, item.path
    say(
        f"{path}: {len(made.files)} files, zip {len(made.zip):,} bytes"
        + (f", also at {out}" if out else "")
        + (", data as expected" if expect else "")
    )
    return {
        "id": id,
        "path": str(path),
        "zip": str(out or path / f"{made.name}.zip"),
        "sha256": made.sha256,
        "data_sha256": made.data_sha256,
        "version": made.version,
        "files": sorted(made.files),
    }


def _pair(text: str) -> tuple[str, Any]:
    from sae.errors import UsageError

    key, sep, value = text.partition("=")
    if not sep or not key:
        raise UsageError(f"--set {text!r} is not key=value.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _list() -> dict[str, Any]:
    from workbench.exporting.figures import figure_kinds
    from workbench.exporting.spec import bundled_specs, read_spec

    specs = {name: read_spec(name).figure for name in bundled_specs()}
    figures = {}
    for name, kind in figure_kinds().items():
        options = {k: f.default for k, f in kind.options.model_fields.items()}
        figures[name] = {
            "title": kind.title,
            "source": kind.source,
            "options": options,
            "specs": [s for s, f in specs.items() if f == name],
        }
        say(f"{name:22} {kind.title} (from {kind.source}/)")
        say(
            f"{'':22} options {', '.join(f'{k}={v!r}' for k, v in options.items()) or 'none'}; bundled specs:"
            f" {', '.join(figures[name]['specs']) or 'none'}"
        )
    return {"figures": figures, "specs": specs}
