"""Exports that are documents: a selection of latents as one HTML file and in Neuronpedia's feature schema, and a
workspace as a folder of web pages.
"""

from __future__ import annotations

import json
from typing import Any

from workbench.exporting.documents.gallery import GalleryOptions, gallery
from workbench.exporting.documents.neuronpedia import batch, feature, place
from workbench.exporting.documents.page import page
from workbench.exporting.documents.selection import Chosen, SelectionOptions, items_of, select
from workbench.exporting.figures import DocumentData, figure
from workbench.exporting.references import of_models
from workbench.workspace import Item, Workspace


@figure("latents_page", source="latents", options=SelectionOptions, many=True, document=True)
def latents_page(workspace: Workspace, item: Item | None, options: SelectionOptions) -> DocumentData:
    """Latents as one HTML file to send or host: contexts, histograms, logit effects; no network, no script."""
    found, name = select(workspace, item, options)
    files = {"latents.html": page(name, found, contexts=options.contexts).encode()}
    return DocumentData(files, f"Latents of {name} as one self-contained HTML file.", **_about(found))


@figure("neuronpedia", source="latents", options=SelectionOptions, many=True, document=True)
def neuronpedia(workspace: Workspace, item: Item | None, options: SelectionOptions) -> DocumentData:
    """Latents in Neuronpedia's feature schema: one batch per dictionary to import, one JSON per latent."""
    found, name = select(workspace, item, options)
    files: dict[str, bytes] = {}
    for id in dict.fromkeys(x.item.id for x in found):
        mine = [x for x in found if x.item.id == id]
        records, where = mine[0].records, place(mine[0].records)
        folder = f"{where['model_id']}/{where['source']}"
        files[f"{folder}/batch-0.json"] = _json(batch(records, [x.latent for x in mine], options.contexts))
        for x in mine:
            files[f"{folder}/features/{x.latent}.json"] = _json(feature(records, x.latent, options.contexts))
    caption = (
        f"Latents of {name} in Neuronpedia's feature schema: batch-0.json is what its importer reads, features/ what"
        " its interface answers."
    )
    return DocumentData(files, caption, **_about(found))


@figure("site", source="latents", options=GalleryOptions, many=True, document=True)
def site(workspace: Workspace, item: Item | None, options: GalleryOptions) -> DocumentData:
    """A workspace or a list as a folder of web pages: latents, matches, evolution, circuits; opened from disk."""
    made = gallery(workspace, item, options)
    first = next(i for i in made.inputs if i.kind == "latents")
    return DocumentData(
        made.files,
        "A folder of web pages: open index.html, from disk or from any web server.",
        n={"latents": made.latents, "tokens": made.tokens},
        inputs=made.inputs,
        references=("topk", *of_models(made.models)),
        permalink=f"latents?d={first.id}&v={first.version}",
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()


def _about(found: list[Chosen]) -> dict[str, Any]:
    """What both documents say of their latents."""
    items = items_of(found)
    models = [str(x.records.metadata.get("model", "")) for x in found]
    tokens = max(x.records.n_tokens for x in found)
    return {
        "n": {"latents": len(found), "tokens": tokens},
        "inputs": items,
        "references": ("topk", *of_models(models)),
        "permalink": f"latent?d={items[0].id}&i={found[0].latent}&v={items[0].version}",
    }
