"""Server work on a dictionary of 100,000 latents: a rerun costs a bounded number of reruns of a bare page, and little
memory.

CPU seconds of this process (a busy machine must not decide), each rerun beside one of a page that holds Streamlit's own
work alone, because machines differ by more than pages do: the medians' ratio is held against the budget.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import page_text
from tests.ui.synthetic import make_workspace
from workbench.results.lists import LatentList, ListItem, delete_list, save_list
from workbench.workspace import Workspace

# Reruns of the bare page. Pages take 6 to 9 of them; the ratio moves by a third with the machine and what else runs on
# it, and Python's own loop over 100,000 latents with a little work in each adds 10.
BUDGET = 14.0
TIMES = 11
Open = Callable[..., AppTest]


def bare_page() -> None:
    """As many elements as a page of ours has, with nothing behind them."""
    import streamlit as st

    st.set_page_config(layout="wide")
    with st.container(horizontal=True):
        for i in range(4):
            st.selectbox(f"select {i}", ["a", "b", "c"], key=f"select{i}")

    @st.fragment
    def body() -> None:
        st.text_input("text", key="text")
        for i in range(6):
            st.button(f"button {i}", key=f"button{i}")
        for i in range(12):
            st.html(f"<p>{i}</p>")

    body()


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """100,000 latents in the real format."""
    return make_workspace(tmp_path_factory.mktemp("big") / "big", latents=100_000, big=True)


def reruns(action: Callable[[], object], what: str) -> float:
    """Median CPU seconds of ``action`` over those of a bare page's rerun, measured in turn after a warm-up."""
    bare = AppTest.from_function(bare_page).run()
    steps: tuple[Callable[[], object], ...] = (lambda: bare.button(key="button1").click().run(), action)
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(TIMES + 1):
        for step, found in zip(steps, took, strict=True):
            began = time.process_time()
            step()
            if turn:
                found.append(time.process_time() - began)
    own, page = (statistics.median(found) for found in took)
    print(f"{what}: {1000 * page:.1f} ms CPU per whole rerun, {page / own:.1f} × a bare page's {1000 * own:.1f} ms")
    return page / own


def test_latent_page_reruns_within_budget(open_page: Open, big: Workspace) -> None:
    at = open_page(big, "latent", i=1000)
    cost = reruns(lambda: at.button(key="wb_next").click().run(), "latent")
    assert f"Latent 1,{TIMES + 1:03d}" in page_text(at)
    assert cost <= BUDGET


def test_table_reruns_within_budget(open_page: Open, big: Workspace) -> None:
    at = open_page(big, "latents")
    assert reruns(lambda: at.segmented_control(key="dir").set_value("low first").run(), "table") <= BUDGET


def test_search_within_budget(open_page: Open, big: Workspace) -> None:
    at = open_page(big, "latents")
    needles = iter(
        ["pattern 1", "pattern 2", "numpy", "w12", "pattern 9", "zzz", "self", "the", "x", "y", "import", "def"]
    )
    # a new needle is looked for in 100,000 strings each time
    assert reruns(lambda: at.text_input(key="q").set_value(next(needles)).run(), "search") <= BUDGET


def test_a_list_as_filter_within_budget(open_page: Open, big: Workspace) -> None:
    id = next(iter(big.items("latents"))).id
    chosen = save_list(
        big.root, LatentList(name="many", items=tuple(ListItem(dictionary=id, latent=i) for i in range(0, 100_000, 10)))
    )
    at = open_page(big, "latents", d=id, list=chosen)
    cost = reruns(lambda: at.segmented_control(key="dir").set_value("low first").run(), "list of 10,000 as filter")
    delete_list(big.root, chosen)
    assert "of 10,000 latents in the list" in page_text(at) and cost <= BUDGET


def test_first_page_within_three_seconds(open_page: Open, big: Workspace) -> None:
    began = time.process_time()
    open_page(big, "latent", i=5)
    assert time.process_time() - began <= 3.0
