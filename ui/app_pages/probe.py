"""Text probe: which latents fire where on your text, in a Transformer and a Mamba at once; and
steering by one of them.
"""

from __future__ import annotations

import html

import streamlit as st

from ui.components.enhance import enhance, latent_link
from ui.kit import data, panels, state
from ui.kit.context_bar import badges, context_bar
from ui.kit.index import Dictionary
from ui.kit.probing import Probed, run_probe, run_push, usual
from workbench.markup.tags import div, span
from workbench.markup.tokens import chip, escape, number, strip, visible

EXAMPLE = (
    "def read(self, path):\n    with open(path) as f:\n        return f.read()\n\ndef write(self, path):\n    with"
    " open("
)
SHOWN = 10


def main() -> None:
    """The selectors choose the first dictionary; the text and both results are below."""
    d = context_bar(data.index())
    if d is not None:
        body()


@st.fragment(key="probe_body")
def body() -> None:
    """Text, partner, results."""
    with panels.guarded("The text probe"):
        index = data.index()
        d = state.current(index)
        if d is None:
            return
        panels.page_title(
            "Text probe", "type a text; both models read it, both dictionaries say which latents fire where"
        )
        left, right = st.columns([3, 2], vertical_alignment="bottom")
        with left:
            st.session_state.setdefault("pr_text", state.get("text") or EXAMPLE)
            text = st.text_area("Text", key="pr_text", height=150, max_chars=4000)
        with right:
            partner = choose_partner(d)
            with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
                st.button("Read the text", type="primary", icon=":material/play_arrow:", key="pr_run", on_click=_read)
                breaks = st.toggle("line breaks", key="pr_breaks")
        if not st.session_state.get("pr_ready") and not state.get("text"):
            panels.note(
                "Reading loads both language models, which takes some seconds the first time; later it is quick."
            )
            return
        shown = [x for x in (d, partner) if x is not None]
        for column, one, tag in zip(st.columns(len(shown), gap="large"), shown, "AB", strict=False):
            with column, panels.guarded(f"{one.id} on this text"):
                side(one, text or "", tag, breaks)
        enhance("pr_enhance")


def _read() -> None:
    """Remember that a text was asked for; short ones go into the address, so that the view is a link."""
    text = str(st.session_state["pr_text"] or "")
    st.session_state["pr_ready"] = True
    state.put(text=text if text.strip() and len(text) <= state.MAX_LENGTH else None)


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
    ids = [x.id for x in others]
    if st.session_state.get("pr_partner") not in [*ids, None]:
        del st.session_state["pr_partner"]
    id = st.selectbox(
        "Beside",
        [*ids, None],
        index=ids.index(default.id),
        key="pr_partner",
        format_func=lambda i: visible(i) if i else "nothing",
    )
    return known.get(id) if id else None


def side(d: Dictionary, text: str, tag: str, breaks: bool) -> None:
    """One dictionary on the text: strongest latents with their strips, the next token, steering."""
    st.html(div("wb-head", f"<h2>{tag} · {escape(d.id)}</h2>", div("sub", badges(d))))
    found = run_probe(d, text)
    if found.probe.cut:
        panels.note(
            f"The text is longer than {len(found.probe.tokens)} tokens; its last {found.probe.cut:,} characters were"
            " left out.",
            "warn",
        )
    asked = state.get_int("i", 0, found.n_latents - 1) if tag == "A" else None
    st.html(strongest(d, found, asked, breaks))
    if steering(d, found, text, tag, asked) is None:
        st.html(next_token(found))


def strongest(d: Dictionary, found: Probed, asked: int | None, breaks: bool) -> str:
    """The latent one came with, then the strongest ones, each with its own strip on the whole text."""
    latents = found.probe.latents(SHOWN)
    rows = []
    if asked is not None and asked not in {latent for latent, _, _ in latents}:
        acts = found.probe.activations(asked)
        top = max(acts, default=0.0)
        rows += [
            div("g", "The latent you came with"),
            _strip(d, found, asked, top, acts.index(top) if top > 0 else None, breaks),
        ]
    rows.append(
        div(
            "g", "Strongest latents", span("", f"{len(latents)} of those active · n = {len(found.probe.tokens)} tokens")
        )
    )
    rows += [_strip(d, found, latent, value, where, breaks) for latent, value, where in latents]
    if not latents:
        return div("wb-panel info", "No latent fires on this text.")
    about = (
        "left: largest activation on this text, latent, what it usually fires on · colour: share of its maximum ·"
        " outline = peak"
    )
    return span("wb-legend", span("", about)) + div("wb-ctxs", *rows)


def _strip(d: Dictionary, found: Probed, latent: int, value: float, where: int | None, breaks: bool) -> str:
    """One latent on the text."""
    known = usual(d, latent)  # one scale per latent: its own corpus maximum where records exist, else the text's
    vmax = max(known.maximum, value)
    name = latent_link(d, latent) if d.records else f"#{latent}"
    about = f"<br>{chip(known.peak)}" if known.peak is not None else ""
    shown = strip(found.probe.tokens, found.probe.activations(latent), vmax, peak=where, breaks=breaks)
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
        key = f"pr_latent_{tag}_{d.id}"
        st.session_state.setdefault(key, latents[0] if asked is None else asked)
        latent = int(st.number_input("Steer latent", 0, last, step=1, key=key, width=150))
        factor = st.slider(
            "by multiples of its maximum",
            -3.0,
            3.0,
            0.0,
            0.25,
            key=f"pr_factor_{tag}",
            width=260,
            help="Added to the latent on every position; the reconstruction error is kept",
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
        for t, b, a in zip(pushed.tokens, pushed.before, pushed.after, strict=True)
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
        + panels.table(["token", "before", "after", "change, points"], rows, numeric=frozenset({1, 2, 3}))
    )
    return latent


def unit_of(d: Dictionary, found: Probed, latent: int) -> float:
    """What a push is measured in: the latent's largest activation in its records or on this text, 1
    where it has none.
    """
    return max(usual(d, latent).maximum, max(found.probe.activations(latent), default=0.0)) or 1.0


main()
