"""Text probe: one text in two models at once. Click a token and see which latents fire there on both sides; push one of
them and see what the model would say.
"""

from __future__ import annotations

import html

import streamlit as st

from sae.errors import UserError
from workbench.markup.tags import div, span
from workbench.markup.tokens import cell, chip, escape, level, number, strip, visible
from workbench.results.characters import cells_of
from workbench_ui.components.enhance import enhance, latent_link, put_link
from workbench_ui.kit import data, panels, state
from workbench_ui.kit.context_bar import badges, context_bar
from workbench_ui.kit.export import export_button
from workbench_ui.kit.index import Dictionary
from workbench_ui.kit.probing import Probed, run_probe, run_push, usual
from workbench_ui.kit.thread import last_of, remember, words_of
from workbench_ui.views import continuing, dosing

EXAMPLE = (
    "def read(self, path):\n    with open(path) as f:\n        return f.read()\n\ndef write(self, path):\n    with"
    " open("
)
SHOWN = 10
LINKED, READ = 2000, 20_000  # characters that go into the address, and that are read at all
NOTHING = "nothing"


def main() -> None:
    """The selectors choose the first dictionary; the text and both results are below."""
    d = context_bar(data.index())
    if d is not None:
        body()


@st.fragment(key="probe_body")
def body() -> None:
    """Text, partner, the tokens to click, results."""
    with panels.guarded("The text probe"):
        index = data.index()
        d = state.current(index)
        if d is None:
            return
        panels.page_title(
            "Text probe", "type a text: the model reads it, and the dictionary says which latents fire where"
        )
        left, right = st.columns([3, 2], vertical_alignment="bottom")
        with left:
            text = text_box()
        with right:
            partner = choose_partner(d)
            with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
                st.button("Read the text", type="primary", icon=":material/play_arrow:", key="pr_run", on_click=_read)
                breaks = st.toggle("line breaks", **state.tie_flag("br"))
                with st.popover("From a file", icon=":material/upload_file:"):
                    st.file_uploader("A text file (UTF-8)", key="pr_file", on_change=_upload)
        enhance("pr_enhance", puts=("at",))
        if not st.session_state.get("pr_ready") and not state.get("text"):
            panels.note(
                "Reading loads the language models, which takes some seconds the first time; later it is quick."
            )
            if state.get("ds"):  # a link to what was measured needs no model
                with panels.guarded("Dose and response"):
                    panels.heading("Dose and response", "measured before; read a text to measure anew")
                    dosing.measured(d, "")
            return
        if not text.strip():
            panels.note("There is no text yet. Type one above.")
            return
        shown = [x for x in (d, partner) if x is not None]
        at = tokens_row(shown[0], text)
        for column, one, tag in zip(st.columns(len(shown), gap="large"), shown, "AB", strict=False):
            with column, panels.guarded(f"{one.id} on this text"):
                side(one, text, tag, breaks, at)
        with panels.guarded("The continuation"):
            changes, n = continuing.section(d, text)
            with panels.guarded("Dose and response"):
                dosing.section(d, text, changes, n)


def text_box() -> str:
    """The text, as long as one likes; what does not fit is said aloud and never dropped in silence."""
    asked = (st.query_params.get("text") or "")[:LINKED]
    if "pr_text" not in st.session_state:
        st.session_state["pr_text"] = asked or EXAMPLE
    elif asked and asked != st.session_state.get("pr_linked"):  # the address moved by itself: a link, or back
        st.session_state["pr_text"] = asked
    st.session_state["pr_linked"] = asked
    text = str(st.text_area("Text", key="pr_text", height=150, on_change=_read) or "")
    if len(text) > READ:
        panels.note(f"The text has {len(text):,} characters; the first {READ:,} are read.", "warn")
    elif len(text) > LINKED:
        panels.note(f"The text is longer than {LINKED:,} characters: a link to this page does not carry it.", "warn")
    return text[:READ]


def _read() -> None:
    """Remember that a text was asked for, and write it into the address, so that the view is a link."""
    text = str(st.session_state["pr_text"] or "")
    st.session_state["pr_ready"] = True
    linked = text if text.strip() and len(text) <= LINKED else None
    st.session_state["pr_linked"] = linked or ""
    state.put(text=linked, at=None, sA=None, sB=None)


def _upload() -> None:
    found = st.session_state.get("pr_file")
    if found is not None:
        st.session_state["pr_text"] = found.getvalue().decode("utf-8", "replace").replace("\x00", "\ufffd")
        _read()


