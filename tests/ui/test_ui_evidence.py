"""Cards of evidence on the page of a latent and in the table: numbers beside chance, words, a filter, an order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from streamlit.testing.v1 import AppTest

from tests.ui.conftest import latents_of, page_text, param
from workbench.markup.evidence import card_html
from workbench.results.trust import FIELDS, Trust
from workbench.workspace import Workspace
from workbench_ui.views.latent_table import Query, select_of

Open = Callable[..., AppTest]
L1, L2 = "mini-pythia.L1R-8x", "mini-pythia.L2R-8x"
LAST = 255  # never fires


def _html(card: dict[str, Any], **about: Any) -> str:
    return card_html(card, about, link=lambda i: f"#{i}", partner=lambda d, i: f"{d}#{i}")


def test_a_card_shows_each_number_beside_chance_and_n(full: Workspace, open_page: Open) -> None:
    at = open_page(full, "latent", d=L1, i=0)
    assert not at.exception
    text, card = page_text(at), Trust.open(full.path("trust", L1)).card(0)
    assert "well supported" in text and "95 of 100 latents" in text
    assert all(f.name in text for f in FIELDS)
    assert f"{card['seed_r']:.3g}" in text and "Token detector" in text  # every fifth
    assert "Fires in its place" in text and "(8)" in text and "at r = 0.97 (n = 384)" in text
    assert "above 75 % of its peers" in text and "ablated alone on 4 of the tokens: 0.012" in text
    assert "Token detector" not in page_text(open_page(full, "latent", d=L1, i=1))


def test_what_was_not_computed_is_said_with_its_reason(full: Workspace, open_page: Open) -> None:
    text = page_text(open_page(full, "latent", d=L1, i=1))
    assert "not computed: plain" in text  # no rules: the reason stands in the result
    assert f"workbench trust {L2}" in page_text(open_page(full, "latent", d=L2, i=1))
    few = page_text(open_page(full, "latent", d=L1, i=LAST))
    assert "It fires on 0 of 26,000 held-out tokens, too few" in few


def test_no_word_without_a_score_and_text_of_others_stays_text() -> None:
    html = _html({"n_fired": 50, "word": None, "score": None}, min_firings=20, missing={"seed": "<img src=x>"})
    assert "No word" in html and "well supported" not in html and "<img" not in html and "&lt;img" in html


def test_colours_follow_the_side_of_chance_that_is_good() -> None:
    good = _html({"seed_r": 0.9, "seed_chance": 0.2, "untrained_r": 0.1, "untrained_chance": 0.2})
    assert good.count('class="good"') == 2 and 'class="bad"' not in good
    bad = _html({"seed_r": 0.1, "seed_chance": 0.2, "untrained_r": 0.9, "untrained_chance": 0.2})
    assert 'class="good"' not in bad and bad.count('class="bad"') == 1
    below = _html({"untrained_r": 0.3, "untrained_chance": 0.1, "untrained_found": False})
    assert 'class="bad"' not in below, "above chance, and still no match: no token detector"


def test_the_table_has_the_columns_the_filter_and_the_order(full: Workspace, open_page: Open) -> None:
    at = open_page(full, "latents", d=L1, ws="true", o="r in another seed", dir="high first")
    assert not at.exception
    shown = latents_of(at)
    assert shown and all(i % 3 == 0 for i in shown)
    cards = Trust.open(full.path("trust", L1)).cards.set_index("latent")
    assert (np.diff(cards.loc[shown, "seed_r"].to_numpy()) <= 0).all()
    assert param(at, "ws") == "true"
    every = open_page(full, "latents", d=L1, o="latent number")
    assert any(i % 3 for i in latents_of(every)) and "well supported only" in {t.label for t in every.toggle}
    none = open_page(full, "latents", d=L2, ws="true")
    assert latents_of(none), "without cards the filter is not there and hides nothing"
    assert "well supported only" not in {t.label for t in none.toggle}


def test_a_walk_in_the_order_of_the_table_keeps_the_filter(full: Workspace, open_page: Open, monkeypatch) -> None:
    at = open_page(full, "latent", d=L1, i=0, ws="true")
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(full.root))
    from workbench_ui.kit import data

    chosen = select_of(data.index().dictionaries[L1], Query(well=True))
    assert f"of {len(chosen):,} in the order of the table" in page_text(at)
