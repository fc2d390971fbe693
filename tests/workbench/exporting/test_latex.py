"""The LaTeX tables of every figure are compiled, hostile tokens and missing numbers included."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sae.errors import MissingError
from tests.ui import synthetic, synthetic_results
from workbench.exporting import FigureSpec
from workbench.exporting.figures import build, figure_kinds
from workbench.exporting.tables import to_latex
from workbench.workspace import Workspace

HOSTILE = [
    "_&%$#{}~^\\",
    "[0pt]",
    "*",
    "]",
    "",
    " ",
    "\x00\x1b[31m",
    "👩\u200d🔬",
    "\u202eesrever",
    "日本語",
    "a\r\nb",
    "--,,",
    "ÿ\xa0é",
    "NaN",
    "w" * 90,
]
PREAMBLE = r"""\documentclass{article}
\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}
\usepackage{booktabs,graphicx,siunitx,textcomp}
\begin{document}
"""


def needs_latex() -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not there: apt-get install texlive-latex-recommended texlive-science")
    if subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode:
        pytest.skip("siunitx is not there: apt-get install texlive-science")


def typeset(folder: Path, tables: dict[str, str]) -> tuple[str, str]:
    """(log, text of the first failure) of one document with all tables."""
    pages = []
    for i, (name, table) in enumerate(tables.items()):
        (folder / f"{i}.tex").write_text(table, encoding="utf-8")
        pages.append(rf"\typeout{{table {name.replace('_', ' ')}}}\input{{{i}.tex}}\clearpage")
    (folder / "all.tex").write_text(PREAMBLE + "\n".join(pages) + "\n\\end{document}\n", encoding="utf-8")
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=folder,
        capture_output=True,
        timeout=200,
        check=False,
    )
    log = (folder / "all.log").read_text(encoding="latin-1")
    return log, "" if done.returncode == 0 else log[max(0, log.find("\n! ") - 300) :][:1500]


def tables_of(ws: Workspace) -> dict[str, str]:
    """The table of every figure of every result that the workspace can show."""
    out = {}
    for name, kind in figure_kinds().items():
        for item in [] if kind.document or kind.live else ws.items(kind.source):
            if (name, item.id) == ("circuit_taps", "mini-pythia.induction"):  # a Transformer has no convolution
                continue
            options = {"dictionary": "mini-pythia.L2R-8x", "latent": 1} if name == "pair" else {}
            try:
                data = build(FigureSpec(figure=name, source=f"{kind.source}/{item.id}", options=options), ws)
            except (MissingError, KeyError):  # generated results lack some parts
                continue
            out[f"{name} {item.id}"] = to_latex(
                data.table, caption=data.caption, label=f"{name}-{item.id}", headings=data.columns
            )
    return out


def test_tables_of_every_figure_compile_and_fit(tmp_path: Path) -> None:
    needs_latex()
    ws = synthetic.make_workspace(tmp_path / "ws", latents=48, hostile=True)
    synthetic_results.add_all(ws, vocab=synthetic.vocabulary(hostile=True), text="_&%$ 👩\u200d🔬 NaN \\frac{a")
    tables = tables_of(ws)
    shown = {name.split()[0] for name in tables}
    assert shown >= {n for n, k in figure_kinds().items() if not (k.document or k.live)} - {
        "mppc_chance",
        "mppc_depth",
        "evolution_attribution",
        "suite_summary",
    }
    log, failure = typeset(tmp_path, tables)
    assert not failure, failure
    assert not re.findall(r"Overfull .hbox \((?:[5-9]|\d\d+)[.\d]*pt too wide\)", log)


def test_hostile_cells_and_numbers_compile(tmp_path: Path) -> None:
    needs_latex()
    frame = pd.DataFrame(
        {"token": pd.Series(HOSTILE, dtype=object), "r": np.linspace(-1, 1, len(HOSTILE)), "n": range(len(HOSTILE))}
    )
    frame["more"] = pd.Series(HOSTILE[::-1], dtype=object)
    frame.loc[1, "r"], frame.loc[2, "r"], frame.loc[3, "r"], frame.loc[4, "more"] = np.nan, np.inf, -2.5e-7, None
    frame["empty"] = np.nan
    log, failure = typeset(
        tmp_path, {"hostile": to_latex(frame, caption="".join(HOSTILE[:8]), label="t", comment="hash")}
    )
    assert not failure, failure
    assert "Missing character" not in log
    assert (tmp_path / "all.pdf").stat().st_size > 5000
