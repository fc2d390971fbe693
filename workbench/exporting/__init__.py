"""Figures for papers: one spec in, one bundle out (figure, data, table, references, caption, provenance, script).

from workbench import Workspace
from workbench.exporting import bundle, read_spec
b = bundle(read_spec("mppc-distribution"), Workspace("workspace"))
open(f"{b.name}.zip", "wb").write(b.zip)
"""

from workbench.exporting.bundles import Bundle, bundle, bundle_name, bundle_of
from workbench.exporting.figures import DocumentData, FigureData, Panel, figure, figure_kinds
from workbench.exporting.reading import read_spec
from workbench.exporting.spec import FigureSpec, Style

__all__ = [
    "Bundle",
    "DocumentData",
    "FigureData",
    "FigureSpec",
    "Panel",
    "Style",
    "bundle",
    "bundle_name",
    "bundle_of",
    "figure",
    "figure_kinds",
    "read_spec",
]
