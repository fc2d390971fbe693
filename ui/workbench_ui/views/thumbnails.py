"""The gallery of the page Export: every figure of the workspace in small, drawn when the reader comes near it."""

from __future__ import annotations

import base64
import struct
from itertools import groupby

import streamlit as st

from sae.errors import MissingError, UserError
from workbench.exporting import FigureSpec, Style
from workbench.exporting.figures import Kind, build
from workbench.exporting.render import render
from workbench.markup.tags import div
from workbench.markup.tokens import clip, escape
from workbench.workspace import Workspace
from workbench_ui.components.enhance import page_link
from workbench_ui.components.near import when_near
from workbench_ui.kit import data, panels
from workbench_ui.kit.index import Entry

ACROSS = 4
HEIGHT = 170  # pixels of a picture
TRIED = 4  # results of a kind, until one can be shown


def gallery(kinds: list[Kind]) -> None:
    """A card for each figure, those of one kind of result together; a card opens its figure."""
    for source, group in groupby(kinds, key=lambda k: k.source):
        panels.heading(f"{source[0].upper()}{source[1:]}")
        here = list(group)
        for lo in range(0, len(here), ACROSS):
            for column, kind in zip(st.columns(ACROSS, gap="small"), here[lo : lo + ACROSS], strict=False):
                with column, st.container(border=True, height="stretch", key=f"wb_thumb_{kind.name}"):
                    st.html(div("wb-thumb", page_link("export", escape(kind.title), {"f": kind.name})))
                    _picture(kind)


def _picture(kind: Kind) -> None:
    """The figure in small; in words where there is none to draw beforehand."""
    if kind.document:
        _say("files to open, send or upload")
    elif kind.live:
        _say("runs the language model, so it is drawn when you open it")
    else:
        when_near(f"thumb_{kind.name}", HEIGHT, "The picture", lambda: _drawn(kind))


def _drawn(kind: Kind) -> None:
    entries = data.index().of(kind.source)[:TRIED]
    version = ".".join(e.version for e in entries)
    try:
        png, words = _thumbnail(str(data.workspace_folder()), version, kind.name, _ids(entries))
    except UserError as e:
        _say(str(e))
        return
    width, height = struct.unpack(">II", png[16:24])  # as the header of a PNG says
    with st.container(key=f"wb_{'tall' if height > 1.5 * width else 'wide'}_{kind.name}"):
        st.image(f"data:image/png;base64,{base64.b64encode(png).decode()}", width="stretch", alt=words)


def _say(text: str) -> None:
    st.html(div("wb-thumb", div("d", escape(clip(text, 160)))))


def _ids(entries: list[Entry]) -> tuple[str, ...]:
    return tuple(f"{e.kind}/{e.id}" for e in entries)


@st.cache_data(show_spinner=False, max_entries=120)
def _thumbnail(root: str, version: str, figure: str, sources: tuple[str, ...]) -> tuple[bytes, str]:
    """PNG and words of the first result that can be shown as it comes.

    Raises:
        UserError: none can be, and why not. It is raised and not returned, so that it is not kept: another result may
        be what was missing.
    """
    workspace = Workspace(root, create=False)
    why: UserError = MissingError("no result to draw it from")
    for source in sources:
        try:
            made = build(FigureSpec(figure=figure, source=source), workspace)
            return render(made, Style(dpi=90), formats=("png",))["png"], made.alt or made.caption
        except UserError as e:
            why = e
    raise why
