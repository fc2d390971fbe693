"""Dose and response on the Text probe: what stronger pushes of latents do after the text, measured and kept in the
workspace, where the figure and its export read it.
"""

from __future__ import annotations

import streamlit as st

from sae.errors import UserError
from workbench.markup.tokens import escape, visible
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.choose import check_version, choose_of
from workbench_ui.kit.figures import chart
from workbench_ui.kit.index import Dictionary, Entry
from workbench_ui.views import continuing

AMOUNTS = "0, 1, 2, 4, 8, 16"
HEIGHT = 260


def section(d: Dictionary, text: str, changes: str, n: int) -> None:
    """The doses to try, the button, and what was measured before.

    Args:
        changes: as for the continuation; what is added there is what the doses vary, what is held there stays held.
        n: tokens of the continuations whose perplexity is measured.
    """
    panels.heading(
        "Dose and response",
        "the latents added under <i>Changes</i>, ever more of them: the next token's distribution, one token's logit,"
        " and what the unchanged model thinks of the text",
    )
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        amounts = st.text_input(
            "Amounts",
            placeholder=AMOUNTS,
            help="Numbers with commas between them",
            width=260,
            **state.tie_text("dd", 200),
        )
        target = st.text_input(
            "Token to follow",
            placeholder="the one raised most",
            help="A single token of the model, with its space; empty: the one that the largest amount raises most",
            width=220,
            **state.tie_text("dt", 60),
        )
        go = st.button("Measure", icon=":material/show_chart:", key="ds_go")
    if go:
        try:
            kept = _measure(d, text, changes, str(amounts or AMOUNTS), str(target or ""), n)
        except UserError as e:
            panels.problem("This cannot be measured", str(e))
            return
        state.put(ds=kept, dsv=None)
        st.rerun()
    measured(d, text)


def measured(d: Dictionary, text: str) -> None:
    """What was measured before with a dictionary, as the figure; nothing where nothing was.

    ``text``: the one on the page; where it is not what was measured, that is said. Empty: none was read.
    """
    there = [e for e in data.index().of("doses") if e.metadata.get("dictionary") == d.id]
    if not there:
        return
    entry = choose_of(
        there,
        "Measured",
        "ds",
        what="Dose and response",
        command="steer DICTIONARY PROMPT --add LATENT=1 --dose 0,2,4,8 --keep",
        text=_said,
    )
    if entry is None:
        return
    check_version(entry, "ds")
    if texts := entry.metadata.get("texts"):
        panels.note(f"Means over {texts} held-out texts, not over what is read here; bands are 95 % intervals.")
    elif entry.metadata["prompt"] != text:
        prompt = escape(panels.clip(visible(entry.metadata["prompt"]), 200))
        panels.note(f"Measured after {'another' if text else 'this'} text: <code>{prompt}</code>")
    chart("ds_chart", "dose_response", entry, height=HEIGHT)


def _said(entry: Entry) -> str:
    about = entry.metadata
    latents = ", ".join(f"#{i}" for i in about["latents"])
    texts = about.get("texts")
    where = f"on {texts} held-out texts" if texts else f"after “{panels.clip(about['prompt'][-40:], 40)}”"
    return visible(f"{latents} {where}, {entry.numbers['amounts']} amounts")


def _measure(d: Dictionary, text: str, changes: str, amounts: str, target: str, n: int) -> str:
    """Id of the result.

    Raises:
        UserError: nothing is added, an amount or the token cannot be read, or the text leaves no room.
    """
    from workbench.analysis.evaluation.steer_text import Loaded, steer_text
    from workbench.workspace import Workspace

    root = str(data.workspace_folder())
    adds, sets = continuing.said(changes)
    loaded = Loaded(*continuing.own(root, d.id, d.version))
    with st.spinner("measuring …"), continuing.TURN:  # a continuation that is being made has hooks on the same model
        found = steer_text(
            Workspace(root, create=False),
            d.id,
            text,
            add=adds,
            sets=sets,
            tokens=n,
            dose=[x for x in amounts.split(",") if x.strip()],
            target=target,
            keep=True,
            loaded=loaded,
        )
    assert found.kept is not None
    return found.kept.id
