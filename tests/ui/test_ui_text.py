"""A look at the data: the page says of a store what `workbench text` says of its recipe, and shows its tokens."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

import workbench
from tests.ui.conftest import page_text
from workbench.activations import HarvestRecipe
from workbench.activations.harvesting.run import look
from workbench.activations.read.look import look_at_store
from workbench.workspace import Workspace

Open = Callable[..., AppTest]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, HarvestRecipe]:
    """A store of two corpora, one of them with records that are no text, short documents and an attack."""
    home = tmp_path_factory.mktemp("text")
    words = np.array(["".join(w) for w in np.random.default_rng(0).choice(list("abcdefghij"), (300, 5))])
    texts = [" ".join(np.random.default_rng([1, i]).choice(words, 60)) for i in range(80)]
    attacks = [t.replace(" ", " <img src=x onerror=alert(1)> ", 20) for t in texts]
    records = [*({"text": t} for t in attacks), {"text": None}, {"text": ""}]
    (home / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (home / "b.txt").write_text("\n".join(texts[::-1]))
    parts = [
        {"kind": "jsonl", "paths": [str(home / "a.jsonl")]},
        {"kind": "text", "paths": [str(home / "b.txt")]},
    ]
    corpus = {"kind": "mix", "parts": parts, "split": "all"}
    values = {"id": "two", "hooks": ["L0R"], "n_seq": 40, "ctx": 48, "sources": [{"model": "mini-pythia"}]}
    recipe = HarvestRecipe.model_validate({**values, "corpus": corpus})
    ws = Workspace(home / "ws")
    workbench.harvest(ws, recipe)
    return ws, recipe


def test_it_counts_what_the_recipe_would_read(made: tuple[Workspace, HarvestRecipe]) -> None:
    ws, recipe = made
    found, asked = look_at_store(ws.path("stores", "two")), look(recipe)
    want = asked.numbers
    assert (found.tokens, found.rows, found.documents) == (want["tokens"], want["rows"], want["documents"])
    assert found.distinct == want["distinct_tokens"] and found.contract == asked.contract
    assert [c["windows"] for c in found.corpora] == [20, 20] and len(found.windows) == 10
    assert [w.corpus for w in found.windows].count(0) == 5 and list(found.corpora) == want["corpora"]
    attacked = {w["corpus"] for w in asked.windows if "<img" in "".join(w["tokens"])}
    assert attacked == {0}, "each window under its own corpus' name"
    assert found.rows == len(workbench.ActivationStore.open(ws.path("stores", "two")))
    windows = look_at_store(ws.path("stores", "two"), shown=40).windows
    assert [w.number for w in windows] == list(range(40)) and sum(w.heldout for w in windows) == 4
    assert sum(int(w.is_row.sum()) for w in windows) == found.rows
    assert len({w.ids.tobytes() for w in windows}) == 40 - found.repeated


def test_the_page_shows_it_and_other_windows_are_a_link(open_page: Open, made: tuple[Workspace, HarvestRecipe]) -> None:
    ws, recipe = made
    at = open_page(ws, "text")
    text, want = page_text(at), look(recipe).numbers
    assert not at.exception and "cannot be shown" not in text and "<img src=x" not in text
    for value in (f"{want['documents']:,}", f"{want['rows']:,}", f"{want['excluded_share']:.2%}", "1 null"):
        assert value in text
    assert "a.jsonl" in text and str(ws.root.parent) not in text and "first token" in text
    shown = re.findall(r'<span class="k">window ([\d,]+)', text)
    assert len(shown) == 10
    for corpus in want["corpora"]:
        low, middle, high = corpus["tokens_per_document"]
        for value in (corpus["rows"], corpus["tokens_there"], corpus["documents"], corpus["near_duplicates"]):
            assert f">{value:,}<" in text, value
        assert f"{middle:,.0f} tokens (median); {low:,.0f} to {high:,.0f} in nine of ten" in text
        assert f"{corpus['excluded_share']:.2%} of the tokens" in text and corpus["corpus"] in text
    tokens = unescape(re.sub("<[^>]+>", "", text[text.index("wb-windows") :]))
    assert "<img src=x onerror=alert(1)>" in tokens, "as text"
    at.button(key="tx_draw").click().run()
    assert at.query_params["draw"] in ("1", ["1"])
    assert re.findall(r'<span class="k">window ([\d,]+)', page_text(at)) != shown
    again = open_page(ws, "text", draw=1)
    assert re.findall(r'<span class="k">window ([\d,]+)', page_text(again)) == (
        re.findall(r'<span class="k">window ([\d,]+)', page_text(at))
    )


def test_without_the_models_tokenizer_ids_stand(
    open_page: Open, made: tuple[Workspace, HarvestRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae.errors import MissingError
    from workbench import models

    def gone(*_: object) -> None:
        raise MissingError("gone")

    ws, _ = made
    monkeypatch.setattr(models, "load_tokenizer", gone)
    import streamlit as st

    st.cache_resource.clear()
    at = open_page(ws, "text")
    st.cache_resource.clear()
    assert not at.exception and "⟨" in page_text(at) and "cannot be shown" not in page_text(at)


def test_an_older_store_says_so(
    open_page: Open, made: tuple[Workspace, HarvestRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from workbench.activations.read import look as reading

    ws, _ = made
    real = reading.look_at_store
    monkeypatch.setattr(
        reading, "look_at_store", lambda folder, **more: replace(real(Path(folder), **more), contract=None, corpora=())
    )
    import streamlit as st

    st.cache_resource.clear()
    text = page_text(open_page(ws, "text"))
    st.cache_resource.clear()
    assert "made before there was a contract" in text and "the tokens were given as they are" in text


def test_massive_rows_are_shown_where_they_are(
    open_page: Open, made: tuple[Workspace, HarvestRecipe], tmp_path
) -> None:
    """The panel, its figure and its link appear with the first records of the store that say where massive rows are."""
    from tests.ui.test_ui_same_figure import record
    from workbench.exporting import FigureSpec
    from workbench.exporting.figures import build

    ws = Workspace(tmp_path / "ws")
    shutil.copytree(made[0].path("stores", "two"), ws.path("stores", "two"))
    assert "Massive activations" not in page_text(open_page(ws, "text"))
    about = {"store": "two", "source": "m", "site": "L0R", "model_name": "m", "kind": "sae"}
    numbers = {"d_sae": 64, "d_in": 8, "explained_variance": 0.925, "explained_variance_inliers": 0.877}
    with ws.create("dictionaries", "m.L0R-8x", numbers=numbers, metadata=about):
        pass
    record(ws, "m.L0R-8x")
    figure = build(FigureSpec(figure="massive_activations", source="stores/two"), ws)
    page, _, query = figure.permalink.partition("?")
    at = open_page(ws, page, **dict(part.split("=") for part in query.split("&")))
    text = page_text(at)
    assert not at.exception and "cannot be shown" not in text and "made on data version" not in text
    for said in ("Massive activations", "30 (0.75%)", "40.0%", "1 (20), 9 (10)", "0.925", "0.877", "without them"):
        assert said in text, said
    assert 'href="latents?d=m.L0R-8x"' in text
    back = page_text(open_page(ws, "latents", d="m.L0R-8x"))
    assert "30 of 4,000 rows are massive" in back and 'href="text?st=two"' in back
    shares = figure.panels[0].frame
    assert shares["share"].tolist() == [0.3, 0.1] and shares["place"].str.startswith(("1: ", "9: ")).all()
