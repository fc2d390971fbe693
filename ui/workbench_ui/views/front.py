"""What the front door shows, chosen from the workspace's own data: the latent most worth a first look, its twin, one
that is born in training, who copies, and what the papers' findings came to. A card whose result is missing says
its command.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import streamlit as st

from sae.errors import UserError
from workbench.config import bundled_recipe
from workbench.markup.glossary import term
from workbench.markup.tags import div, span
from workbench.markup.tokens import escape
from workbench_ui.components.enhance import latent_link, page_link
from workbench_ui.kit import data, facts
from workbench_ui.kit.commands import absolute, run_html
from workbench_ui.kit.index import Dictionary, Entry, Index
from workbench_ui.kit.matching import open_matches
from workbench_ui.kit.thread import short, words_of
from workbench_ui.views.evolving import open_evolution
from workbench_ui.views.findings import open_claim
from workbench_ui.views.latent_table import snippet
from workbench_ui.views.missing import of_the_miniatures

MOST = 24  # dictionaries that are looked through for the first card
HALF = 0.5  # of the prompts right: below it, what pushes towards the answer is not what solves the task


@dataclass(frozen=True)
class Hero:
    """The latent the front door opens with."""

    dictionary: str
    latent: int


def browsable(index: Index) -> list[Dictionary]:
    """Dictionaries whose latents can be looked at, those of finished models first."""
    found = [d for d in index.dictionaries.values() if d.records is not None]
    return sorted(found, key=lambda d: d.revision != "final")


def hero(index: Index) -> Hero | None:
    """Chosen once per state of the workspace: labelled, complex, a mutual twin of r > 0.7; else the next best."""
    return _hero(str(index.root), data.results_key())


@st.cache_resource(show_spinner="choosing what to show first …", max_entries=4)
def _hero(root: str, key: str) -> Hero | None:
    best: tuple[float, Hero] | None = None
    for d in browsable(data.index())[:MOST]:
        try:
            records = data.records(d)
            columns = facts.columns(d)
        except (UserError, OSError, ValueError, KeyError):
            continue  # its own page says what is wrong with it
        if records is None or not len(records):
            continue
        value = columns["interest"].copy()
        if "twin_r" in columns:
            value += np.where(np.nan_to_num(columns["twin_r"]) > 0.7, 0.5, 0.0)
        if d.architecture == "Transformer":
            value += 0.05  # of two equals the one whose twin is the surprise
        for row in np.argsort(-value)[:5]:
            latent = int(records.table["latent"].iloc[row])
            twin = facts.twin_of(d, latent)
            worth = float(value[row]) + (0.3 if twin is not None and twin.mutual else 0.0)
            if best is None or worth > best[0]:
                best = (worth, Hero(d.id, latent))
    return best[1] if best else None


def card(number: int, title_html: str, *body: str) -> str:
    """A card of the front door; titles and bodies are markup."""
    return div("card", div("k", span("no", str(number)), span("", title_html)), *body)


def waits(number: int, title_html: str, why: str, command: str) -> str:
    """A card whose result is missing: what it would show, and the command."""
    return card(number, title_html, div("d", escape(why)), run_html(absolute(command, data.workspace_folder())))


def one_latent(index: Index, d: Dictionary | None, latent: int) -> str:
    """Card 1."""
    title = f"One {term('latent')}"
    if d is None:
        return waits(
            1, title, "No latent can be looked at yet. This makes models, dictionaries and latents.", "workbench demo"
        )
    records = data.records(d)
    top = records.contexts(latent, "top", 2) if records is not None else []
    where = f"{escape(short(d))}, latent {latent:,}"
    told = words_of(d, latent, 110)
    return card(
        1,
        title,
        div("v", latent_link(d, latent, where)),
        div("d", f"fires on {escape(told)}" if told else "no label yet"),
        *(div("ctxline", snippet(c.tokens, c.peak)) for c in top),
        div("go", latent_link(d, latent, "open it →")),
    )


def in_both(index: Index, d: Dictionary | None, latent: int) -> str:
    """Card 2."""
    title = f"The same in both models: its {term('twin')}"
    twin = facts.twin_of(d, latent) if d is not None else None
    if d is None or twin is None:
        pair = two_architectures(index)
        if pair is None:
            return card(2, title, div("d", "This workspace holds dictionaries of one model only."))
        return waits(
            2, title, "Which latents of one model are found again in the other.", f"workbench compare {' '.join(pair)}"
        )
    records = data.records(twin.dictionary)
    top = records.contexts(twin.latent, "top", 1) if records is not None else []
    found = open_matches(str(twin.comparison.path), twin.comparison.version)
    best = found.best[found.best["direction"] == "ab"]
    compared = best["r"].notna()
    where = {"m": twin.comparison.id, "d": d.id, "i": latent, "d2": twin.dictionary.id, "i2": twin.latent}
    return card(
        2,
        title,
        div(
            "v",
            latent_link(twin.dictionary, twin.latent, f"{escape(short(twin.dictionary))}, latent {twin.latent:,}"),
            span("n", f"{term('r')} {twin.r:.2f}"),
        ),
        div("d", f"fires on {escape(words_of(twin.dictionary, twin.latent, 90))}"),
        *(div("ctxline", snippet(c.tokens, c.peak)) for c in top),
        div(
            "d", f"{int((best['matched'] & compared).sum()):,} of {int(compared.sum()):,} latents compared have a twin"
        ),
        div("go", page_link("pair", "both on the same tokens →", where), page_link("mppc", "all matches →")),
    )


def two_architectures(index: Index) -> tuple[str, str] | None:
    """One model of each architecture that has dictionaries, or two models of one; None where there is one only."""
    models = list(dict.fromkeys(d.model for d in index.dictionaries.values()))
    other = [m for m in models if index.architecture(m) != index.architecture(models[0])] if models else []
    rest = other or models[1:]
    return (models[0], rest[0]) if rest else None


def being_born(index: Index) -> str:
    """Card 3."""
    title = "Watch one being born"
    for e in index.of("evolution"):
        try:
            evolution = open_evolution(str(e.path), e.version)
            table = evolution.table
            steps = table["emergence_0.5_step"].astype(float)
        except (UserError, OSError, ValueError, KeyError):
            continue  # the page of training says what is wrong with it
        later = table[(steps > float(evolution.steps[0])) & (table["n_fired"] > 50)]
        if later.empty:
            later = table
        middle = float(np.median(evolution.steps))
        order = (later["emergence_0.5_step"].astype(float) - middle).abs().fillna(np.inf)
        latent = int(later.loc[order.idxmin(), "latent"])
        norms = evolution.norms([latent])
        curve = norms[0] if norms is not None else np.zeros(0)
        top = float(curve.max(initial=0.0)) or 1.0
        bars = "".join(f'<i style="height:{max(3.0, 100 * float(v) / top):.0f}%"></i>' for v in curve)
        when = later.loc[order.idxmin(), "emergence_0.5_step"]
        classes = Counter(str(v) for v in table["class"].dropna()) if "class" in table else Counter()
        told = f"{classes['emergent']:,} of {len(evolution):,} latents appear late in training" if classes else ""
        first, last = int(evolution.steps[0]), int(evolution.steps[-1])
        emerged = f"{term('emergence', 'emerges')} at step {int(when):,}" if when == when else "there from the start"
        return card(
            3,
            title,
            div("v", page_link("training", f"{escape(_model(e))}, latent {latent:,}", {"ev": e.id, "ls": latent})),
            div("d", f"{emerged}; its decoder norm from step {first:,} to {last:,}:"),
            div("wb-spark", bars, attrs='role="img" aria-label="Decoder norm over training"'),
            div("d", told),
            div("go", page_link("training", "play the training →", {"ev": e.id, "ls": latent})),
        )
    models = list(dict.fromkeys(d.model for d in index.dictionaries.values()))
    recipe = next((found for m in models if (found := bundled_recipe("evolve", m))), None)
    if models and recipe is None:  # a bundled recipe of another model would tell nothing about these
        names = " or ".join(escape(m) for m in models[:2])
        needs = f"No training of {names} was followed yet. It needs a recipe over several snapshots of the model."
        return card(3, title, div("d", needs))
    about = "One dictionary over many snapshots of a model's training."
    return waits(3, title, about, f"workbench evolve {recipe or 'mini-evolve'}")


def _model(e: Entry) -> str:
    return f"{e.metadata.get('model') or e.id} {e.metadata.get('site') or ''}".strip()


def right_answers(numbers: dict[str, Any]) -> float | None:
    """Share of the prompts of a circuit at which the model gives the right answer; None where it was not measured."""
    said = numbers.get("accuracy")
    right = said.get("value") if isinstance(said, dict) else None
    return float(right) if isinstance(right, int | float) else None


def who_copies(index: Index) -> str:
    """Card 4."""
    title = "Who copies? Induction"
    said = []
    for e in index.of("circuits"):
        if not e.id.endswith(".induction"):
            continue
        n, name = e.numbers, str(e.metadata.get("model") or e.id.rpartition(".")[0])
        right = right_answers(n)
        score = f" ({100 * right:.0f} % right answers)" if right is not None else ""
        if right is not None and right < HALF:
            score = f", which is not enough: {100 * right:.0f} % right answers"
        heads, write = n.get("induction_heads"), n.get("write_peak")
        if isinstance(heads, dict) and heads.get("effect"):
            who = ", ".join(f"layer {a} head {h}" for a, h in heads["effect"][:3])
            said.append(f"<b>{escape(name)}</b>: {escape(who)} look back and copy{score}")
        elif isinstance(write, dict) and "layer" in write:
            said.append(f"<b>{escape(name)}</b>: layer {int(write['layer'])} writes the answer into its state{score}")
    if not said:
        model = next((d.model for d in index.dictionaries.values()), "mini-pythia")
        return waits(
            4, title, "Which parts repeat what stood after the same word before.", f"workbench circuits {model}"
        )
    about = "After “A B … A” a model should say B. The parts that do it:"
    return card(
        4,
        title,
        div("d", about),
        *(div("d", s) for s in said[:3]),
        div("go", page_link("induction", "see the paths →")),
    )


def the_papers(index: Index) -> str:
    """Card 6."""
    title = "Do three papers’ findings hold?"
    entries = index.of("claims")
    if not entries and index.dictionaries and not of_the_miniatures(index):
        elsewhere = "They are measured on the small models that come with the program, in a workspace of their own."
        return card(6, title, div("d", elsewhere))
    if not entries:
        return waits(
            6,
            title,
            "Their findings measured again on these models, each beside its control.",
            "workbench reproduce all --quick",
        )
    verdicts: Counter[str] = Counter()
    for e in entries:
        try:
            verdicts[str(open_claim(str(e.path), e.version)["verdict"])] += 1
        except UserError:
            continue  # the page of results says what is wrong with it
    rows = "".join(f"<li><b>{n:,}</b> {escape(v)}</li>" for v, n in verdicts.most_common())
    return card(
        6,
        title,
        div("d", f"{sum(verdicts.values()):,} findings, each measured beside its control:"),
        f"<ul>{rows}</ul>",
        div("go", page_link("results", "all findings →")),
    )


def found_in(index: Index, text: str, each: int = 6) -> str:
    """Latents of all dictionaries that hold a text, the most interesting of each first."""
    rows, total = [], 0
    for d in browsable(index):
        assert d.records is not None
        try:
            records = data.records(d)
            hits = np.flatnonzero(data.holding(str(d.records.path), d.key, text))
            order = hits[np.argsort(-facts.columns(d)["interest"][hits], kind="stable")]
        except (UserError, OSError, ValueError, KeyError):
            continue  # its own page says what is wrong with it
        if records is None or not len(hits):
            continue
        total += len(hits)
        links = []
        for row in order[:each]:
            latent = int(records.table["latent"].iloc[row])
            told = words_of(d, latent, 44)
            links.append(f"<li>{latent_link(d, latent, f'#{latent:,}')} {escape(told)}</li>")
        every = page_link("latents", f"all {len(hits):,} →", {"d": d.id, "q": text})
        rows.append(div("hit", div("k", escape(f"{short(d)}"), every), f"<ul>{''.join(links)}</ul>"))
    if not rows:
        return div("wb-panel info", "No latent of any dictionary holds that. Try a shorter piece of it.")
    return div("sub", f"<b>{total:,}</b> latents in {len(rows)} dictionaries") + div("wb-hits", *rows)


def tour(index: Index, d: Dictionary | None, latent: int) -> str:
    """Six steps for a newcomer, each a link with one sentence."""
    steps: list[tuple[str, str]] = []
    if d is not None:
        steps.append(
            (latent_link(d, latent, "Meet a latent"), "Read its contexts: the marked words are where it fires.")
        )
        twin = facts.twin_of(d, latent)
        if twin is not None:
            where = {"m": twin.comparison.id, "d": d.id, "i": latent, "d2": twin.dictionary.id, "i2": twin.latent}
            steps.append(
                (page_link("pair", "See its twin", where), "Another architecture learnt the same: both on one text.")
            )
    if index.of("evolution"):
        steps.append((page_link("training", "Watch training"), "Drag the slider: the same words at every snapshot."))
    if index.of("circuits"):
        steps.append((page_link("induction", "Find the copying parts"), "One task, traced through both models."))
    if index.of("graphs"):
        steps.append((page_link("graph", "Follow one prediction"), "Which latents make which, and the next word."))
    if index.of("dictionaries"):
        steps.append((page_link("probe", "Try your own text"), "Click a word and see what fires there in both models."))
    if index.of("claims"):
        steps.append((page_link("results", "Judge the papers"), "Every finding stands beside its control."))
    rows = "".join(f"<li>{link} <span>{escape(about)}</span></li>" for link, about in steps)
    return f'<ol class="wb-tour">{rows}</ol>'


def people(index: Index) -> dict[str, Any]:
    """How many models and dictionaries there are, for the first line."""
    models = list(dict.fromkeys(d.model for d in index.dictionaries.values()))
    kinds = [index.architecture(m) for m in models]
    return {"models": models, "transformers": kinds.count("Transformer"), "mambas": kinds.count("Mamba")}
