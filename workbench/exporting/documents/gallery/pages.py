"""Which pages there are, and the first of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig
from workbench.exporting.documents.gallery.frame import assets, head, link, page
from workbench.exporting.documents.gallery.latents import Partner, Shown, dictionary_pages
from workbench.exporting.documents.gallery.results import circuit_pages, evolution_pages, match_pages
from workbench.exporting.documents.selection import of_list
from workbench.markup.glossary import standing_alone
from workbench.markup.names import dictionary_words
from workbench.markup.tables import table
from workbench.markup.tokens import clip, escape, number
from workbench.results.matches import MatchRecords
from workbench.results.records import LatentRecords
from workbench.results.stale import why_stale
from workbench.workspace import Item, Workspace

MOST = 20_000  # latents of one folder: a page each, some 30 kB


class GalleryOptions(StrictConfig):
    """Options of ``site``."""

    list: str = Field(
        default="", max_length=200, description="Only the latents of this list of the workspace, by its id or name"
    )
    latents: int = Field(
        default=200,
        ge=1,
        le=MOST,
        description="How many latents of each dictionary get a page: those with the largest activation",
    )
    contexts: int = Field(default=3, ge=1, le=20, description="Contexts of each group on a latent's page")


@dataclass
class Gallery:
    """The pages so far, and what they rest on."""

    files: dict[str, bytes]
    inputs: list[Item] = field(default_factory=list)
    latents: int = 0
    tokens: int = 0
    models: list[str] = field(default_factory=list)


@standing_alone()
def gallery(workspace: Workspace, item: Item | None, options: GalleryOptions) -> Gallery:
    """The folder of a workspace, of the dictionary ``item``, or of the list that the options name.

    Raises:
        MissingError: there are no latent records, or the list is not there.
        UsageError: a list and a dictionary, or more latents than :data:`MOST`.
    """
    if item is not None and options.list:
        raise UsageError(f"say either --source latents/{item.id} or options.list {options.list!r}, not both.")
    shown, name = _chosen(workspace, item, options)
    total = sum(len(x.latents) for x in shown)
    if total > MOST:
        raise UsageError(
            f"{total:,} latents are too many for one folder (at most {MOST:,}): lower options.latents"
            f" ({options.latents:,} for each of {len(shown)} dictionaries)."
        )
    whole = item is None and not options.list
    compared = [] if item is not None else workspace.items("matches")
    made = Gallery(assets(), [x.item for x in shown], total, max(x.records.n_tokens for x in shown))
    made.models = list(dict.fromkeys(str(x.records.metadata.get("model", "")) for x in shown))
    partners = _partners(compared, shown)
    for x in shown:
        made.files |= dictionary_pages(x, shown, partners, contexts=options.contexts)
    rooms: list[tuple[str, list[Item], Any]] = [
        ("matches", compared, match_pages),
        ("evolution", workspace.items("evolution") if whole else [], evolution_pages),
        ("circuits", workspace.items("circuits") if whole else [], circuit_pages),
    ]
    listed: dict[str, list[list[str]]] = {}
    for kind, items, pages in rooms:
        listed[kind] = []
        for one in items:
            files, line = pages(workspace, one, shown, options.latents)
            if files:
                made.files |= files
                made.inputs.append(one)
                listed[kind].append([f'<a href="{link(f"{kind}/{one.id}/index.html")}">{escape(one.id)}</a>', *line])
    made.files["index.html"] = _front(workspace, made, shown, listed, name)
    return made


def _chosen(workspace: Workspace, item: Item | None, options: GalleryOptions) -> tuple[list[Shown], str]:
    """The latents of every dictionary that is shown, and what the whole is called where it has a name."""
    if options.list:
        found, name = of_list(workspace, options.list)
        by: dict[str, Shown] = {}
        for x in found:
            one = by.setdefault(x.item.id, Shown(x.item, x.records, [], f"the list “{name}”"))
            one.latents.append(x.latent)
            one.notes[x.latent] = x.note
        return list(by.values()), name
    items = [item] if item is not None else workspace.items("latents")
    if not items:
        raise MissingError(
            f"{workspace.root} has no latent records to show. `workbench features DICTIONARY` makes them."
        )
    return [_strongest(x, options.latents) for x in items], ""


def _strongest(item: Item, n: int) -> Shown:
    """The latents of a dictionary with the largest activations; those that never fired have nothing to show."""
    records = LatentRecords.open(item.path)
    table_ = records.table
    alive = table_[table_["n_fired"] > 0] if "n_fired" in table_ else table_
    if "max" in alive:
        alive = alive.sort_values(["max", "latent"], ascending=[False, True], kind="stable", na_position="last")
    chosen = [int(i) for i in alive["latent"].head(n)]
    which = (
        f"all {len(chosen):,} that fired, of {len(table_):,}"
        if len(chosen) == len(alive)
        else f"the {len(chosen):,} with the largest activations, of {len(alive):,} that fired"
    )
    return Shown(item, records, chosen, which)


def _partners(compared: Sequence[Item], shown: Sequence[Shown]) -> dict[tuple[str, int], list[Partner]]:
    """The best partners of every latent that is shown, of every comparison it is in."""
    wanted = {(x.item.id, i) for x in shown for i in x.latents}
    out: dict[tuple[str, int], list[Partner]] = defaultdict(list)
    for item in compared:
        best = MatchRecords.open(item.path).best
        for row in best[best["r"].notna()].to_dict("records"):
            key = str(row["dictionary"]), int(row["latent"])
            if key in wanted:
                out[key].append(
                    Partner(item.id, str(row["partner_dictionary"]), int(row["partner"]), row["r"], row["null_q99"])
                )
    return out


def _front(
    workspace: Workspace, made: Gallery, shown: list[Shown], listed: dict[str, list[list[str]]], name: str
) -> bytes:
    title = name or f"Latents of {' and '.join(m for m in made.models if m) or shown[0].item.id}"
    rows = []
    for x in shown:
        about = {**x.records.metadata}
        stale = "; ".join(why_stale(workspace, [x.item]))
        rows.append(
            [
                f'<a href="{link(x.path())}">{escape(x.item.id)}</a>',
                escape(dictionary_words(x.item.id, about)),
                f"{len(x.latents):,}",
                escape(x.which),
                f"{x.records.n_tokens:,}",
                number(x.records.manifest.numbers.get("l0")),
                f"<code>{x.item.version}</code>" + (f" stale: {escape(stale)}" if stale else ""),
            ]
        )
    columns = ["dictionary", "of", "latents", "which", "tokens", "L0", "data version"]
    body = head("Dictionaries", "a page for each latent") + table(columns, rows, numeric=frozenset({2, 4, 5}))
    for kind, title_, columns_ in (
        ("matches", "Matches between dictionaries", ["comparison", "between", "tokens", "data version"]),
        ("evolution", "Latents over training", ["evolution", "model", "snapshots", "latents", "data version"]),
        ("circuits", "Circuits", ["circuits", "model", "task", "prompts", "data version"]),
    ):
        if listed[kind]:
            body += head(title_) + table(columns_, listed[kind])
    commands = [
        [escape(f"{i.kind}/{i.id}"), f"<code>{escape(clip(i.manifest.command or '–', 160))}</code>"]
        for i in made.inputs
    ]
    body += head("Where these numbers come from") + table(["result", "made by"], commands)
    sub = (
        f"{made.latents:,} latents of {len(shown)} dictionar{'ies' if len(shown) != 1 else 'y'}; open a dictionary,"
        " then a latent. Made with Interpretability Workbench."
    )
    return page("index.html", title, body, sub=sub)
