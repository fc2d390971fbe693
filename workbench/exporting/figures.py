"""Figures as data: tidy tables and how to draw them, and the registry of all figures that can be exported.

A figure is a function of (workspace result, options) that returns a :class:`FigureData`. It draws nothing. One renderer
turns it into matplotlib for papers (:mod:`workbench.exporting.render`); a screen may draw the same panels with another.
So the
picture, the CSV and the table of a bundle cannot disagree.

A module adds a figure with :func:`figure`, and its name to ``MODULES`` so that it is found.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig, nearest, parse_config
from workbench.exporting.spec import FigureSpec
from workbench.markup.glossary import meaning
from workbench.workspace import MADE_BY, Item, Workspace

MODULES = [
    *(
        f"workbench.exporting.kinds.{name}"
        for name in (
            "architectures",
            "circuits",
            "doses",
            "evolution",
            "latents",
            "layers",
            "maps",
            "massive",
            "pairs",
            "scores",
            "states",
            "substitutions",
            "suite",
            "transplants",
            "trust",
            "universality",
        )
    ),
    "workbench.exporting.documents.kinds",
    "workbench.analysis.evaluation.reading_figures",
    "workbench.claims.curves",
    "workbench.claims.figures",
]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: which columns of its tidy frame go where.

    Kinds: ``line`` (x, y per series, band low..high), ``step`` (the same as a staircase), ``points`` (y per category x,
    bars low..high), ``heat`` (value over x, y categories), ``strips`` (tokens shaded by value, underlined by ``under``;
    one row per y), ``scatter`` (a dot per row, coloured by value or series; no axes).
    """

    kind: Literal["line", "step", "points", "heat", "strips", "scatter"]
    frame: pd.DataFrame
    x: str
    y: str
    series: str | None = None
    value: str | None = None
    centre: str | None = None  # strips: a row is cropped around its largest entry of this column (default: value)
    low: str | None = None
    high: str | None = None
    x_label: str = ""
    y_label: str = ""
    value_label: str = ""
    title: str = ""
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    diverging: bool = False  # heat: colours about zero, for signed values
    ramp: bool = False  # heat: in the colours of tokens
    square: bool = False  # heat: cells as high as wide
    z_range: tuple[float, float] | None = (
        None  # heat: values of the first and last colour; those of the data by default
    )
    x_ticks: tuple[tuple[float, str], ...] = ()  # where the data's own numbers would not do; in a heat, columns from 0
    y_ticks: tuple[tuple[float, str], ...] = ()
    top: float | None = None  # strips: value of the strongest shade; the largest shown by default
    under: str | None = None
    under_top: float | None = None
    backdrop: pd.DataFrame | None = None  # scatter: all points, where ``frame`` is a sample of them; a shade below
    dashed: tuple[str, ...] = ()  # series drawn as references: dashed, grey


@dataclass(frozen=True)
class FigureData:
    """Everything a bundle needs to know about one figure."""

    panels: list[Panel]
    caption: str  # plain text: what is shown; n, filters and versions are appended
    table: pd.DataFrame  # what the LaTeX table shows
    n: Mapping[str, Any]
    inputs: list[Item]
    references: tuple[str, ...] = ()  # keys of workbench.exporting.references
    tokens: tuple[str, ...] = ()  # columns that hold tokens or other free text
    permalink: str = ""
    alt: str = ""  # one sentence for those who cannot see it
    columns: Mapping[str, str] = field(default_factory=dict)  # column of the table -> its heading
    explained: Mapping[str, str] = field(
        default_factory=dict
    )  # label of an axis -> the word of the glossary that says it

    @property
    def data(self) -> pd.DataFrame:
        """The tidy table behind all panels; with several, the first column names the panel."""
        if len(self.panels) == 1:
            return self.panels[0].frame.reset_index(drop=True)
        named = [p.frame.assign(panel=p.title or str(i)) for i, p in enumerate(self.panels)]
        out = pd.concat(named, ignore_index=True)
        return out[["panel", *[c for c in out.columns if c != "panel"]]]


@dataclass(frozen=True)
class DocumentData:
    """An export that is a file to open or upload instead of a figure: its files, and what provenance needs to know."""

    files: Mapping[str, bytes] = field(repr=False)
    caption: str
    n: Mapping[str, Any]
    inputs: list[Item]
    references: tuple[str, ...] = ()
    permalink: str = ""


