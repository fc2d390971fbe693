"""Pages of comparisons, evolutions and circuits: their figures as the program draws them, and tables behind them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import UserError
from workbench.exporting.documents.gallery.frame import folded, head, link, page, sortable
from workbench.exporting.documents.gallery.latents import Shown, latent_link
from workbench.exporting.figures import FigureData, axis_words, build, figure_kinds
from workbench.exporting.render import render
from workbench.exporting.spec import FigureSpec, Style
from workbench.markup.tables import table
from workbench.markup.tags import div
from workbench.markup.tokens import chip, escape, number, strip
from workbench.results.circuits import CircuitResult
from workbench.results.evolution import Evolution
from workbench.results.matches import TRAP, MatchRecords
from workbench.workspace import Item, Workspace

Made = tuple[dict[str, bytes], list[str]]  # pages and pictures by their paths, and cells of the front page's row
UP = "../../"
ROWS = 200  # of the table behind a figure
PAIRS, PAIR_CONTEXTS = 20, 2  # pairs whose common texts are shown
EFFECTS, PROMPTS = 100, 4
CROWDED = frozenset({"pair", "matched_latents"})  # what the page shows as a table


def match_pages(workspace: Workspace, item: Item, shown: Sequence[Shown], limit: int) -> Made:
    """A comparison: its figures, and the best pairs of the latents that are shown; nothing where it has none."""
    records = MatchRecords.open(item.path)
    wanted = {x.item.id: x.has for x in shown}
    best = records.best[records.best["r"].notna()]
    here = np.array(
        [int(i) in wanted.get(str(d), ()) for d, i in zip(best["dictionary"], best["latent"], strict=True)], dtype=bool
    )
    chosen = best[here].sort_values(["r", "dictionary", "latent"], ascending=[False, True, True], kind="stable")
    if not len(chosen):
        return {}, []
    rows = [
        [
            latent_link(shown, str(row["dictionary"]), int(row["latent"]), UP),
            latent_link(shown, str(row["partner_dictionary"]), int(row["partner"]), UP),
            f"{row['r']:.3f}",
            f"{row['null_q99']:.3f}" if pd.notna(row["null_q99"]) else "–",
            number(row["n_fired"]),
            number(row["n_cofire"]),
            "yes" if row["mutual"] else "no",
        ]
        for row in chosen.head(limit).to_dict("records")
    ]
    columns = ["latent", "best partner", "r", "chance, 99 %", "fired on", "both fire", "each other's best"]
    files, figures = _figures(workspace, item)
    path = f"{item.kind}/{item.id}/index.html"
    body = (
        f'<p class="unmade">{html.escape(TRAP)}</p>'
        + figures
        + head("Best partners", f"{len(rows):,} of {len(chosen):,} directed pairs, strongest first")
        + sortable(table(columns, rows, numeric=frozenset({2, 3, 4, 5})))
        + _common_texts(records, chosen)
    )
    names = " and ".join(str(records.metadata[s]["name"]) for s in ("a", "b"))
    n = number(records.metadata.get("n_tokens"))
    sub = f"{names} on the same {n} tokens, data version {item.version}"
    files[path] = page(path, item.id, body, sub=sub, crumbs=[("All results", "index.html")])
    return files, [escape(names), n, f"<code>{item.version}</code>"]


def _common_texts(records: MatchRecords, chosen: pd.DataFrame) -> str:
    """The strongest pairs on the same text: shaded where the latent fires, underlined where its partner does."""
    if not records.has_codes:
        return ""
    parts = []
    seen: set[frozenset[tuple[str, int]]] = set()
    for row in chosen.to_dict("records"):
        a, b = (str(row["dictionary"]), int(row["latent"])), (str(row["partner_dictionary"]), int(row["partner"]))
        if frozenset((a, b)) in seen:
            continue
        seen.add(frozenset((a, b)))
        strips = records.strips(*a, *b, n=PAIR_CONTEXTS)
        top = [
            max((max(acts) for s in strips for acts in [getattr(s, side)]), default=0.0)
            for side in ("acts_a", "acts_b")
        ]
        shown = "".join(
            div("c", strip(s.tokens, s.acts_a, top[0], peak=s.peak, start=s.start, under=s.acts_b, under_max=top[1]))
            for s in strips
        )
        parts.append(div("g", f"{escape(a[0])} #{a[1]} and {escape(b[0])} #{b[1]}, r {row['r']:.3f}") + shown)
        if len(seen) == PAIRS:
            break
    about = "shaded where the first latent fires, underlined where the second does; hover a token for both values"
    return head("The strongest pairs on the same text", about) + "".join(parts)


def evolution_pages(workspace: Workspace, item: Item, shown: Sequence[Shown], limit: int) -> Made:
    """Latents over training: figures, and a row for each latent with its decoder norm over the snapshots."""
    records = Evolution.open(item.path)
    found = records.table
    alive = found[found["alive"].astype(bool)] if "alive" in found else found
    strength = "n_fired" if "n_fired" in alive else "latent"
    chosen = alive.sort_values([strength, "latent"], ascending=[False, True], kind="stable").head(limit)
    dictionary = str(records.metadata.get("dictionary") or item.id)
    norms = records.norms(chosen["latent"].to_numpy())
    steps = records.steps.tolist()
    rows = []
    for j, row in enumerate(chosen.to_dict("records")):
        latent = int(row["latent"])
        contexts = records.contexts(latent) or []
        text = ""
        if contexts:
            c = contexts[0]
            text = strip(c.tokens, c.code.tolist(), float(c.code.max()), peak=c.peak, start=c.start, window=8)
        rows.append(
            [
                latent_link(shown, dictionary, latent, UP)
                if any(x.item.id == dictionary for x in shown)
                else f"#{latent}",
                _curve(norms[j]) if norms is not None else "–",
                *(_step(row.get(f"{name}_step")) for name in ("emergence_0.5", "peak")),
                escape(row["kind"]) if isinstance(row.get("kind"), str) else "–",
                number(row.get("complexity")),
                number(row.get("n_fired")),
                text or "–",
            ]
        )
    columns = [
        "latent",
        "decoder norm",
        "emerges at step",
        "peaks at step",
        "kind",
        "complexity",
        "fired on",
        "strongest context",
    ]
    files, figures = _figures(workspace, item)
    path = f"{item.kind}/{item.id}/index.html"
    about = (
        f"{len(rows):,} of {len(alive):,} that fired, most frequent first; decoder norm: from step {steps[0]:,} to"
        f" {steps[-1]:,}, each curve on its own scale; emerges: the first snapshot with half of its largest norm"
    )
    body = figures + head("Latents", about) + sortable(table(columns, rows, numeric=frozenset({2, 3, 5, 6})))
    model = str(records.metadata.get("model", "–"))
    sub = f"{model} at {len(steps)} snapshots, data version {item.version}"
    files[path] = page(path, item.id, body, sub=sub, crumbs=[("All results", "index.html")])
    cells = [escape(model), str(len(steps)), f"{len(records):,}", f"<code>{item.version}</code>"]
    return files, cells


def _step(value: Any) -> str:
    return "–" if value is None or pd.isna(value) else f"{int(value):,}"


def _curve(values: np.ndarray) -> str:
    """A row of numbers as a small line, from zero to its largest."""
    top = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    if top <= 0:
        return "–"
    points = [
        (100 * j / max(1, len(values) - 1), 20 - 19 * float(v) / top) for j, v in enumerate(values) if np.isfinite(v)
    ]
    d = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    said = f"decoder norm from {number(float(values[0]))} to {number(float(values[-1]))}, at most {number(top)}"
    return (
        f'<svg class="curve" viewBox="0 0 100 20" preserveAspectRatio="none" role="img" aria-label="{said}">'
        f'<path d="{d}"/></svg>'
    )


def circuit_pages(workspace: Workspace, item: Item, shown: Sequence[Shown], limit: int) -> Made:
    """The circuits of a model on a task: figures, effects, and prompts."""
    records = CircuitResult.open(item.path)
    files, figures = _figures(workspace, item)
    path = f"{item.kind}/{item.id}/index.html"
    effects = records.effects
    order = effects["effect"].abs().sort_values(ascending=False, kind="stable", na_position="last").index
    wanted = [
        c
        for c in ("analysis", "path", "source", "site", "layer", "unit", "receiver", "position", "metric")
        if c in effects
    ]
    rows = [
        [
            *(escape(row[c]) if pd.notna(row[c]) else "–" for c in wanted),
            number(row["effect"]),
            f"{number(row['low'])} … {number(row['high'])}" if pd.notna(row["low"]) else "–",
            number(row["n"]),
        ]
        for row in effects.loc[order].head(EFFECTS).to_dict("records")
    ]
    columns = [*wanted, "effect", "95 %", "n"]
    last = len(columns)
    prompts = "".join(
        div("c", "".join(chip(str(t)) for t in p["tokens"])) for p in records.prompts[:PROMPTS] if p.get("tokens")
    )
    about = f"the {len(rows):,} strongest of {len(effects):,}: metric after minus before"
    body = (
        figures
        + head("Effects", about)
        + sortable(table(columns, rows, numeric=frozenset({last - 3, last - 1})))
        + (head("Prompts", f"{min(PROMPTS, len(records.prompts))} of {len(records.prompts)} examples") + prompts)
    )
    meta = records.metadata
    n = f"{number(meta.get('n_prompts'))} prompts"
    sub = f"{meta.get('model', '–')} on {meta.get('task', '–')}, {n}, data version {item.version}"
    files[path] = page(path, item.id, body, sub=sub, crumbs=[("All results", "index.html")])
    cells = [escape(meta.get("model", "–")), escape(meta.get("task", "–")), number(meta.get("n_prompts"))]
    return files, [*cells, f"<code>{item.version}</code>"]


def _figures(workspace: Workspace, item: Item) -> tuple[dict[str, bytes], str]:
    """Every figure of a result: pictures by their paths, and the markup that shows them with their tables. What has
    nothing to draw says why.
    """
    files, parts, unmade = {}, [], []
    for name, kind in figure_kinds().items():
        if kind.source != item.kind or kind.document or kind.many or name in CROWDED:
            continue
        try:
            data = build(FigureSpec(figure=name, source=f"{item.kind}/{item.id}"), workspace)
            picture = render(data, Style(width="double"), formats=("svg",))["svg"]
        except UserError as e:
            unmade.append(f'<p class="unmade">{escape(kind.title)}: {escape(str(e))}</p>')
            continue
        files[f"{item.kind}/{item.id}/{name}.svg"] = picture
        caption = f"<figcaption>{escape(data.caption)}</figcaption>"
        image = f'<img src="{link(name)}.svg" alt="{escape(data.alt or data.caption)}" loading="lazy">'
        parts.append(f"<figure>{image}{caption}{_behind(data)}</figure>")
    return files, div("figures", *parts) + "".join(unmade)


def _behind(data: FigureData) -> str:
    """What the axes mean, and the table."""
    frame, names = data.table, data.columns
    rows = [
        [number(float(v)) if isinstance(v, int | float | np.number) else escape(v) if pd.notna(v) else "–" for v in row]
        for row in frame.head(ROWS).astype(object).itertuples(index=False)
    ]
    heads = [str(names.get(c, str(c).replace("_", " "))) for c in frame.columns]
    more = f", the first {ROWS}" if len(frame) > ROWS else ""
    said = axis_words(data)
    words = table(["axis", "what it means"], [[escape(a), escape(w)] for a, w in said]) if said else ""
    return folded(f"axes, and as a table ({len(frame):,} rows{more})", words + table(heads, rows))
