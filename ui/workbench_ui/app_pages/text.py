"""A look at the data: what the text of a store is, which of its tokens are data, and windows as a model reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from sae.errors import UserError
from workbench.markup.tags import div, span
from workbench.markup.tokens import chip, escape
from workbench_ui.components.enhance import page_link
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Entry

if TYPE_CHECKING:
    from workbench.activations.read.look import StoreLook, Window

SHOWN = 5
NO_DATA = "not in the data: no dictionary is trained on it, and it is in no record or comparison"


@st.fragment(key="text_body")
def body() -> None:
    """Choice of store, its numbers, its rule, its corpora, five windows."""
    with panels.guarded("The text"):
        panels.page_title("A look at the data", "are the tokens what you meant? Nothing here needs a model")
        entry = choose(
            "stores", "Store", "st", what="Activation store", command="harvest mini-harvest", clears=("draw",)
        )
        if entry is None:
            return
        check_version(entry, "st")
        draw = state.get_int("draw", 0, 9999, 0) or 0
        found = look(str(entry.path), entry.version, draw)
        st.html(panels.stats(numbers(found)))
        words = Words(entry, found)
        panels.heading("What is data", "the contract between the text and everything that reads the store")
        st.html(panels.table(["", ""], rule(found, words)))
        massive_activations(entry)
        panels.heading("Where the text comes from", "one column per corpus; models read the same tokens")
        st.html(panels.table(["", *([escape(c["corpus"]) for c in found.corpora] or [""])], corpora(found)))
        st.html(div("sub", models(found)))
        for title, some in windows_of(found):
            panels.heading(f"{len(some)} windows at random{title}", "each token apart; struck out is what is no data")
            st.html(div("wb-windows", *(window(w, words) for w in some)))
        st.button("Others", icon=":material/casino:", key="tx_draw", on_click=state.put, kwargs={"draw": draw + 1})


@st.cache_resource(show_spinner=False, max_entries=8)
def look(folder: str, version: str, draw: int) -> StoreLook:
    """The look at one version of a store."""
    from workbench.activations.read.look import look_at_store

    return look_at_store(Path(folder), shown=SHOWN, seed=draw)


class Words:
    """What tokens of a store are shown as: by its model's tokenizer, else by a dictionary's records, else as ids."""

    def __init__(self, entry: Entry, found: StoreLook):
        source = found.spec.sources[0]
        self.tokenizer = _tokenizer(source.model, source.revision, entry.version)
        self.vocab = [] if self.tokenizer is not None else _vocab(entry)

    def of(self, ids: list[int]) -> list[str]:
        """One string per token."""
        if self.tokenizer is not None:
            from workbench.corpus.shown import shown_tokens

            return shown_tokens(self.tokenizer, ids)
        return [self.vocab[i] if 0 <= i < len(self.vocab) else f"⟨{i}⟩" for i in ids]


@st.cache_resource(show_spinner=False, max_entries=8)
def _tokenizer(model: str, revision: str | None, version: str) -> Any:
    """A model's tokenizer; None where it is not at hand."""
    from workbench.models import load_tokenizer

    try:
        return load_tokenizer(model, revision)
    except (UserError, OSError, ValueError):
        return None


def _vocab(entry: Entry) -> list[str]:
    """The words of the records of a dictionary that was trained on the store; empty where there are none."""
    for d in data.index().dictionaries.values():
        if d.about.get("store") == entry.id and (records := data.records(d)) is not None:
            return list(records.vocab)
    return []


def numbers(found: StoreLook) -> list[tuple[str, str, str]]:
    """The strip of statistics; what the store does not say is not shown."""
    spec = found.spec
    items = []
    if found.documents is not None:
        held = [c["heldout_documents"] for c in found.corpora if "heldout_documents" in c]
        items.append(("Documents", f"{found.documents:,}", f"{sum(held):,} only held out" if held else ""))
    items += [
        ("Windows", f"{spec.n_seq:,}", f"of {spec.ctx} tokens, the last {spec.heldout_seqs:,} held out"),
        ("Tokens", f"{found.tokens:,}", f"{found.distinct:,} different ids"),
        ("Rows", f"{found.rows:,}", "tokens that are data"),
        ("No data", f"{1 - found.rows / found.tokens:.2%}", "of the tokens"),
        ("Repeated windows", f"{found.repeated:,}", "whose tokens are those of an earlier one"),
    ]
    if found.windows_of_document:
        low, middle, high = found.windows_of_document
        items.append(("Windows of a document", f"{middle:,.0f}", f"median; {low:,.0f} to {high:,.0f} in nine of ten"))
    if passes := [c["passes"] for c in found.corpora if "passes" in c]:
        items.append(("Passes", f"{max(passes)}", "over the training part" + (", at most" if len(passes) > 1 else "")))
    return items


def rule(found: StoreLook, words: Words) -> list[list[str]]:
    """The contract, one fact per line, each special id as it is written."""
    if found.contract is None:
        old = "made before there was a contract: BOS inside a window counts as data"
        return [["rule", escape(old)], ["no rows", escape(f"positions {list(found.spec.exclude)}")]]
    lines = [line.partition(": ") for line in found.contract.lines(words.tokenizer)]
    return [[escape(name), escape(what)] for name, _, what in lines]


def corpora(found: StoreLook) -> list[list[str]]:
    """One row per fact, one column per corpus; facts that no corpus says are left out."""
    rows = [
        [name, *(escape(say(c)) or "–" for c in found.corpora)]
        for name, say in FACTS
        if any(say(c) for c in found.corpora)
    ]
    return rows or [["text", "the tokens were given as they are"]]


