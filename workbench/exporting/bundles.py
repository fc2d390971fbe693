"""One click to a paper: everything about one figure in one zip, the same bytes for the same spec.

    figure.pdf figure.svg figure.png     vector and raster, fonts embedded
    data.csv data.parquet                what is drawn
    figure.tex table.tex refs.bib caption.txt    ready to be included
    provenance.json                      spec, inputs with digests, n, versions
    spec.json reproduce.sh               one command that makes the bundle again, and compares

An export that is a document (an HTML page, Neuronpedia's JSON) has its own files in place of figure, data and table.
The browser's button and ``workbench export`` both call :func:`bundle`; there is no other way to a file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import platform
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sae.errors import MissingError
from sae.files import read_json, sha256_json
from workbench.exporting.figures import DocumentData, FigureData, make
from workbench.exporting.references import bibtex
from workbench.exporting.render import FORMATS, render
from workbench.exporting.spec import FigureSpec
from workbench.exporting.tables import to_csv, to_latex, to_latex_figure, to_parquet
from workbench.markup.text import visible
from workbench.provenance import Input, code_version
from workbench.results.reuse import reusable
from workbench.results.stale import why_stale
from workbench.run import QUIET, Run
from workbench.workspace import KINDS, Item, Workspace

SCHEMA = "workbench.exporting/1"
_KINDS = frozenset(KINDS) - {"lists", "exports"}  # kinds that a command made from others


@dataclass(frozen=True)
class Bundle:
    """The files of one export. ``version`` (eight hex digits) stands for spec and inputs; ``name`` contains it."""

    name: str
    version: str
    files: Mapping[str, bytes] = field(repr=False)
    data: tuple[str, ...] = ("data.csv",)  # the files that hold the data

    @property
    def zip(self) -> bytes:
        """All files as one zip archive (no dates, fixed order)."""
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, content in sorted(self.files.items()):
                info = zipfile.ZipInfo(f"{self.name}/{name}", date_time=(1980, 1, 1, 0, 0, 0))
                info.compress_type, info.create_system = zipfile.ZIP_DEFLATED, 3
                info.external_attr = (0o100755 if name.endswith(".sh") else 0o100644) << 16
                archive.writestr(info, content)
        return sink.getvalue()

    @property
    def sha256(self) -> str:
        """Digest of the zip."""
        return hashlib.sha256(self.zip).hexdigest()

    @property
    def data_sha256(self) -> str:
        """Digest of the data: what reproduce.sh compares, independent of library versions."""
        return _digest({name: self.files[name] for name in self.data})


def write_bundle(made: Bundle, workspace: Workspace, *, run: Run = QUIET) -> Item:
    """A bundle's folder under ``exports/``; a complete one of the same spec, inputs and data is reused.

    Raises:
        MismatchError: the same spec on the same results gave other data before.
    """
    id = made.name.replace("__", ".")
    provenance = json.loads(made.files["provenance.json"])
    about = {"figure": provenance["figure"], "data_sha256": made.data_sha256, "stale": provenance.get("stale", [])}
    inputs = [Input(kind=i["kind"], id=i["id"], digest=i["manifest_sha256"]) for i in provenance.get("inputs", ())]
    old = workspace.path("exports", id)
    have = reusable(
        workspace,
        "exports",
        id,
        recipe=provenance["spec"] | {"data": made.data_sha256},
        inputs=inputs,
        run=run,
        recorded=lambda m: m.recipe | {"data": m.metadata.get("data_sha256", made.data_sha256)},
    )
    if have is not None:
        said_so = have.manifest.metadata.get("stale", []) == about["stale"]
        if said_so and (not run.replace or (old / f"{made.name}.zip").read_bytes() == made.zip):
            return have
    with workspace.create(
        "exports", id, replace=True, command=run.command, recipe=provenance["spec"], inputs=inputs, metadata=about
    ) as folder:
        for name, content in made.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        (folder / f"{made.name}.zip").write_bytes(made.zip)
    return workspace.get("exports", id)


def bundle(spec: FigureSpec, workspace: Workspace) -> Bundle:
    """Everything about the figure ``spec`` means, from the results in ``workspace``.

    Raises:
        UsageError, ConfigError: the spec names an unknown figure, option or source.
        MissingError: the result is not in the workspace.
    """
    return bundle_of(make(spec, workspace), spec, workspace)


def bundle_of(
    data: FigureData | DocumentData, spec: FigureSpec, workspace: Workspace, *, formats: Sequence[str] = FORMATS
) -> Bundle:
    """:func:`bundle` of a figure or document that is already built; ``formats``: of its picture, where fewer than all
    are looked at.
    """
    spec, version = _identity(data, spec)
    name = f"{spec.figure}__{version}"
    files = dict(data.files) if isinstance(data, DocumentData) else {"data.csv": to_csv(data.data, data.tokens)}
    holds = tuple(sorted(files))
    stale = why_stale(workspace, data.inputs)
    provenance = _provenance(data, spec, version, _digest(files)) | ({"stale": stale} if stale else {})
    stamp = f"workbench {provenance['code']['version']} {name} data {provenance['data_sha256']}"
    caption = _caption(data, spec, version) + (f" Stale: {visible('; '.join(stale))}." if stale else "")
    if isinstance(data, FigureData):
        files |= _figure_files(data, spec, name, caption, provenance, stamp, formats)
    text = {
        "refs.bib": bibtex(data.references, comment=stamp),
        "caption.txt": caption + "\n",
        "provenance.json": _json(provenance),
        "spec.json": _json(spec.plain()),
        "reproduce.sh": _script(data.inputs, name, provenance["data_sha256"], workspace),
    }
    return Bundle(name, version, {**files, **{k: v.encode() for k, v in text.items()}}, holds)


def bundle_name(data: FigureData | DocumentData, spec: FigureSpec) -> str:
    """What the bundle of a figure that is already built is called, without making it."""
    spec, version = _identity(data, spec)
    return f"{spec.figure}__{version}"


def _identity(data: FigureData | DocumentData, spec: FigureSpec) -> tuple[FigureSpec, str]:
    """The spec with its source, and eight hex digits that stand for it and its inputs."""
    if not spec.source and len(data.inputs) == 1:
        spec = spec.model_copy(update={"source": f"{data.inputs[0].kind}/{data.inputs[0].id}"})
    return spec, sha256_json({"spec": spec.plain(), "inputs": [i.digest for i in data.inputs]})[:8]


def _figure_files(
    data: FigureData,
    spec: FigureSpec,
    name: str,
    caption: str,
    provenance: dict[str, Any],
    stamp: str,
    formats: Sequence[str],
) -> dict[str, bytes]:
    """The picture in every format and how to include it, the data as Parquet, the LaTeX table."""
    label = f"{spec.figure}-{provenance['version']}".replace("_", "-")
    return {
        "figure.tex": to_latex_figure(
            "figure.pdf", caption=caption, label=label, wide=spec.style.inches > 5, comment=stamp
        ).encode(),
        **{f"figure.{k}": v for k, v in render(data, spec.style, formats=formats, stamp=stamp).items()},
        "data.parquet": to_parquet(data.data, {"export": name, "provenance": json.dumps(provenance, sort_keys=True)}),
        "table.tex": to_latex(data.table, caption=caption, label=label, headings=data.columns, comment=stamp).encode(),
    }


def _digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of one file, or of the names and digests of several."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    return next(iter(digests.values())) if len(digests) == 1 else sha256_json(digests)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _provenance(data: FigureData | DocumentData, spec: FigureSpec, version: str, digest: str) -> dict[str, Any]:
    """The record of one figure. No time and no path: the same spec on the same results gives the same bytes."""
    libraries = {name: importlib.metadata.version(name) for name in ("matplotlib", "numpy", "pandas", "pyarrow")}
    return {
        "schema": SCHEMA,
        "figure": spec.figure,
        "version": version,
        "spec": spec.plain(),
        "inputs": [{"kind": i.kind, "id": i.id, "manifest_sha256": i.digest} for i in data.inputs],
        "n": dict(data.n),
        "code": code_version(),
        "env": {"python": platform.python_version(), **libraries},
        "permalink": data.permalink,
        "data_sha256": digest,
    }


CAPTION_SOURCES = 3


def _caption(data: FigureData | DocumentData, spec: FigureSpec, version: str) -> str:
    """What is shown, n, and which data it rests on, each with the version the pages show, beside the figure's own."""
    said = (spec.caption or data.caption).strip()
    said = said if said.endswith((".", "!", "?", "…")) else f"{said}."
    n = ", ".join(f"{_count(v)} {_unit(k, v)}" for k, v in data.n.items())
    names = [f"{i.kind}/{i.id}@{i.version}" for i in data.inputs]
    more = f" and {len(names) - CAPTION_SOURCES} more" if len(names) > CAPTION_SOURCES else ""
    rests = f" Data: {', '.join(names[:CAPTION_SOURCES])}{more}." if names else ""
    text = f"{said}{f' n: {n}.' if n else ''}{rests} Figure {version}."
    return visible(" ".join(text.split()))


