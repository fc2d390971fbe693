"""The router: look, navigation and footer.

Every page is a file of ``app_pages/`` and keeps its state in the address.
"""

from __future__ import annotations

import html
from pathlib import Path

import streamlit as st

from sae.errors import UserError
from workbench.markup import look
from workbench.markup.glossary import link_to
from workbench.version import __version__
from workbench_ui.components.enhance import links
from workbench_ui.components.history import tidy_history
from workbench_ui.components.near import forget
from workbench_ui.documentation import PREFIX
from workbench_ui.kit import data, panels
from workbench_ui.kit.ahead import read_ahead
from workbench_ui.kit.index import Index
from workbench_ui.kit.pages import pages_for
from workbench_ui.kit.thread import bar

HERE = Path(__file__).parent
STALE_SHOWN = 3


def main() -> None:
    """Run once per visit and page change; fragments inside pages rerun alone."""
    st.set_page_config(
        page_title="Interpretability Workbench",
        page_icon=str(HERE / "kit" / "icon.svg"),
        layout="wide",
        initial_sidebar_state="collapsed",
    )
    with st.container(key="wb_look"):
        # With a style alone Streamlit would put it where toasts appear, and the first toast would take its place.
        st.html(f"<i hidden></i>{_css()}")
    st.logo(str(HERE / "kit" / "logo.svg"), size="medium")
    try:
        index: Index | None = data.index()
    except UserError as e:
        index, trouble = None, str(e)
    page = st.navigation(pages_for(index, HERE / "app_pages"), position="top")
    forget(page.url_path)
    if index is None:
        panels.problem("This workspace cannot be opened", trouble)
        return
    if page.url_path not in ("latent", "pair", ""):  # these draw the bar anew with every latent
        with panels.guarded("The bar of latents"):
            bar()
    _stale(index)
    with panels.guarded("This page"):
        page.run()
    tidy_history()
    links()
    st.html(
        f'<div class="wb-foot wb-keys"><span>workspace <b>{html.escape(index.root.name)}</b></span>'
        f"<span>Interpretability Workbench {html.escape(__version__)}</span>"
        f"{_keys(page.url_path)}</div>"
    )
    read_ahead()


def _stale(index: Index) -> None:
    """On every page: which results rest on something that was made again since, and what to run."""
    found = [s for s in index.stale.values() if not s.by]
    if found:
        names = ", ".join(f"<b>{html.escape(f'{s.kind}/{s.id}')}</b>" for s in found[:STALE_SHOWN])
        more = f" and {len(found) - STALE_SHOWN} more" if len(found) > STALE_SHOWN else ""
        command = f"<code>workbench info {html.escape(index.root.name)} --stale</code>"
        panels.note(
            f"Stale: {names}{more} rest on something that was made again since. {command} says why and what to run.",
            "warn",
        )


def _keys(page: str) -> str:
    """The keyboard map of a page; ``L`` is shown by the style while its button is there, which comes and goes with runs
    of the page's fragment alone.
    """
    keys = {
        "latent": (("J", "next"), ("K", "previous"), ("P", "pin"), ("L", "into the last list"), ("E", "export")),
        "export": (("E", "download"),),
    }
    css = {"L": ' class="wb-again"'}
    return "".join(f"<span{css.get(key, '')}><kbd>{key}</kbd> {does}</span>" for key, does in keys.get(page, ()))


@st.cache_resource(show_spinner=False)
def _css() -> str:
    return f"<style>{look()}{(HERE / 'kit' / 'theme.css').read_text(encoding='utf-8')}</style>"


link_to(PREFIX)
main()
