"""Pages of a dictionary: its latents as a table, and one page for each."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from workbench.exporting.documents.gallery.frame import head, link, page, sortable
from workbench.markup.names import dictionary_words
from workbench.markup.show import section
from workbench.markup.tables import table
from workbench.markup.tags import div
from workbench.markup.tokens import chip, clip, escape, number
from workbench.results.records import LatentRecords
from workbench.workspace import Item


@dataclass
class Shown:
    """Latents of one dictionary, in the order shown; ``which`` says how they were chosen."""

    item: Item
    records: LatentRecords
    latents: list[int]
    which: str
    notes: dict[int, str] = field(default_factory=dict)

    @cached_property
    def has(self) -> frozenset[int]:
        """Latents with a page."""
        return frozenset(self.latents)

    def path(self, latent: int | None = None) -> str:
        """Where the page of the dictionary, or of a latent, lies in the folder."""
        return f"latents/{self.item.id}/{'index' if latent is None else latent}.html"


@dataclass(frozen=True)
class Partner:
    """A latent's best partner in one comparison."""

    comparison: str
    dictionary: str
    latent: int
    r: float
    chance: float  # 99 of 100 unrelated latents of the same frequency stay below; NaN where not computed


def latent_link(shown: Sequence[Shown], dictionary: str, latent: int, up: str) -> str:
    """A latent's name, linked where it has a page."""
    there = next((x for x in shown if x.item.id == dictionary and latent in x.has), None)
    text = f"{escape(dictionary)} #{latent}"
    return text if there is None else f'<a href="{up}{link(there.path(latent))}">{text}</a>'


def dictionary_pages(
    x: Shown, shown: Sequence[Shown], partners: Mapping[tuple[str, int], Sequence[Partner]], *, contexts: int
) -> dict[str, bytes]:
    """The pages of one dictionary by their paths."""
    out = {x.path(): _table_page(x)}
    words = dictionary_words(x.item.id, x.records.metadata)
    for j, latent in enumerate(x.latents):
        path = x.path(latent)
        near = [(word, x.latents[k]) for word, k in (("previous", j - 1), ("next", j + 1)) if 0 <= k < len(x.latents)]
        walk = "".join(
            f'<a href="{i}.html" rel="{"prev" if w == "previous" else "next"}">{w}: #{i}</a>' for w, i in near
        )
        body = section(
            x.records,
            latent,
            contexts=contexts,
            note=x.notes.get(latent, ""),
            link=lambda i: f'<a href="{i}.html">#{i}</a>' if i in x.has else f"#{i}",
        )
        body += _partner_table(partners.get((x.item.id, latent), ()), shown, "../../")
        crumbs = [("All results", "index.html"), (x.item.id, x.path())]
        out[path] = page(
            path,
            f"Latent {latent} of {x.item.id}",
            div("walk", walk) + body,
            sub=f"{words}; over {x.records.n_tokens:,} tokens, data version {x.item.version}",
            crumbs=crumbs,
        )
    return out


def _partner_table(found: Sequence[Partner], shown: Sequence[Shown], up: str) -> str:
    if not found:
        return ""
    rows = [
        [
            latent_link(shown, p.dictionary, p.latent, up),
            f"{p.r:.3f}",
            f"{p.chance:.3f}" if np.isfinite(p.chance) else "–",
            f'<a href="{up}{link(f"matches/{p.comparison}/index.html")}">{escape(p.comparison)}</a>',
        ]
        for p in found
    ]
    about = (
        "correlation on the same tokens; 99 of 100 unrelated latents of its frequency stay below the chance beside it"
    )
    return head("Best partners", about) + table(
        ["latent", "r", "chance, 99 %", "comparison"], rows, numeric=frozenset({1, 2})
    )


def _table_page(x: Shown) -> bytes:
    noted = any(note.strip() for note in x.notes.values())
    rows = []
    for latent in x.latents:
        row = x.records.row(latent)
        density = row.get("density")
        label = row.get("label")
        rows.append(
            [
                f'<a href="{latent}.html">{latent}</a>',
                escape(clip(" ".join(label.split()), 90)) if isinstance(label, str) and label.strip() else "–",
                chip(str(row["peak_text"])) if isinstance(row.get("peak_text"), str) else "–",
                chip(str(row["promoted_text"])) if isinstance(row.get("promoted_text"), str) else "–",
                f"{100 * density:.3g} %" if density is not None else "–",
                number(row.get("n_fired")),
                number(row.get("max")),
            ]
            + ([escape(clip(x.notes.get(latent, ""), 160))] if noted else [])
        )
    columns = ["latent", "label", "peaks on", "raises", "density", "fired on", "max", *(["note"] if noted else [])]
    about = (
        "density: share of tokens on which it fires · raises: the next token its direction makes more likely ·"
        " max: its largest activation"
    )
    body = f'<p class="unmade">{html.escape(about)}</p>' + sortable(
        table(columns, rows, numeric=frozenset({0, 4, 5, 6}))
    )
    words = dictionary_words(x.item.id, x.records.metadata)
    sub = f"{words}: {x.which}; over {x.records.n_tokens:,} tokens, data version {x.item.version}"
    return page(x.path(), x.item.id, body, sub=sub, crumbs=[("All results", "index.html")])
