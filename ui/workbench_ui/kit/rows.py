"""Tables whose rows are links and whose headers sort on the server: all rows, not the ones shown; and their pager.

They are HTML, so a row can be opened in a new tab, found by the keyboard and read aloud.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.markup.glossary import explained_at, header, meaning
from workbench.markup.tags import div, span
from workbench_ui.components.enhance import put_link


@dataclass(frozen=True)
class Column:
    """One column: title, what it means (the glossary's line where it is left out), whether it holds numbers, and the
    order that a click on its header asks for.
    """

    title: str
    help: str = ""
    numeric: bool = False
    sort: str = ""
    width: str = ""


def link_table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    keys: tuple[str, str] = ("o", "dir"),
    order: str = "",
    descending: bool = True,
    orders: tuple[str, str] = ("high first", "low first"),
    page: str = "page",
    label: str = "",
) -> str:
    """Rows of HTML cells, the first cell of each holding its link. ``keys`` are those of the address that a header
    writes: the order, and which end comes first (one of ``orders``; the first is the default and stays unwritten); it
    removes the key ``page``, as another order starts at its first page.
    """
    head = "".join(_header(c, keys, order, descending, orders, page) for c in columns)
    body = "".join(
        '<tr data-row="1">'
        + "".join(f"<td{' class=num' if c.numeric else ''}>{cell}</td>" for c, cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    say = f' aria-label="{html.escape(label)}"' if label else ""
    return div(
        "wb-tablewrap wb-rows",
        f'<table class="wb-table"{say}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>',
        attrs='tabindex="0" role="region"' + say,
    )


def _header(c: Column, keys: tuple[str, str], order: str, descending: bool, orders: tuple[str, str], page: str) -> str:
    css = ' class="num"' if c.numeric else ""
    css += f' style="min-width:{c.width}"' if c.width else ""
    said = c.help or meaning(c.title)
    hint = f' title="{html.escape(said)}"' if said else ""
    title = html.escape(c.title)
    if not c.sort:
        return f'<th scope="col"{css}{hint}>{header(c.title)}</th>'
    here = c.sort == order
    turned = here and descending
    asked = put_link(
        title + (span("dir", " ▼" if descending else " ▲") if here else ""),
        {keys[0]: c.sort, keys[1]: orders[1] if turned else None, page: None},
    )
    state = f' aria-sort="{"descending" if descending else "ascending"}"' if here else ""
    return f'<th scope="col"{css}{hint}{state}>{asked}{_why(c.title)}</th>'


def _why(title: str) -> str:
    """A link to what a column is, beside a header that sorts."""
    there = explained_at(title)
    if there is None:
        return ""
    said = html.escape(f"What “{title}” means")
    return f'<a class="wb-why" href="{html.escape(there)}" target="_blank" aria-label="{said}"></a>'


def pager(page: int, pages: int, key: str = "page", label: str = "Pages of the table") -> str:
    """Links to the pages of a table: first, last, and those around the one shown; nothing where there is one.

    ``label`` is what a screen reader calls it; two of one page differ in it.
    """
    if pages < 2:
        return ""
    near = sorted({1, pages, *(p for p in range(page - 2, page + 3) if 1 <= p <= pages)})
    parts = [_to(page - 1, "‹", "Previous page", key) if page > 1 else span("off", "‹")]
    last = 0
    for p in near:
        if p > last + 1:
            parts.append(span("gap", "…"))
        parts.append(f'<b aria-current="page">{p:,}</b>' if p == page else _to(p, f"{p:,}", f"Page {p:,}", key))
        last = p
    parts.append(_to(page + 1, "›", "Next page", key) if page < pages else span("off", "›"))
    return f'<nav class="wb-pager" aria-label="{label}">{"".join(parts)}</nav>'


def _to(page: int, text: str, label: str, key: str) -> str:
    return put_link(text, {key: None if page == 1 else page}, label=label)
