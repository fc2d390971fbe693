"""``workbench map`` as a function: neighbours, chance, families and layout of one or more dictionaries in one space.

``maps/<id>/`` holds ``umap.npy`` [points, 2] with ``points.parquet`` (dictionary, latent of every row), ``density.npy``
with ``density_edges.npy``, ``nearest.parquet``, ``nearest_hist.parquet`` and, for each pair of widths,
``families.parquet``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch

from sae.errors import UsageError
from workbench.analysis.latents.geometry import chance, cosine_histogram, density_grid, families, umap_layout
from workbench.analysis.latents.neighbours import nearest
from workbench.dictionaries.reference import DictionaryRef
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id

CAPTION = "UMAP keeps neighbourhoods, not distances or densities: for finding one's way, not for measuring."


def map_id(references: list[DictionaryRef]) -> str:
    """``<first>`` or ``<first>__<second>``; more than two add a count.

    Raises:
        UsageError: none, or one twice.
    """
    ids = [s.id for s in references]
    if not ids or len(set(ids)) != len(ids):
        raise UsageError(f"a map needs distinct dictionaries, not {', '.join(ids) or 'none'}.")
    return check_id(ids[0] if len(ids) == 1 else f"{ids[0]}__{ids[1]}" + (f"+{len(ids) - 2}" if len(ids) > 2 else ""))


def _different(found: str) -> UsageError:
    return UsageError(
        f"dictionaries of different spaces cannot share a map: {found}. `workbench compare` matches them on the same"
        " tokens."
    )


def make_map(
    workspace: Workspace, references: list[DictionaryRef], *, layout: bool = True, seed: int = 0, run: Run = QUIET
) -> Item:
    """Geometry of the decoder directions of dictionaries that share a space (one hook, or hooks of the same residual
    stream).

    Args:
        layout: also compute the UMAP (tens of seconds the first time, when its code is compiled).

    Raises:
        UsageError: dictionaries of different widths or models.
    """
    id = map_id(references)
    models = {s.id: s.model_name for s in references if s.metadata.get("model_name")}
    if len(set(models.values())) > 1:
        raise _different(f"models {models}")
    recipe = {"dictionaries": [s.id for s in references], "layout": layout, "seed": seed}
    inputs = [s.input for s in references]
    if (have := reusable(workspace, "maps", id, recipe=recipe, inputs=inputs, run=run)) is not None:
        return have
    decoders = {s.id: s.load().W_dec.detach().float() for s in references}
    widths = {name: W.shape[1] for name, W in decoders.items()}
    if len(set(widths.values())) > 1:
        raise _different(f"widths {widths}")
    near, histograms, numbers = [], [], {}
    for name, W in decoders.items():
        against = chance(W, seed=seed)
        ids, cosines = nearest(W, n=1)
        near.append(
            pd.DataFrame(
                {"dictionary": name, "latent": np.arange(len(W)), "nearest": ids[:, 0], "cosine": cosines[:, 0]}
            )
        )
        histograms.append(cosine_histogram(cosines[:, 0], against).assign(dictionary=name))
        numbers[name] = _numbers(cosines[:, 0], {b: against.threshold(b) for b in against.cosines}, against.cosines)
    split, pairs = _families(decoders, seed)
    with workspace.create(
        "maps",
        id,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=numbers | pairs,
        metadata=_about(references, layout),
    ) as out:
        pd.concat(near).to_parquet(out / "nearest.parquet", index=False)
        pd.concat(histograms).to_parquet(out / "nearest_hist.parquet", index=False)
        if split is not None:
            split.to_parquet(out / "families.parquet", index=False)
        if layout:
            xy = umap_layout(torch.cat(list(decoders.values())), seed=seed)
            counts, edges = density_grid(xy)
            np.save(out / "umap.npy", xy, allow_pickle=False)
            np.save(out / "density.npy", counts, allow_pickle=False)
            np.save(out / "density_edges.npy", edges, allow_pickle=False)
            points = [
                pd.DataFrame({"dictionary": name, "latent": np.arange(len(W), dtype=np.int32)})
                for name, W in decoders.items()
            ]
            pd.concat(points, ignore_index=True).assign(x=xy[:, 0], y=xy[:, 1]).to_parquet(
                out / "points.parquet", index=False
            )
    return workspace.get("maps", id)


def _numbers(cosines: np.ndarray, thresholds: dict[str, float], random: dict[str, np.ndarray]) -> dict[str, Any]:
    found: dict[str, Any] = {"n_latents": len(cosines), "median_nearest_cosine": float(np.nanmedian(cosines))}
    for name, limit in thresholds.items():
        found[f"median_{name}"] = float(np.median(random[name]))
        found[f"q999_{name}"] = limit
        found[f"share_above_{name}"] = float(np.mean(cosines > limit))
    return found


def _families(decoders: dict[str, torch.Tensor], seed: int) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """Families of every (narrower, wider) pair of neighbouring widths, with their headline numbers."""
    ordered = sorted(decoders.items(), key=lambda kv: len(kv[1]))
    tables, numbers = [], {}
    for (narrow, a), (wide, b) in pairwise(ordered):
        children, parents = families(a, b, against=chance(b, a, seed=seed))
        tables.append(children.assign(dictionary=wide, parent_dictionary=narrow))
        numbers[f"{narrow}->{wide}"] = {
            "n_narrow": len(a),
            "n_wide": len(b),
            "share_with_parent": float((children["parent"] >= 0).mean()),
            "share_split": float((parents["n_children"] >= 2).mean()),
            "median_children": float(parents["n_children"].median()),
            "threshold": float(children["threshold"].iloc[0]),
        }
    return (pd.concat(tables, ignore_index=True) if tables else None), numbers


def _about(references: list[DictionaryRef], layout: bool) -> dict[str, Any]:
    about = {
        "dictionaries": [s.id for s in references],
        "models": sorted({s.model_name for s in references if s.metadata.get("model_name")}),
    }
    return about | {
        "baselines": "isotropic and second-moment-matched random directions, 3 draws",
        "layout": CAPTION if layout else "not computed",
    }
