"""Which latents a document shows: some of one dictionary, or those of a named list, from as many dictionaries as it
names.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig, nearest
from workbench.results.lists import read_lists
from workbench.results.records import LatentRecords
from workbench.workspace import Item, Workspace

MOST = 500


class SelectionOptions(StrictConfig):
    """``latents`` of the source, or the ``list`` with this id or name; ``contexts`` of each group."""

    latents: tuple[int, ...] = Field((), description="latents of the source, in this order")
    list: str = Field(
        default="", max_length=200, description="or those of this list of the workspace, by its id or name"
    )
    contexts: int = Field(default=10, ge=1, le=50, description="contexts of each group")


@dataclass(frozen=True)
class Chosen:
    """One latent of a selection, with the note of its list."""

    item: Item
    records: LatentRecords
    latent: int
    note: str = ""


def select(workspace: Workspace, item: Item | None, options: SelectionOptions) -> tuple[list[Chosen], str]:
    """The latents a document shows, in the order given, and what to call them.

    Raises:
        UsageError: neither latents nor a list, both, too many, or a latent that the dictionary does not have.
        MissingError: the list or one of its dictionaries is not in the workspace.
    """
    if bool(options.latents) == bool(options.list):
        raise UsageError(
            "say which latents: options.latents (numbers) with a source, or options.list (a list of this workspace)."
        )
    if options.list:
        found, name = of_list(workspace, options.list)
        return _checked(found), name
    if item is None:
        ids = [f"latents/{i.id}" for i in workspace.items("latents")]
        raise UsageError(f"say whose latents: --source {' or '.join(ids[:4]) or 'latents/<dictionary>'}")
    records = LatentRecords.open(item.path)
    return _checked([Chosen(item, records, i) for i in dict.fromkeys(options.latents)]), item.id


def of_list(workspace: Workspace, wanted: str) -> tuple[list[Chosen], str]:
    """The latents of a list, by its id or name, in its order, and the list's name.

    Raises:
        MissingError: the list or one of its dictionaries is not in the workspace, or the list is empty.
        UsageError: a dictionary has no such latent.
    """
    known, _ = read_lists(workspace.root)
    id = wanted if wanted in known else next((i for i, x in known.items() if x.name == wanted), None)
    if id is None:
        raise MissingError(f"list {wanted!r} is not in {workspace.root} ({nearest(wanted, list(known))})")
    opened: dict[str, tuple[Item, LatentRecords]] = {}
    found = []
    for x in known[id].items:
        if x.dictionary not in opened:
            item = workspace.get("latents", x.dictionary)
            opened[x.dictionary] = item, LatentRecords.open(item.path)
        found.append(Chosen(*opened[x.dictionary], x.latent, x.note))
    if not found:
        raise MissingError(f"list {known[id].name!r} is empty: there is nothing to export.")
    for chosen in found:
        chosen.records.position(chosen.latent)
    return found, known[id].name


def _checked(found: list[Chosen]) -> list[Chosen]:
    """Every latent exists, and there are not too many for one document."""
    if len(found) > MOST:
        raise UsageError(f"{len(found):,} latents are too many for one document; at most {MOST}.")
    for x in found:
        x.records.position(x.latent)
    return found


def items_of(found: list[Chosen]) -> list[Item]:
    """The records the selection rests on, each once."""
    return list({x.item.id: x.item for x in found}.values())