def choose_partner(d: Dictionary) -> Dictionary | None:
    """The second dictionary: by default the same place in the other architecture."""
    known = data.index().dictionaries
    others = [x for x in known.values() if x.id != d.id and x.entry is not None]
    if not others:
        return None
    across = [x for x in others if x.architecture != d.architecture]
    default = max(
        across or others,
        key=lambda x: (x.site == d.site, x.layer == d.layer, x.revision == d.revision, x.records is not None),
    )
    ids = [*(x.id for x in others), NOTHING]
    id = st.selectbox(
        "Second dictionary", ids, format_func=visible, **state.tie_choice("beside", ids, default.id, ("sB", "fB"))
    )
    return known.get(id)


def tokens_row(d: Dictionary, text: str) -> int | None:
    """The text token by token, each a link that asks what fires there; the token asked for, if any."""
    with panels.guarded("The tokens"):
        try:
            found = run_probe(d, text)
        except UserError:
            return None  # the dictionary's own panel says why, once
        cells = cells_of(found.probe.tokens, text)
        at = state.get_int("at", 0, len(cells) - 1)
        links = []
        for j, (word, _) in enumerate(cells):
            css = "tk on" if j == at else "tk"
            links.append(put_link(escape(cell(word, 24)) or "∅", {"at": None if j == at else j}, css=css))
        st.html(
            div("wb-head", div("sub", "click a token to see what fires on it; again to see the whole text"))
            + div("wb-tokens", *links)
        )
        return at
    return None


def side(d: Dictionary, text: str, tag: str, breaks: bool, at: int | None) -> None:
    """One dictionary on the text: what fires on the token asked for, or on all of it; the next token, steering."""
    st.html(div("wb-head", f"<h2>{tag} · {escape(d.id)}</h2>", div("sub", badges(d))))
    found = run_probe(d, text)
    if found.probe.cut:
        panels.note(
            f"The text is longer than {len(found.probe.tokens)} tokens; its last {found.probe.cut:,} characters were"
            " left out.",
            "warn",
        )
    asked = state.get_int("i", 0, found.n_latents - 1) if tag == "A" else None
    if asked is None and tag == "A":
        asked = last_of(d)
    if asked is not None:
        remember(d, asked)
    here = on_token(d, found, text, at) if at is not None else []
    if at is not None:
        st.html(token_table(d, found, text, at, here))
    else:
        st.html(strongest(d, found, text, asked, breaks))
    options = {"text": text} | ({} if at is None else {"token": at})
    export_button(
        "text_latents",
        f"dictionaries/{d.id}",
        options,
        key=f"pr_export_{tag}",
        label="Export what fires",
        type="tertiary",
    )
    if steering(d, found, text, tag, here[0][0] if here else asked) is None:
        st.html(next_token(found))


def on_token(d: Dictionary, found: Probed, text: str, at: int) -> list[tuple[int, float, float | None]]:
    """(latent, activation, share of its maximum) of what fires on a token, the largest share first."""
    from workbench.analysis.evaluation.probe import by_share, fires_on

    cells = cells_of(found.probe.tokens, text)
    if at >= len(cells):
        return []
    scale = {i: usual(d, i).maximum for i, _ in fires_on(found.probe, cells[at][1])}
    rows = by_share(fires_on(found.probe, cells[at][1]), scale.__getitem__)
    return [(i, v, v / scale[i] if scale[i] > 0 else None) for i, v in rows]


def token_table(d: Dictionary, found: Probed, text: str, at: int, here: list[tuple[int, float, float | None]]) -> str:
    """What fires on one token: latent, label, activation, share of its largest activation anywhere."""
    cells = cells_of(found.probe.tokens, text)
    word = chip(cells[at][0]) if at < len(cells) else "–"
    title = div("g", f"On {word}", span("", f"{len(here)} latents fire here, largest share of their maximum first"))
    if not here:
        return div("wb-ctxs", title) + div("wb-panel info", "No latent fires on this token.")
    rows = []
    for latent, value, share in here:
        name = latent_link(d, latent) if d.records else f"#{latent}"
        width = min(100.0, 100 * share) if share is not None else 0.0
        bar = f'<i class="t{level(width, 100.0)}" style="width:{width:.0f}%"></i>'
        rows.append(
            [
                name,
                span("lab", escape(words_of(d, latent, 60))),
                number(value),
                span("wb-share", bar) + (f" {100 * share:.0f} %" if share is not None else " –"),
            ]
        )
    return div("wb-ctxs", title) + panels.table(
        ["latent", "what it fires on", "activation", "of its maximum"], rows, numeric=frozenset({2})
    )


