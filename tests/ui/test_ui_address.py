"""Every view is a link: each widget of each page is changed, its address is opened anew, and the same page comes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import page_text
from workbench.workspace import Workspace

Open = Callable[..., AppTest]
PAGES = {
    "overview": {},
    "results": {},
    "latents": {"d": "mini-pythia.L1R-8x"},
    "latent": {"d": "mini-pythia.L2R-8x", "i": 5},
    "mppc": {},
    "pair": {"d": "mini-pythia.L2R-8x", "i": 5},
    "training": {},
    "induction": {},
    "states": {},
    "graph": {},
    "map": {},
    "export": {"f": "latent_contexts", "src": "latents/mini-pythia.L1R-8x", "i": 3},
}
# Not part of a view: forms that write something, and the box of the front door that leads to another page.
FORMS = re.compile(r"al_|li_|gr_label|ov_text|ov_read|.*_table$|ctx_variant|mp_group")
KINDS = ("selectbox", "segmented_control", "pills", "toggle", "checkbox", "slider", "select_slider", "number_input")


def widgets(at: AppTest) -> Iterator[tuple[str, Any]]:
    for kind in (*KINDS, "text_input"):
        try:
            found = getattr(at, kind)
        except (AttributeError, KeyError):
            continue
        for w in found:
            if w.key and not FORMS.match(str(w.key)) and not getattr(w, "disabled", False):
                yield kind, w


def other(kind: str, w: Any) -> Any:
    """Another value that the widget can take; None where there is no other."""
    if kind in ("toggle", "checkbox"):
        return not w.value
    if kind == "selectbox":  # shown under other names than they are called by, one of whose words is the name
        for shown in w.options:
            for name in (shown, *re.split(r"[\s·(),]+", shown)):
                try:
                    if name != w.value and w.format_func(name) == shown != w.format_func(w.value):
                        return name
                except (LookupError, TypeError, ValueError, AttributeError):
                    continue
        return None
    if kind == "segmented_control":
        return next((o for o in w.options if o not in (str(w.value), w.value)), None)
    if kind == "pills":
        return list(w.options[:1]) if len(w.options) > 1 else None
    if kind == "number_input":
        return w.value + 1 if w.max is None or w.value + 1 <= w.max else w.value - 1
    if kind == "select_slider":
        return (w.options[1], w.options[-2]) if isinstance(w.value, tuple) else w.options[0]
    if kind == "slider":
        middle = (w.min + w.max) / 2
        whole = all(isinstance(v, int) for v in (w.min, w.max))
        return (w.min, middle) if isinstance(w.value, tuple | list) else int(middle) if whole else round(middle, 2)
    return "pattern"


def seen(at: AppTest) -> str:
    """What the page shows, without what counts visits."""
    return re.sub(r'data-put="[^"]*"|href="[^"]*"', "", page_text(at))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_widget_is_in_the_address(page: str, open_page: Open, full: Workspace) -> None:
    first = open_page(full, page, **PAGES[page])
    names = [(kind, str(w.key)) for kind, w in widgets(first)]
    assert names or page == "results"
    for kind, key in names:
        at = open_page(full, page, **PAGES[page])
        found = [w for k, w in widgets(at) if (k, str(w.key)) == (kind, key)]
        value = other(kind, found[0]) if found else None
        if value is None:
            continue
        found[0].set_value(value).run()
        assert not at.exception, (page, key)
        address = {k: v if isinstance(v, str) else v[0] for k, v in at.query_params.items()}
        again = open_page(full, page, **address)
        assert not again.exception, (page, key)
        assert seen(again) == seen(at), (page, key, address)