def axis_labels(panels: Sequence[Panel]) -> list[tuple[str, str]]:
    """(axis, label) of what is labelled, each once per axis as it is drawn, which is "x", "y" or "colour"."""
    named = {"x": "x_label", "y": "y_label", "colour": "value_label"}
    turned = named | {"x": "y_label", "y": "x_label"}  # points lie in rows
    found = [(axis, getattr(p, (turned if p.kind == "points" else named)[axis])) for axis in named for p in panels]
    return [(axis, label) for axis, label in dict.fromkeys(found) if label.strip()]


def axis_words(data: FigureData) -> list[tuple[str, str]]:
    """(label, what it means) of the axes of a figure, from the glossary; those without a line are left out."""
    labels = dict.fromkeys(label for _, label in axis_labels(data.panels))
    lines = {label: meaning(data.explained.get(label, label)) for label in labels}
    return [(label, line) for label, line in lines.items() if line]


Build = Callable[[Workspace, Any, Any], Any]


@dataclass(frozen=True)
class Kind:
    """A registered figure or document: which kind of result it shows, its options, and the function.

    One that is ``live`` runs the language model; all others read what is on disk.
    """

    name: str
    source: str  # a kind of the workspace
    options: type[StrictConfig]
    build: Build
    title: str
    many: bool = False  # may show several results at once: without a source its function is given None
    document: bool = False
    live: bool = False


_KINDS: dict[str, Kind] = {}


def figure(
    name: str,
    *,
    source: str,
    options: type[StrictConfig],
    many: bool = False,
    document: bool = False,
    live: bool = False,
) -> Callable[[Build], Build]:
    """Register a function ``(workspace, item, options) -> FigureData`` (or ``DocumentData``) of results of kind
    ``source``.
    """

    def add(build: Build) -> Build:
        title = (build.__doc__ or name).strip().splitlines()[0].rstrip(".")
        _KINDS[name] = Kind(name, source, options, build, title, many, document, live)
        return build

    return add


def figure_kinds() -> dict[str, Kind]:
    """All figures, by name."""
    for module in MODULES:
        importlib.import_module(module)
    return dict(sorted(_KINDS.items()))


def build(spec: FigureSpec, workspace: Workspace) -> FigureData:
    """The figure a spec means; like :func:`make`, for what is drawn.

    Raises:
        UsageError: the spec means a document.
    """
    made = make(spec, workspace)
    if isinstance(made, DocumentData):
        raise UsageError(f"{spec.figure!r} is a document, not a figure: there is nothing to draw.")
    return made


def make(spec: FigureSpec, workspace: Workspace) -> FigureData | DocumentData:
    """The figure or document a spec means.

    Raises:
        UsageError: unknown figure, option or kind of source. MissingError: the result is not in the workspace; the
            message names the command that makes it.
    """
    known = figure_kinds()
    if spec.figure not in known:
        raise UsageError(f"figure {spec.figure!r} is not known ({nearest(spec.figure, list(known))})")
    kind = known[spec.figure]
    options = parse_config(kind.options, dict(spec.options), where=f"options of {spec.figure}")
    item = None if kind.many and not spec.source else find_source(spec, kind, workspace)
    found: FigureData | DocumentData = kind.build(workspace, item, options)
    return found


def find_source(spec: FigureSpec, kind: Kind, workspace: Workspace) -> Item:
    """The result a spec is about: the one it names, or the only one of its kind."""
    if spec.source:
        found = re.fullmatch(r"([a-z]+)/([^/]+)", spec.source)
        if not found or found[1] != kind.source:
            raise UsageError(f"source {spec.source!r} of figure {kind.name!r} must be '{kind.source}/<id>'.")
        return workspace.get(found[1], found[2])
    items = workspace.items(kind.source)
    if not items:
        verb = MADE_BY.get(kind.source, kind.source)
        raise MissingError(
            f"{kind.name} shows results of {kind.source}/, and {workspace.root} has none. Make one: `workbench {verb}"
            f" --workspace {workspace.root}`"
        )
    if len(items) > 1:
        names = ", ".join(f"{kind.source}/{i.id}" for i in items[:8])
        raise UsageError(
            f"{workspace.root} holds {len(items)} results {kind.name} could show. Say which with --source:"
            f" {names}{', …' if len(items) > 8 else ''}"
        )
    return items[0]