def strongest(d: Dictionary, found: Probed, text: str, asked: int | None, breaks: bool) -> str:
    """The latent one came with, then the strongest by the share of their own maximum, each with its strip."""
    from workbench.analysis.evaluation.probe import by_share, fires_on

    every = fires_on(found.probe, range(len(found.probe.tokens)))
    scale = {i: usual(d, i).maximum for i, _ in every}
    latents = by_share(every, scale.__getitem__)[:SHOWN]
    rows = []
    if asked is not None and asked not in {latent for latent, _ in latents}:
        top = max(found.probe.activations(asked), default=0.0)
        rows += [div("g", "The latent you came with"), _strip(d, found, text, asked, top, breaks)]
    by = "by share of their own maximum" if any(scale.values()) else "by activation"
    about = f"{len(latents)} of {len(every)} that fire, {by} · n = {len(found.probe.tokens)} tokens"
    rows.append(div("g", "Strongest latents", span("", about)))
    rows += [_strip(d, found, text, latent, value, breaks) for latent, value in latents]
    if not latents:
        return div("wb-panel info", "No latent fires on this text.")
    return div("wb-ctxs", *rows)


def _strip(d: Dictionary, found: Probed, text: str, latent: int, value: float, breaks: bool) -> str:
    """One latent on the text, bytes that make one character together."""
    known = usual(d, latent)  # one scale per latent: its own corpus maximum where records exist, else the text's
    vmax = max(known.maximum, value)
    name = latent_link(d, latent) if d.records else f"#{latent}"
    told = words_of(d, latent, 40)
    acts = found.probe.activations(latent)
    cells = cells_of(found.probe.tokens, text)
    merged = [max(acts[t] for t in places) for _, places in cells]
    where = merged.index(max(merged)) if value > 0 and merged else None
    shown = strip([word for word, _ in cells], merged, vmax, peak=where, breaks=breaks)
    about = f"<br>{escape(told)}" if told else ""
    return div("m", f"<b>{number(value) if value > 0 else 'silent'}</b>{name}{about}") + div("c", shown)


def next_token(found: Probed) -> str:
    """What the model would write next."""
    top = found.probe.next_tokens
    scale = max((p for _, p in top), default=1.0) or 1.0
    rows = "".join(
        div(
            "lb next",
            span("tok", chip(t)),
            span("bar", f'<i class="promoted" style="width:{100 * p / scale:.1f}%"></i>'),
            span("val", f"{100 * p:.1f} %"),
        )
        for t, p in top
    )
    return div(
        "wb-chart",
        div("t", "<b>Next token</b>", span("", f"probability after the text, {len(top)} most probable")),
        rows,
    )


def steering(d: Dictionary, found: Probed, text: str, tag: str, asked: int | None) -> int | None:
    """Push one latent and compare the next-token distribution; returns the latent, or None where nothing is pushed."""
    latents = [latent for latent, _, _ in found.probe.latents(SHOWN)]
    if not latents:
        return None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        last = found.n_latents - 1
        start = asked if asked is not None and max(found.probe.activations(asked), default=0.0) > 0 else latents[0]
        latent = int(
            st.number_input("Steer latent", 0, last, step=1, width=150, **state.tie_number(f"s{tag}", 0, last, start))
        )
        factor = st.slider(
            "by multiples of its maximum",
            -3.0,
            3.0,
            step=0.25,
            width=260,
            help="Added to the latent on every position; the reconstruction error is kept",
            **state.tie_float(f"f{tag}", -3.0, 3.0, 0.0),
        )
    if not factor:
        return None
    unit = unit_of(d, found, latent)
    pushed = run_push(d, text, latent, factor * unit)
    rows = [
        [
            chip(t),
            f"{100 * b:.2f} %",
            f"{100 * a:.2f} %",
            f'<span class="{"up" if a > b else "down"}">{100 * (a - b):+.2f}</span>',
        ]
        for t, b, a in sorted(
            zip(pushed.tokens, pushed.before, pushed.after, strict=True), key=lambda x: -abs(x[2] - x[1])
        )
    ]
    st.html(
        div(
            "wb-head",
            "<h2>Next token</h2>",
            div(
                "sub",
                f"latent {latent} pushed by {html.escape(number(factor * unit))} on every position · KL {pushed.kl:.3g}"
                " nats",
            ),
        )
        + panels.table(
            ["token", "before", "after", "change in percentage points, largest first"],
            rows,
            numeric=frozenset({1, 2, 3}),
        )
    )
    export_button(
        "steered_next_token",
        f"dictionaries/{d.id}",
        {"text": text, "latent": latent, "factor": factor},
        key=f"pr_steered_{tag}",
        label="Export the change",
        type="tertiary",
    )
    return latent


def unit_of(d: Dictionary, found: Probed, latent: int) -> float:
    """What a push is measured in: the latent's largest activation in its records or on this text, 1
    where it has none.
    """
    return max(usual(d, latent).maximum, max(found.probe.activations(latent), default=0.0)) or 1.0


main()
