"""A workspace that was moved, and whose own model was moved: pages show all that needs no model, and say what does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import page_text
from tests.workbench.models.test_places import made  # noqa: F401 (a fixture)
from workbench.workspace import Workspace


@pytest.mark.parametrize("page", ["overview", "latents", "latent", "induction", "about"])
def test_what_needs_no_model_is_shown(
    page: str,
    made: tuple[Workspace, Path],  # noqa: F811
    open_page: Callable[..., AppTest],
) -> None:
    ws, _ = made
    at = open_page(ws, page, d="mine.L1R-1x", i=0) if page == "latent" else open_page(ws, page)
    text = page_text(at)
    assert not at.exception and "cannot be shown" not in text and "is not known" not in text
    assert "mine" in text and "/models/mine" not in text, "an id, no path"


def test_what_needs_it_says_once_how_to_name_its_new_place(
    made: tuple[Workspace, Path],  # noqa: F811
    open_page: Callable[..., AppTest],
) -> None:
    ws, _ = made
    text = page_text(open_page(ws, "probe", d="mine.L1R-1x", text="def f(x):"))
    assert text.count(f"workbench models mine FOLDER --workspace {ws.root}") == 1