def _unit(name: str, n: Any) -> str:
    """What is counted: ``1 latent``, ``2 latents``."""
    words = name.replace("_", " ")
    return words.removesuffix("s") if n == 1 else words


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _script(inputs: list[Item], name: str, data_sha256: str, workspace: Workspace) -> str:
    """``reproduce.sh``: the commands that made the inputs as comments, then the export, compared with this one."""
    made = "".join(f"#   {line}\n" for line in _commands(inputs, workspace))
    return (
        "#!/bin/sh\n"
        f"# Makes {name} again from a workspace, and says whether the data are the same.\n"
        "# usage: sh reproduce.sh [WORKSPACE]\n"
        + (f"# What the workspace needs was made by:\n{made}" if made else "")
        + "set -eu\n"
        'here=$(cd "$(dirname "$0")" && pwd)\n'
        "run=${WORKBENCH:-workbench}\n"
        'if ! command -v "$run" >/dev/null 2>&1; then\n'
        '  echo "error: $run is not on the PATH. Activate the environment it is installed in, or name it:'
        ' WORKBENCH=/path/to/bin/workbench sh reproduce.sh" >&2\n'
        "  exit 127\n"
        "fi\n"
        f'"$run" export "$here/spec.json" --workspace "${{1:-workspace}}" --out "$here/{name}.zip" --expect'
        f" {data_sha256}\n"
    )


def _commands(inputs: list[Item], workspace: Workspace) -> list[str]:
    """The recorded commands of the inputs and of what they were made from, earliest first, each once."""
    seen: dict[tuple[str, str], None] = {}
    out: list[str] = []

    def visit(kind: str, id: str) -> None:
        if (kind, id) in seen or kind not in _KINDS:
            return
        seen[kind, id] = None
        try:
            item = workspace.get(kind, id)
        except MissingError:  # an input may lie outside this workspace
            return
        if kind == "stores":  # a store has a seal instead of a manifest
            command = str(read_json(item.path / "seal.json").get("command", ""))
        else:
            for i in item.manifest.inputs:
                visit(i.kind, i.id)
            command = item.manifest.command
        line = "".join(c for c in command if c.isprintable())
        if line and line not in out:
            out.append(line)

    for item in inputs:
        visit(item.kind, item.id)
    return out
