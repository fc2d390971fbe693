"""Tables as CSV, Parquet and LaTeX, byte-identical for equal data.

CSV: UTF-8, ``\\n``, nine significant digits, an empty cell for "not computed", token columns as JSON strings.
Parquet: the same frame at full precision, provenance in the file's key-value metadata.
LaTeX: booktabs, numbers in ``S`` columns of siunitx, text escaped and broken into lines where it is long, shrunk to the
text's width.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.markup.text import latex, quoted, valid

LINE = 40  # letters of a text cell in LaTeX before it is broken into lines


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value))


def _number(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return f"{float(value):.9g}" if isinstance(value, float | np.floating) else str(value)


def to_csv(frame: pd.DataFrame, tokens: Sequence[str] = ()) -> bytes:
    """The frame as CSV.

    Columns in ``tokens`` are JSON string literals, so that ``NaN`` and line breaks stay what they are.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)
    writer.writerow(frame.columns)
    columns = [
        [
            "" if _missing(v) else quoted(str(v)) if name in tokens else valid(v) if isinstance(v, str) else _number(v)
            for v in frame[name].astype(object)
        ]
        for name in frame.columns
    ]
    writer.writerows(zip(*columns, strict=True))
    return out.getvalue().encode()


def to_parquet(frame: pd.DataFrame, provenance: Mapping[str, str]) -> bytes:
    """The frame as Parquet, with ``provenance`` among the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    clean = frame.copy()
    for name in clean.columns:
        if clean[name].map(lambda v: isinstance(v, str)).any():
            clean[name] = clean[name].map(lambda v: None if _missing(v) else valid(str(v))).astype(object)
    table = pa.Table.from_pandas(clean, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), **{f"workbench.{k}": v for k, v in provenance.items()}}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def to_latex(
    frame: pd.DataFrame,
    *,
    caption: str,
    label: str,
    headings: Mapping[str, str] | None = None,
    comment: str = "",
    digits: int = 3,
) -> str:
    """A floating booktabs table no wider than the text.

    Needs ``\\usepackage{booktabs,graphicx,siunitx,textcomp}`` and T1 fonts.
    """
    numeric = [
        pd.api.types.is_numeric_dtype(frame[c]) and not pd.api.types.is_bool_dtype(frame[c]) for c in frame.columns
    ]
    columns = "".join(
        "S" + _format_of(frame[c], digits) if is_n else _text_column(frame[c])
        for c, is_n in zip(frame.columns, numeric, strict=True)
    )
    heads = [latex((headings or {}).get(str(c), str(c).replace("_", " "))) for c in frame.columns]
    lines = [
        f"% {comment}".rstrip(),
        r"% \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx,siunitx,textcomp}",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{latex(caption)}}}",
        rf"  \label{{tab:{label}}}",
        r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        "    " + " & ".join(f"{{{h}}}" for h in heads) + r" \\",
        r"    \midrule",
    ]
    for row in frame.astype(object).itertuples(index=False):
        cells = [_cell(v, is_n, digits) for v, is_n in zip(row, numeric, strict=True)]
        lines.append("    " + " & ".join(cells) + r" \\")
    lines += [r"    \bottomrule", r"  \end{tabular}}", r"\end{table}", ""]
    return "\n".join(lines)


def to_latex_figure(file: str, *, caption: str, label: str, wide: bool = False, comment: str = "") -> str:
    """A floating figure that includes ``file``, over both columns where ``wide``.

    Needs ``\\usepackage{graphicx,textcomp}`` and T1 fonts.
    """
    kind = "figure*" if wide else "figure"
    lines = [
        f"% {comment}".rstrip(),
        r"% \usepackage[T1]{fontenc} \usepackage{graphicx,textcomp}",
        rf"\begin{{{kind}}}",
        r"  \centering",
        rf"  \includegraphics{{{file}}}",
        rf"  \caption{{{latex(caption)}}}",
        rf"  \label{{fig:{label}}}",
        rf"\end{{{kind}}}",
    ]
    return "\n".join([*lines, ""])


def _cell(value: Any, numeric: bool, digits: int) -> str:
    if _missing(value):
        return "{{--}}" if numeric else "--"
    if not numeric:
        return latex(str(value), breaks=True)
    if not isinstance(value, float | np.floating):
        return str(value)
    if not math.isfinite(value):
        return f"{{{latex(str(value))}}}"
    if value and abs(value) < 0.5 * 10**-digits:  # would read as zero
        return rf"{{\num{{{float(value):.1e}}}}}"
    return f"{float(value):.{digits}f}"


def _text_column(column: pd.Series) -> str:
    """Text as wide as it is, or in lines of some forty letters."""
    longest = max((len(str(v)) for v in column if not _missing(v)), default=0)
    return "l" if longest <= LINE else rf">{{\raggedright\arraybackslash}}p{{{LINE // 2}em}}"


def _format_of(column: pd.Series, digits: int) -> str:
    """siunitx's ``table-format``: digits before and after the point, so that columns align."""
    finite = [float(v) for v in column if not _missing(v) and math.isfinite(float(v))]
    whole = max((len(str(int(abs(v)))) for v in finite), default=1)
    sign = "-" if any(v < 0 for v in finite) else ""
    after = digits if pd.api.types.is_float_dtype(column) else 0
    return f"[table-format={sign}{whole}.{after}]" if after else f"[table-format={sign}{whole}]"
