"""A text continued on the Text probe: the model as it is beside the model with latents pushed or held, token by token.

A continuation is made by a thread of its own, on a model of its own: what else a page asks of a model in the meantime
opens hooks, and may not meet those of a continuation. Steps of two continuations take turns by one lock.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from sae.errors import UserError
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.index import Dictionary

MOST = 1000  # tokens of one continuation
EVERY = 1.0  # seconds between two looks at what is being made
KEY = "ct_stream"
TURN = threading.Lock()
_LIVE: list[tuple[Stream, threading.Thread]] = []


@dataclass
class Text:
    """One continuation: tokens so far, their text, and once it is whole the unchanged model's perplexity of them."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    perplexity: float | None = None


@dataclass
class Stream:
    """Two continuations being made: ``plain``, and ``steered`` where something is changed."""

    changes: str
    most: int = 0  # tokens that each may have
    plain: Text = field(default_factory=Text)
    steered: Text | None = None
    done: bool = False
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)


def section(d: Dictionary, text: str) -> tuple[str, int]:
    """Settings, the button that begins or stops, and what has been made. Returns the changes and number of tokens asked
    for.
    """
    panels.heading(
        "Continue the text",
        "the model as it is, and with latents of the dictionary above pushed or held at every position; the text is"
        " read once",
    )
    found: Stream | None = st.session_state.get(KEY)
    running = found is not None and not found.done
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        changes = st.text_input(
            "Changes",
            placeholder="17=4, 20:=0",
            help="LATENT=AMOUNT adds to a latent's activation, LATENT:=VALUE puts a value in its place (0: ablated);"
            " several with commas. Empty: the model as it is alone",
            width=260,
            **state.tie_text("cch", 200),
        )
        n = st.number_input("Tokens", 1, MOST, step=10, width=120, **state.tie_number("cn", 1, MOST, 40))
        temperature = st.number_input(
            "Temperature",
            0.0,
            5.0,
            step=0.1,
            width=130,
            help="0 takes the likeliest",
            **state.tie_float("ct", 0.0, 5.0, 0.0),
        )
        seed = st.number_input("Seed", 0, 10**6, step=1, width=110, **state.tie_number("cs", 0, 10**6, 0))
        # one place, one button: a disabled one is nearly the colour of the page
        if running:
            go = False
            st.button("Stop", icon=":material/stop:", key="ct_stop", type="primary", on_click=_stop)
        else:
            go = st.button("Continue", icon=":material/play_arrow:", key="ct_go", type="primary")
    asked = str(changes or ""), int(n)
    if go:
        try:
            found = begin(d, text, *asked, float(temperature), int(seed))
        except UserError as e:
            panels.problem("This cannot be continued", str(e))
            return asked
        st.session_state[KEY] = found
        st.rerun()  # the buttons change
    if found is not None:
        st.fragment(shown, run_every=EVERY if running else None)(found, running)
    return asked


def _stop() -> None:
    found: Stream | None = st.session_state.get(KEY)
    if found is not None:
        found.stop.set()


def shown(found: Stream, running: bool) -> None:
    """Both continuations so far, side by side."""
    if found.error:
        panels.problem("The continuation broke off", found.error)
    titles = [("As it is", found.plain)] + ([(f"With {found.changes}", found.steered)] if found.steered else [])
    for column, (title, one) in zip(st.columns(len(titles), gap="large"), titles, strict=True):
        with column:
            told = f"{len(one.ids)} tokens" if found.done else f"{len(one.ids)} of at most {found.most} tokens"
            if one.perplexity is not None:
                told += f" · perplexity {one.perplexity:.1f} under the unchanged model"
            told += " · stopped" if found.done and found.stop.is_set() else " …" if not found.done else ""
            panels.heading(panels.clip(title, 80), told)
            st.code(one.text or " ", language=None, wrap_lines=True)
    if running and found.done:
        st.rerun()  # the buttons change, and nobody looks any more


def begin(d: Dictionary, text: str, changes: str, n: int, temperature: float, seed: int) -> Stream:
    """Start a thread that continues a text.

    Raises:
        UserError: what is asked for cannot be read, or does not fit.
    """
    from workbench.analysis.evaluation.probe import encode_text, one_hook
    from workbench.analysis.evaluation.steer_text import parse_changes
    from workbench.analysis.evaluation.steering import Steered

    adds, sets = said(changes)
    parsed = parse_changes(adds, sets)
    reference, dictionary, model = own(str(data.workspace_folder()), d.id, d.version)
    ids, _, _ = encode_text(model, text)
    at = {one_hook(reference): dictionary}
    runs = [Steered(model, at, ids), *([Steered(model, at, ids, parsed)] if parsed else [])]
    if n > runs[0].room:
        next(runs[0].tokens(n))  # refuses, and says what fits
    found = Stream(", ".join(c.strip() for c in changes.split(",") if c.strip()), n, steered=Text() if parsed else None)
    thread = threading.Thread(target=_make, args=(found, runs, n, temperature, seed), daemon=True)
    _LIVE.append((found, thread))
    thread.start()
    return found


def said(changes: str) -> tuple[list[str], list[str]]:
    """What is added and what is held, each as ``LATENT=NUMBER``, of a line such as ``17=4, 20:=0``."""
    each = [c.strip() for c in changes.split(",") if c.strip()]
    return [c for c in each if ":=" not in c], [c.replace(":=", "=") for c in each if ":=" in c]


@atexit.register
def _end() -> None:
    """A server that ends waits for the token being made: a thread may not be cut off inside a computation."""
    for found, thread in list(_LIVE):
        found.stop.set()
        thread.join(2)


@st.cache_resource(show_spinner="loading a model of its own …", max_entries=2)
def own(root: str, id: str, version: str) -> tuple[Any, Any, Any]:
    """(reference, dictionary, model) that nothing else on the pages uses."""
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model
    from workbench.workspace import Workspace

    reference = find_dictionary(Workspace(root, create=False), id)
    return reference, reference.load(), load_model(reference.model_name, revision=reference.revision)


def _make(found: Stream, runs: list[Any], n: int, temperature: float, seed: int) -> None:
    """A token of each in turn, until they end or are stopped; then the perplexities."""
    import torch

    torch.set_num_threads(1)  # steps of one token gain nothing from more, and wait for them where cores are busy
    texts = [found.plain, *([found.steered] if found.steered else [])]
    try:
        tokens: list[Iterator[int] | None] = [r.tokens(n, temperature=temperature, seed=seed) for r in runs]
        while any(tokens) and not found.stop.is_set():
            for k, (one, run) in enumerate(zip(texts, runs, strict=True)):
                made = tokens[k]
                if made is None:
                    continue
                with TURN:
                    token = next(made, None)
                if token is None:
                    tokens[k] = None
                    continue
                one.ids.append(token)
                one.text = run.model.tokenizer.decode(one.ids, clean_up_tokenization_spaces=False)
        for one, run in zip(texts, runs, strict=True):
            with TURN:
                one.perplexity = run.perplexity(one.ids)
    except (UserError, RuntimeError, ValueError) as e:
        found.error = str(e)
    finally:
        found.done = True
        _LIVE[:] = [x for x in _LIVE if x[0] is not found]
