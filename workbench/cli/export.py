"""``workbench export``: a figure as a bundle for a paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import (
    DEFAULT_WORKSPACE,
    DebugOption,
    JsonOption,
    ReplaceOption,
    WorkspaceOption,
    say,
    terminal_run,
    verb,
)


@verb
def export(
    spec: Annotated[str, typer.Argument(help="A figure (--list names them), or a .toml or .json spec.")] = "",
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    source: Annotated[str, typer.Option(help="Result to show, as kind/id; wins over the spec's.")] = "",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="An option of the figure, as key=value (value in JSON or plain).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the zip to this file, or into this folder.")] = None,
    expect: Annotated[str, typer.Option(help="Fail unless the data have this SHA-256 (reproduce.sh).")] = "",
    hub: Annotated[
        str,
        typer.Option(
            help="Instead of a figure, upload the dictionary of --source to this repository of the hub (needs"
            " HF_HUB_OFFLINE=0 and a token)."
        ),
    ] = "",
    circuit_tracer: Annotated[
        Path | None,
        typer.Option(
            "--circuit-tracer",
            help="Instead of a figure, write the dictionary of --source into this new folder as circuit-tracer reads"
            " it: a cross-layer transcoder by its name, or transcoders by their ids from layer 0 on, with commas.",
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --hub: make a new repository public.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List figures, their options and the bundled specs.")] = False,
    replace: ReplaceOption = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Write a figure as a bundle: PDF, SVG, PNG, CSV, Parquet, LaTeX table, BibTeX, caption, provenance, reproduce.sh.

    Three exports are documents instead: `latents_page` (one HTML file), `site` (a folder of web pages of a workspace or
    a list, opened from disk or any web server) and `neuronpedia` (its feature schema).

    With `--circuit-tracer` it is neither: transcoders go out in the files circuit-tracer loads.

    Example: `workbench export --list`, then
    `workbench export latent_anatomy --source latents/mini-pythia.L1R-8x --set latent=17 --out figure.zip`, or
    `workbench export latents_page --source latents/mini-pythia.L1R-8x --set 'latents=[3,17]'`
    """
    from sae.errors import UsageError
    from sae.files import disk_errors, read_json, sha256_file, write_bytes
    from workbench.verbs.publishing import export as run

    if list_:
        return _list()
    if hub and circuit_tracer:
        raise UsageError("--hub and --circuit-tracer are two exports. Give one.")
    if hub:
        return _upload(workspace, spec, source, hub, public)
    if circuit_tracer:
        return _circuit_tracer(workspace, spec, source, circuit_tracer)
    if not spec:
        raise UsageError(
            "say what to export: a spec file or the name of a bundled spec. `workbench export --list` names them."
        )
    chosen = dict(_pair(s) for s in set_ or [])
    item = run(workspace, spec, source=source, set=chosen, expect=expect, replace=replace, run=terminal_run())
    zipped = next(item.path.glob("*.zip"))
    if out is not None:
        out = out / zipped.name if out.is_dir() else out
        with disk_errors(str(out)):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(out, zipped.read_bytes())
    files = sorted(str(f.relative_to(item.path)) for f in item.path.rglob("*") if f.is_file() and f != zipped)
    files.remove("manifest.json")
    say(
        f"{item.path}: {len(files)} files, zip {zipped.stat().st_size:,} bytes"
        + (f", also at {out}" if out else "")
        + (", data as expected" if expect else "")
    )
    return {
        "id": item.id,
        "path": str(item.path),
        "zip": str(out or zipped),
        "sha256": sha256_file(zipped),
        "data_sha256": read_json(item.path / "provenance.json")["data_sha256"],
        "version": zipped.stem.rpartition("__")[2],
        "files": files,
    }


def _circuit_tracer(workspace: Path, spec: str, source: str, out: Path) -> dict[str, Any]:
    """Transcoders in circuit-tracer's layout."""
    from sae.errors import UsageError
    from sae.files import disk_errors
    from workbench.dictionaries.cross_layers import export_circuit_tracer
    from workbench.workspace import Workspace

    kind, _, names = source.partition("/")
    ids = [n.strip().removeprefix("dictionaries/") for n in names.split(",")]
    if spec or kind != "dictionaries" or not all(ids):
        raise UsageError(
            f"--circuit-tracer writes dictionaries, not {f'figure {spec!r}' if spec else repr(source)}. Say which:"
            " --source dictionaries/ID --circuit-tracer FOLDER."
        )
    with disk_errors(str(out)):
        files = export_circuit_tracer(Workspace(workspace, create=False), ids, out)
    say(f"{out}: {len(files)} files that circuit-tracer loads")
    return {"source": source, "path": str(out), "files": files}


def _upload(workspace: Path, spec: str, source: str, repository: str, public: bool) -> dict[str, Any]:
    """A dictionary's SAELens folder onto the hub."""
    from sae.errors import UsageError
    from workbench.dictionaries.importing import push_to_hub
    from workbench.workspace import Workspace

    kind, _, id = source.partition("/")
    if spec or kind != "dictionaries" or not id:
        raise UsageError(
            f"--hub uploads a dictionary, not {f'figure {spec!r}' if spec else repr(source)}. Say which:"
            " --source dictionaries/ID --hub USER/REPOSITORY."
        )
    commit = push_to_hub(Workspace(workspace, create=False), id, repository, private=not public)
    say(f"{id} is in {repository}: {commit}")
    return {"id": id, "repository": repository, "commit": commit}


def _pair(text: str) -> tuple[str, Any]:
    from sae.errors import UsageError

    key, sep, value = text.partition("=")
    if not sep or not key:
        raise UsageError(f"--set {text!r} is not key=value, such as latent=17.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _list() -> dict[str, Any]:
    from workbench.exporting.figures import figure_kinds
    from workbench.exporting.reading import bundled_specs, read_spec

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
