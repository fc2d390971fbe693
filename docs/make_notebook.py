"""The notebook beside this file, written and executed: ``python docs/make_notebook.py WORKSPACE`` (a ``workbench demo``
workspace).

Cells are the strings below, so that the notebook is reviewed as text. ``--check`` executes without writing.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

NOTEBOOK = Path(__file__).with_name("latents.ipynb")
MARKDOWN, CODE = "markdown", "code"
CELLS = (
    (
        MARKDOWN,
        (
            "# Latents in a notebook\n\nThe figures of the pages and of `workbench export`, from Python. Everything is"
            " read from a workspace folder; no model is loaded. Make one with `workbench demo`, then run this notebook"
            " beside it, or with `WORKBENCH_WORKSPACE` set."
        ),
    ),
    (
        CODE,
        (
            "import os\nfrom workbench import Workspace\nfrom workbench.results.records import LatentRecords\n\n"
            'workspace = Workspace(os.environ.get("WORKBENCH_WORKSPACE", "workspace"), create=False)\n'
            '[item.id for item in workspace.items("latents")]'
        ),
    ),
    (
        CODE,
        (
            'records = LatentRecords.open(workspace.get("latents",'
            ' "mini-pythia.L1R-8x").path)\nrecords.table[["latent", "density", "max", "peak_text",'
            ' "promoted_text"]].sort_values("max", ascending=False).head(5).round(4)'
        ),
    ),
    (
        MARKDOWN,
        (
            "## One latent, as on its page\n\nThe same markup the browser shows: statistics, histogram, logit effects,"
            " contexts."
        ),
    ),
    (
        CODE,
        (
            "from IPython.display import HTML\nfrom workbench.markup.latent import interesting\nfrom"
            " workbench.markup.show import latent_html\n\nlatent = interesting(records)\nHTML(latent_html(records,"
            " latent, contexts=3))"
        ),
    ),
    (
        MARKDOWN,
        (
            "## The same latent, as in the paper\n\n`workbench export latent_contexts` writes this figure with its"
            " data, table, references and provenance; `bundle(spec, workspace).zip` is that file."
        ),
    ),
    (
        CODE,
        (
            "from IPython.display import Image\nfrom workbench.exporting import FigureSpec, bundle\n\n"
            'spec = FigureSpec(figure="latent_contexts", source=f"latents/{records.id}",\n'
            '                  options={"latent": latent, "n": 5}, style={"width": "double", "dpi": 110})\n'
            'made = bundle(spec, workspace)\nprint(made.files["caption.txt"].decode())\nImage(made.files["figure.png"])'
        ),
    ),
    (
        MARKDOWN,
        (
            "## Two architectures\n\nMaximal correlations of latents of a Transformer with those of a Mamba, beside"
            " their baselines."
        ),
    ),
    (
        CODE,
        (
            'spec = FigureSpec(figure="mppc_distribution", style={"width": "double", "dpi": 110})\n'
            'made = bundle(spec, workspace)\nprint(made.files["caption.txt"].decode())\nImage(made.files["figure.png"])'
        ),
    ),
    (MARKDOWN, "## A selection to send\n\nOne HTML file that opens anywhere and asks nobody for anything."),
    (
        CODE,
        (
            'spec = FigureSpec(figure="latents_page", source=f"latents/{records.id}", options={"latents": [latent]})\n'
            'page = bundle(spec, workspace).files["latents.html"]\nf"{len(page):,} bytes of HTML"'
        ),
    ),
)


def build() -> object:
    """The notebook with its cells, not executed; ids are fixed, so that equal cells give an equal file."""
    import nbformat

    made = nbformat.v4.new_notebook()
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    new = {MARKDOWN: nbformat.v4.new_markdown_cell, CODE: nbformat.v4.new_code_cell}
    for j, (kind, source) in enumerate(CELLS):
        cell = new[kind](source)
        cell["id"] = f"cell-{j}"
        made.cells.append(cell)
    return made


def main() -> int:
    """Command line."""
    import nbformat
    from nbclient import NotebookClient

    parser = argparse.ArgumentParser(description="Write and execute docs/latents.ipynb.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--check", action="store_true", help="execute, write nothing")
    args = parser.parse_args()
    os.environ["WORKBENCH_WORKSPACE"] = str(args.workspace.resolve())
    notebook = build()
    NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False).execute()
    for cell in notebook.cells:  # type: ignore[attr-defined]
        cell.metadata.pop("execution", None)
    text = nbformat.writes(notebook) + "\n"
    if str(args.workspace.resolve()) in text or str(Path.home()) in text:
        raise SystemExit("the outputs hold an absolute path")
    if not args.check:
        NOTEBOOK.write_text(text, encoding="utf-8")
    print(f"{NOTEBOOK.name}: {len(text):,} bytes, {len(CELLS)} cells")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