def massive_activations(entry: Entry) -> None:
    """Where the massive rows of every site are, what they hold, and which numbers count them; nothing where no latents
    of the store are recorded.
    """
    sites = sites_of(str(data.workspace_folder()), entry.id, _recorded(entry))
    if not sites:
        return
    panels.heading(
        "Massive activations", "rows longer than ten times the median of their site; training leaves them out"
    )
    if not any(s["n"] for s in sites):
        st.html(div("sub", f"None among {min(s['n_rows'] for s in sites):,} rows of {len(sites)} sites."))
        return
    st.html(panels.table(SITE_COLUMNS, [site_row(s) for s in sites]))
    chart("tx_massive", "massive_activations", entry, height=340)
    st.html(panels.table(["number", "rows it stands on"], [[escape(a), escape(b)] for a, b in POPULATIONS]))


SITE_COLUMNS = ["site", "rows", "massive", "of all squared norm", "mostly at position", "on tokens", "EV", "EV without"]
POPULATIONS = (
    ("training", "without them"),
    ("explained variance of a dictionary, of an evaluation", "given both with them and without"),
    ("CE recovered, KL, L0, dead latents of an evaluation", "all rows that are data, them included"),
    ("records: densities, histograms, contexts", "all rows that are data, them included; firings on them are counted"),
    ("L0 of records", "given both with them and without"),
    ("correlations of a comparison, and their level of chance", "given both with them and without"),
)


def site_row(site: dict[str, Any]) -> list[str]:
    """One site of the table, its dictionary's latents linked."""
    at, on = site["massive"]["positions"], site["massive"]["tokens"]
    name = escape(site["site"])
    return [
        page_link("latents", name, {"d": site["dictionary"]}),
        f"{site['n_rows']:,}",
        f"{site['n']:,} ({site['share']:.2%})",
        f"{site['square_share']:.1%}",
        ", ".join(f"{p} ({n:,})" for p, n in at[:3]),
        " ".join(chip(site["words"][t]) if 0 <= t < len(site["words"]) else f"⟨{t}⟩" for t, _ in on[:3]),
        *("–" if v is None else f"{v:.3f}" for v in (site["ev"], site["ev_inliers"])),
    ]


def _recorded(entry: Entry) -> tuple[str, ...]:
    """Versions of the records that the sites are read from."""
    return tuple(e.version for e in data.index().of("latents"))


@st.cache_resource(show_spinner=False, max_entries=8)
def sites_of(root: str, store: str, versions: tuple[str, ...]) -> list[dict[str, Any]]:
    """What the records of a store's dictionaries say of its massive rows."""
    from workbench.exporting.kinds.massive import massive_sites
    from workbench.workspace import Workspace

    ws = Workspace(root, create=False)
    return massive_sites(ws, ws.get("stores", store))


def _number(key: str, unit: str = "") -> Callable[[dict[str, Any]], str]:
    return lambda c: f"{c[key]:,}{unit}" if key in c else ""


def _share(c: dict[str, Any]) -> str:
    return f"{c['excluded_share']:.2%} of the tokens" if "excluded_share" in c else ""


def _lengths(c: dict[str, Any]) -> str:
    if "tokens_per_document" not in c:
        return ""
    low, middle, high = c["tokens_per_document"]
    return f"{middle:,.0f} tokens (median); {low:,.0f} to {high:,.0f} in nine of ten"


def _copies(c: dict[str, Any]) -> str:
    if "near_duplicates_left_out" in c:
        return f"{c['near_duplicates_left_out']:,}, left out"
    return f"{c['near_duplicates']:,}" if "near_duplicates" in c else ""


def _records(c: dict[str, Any]) -> str:
    return ", ".join(f"{n:,} {k}" for k, n in c.get("records", {}).items()) or (
        "all read" if "near_duplicates" in c else ""
    )


def _roles(c: dict[str, Any]) -> str:
    return ", ".join(f"{n:,} {role}" for role, n in c.get("roles", {}).items())


FACTS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("windows", _number("windows")),
    ("documents", _number("documents")),
    ("only held out", _number("heldout_documents", " documents")),
    ("too short, left out", _number("short_documents", " documents")),
    ("tokens of the text", _number("tokens_there")),
    ("length of a document", _lengths),
    ("rows", _number("rows")),
    ("no data", _share),
    ("passes over the training part", _number("passes")),
    ("near-copies of an earlier document", _copies),
    ("records", _records),
    ("messages by role", _roles),
)


def windows_of(found: StoreLook) -> Iterator[tuple[str, list[Window]]]:
    """(what the heading adds, windows) of every corpus."""
    for number, some in groupby(sorted(found.windows, key=lambda w: (w.corpus or 0, w.number)), lambda w: w.corpus):
        known = number is not None and len(found.corpora) > 1
        yield (f" of {found.corpora[number]['corpus']}" if known and number is not None else ""), list(some)


def models(found: StoreLook) -> str:
    """Which models read the tokens, and what the windows are, as HTML."""
    read = ", ".join(f"<b>{escape(s.name)}</b>" for s in found.spec.sources)
    kinds = ", ".join(f"{share:.1%} {escape(kind)}" for kind, share in found.kinds.items())
    return f"Read by {read}. Of the windows: {kinds}."


def window(w: Window, words: Words) -> str:
    """One window: what it is, and its tokens."""
    side = " · held out" if w.heldout else ""
    head = f"window {w.number:,} · {escape(w.kind)} · document {w.document:,}{side}"
    tokens = zip(words.of(w.ids.tolist()), w.is_row.tolist(), strict=True)
    marks = "".join(
        f"<i>{escape(t)}</i>" + ("<br>" if "\n" in t else "") if row else f'<s title="{NO_DATA}">{chip(t)}</s>'
        for t, row in tokens
    )
    return div("wb-window", span("k", head), div("t", marks))


body()
