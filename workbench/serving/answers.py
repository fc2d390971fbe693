"""What can be asked of a workspace, and the answers: plain values that JSON holds, small enough to be read at once.

Each function is a question of the Model Context Protocol's server (:mod:`workbench.serving.mcp`), which shows its
docstring to who asks. Nothing is written and no model is loaded. A value that was not computed is ``null``, never zero;
every answer about a result carries its data version, and says where the result is stale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import UsageError
from sae.strict import nearest, parse_config
from workbench.markup.text import visible
from workbench.results.circuits import CircuitResult
from workbench.results.evolution import Evolution
from workbench.results.lists import read_lists
from workbench.results.matches import TRAP, MatchRecords
from workbench.results.records import Context, LatentRecords, explanation_folders
from workbench.results.searching import Haystack
from workbench.results.stale import known_results, stale_results, why_stale
from workbench.workspace import KINDS, MADE_BY, Item, Workspace

MOST = 200  # rows of one answer
AROUND = 16  # tokens shown on either side of a context's peak
LATENT_COLUMNS = ("latent", "label", "label_score", "label_source", "peak_text", "promoted_text", "n_fired", "density")


def list_results(workspace: Workspace, kind: str = "") -> dict[str, Any]:
    """What the workspace holds: every complete result with its id, data version and headline numbers; with ``kind``
    (models, stores, dictionaries, latents, evaluations, matches, circuits, evolution, maps, graphs, explanations,
    claims, exports, lists) only those. Begin here: ids of other questions come from this one.
    """
    if kind and kind not in KINDS:
        raise UsageError(
            f"{kind!r} is not a kind of result, such as dictionaries or matches ({nearest(kind, list(KINDS))})"
        )
    old = stale_results(known_results(workspace))
    found: dict[str, Any] = {}
    for one in [kind] if kind else KINDS:
        if one == "lists":
            named, _ = read_lists(workspace.root)
            found[one] = [{"id": id, "name": visible(x.name), "latents": len(x.items)} for id, x in named.items()]
            continue
        found[one] = [
            {"id": item.id, "version": item.version, "numbers": _plain(item.manifest.numbers)}
            | ({"stale": list(old[one, item.id].why)} if (one, item.id) in old else {})
            for item in workspace.items(one)
        ]
    made = {one: f"workbench {MADE_BY[one]}" for one, items in found.items() if not items and one in MADE_BY}
    return {"results": {one: items for one, items in found.items() if items}, "not made yet": made}


def manifest(workspace: Workspace, kind: str, id: str) -> dict[str, Any]:
    """The manifest of one result: the command and recipe that made it, its inputs with their digests, its numbers, the
    version of the program and the digest of every file.
    """
    item = workspace.get(kind, id)
    return _about(workspace, item) | {"manifest": _plain(item.manifest.model_dump(mode="json"))}


def search_latents(
    workspace: Workspace,
    dictionary: str,
    text: str = "",
    sort: str = "",
    descending: bool = True,
    alive: bool = True,
    limit: int = 20,
) -> dict[str, Any]:
    """Latents of a dictionary whose label, peak token, promoted tokens or strongest contexts hold ``text`` (literally,
    whatever its case; empty: all). ``sort`` is a column of the answer's ``columns``, ``alive`` leaves out latents that
    never fired.
    """
    item = workspace.get("latents", dictionary)
    records = _records(item)
    table = records.table
    keep = _haystack(item).holding(text)
    if alive and "n_fired" in table:
        keep &= (table["n_fired"] > 0).to_numpy()
    found = table[keep]
    if sort:
        if sort not in table:
            raise UsageError(f"{sort!r} is not a column of {dictionary} ({nearest(sort, list(table.columns))})")
        found = found.sort_values(sort, ascending=not descending, kind="stable", na_position="last")
    shown = [c for c in dict.fromkeys((*LATENT_COLUMNS, sort)) if c in table]
    return _about(workspace, item) | {
        "n_tokens": records.n_tokens,
        "columns": list(table.columns),
        "latents": _rows(found[shown], limit),
        "found": len(found),
        "of": len(table),
    }


def latent_card(workspace: Workspace, dictionary: str, latent: int, contexts: int = 5) -> dict[str, Any]:
    """One latent: its statistics, its label, its strongest contexts and near misses, the next tokens its direction
    raises and lowers, and its nearest latents. In a context the token it was chosen for stands between «»; ``acts``
    are the tokens on which the latent fired.
    """
    item = workspace.get("latents", dictionary)
    records = _records(item)
    n = _limited(contexts, 50)
    effects, near = records.logits(latent), records.neighbours(latent)
    shown = {
        group: {
            "available": records.available(latent, group),
            "contexts": [_context(c) for c in records.contexts(latent, group, n)],
        }
        for group in records.groups
    }
    return _about(workspace, item) | {
        "about": _plain({k: records.metadata.get(k) for k in ("model", "revision", "hook", "site")}),
        "n_tokens": records.n_tokens,
        "latent": _plain(records.row(latent)),
        "contexts": shown,
        "raises": None if effects is None else [{"token": visible(t), "logit": v} for _, t, v in effects.promoted],
        "lowers": None if effects is None else [{"token": visible(t), "logit": v} for _, t, v in effects.suppressed],
        "logits_note": None if effects is None else effects.note,
        "nearest": None if near is None else [{"latent": i, "cosine": _plain(c)} for i, c in near],
    }


def matches(
    workspace: Workspace, comparison: str, dictionary: str = "", latent: int | None = None, limit: int = 20
) -> dict[str, Any]:
    """A comparison of two dictionaries or models: the mean best correlation of every series beside its controls, each
    with n and interval, and the best-matched latents; with ``dictionary`` (and ``latent``) those of that side alone.
    """
    item = workspace.get("matches", comparison)
    found = MatchRecords.open(item.path)
    best = found.best
    if dictionary:
        known = sorted(set(best["dictionary"]))
        if dictionary not in known:
            raise UsageError(f"{dictionary!r} is not in {comparison} ({nearest(dictionary, known)})")
        best = best[best["dictionary"] == dictionary]
    if latent is not None:
        if not dictionary:
            raise UsageError(f"say whose latent {latent} is: dictionary is one of {sorted(set(best['dictionary']))}.")
        best = best[best["latent"] == latent]
        if not len(best):
            raise UsageError(f"latent {latent} of {dictionary} is not in {comparison}.")
    return _about(workspace, item) | {
        "sides": {side: found.metadata[side]["name"] for side in ("a", "b")},
        "n_tokens": _plain(found.metadata.get("n_tokens")),
        "trap": TRAP,
        "summary": _rows(found.table("summary"), MOST),
        "best": _rows(best.sort_values("r", ascending=False, kind="stable", na_position="last"), limit),
        "found": len(best),
    }


def pair(
    workspace: Workspace,
    comparison: str,
    dictionary_a: str,
    latent_a: int,
    dictionary_b: str,
    latent_b: int,
    contexts: int = 3,
) -> dict[str, Any]:
    """Two latents of a comparison on the same tokens: their correlation beside what 99 of 100 unrelated latents of the
    same frequency stay below, how often each and both fire, and texts on which both are strong.
    """
    item = workspace.get("matches", comparison)
    found = MatchRecords.open(item.path)
    one = found.pair(dictionary_a, latent_a, dictionary_b, latent_b)
    strips = found.strips(dictionary_a, latent_a, dictionary_b, latent_b, n=_limited(contexts, 20))
    return _about(workspace, item) | {
        "r": _plain(one.r),
        "n_tokens": one.n_tokens,
        "n_fired": list(one.n_fired),
        "n_cofire": one.n_cofire,
        "null_q99": _plain(one.null_q99),
        "trap": TRAP,
        "contexts": [
            {"text": _marked(s.tokens, s.peak), "a": _active(s.tokens, s.acts_a), "b": _active(s.tokens, s.acts_b)}
            for s in strips
        ],
    }


def evolution(workspace: Workspace, id: str, latent: int | None = None, limit: int = 20) -> dict[str, Any]:
    """How latents change over the snapshots of a model's training: every snapshot's numbers, every statistic beside
    its null; with ``latent`` its decoder norm at every snapshot, when it emerged, and its contexts.
    """
    item = workspace.get("evolution", id)
    found = Evolution.open(item.path)
    out = _about(workspace, item) | {"sources": found.sources, "steps": found.steps.tolist(), "latents": len(found)}
    if latent is None:
        return out | {
            name: None if table is None else _rows(table, MOST)
            for name, table in (("snapshots", found.phases), ("statistics", found.statistics))
        }
    norms = {kind: found.norms([latent], kind) for kind in ("training", "raw", "free")}
    contexts = found.contexts(latent)
    return out | {
        "latent": _rows(found.table.iloc[[latent]], 1)[0],
        "norms": {kind: None if curve is None else _plain(curve[0].tolist()) for kind, curve in norms.items()},
        "contexts": None
        if contexts is None
        else [
            {"text": _marked(c.tokens, c.peak), "acts": _active(c.tokens, c.code.tolist())}
            for c in contexts[: _limited(limit, 50)]
        ],
    }


def circuits(workspace: Workspace, id: str, analysis: str = "", limit: int = 50) -> dict[str, Any]:
    """The measured effects of a model's circuit on a task, strongest first: metric after patching or ablation minus
    before, with interval and n; ``analysis`` chooses one of the answer's ``analyses``.
    """
    item = workspace.get("circuits", id)
    found = CircuitResult.open(item.path)
    effects = found.effects
    known = sorted(set(effects["analysis"].astype(str)))
    if analysis:
        if analysis not in known:
            raise UsageError(f"{analysis!r} is not an analysis of {id} ({nearest(analysis, known)})")
        effects = effects[effects["analysis"] == analysis]
    order = effects["effect"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    return _about(workspace, item) | {
        "about": _plain({k: found.metadata.get(k) for k in ("model", "architecture", "task", "n_prompts")}),
        "analyses": known,
        "effects": _rows(effects.loc[order], limit),
        "found": len(effects),
    }


def figures(workspace: Workspace) -> dict[str, Any]:
    """Figures whose data can be asked for with ``figure_data``: what each shows, from which kind of result, its
    options with their defaults, and the results of this workspace it could show.
    """
    from workbench.exporting.figures import figure_kinds

    return {
        "figures": {
            name: {
                "title": kind.title,
                "sources": [f"{kind.source}/{item.id}" for item in workspace.items(kind.source)],
                "options": _plain(
                    {
                        key: field.get_default(call_default_factory=True)
                        for key, field in kind.options.model_fields.items()
                    }
                ),
            }
            for name, kind in figure_kinds().items()
            if not kind.document
        }
    }


def figure_data(
    workspace: Workspace, figure: str, source: str = "", options: dict[str, Any] | None = None, limit: int = 100
) -> dict[str, Any]:
    """The table behind a figure, as ``workbench export`` would draw it, with its caption and n. ``source`` is a result
    as ``kind/id``; it may be left out where the workspace holds only one.
    """
    from workbench.exporting.figures import build
    from workbench.exporting.spec import FigureSpec

    spec = parse_config(FigureSpec, {"figure": figure, "source": source, "options": options or {}}, where="the figure")
    made = build(spec, workspace)
    return {
        "caption": visible(made.caption),
        "n": _plain(dict(made.n)),
        "inputs": [{"kind": i.kind, "id": i.id, "version": i.version} for i in made.inputs],
        "stale": why_stale(workspace, made.inputs),
        "rows": _rows(made.data, limit),
        "found": len(made.data),
    }


QUESTIONS: tuple[Callable[..., dict[str, Any]], ...] = (
    list_results,
    manifest,
    search_latents,
    latent_card,
    matches,
    pair,
    evolution,
    circuits,
    figures,
    figure_data,
)


def _about(workspace: Workspace, item: Item) -> dict[str, Any]:
    """Which result an answer is about, and on which data it rests."""
    stale = why_stale(workspace, [item])
    return {"result": f"{item.kind}/{item.id}", "version": item.version} | ({"stale": stale} if stale else {})


def _records(item: Item) -> LatentRecords:
    return _opened(str(item.path), _key(item))[0]


def _haystack(item: Item) -> Haystack:
    return _opened(str(item.path), _key(item))[1]()


def _key(item: Item) -> str:
    """Changes when the records, or the explanations that are joined to them, are made again."""
    labels = [str((p / "manifest.json").stat().st_mtime_ns) for p in explanation_folders(item.path)]
    return ".".join([item.version, *labels])


@lru_cache(maxsize=8)
def _opened(folder: str, key: str) -> tuple[LatentRecords, Callable[[], Haystack]]:
    """Records, and what is searched in them, made when it is first asked for."""
    records = LatentRecords.open(Path(folder))
    return records, lru_cache(maxsize=1)(lambda: Haystack.of(records))


def _limited(asked: int, most: int = MOST) -> int:
    if not 1 <= asked <= most:
        raise UsageError(f"{asked} is not a number of rows to answer with: choose 1 to {most}.")
    return asked


def _rows(table: pd.DataFrame, limit: int) -> list[dict[str, Any]]:
    """The first rows of a table as plain values."""
    chosen = table.head(_limited(limit))
    return [{str(k): _plain(v) for k, v in row.items()} for row in chosen.to_dict("records")]


def _plain(value: Any) -> Any:
    """A value as JSON holds it: no NaN or infinity, no numpy, every character one that can be shown."""
    if isinstance(value, Mapping):
        return {visible(str(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int) else visible(str(value))


def _context(c: Context) -> dict[str, Any]:
    lo, hi = max(0, c.peak - AROUND), c.peak + AROUND + 1
    return {
        "text": _marked(c.tokens[lo:hi], c.peak - lo),
        "value": _plain(c.value),
        "acts": _active(c.tokens[lo:hi], c.acts[lo:hi]),
        "sequence": c.seq,
        "position": c.start + c.peak,
    }


def _marked(tokens: list[str], peak: int) -> str:
    return "".join(f"«{visible(t)}»" if j == peak else visible(t) for j, t in enumerate(tokens))


def _active(tokens: list[str], acts: list[float]) -> list[dict[str, Any]]:
    """Tokens on which a latent fired, in the text's order."""
    return [{"token": visible(t), "value": float(f"{a:.4g}")} for t, a in zip(tokens, acts, strict=True) if a > 0]
