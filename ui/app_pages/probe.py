"""Text probe: which latents fire where on your text, in a Transformer and a Mamba at once; and steering by one of them."""

from __future__ import annotations

import html

import streamlit as st

from ui.kit import data, panels, state
from ui.kit.context_bar import badges, context_bar
from ui.kit.enhance import enhance, latent_link
from ui.kit.index import Dictionary
from ui.kit.probing import Probed, run_probe, run_push
from workbench.markup.tags import div, span
from workbench.markup.tokens import chip, escape, number, strip, visible

EXAMPLE = "def read(self, path):\n    with open(path) as f:\n        return f.read()\n\ndef write(self, path):\n    with open("
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
        panels.page_title("Text probe", "type a text; both models read it, both dictionaries say which latents fire where")
        left, right = st.columns([3, 2], vertical_alignment="bottom")
        with left:
            text = st.text_area("Text", value=EXAMPLE, key="pr_text", height=130, max_chars=4000)
        with right:
            partner = choose_partner(d)
            if st.button("Read the text", type="primary", icon=":material/play_arrow:", key="pr_run"):
                st.session_state["pr_ready"] = True
        if not st.session_state.get("pr_ready"):
            panels.note("The first reading loads the language models, which takes some seconds; later ones are quick.")
            return
        shown = [x for x in (d, partner) if x is not None]
        for column, one, tag in zip(st.columns(len(shown), gap="large"), shown, "AB", strict=False):
            with column, panels.guarded(f"{one.id} on this text"):
                side(one, text or "", tag)
        enhance("pr_enhance")


def choose_partner(d: Dictionary) -> Dictionary | None:
    """The second dictionary: by default the same place in the other architecture."""
    known = data.index().dictionaries
    others = [x for x in known.values() if x.id != d.id and x.entry is not None]
    if not others:
        return None
    across = [x for x in others if x.architecture != d.architecture]
    default = max(across or others, key=lambda x: (x.site == d.site, x.layer == d.layer, x.revision == d.revision))
    ids = [x.id for x in others]
    if st.session_state.get("pr_partner") not in [*ids, None]:
        del st.session_state["pr_partner"]
    id = st.selectbox(
        "Beside", [*ids, None], index=ids.index(default.id), key="pr_partner", format_func=lambda i: visible(i) if i else "nothing"
    )
    return known.get(id) if id else None


def side(d: Dictionary, text: str, tag: str) -> None:
    """One dictionary on the text: strongest latents with their strips, the next token, steering."""
    st.html(div("wb-head", f"<h2>{tag} · {escape(d.id)}</h2>", div("sub", badges(d))))
    found = run_probe(d, text)
    if found.probe.cut:
        panels.note(
            f"The text is longer than {len(found.probe.tokens)} tokens; its last {found.probe.cut:,} characters were left out.", "warn"
        )
    st.html(strongest(d, found))
    chosen = steering(d, found, text, tag)
    if chosen is None:
        st.html(next_token(found))


def strongest(d: Dictionary, found: Probed) -> str:
    """The strongest latents, each with its own strip on the whole text."""
    rows = ['<div class="wb-ctxs">']
    latents = found.probe.latents(SHOWN)
    for latent, value, where in latents:
        acts = found.probe.activations(latent)
        # one scale per latent: its own corpus maximum where records exist, else the text's
        vmax = max(found.maxima.get(latent, 0.0), value)
        name = latent_link(d, latent) if d.records else f"#{latent}"
        about = found.about.get(latent)
        known = f"<br>{chip(about)}" if about else ""
        rows.append(div("m", f"<b>{number(value)}</b>{name}{known}") + div("c", strip(found.probe.tokens, acts, vmax, peak=where)))
    rows.append("</div>")
    if not latents:
        return div("wb-panel info", "No latent fires on this text.")
    return span(
        "wb-legend", span("", "strongest latents · colour: share of the latent's maximum · under the number: its usual peak token")
    ) + "".join(rows)


def next_token(found: Probed) -> str:
    """What the model would write next."""
    top = found.probe.next_tokens
    scale = max((p for _, p in top), default=1.0) or 1.0
    rows = "".join(
        div(
            "lb",
            span("tok", chip(t)),
            span("bar", f'<i class="promoted" style="width:{100 * p / scale:.1f}%"></i>'),
            span("val", f"{100 * p:.1f} %"),
        )
        for t, p in top
    )
    return div("wb-chart", div("t", "<b>Next token</b>", span("", f"{len(top)} most probable")), rows)


def steering(d: Dictionary, found: Probed, text: str, tag: str) -> int | None:
    """Push one latent and compare the next-token distribution; returns the latent, or None where nothing is pushed."""
    latents = [latent for latent, _, _ in found.probe.latents(SHOWN)]
    if not latents:
        return None
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        last = found.n_latents - 1
        key = f"pr_latent_{tag}"
        if not 0 <= st.session_state.get(key, 0) <= last:
            del st.session_state[key]
        latent = int(st.number_input("Steer latent", 0, last, latents[0], step=1, key=key, width=150))
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
    unit = max(found.maxima.get(latent, 0.0), max(found.probe.activations(latent), default=0.0)) or 1.0
    pushed = run_push(d, text, latent, factor * unit)
    rows = [
        [chip(t), f"{100 * b:.2f} %", f"{100 * a:.2f} %", f'<span class="{"up" if a > b else "down"}">{100 * (a - b):+.2f}</span>']
        for t, b, a in zip(pushed.tokens, pushed.before, pushed.after, strict=True)
    ]
    st.html(
        div(
            "wb-head",
            "<h2>Next token</h2>",
            div("sub", f"latent {latent} pushed by {html.escape(number(factor * unit))} · KL {pushed.kl:.3g} nats"),
        )
        + panels.table(["token", "before", "after", "change"], rows, numeric=frozenset({1, 2, 3}))
    )
    return latent


main()
