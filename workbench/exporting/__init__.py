"""Figures for papers: one spec in, one bundle out (figure, data, table, references, caption, provenance, script).

from workbench import Workspace
from workbench.exporting import read_spec
from workbench.exporting import bundle
b = bundle(read_spec("mppc-distribution"), Workspace("workspace"))
open(f"{b.name}.zip", "wb").write(b.zip)
"""

from workbench.exporting.bundle import Bundle, bundle, bundle_of
from workbench.exporting.figures import DocumentData, FigureData, Panel, figure, kinds
from workbench.exporting.spec import FigureSpec, Style, read_spec

__all__ = [
    "Bundle",
    "DocumentData",
    "FigureData",
    "FigureSpec",
    "Panel",
    "Style",
    "bundle",
    "bundle_of",
    "figure",
    "kinds",
    "read_spec",
]
