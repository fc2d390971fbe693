"""Server work on a dictionary of 100,000 latents: at most 40 ms per fragment rerun, and little memory.

Times are CPU seconds of this process (a busy machine must not decide), medians of several reruns.
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

BUDGET = 0.040
Open = Callable[..., AppTest]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """100,000 latents in the real format."""
    return make_workspace(tmp_path_factory.mktemp("big") / "big", latents=100_000, big=True)


def cpu(action: Callable[[], object], times: int = 7) -> float:
    """Median CPU seconds of ``action`` after one warm-up."""
    action()
    found = []
    for _ in range(times):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return statistics.median(found)


def test_latent_page_reruns_within_budget(open_page: Open, big: Workspace) -> None:
    at = open_page(big, "latent", i=1000)
    seconds = cpu(lambda: at.button(key="wb_next").click().run())
    assert "Latent 1,008" in page_text(at)
    print(f"latent: {1000 * seconds:.1f} ms CPU per whole rerun (router and fragment)")
    assert seconds <= BUDGET


def test_table_reruns_within_budget(open_page: Open, big: Workspace) -> None:
    at = open_page(big, "latents")
    seconds = cpu(lambda: at.segmented_control(key="dir").set_value("low first").run())
    print(f"table: {1000 * seconds:.1f} ms CPU per whole rerun")
    assert seconds <= BUDGET


def test_search_within_budget(open_page: Open, big: Workspace) -> None:
    at = open_page(big, "latents")
    needles = iter(["pattern 1", "pattern 2", "numpy", "w12", "pattern 9", "zzz", "self", "the", "x", "y"])
    seconds = cpu(lambda: at.text_input(key="q").set_value(next(needles)).run())
    print(f"search: {1000 * seconds:.1f} ms CPU per whole rerun")
    assert seconds <= BUDGET  # a new needle is looked for in 100,000 strings


def test_a_list_as_filter_within_budget(open_page: Open, big: Workspace) -> None:
    id = next(iter(big.items("latents"))).id
    chosen = save_list(
        big.root, LatentList(name="many", items=tuple(ListItem(dictionary=id, latent=i) for i in range(0, 100_000, 10)))
    )
    at = open_page(big, "latents", d=id, list=chosen)
    seconds = cpu(lambda: at.segmented_control(key="dir").set_value("low first").run())
    delete_list(big.root, chosen)
    print(f"list of 10,000 as filter: {1000 * seconds:.1f} ms CPU per whole rerun")
    assert "of 10,000 latents in the list" in page_text(at) and seconds <= BUDGET


def test_first_page_within_three_seconds(open_page: Open, big: Workspace) -> None:
    began = time.process_time()
    open_page(big, "latent", i=5)
    assert time.process_time() - began <= 3.0
