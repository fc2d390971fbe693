"""The lives of a latent beside its anatomy: its twin in the other model, its birth in training, the graphs it is in."""

from __future__ import annotations

import streamlit as st

from sae.errors import UserError
from workbench.config import bundled_recipe
from workbench.markup.glossary import term
from workbench.markup.tags import div, span
from workbench.markup.tokens import clip, escape, number, visible
from workbench_ui.components.enhance import latent_link, page_link
from workbench_ui.kit import data
from workbench_ui.kit.commands import absolute, run_html
from workbench_ui.kit.facts import birth_of, comparisons_of, twin_of
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.thread import short, words_of
from workbench_ui.views.graphs import dictionary_of, open_graph


def lives(d: Dictionary, latent: int) -> str:
    """Three cards as HTML; one whose result does not exist says which command makes it."""
    return div("wb-lives", _twin(d, latent), _birth(d, latent), _graphs(d, latent))


def _card(title_html: str, body_html: str) -> str:
    return div("life", div("k", title_html), body_html)


def _missing(why: str, command: str) -> str:
    return div("d", escape(why)) + run_html(absolute(command, data.workspace_folder()))


def _twin(d: Dictionary, latent: int) -> str:
    title = f"Its {term('twin')} in another model"
    twin = twin_of(d, latent)
    if twin is None:
        if comparisons_of(d):
            return _card(title, div("d", "None: it fires too seldom to be compared."))
        other = next((x for x in data.index().dictionaries.values() if x.architecture != d.architecture), None)
        if other is None:
            return _card(title, div("d", "This workspace holds one architecture only."))
        return _card(
            title, _missing("No comparison holds this dictionary yet.", f"workbench compare {d.id} {other.id}")
        )
    told = words_of(twin.dictionary, twin.latent, 60)
    chance = f" · chance stays below {twin.chance:.2f}" if twin.chance is not None else ""
    how = "each is the other's best" if twin.mutual else "the best partner it has"
    where = {"m": twin.comparison.id, "d": d.id, "i": latent, "d2": twin.dictionary.id, "i2": twin.latent}
    weak = "" if twin.matched else " · no more than chance or r below 0.5: hardly a twin"
    return _card(
        title,
        div(
            "v",
            latent_link(twin.dictionary, twin.latent, f"{escape(short(twin.dictionary))} #{twin.latent:,}"),
            span("n", f"{term('r')} {twin.r:.2f}"),
        )
        + div("d", f"{escape(told)}<br>{how}{chance}{weak}")
        + div("go", page_link("pair", "see both on the same tokens →", where)),
    )


def _birth(d: Dictionary, latent: int) -> str:
    title = f"When it {term('emergence', 'emerges')} in training"
    birth = birth_of(d, latent)
    if birth is None:
        known = [e for e in data.index().of("evolution") if e.metadata.get("model") == d.model]
        if not known:
            not_yet = "No training of this model was followed yet."
            recipe = bundled_recipe("evolve", d.model)
            if recipe is None:  # a bundled recipe of another model would never fill this card
                return _card(title, div("d", f"{not_yet} It needs a recipe over several snapshots of the model."))
            return _card(title, _missing(not_yet, f"workbench evolve {recipe}"))
        sites = {str(e.metadata.get("site")) for e in known}
        if d.site not in sites or d.revision != "final":
            return _card(
                title, div("d", f"Training was followed at {escape(', '.join(sorted(sites)))}, not at {d.site}.")
            )
        return _card(title, div("d", "No latent of the crosscoder over the snapshots points the same way."))
    top = max(birth.norms, default=0.0) or 1.0
    bars = "".join(
        f'<i style="height:{max(4.0, 100 * v / top):.0f}%" title="step {s:,}"></i>'
        for v, s in zip(birth.norms, birth.steps, strict=False)
    )
    when = f"step {birth.step:,}" if birth.step is not None else "from the first snapshot on"
    link = page_link("training", "watch it at every snapshot →", {"ev": birth.evolution.id, "ls": birth.latent})
    return _card(
        title,
        div("v", escape(when), span("wb-spark", bars))
        + div("d", f"as latent {birth.latent:,} of the crosscoder over snapshots, direction cosine {birth.cosine:.2f}")
        + div("go", link),
    )


@st.cache_resource(show_spinner=False, max_entries=4)
def _nodes(root: str, key: str) -> dict[tuple[str, int], list[tuple[str, str, float]]]:
    """(dictionary, latent) -> graphs it is a node of, with the node and its influence."""
    found: dict[tuple[str, int], list[tuple[str, str, float]]] = {}
    for e in data.index().of("graphs"):
        try:
            graph = open_graph(str(e.path), e.version)
        except (UserError, OSError):
            continue  # the page of graphs says what is wrong with it
        for n in graph.nodes:
            id = dictionary_of(e.metadata, n.layer) if n.latent is not None else None
            if id is not None and n.latent is not None:
                found.setdefault((id, n.latent), []).append((e.id, n.id, n.influence))
    return found


def _graphs(d: Dictionary, latent: int) -> str:
    title = "Prompts in whose graph it is"
    index = data.index()
    graphs = index.of("graphs")
    if not graphs:
        return _card(
            title, _missing("No graph was drawn yet.", f'workbench graph "def __init__(self" --model {d.model}')
        )
    key = ".".join(e.version for e in graphs)
    found = sorted(_nodes(str(index.root), key).get((d.id, latent), []), key=lambda x: -x[2])
    if not found:
        return _card(title, div("d", f"In none of the {len(graphs)} drawn so far."))
    best: dict[str, tuple[str, float]] = {}
    for id, node, influence in found:
        best.setdefault(id, (node, influence))
    rows = []
    for id, (node, influence) in list(best.items())[:3]:
        e = index.find("graphs", id)
        prompt = clip(visible(str((e.metadata if e else {}).get("prompt") or id)), 46)
        link = page_link("graph", escape(prompt), {"gr": id, "pin": node})
        rows.append(div("d", f"{link} · influence {number(influence)}"))
    more = div("d", f"and {len(best) - 3} more") if len(best) > 3 else ""
    return _card(title, "".join(rows) + more)
