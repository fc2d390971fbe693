"""The text probe with the bundled models: what is shown is what the models compute, and steering changes what it says
it changes.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest
from streamlit.testing.v1 import AppTest

from sae.errors import UsageError
from tests.ui import test_ui_same_figure as same
from tests.ui.conftest import page_text, param
from tests.ui.synthetic import GROUPS, write_records
from workbench import steer
from workbench.analysis.evaluation.probe import probe, push
from workbench.dictionaries.reference import find_dictionary
from workbench.exporting import FigureSpec, bundle
from workbench.exporting.figures import build
from workbench.markup.tokens import cell, level, number
from workbench.models import load_model
from workbench.results.characters import cells_of
from workbench.results.doses import DoseRecords
from workbench.results.records import LatentRecords
from workbench.workspace import Workspace

Open = Callable[..., AppTest]
TEXT = "def read(self, path):\n    return open(path"


def computed(ws: Workspace, id: str):  # type: ignore[no-untyped-def]
    planned = find_dictionary(ws, id)
    return load_model(planned.model_name), planned.load(), planned


def test_both_models_read_the_text(open_page: Open, real: Workspace) -> None:
    at = open_page(real, "probe", d="mini-pythia.L1R-1x")
    assert "Reading loads the language models" in page_text(at)
    assert 'class="wb-ctxs"' not in page_text(at)  # nothing is loaded before it is asked for
    at.text_area(key="pr_text").set_value(TEXT).run()
    at.button(key="pr_run").click().run()
    assert not at.exception and param(at, "text") == TEXT
    text = page_text(at)
    for id in ("mini-pythia.L1R-1x", "mini-mamba.L1R-1x"):
        found = probe(*computed(real, id), TEXT)
        assert f"{id}</h2>" in text and f"n = {len(found.tokens)} tokens" in text
        for latent, value, where in found.latents(10):
            acts = found.activations(latent)
            assert acts[where] == pytest.approx(value) and f"<b>{number(value)}</b>#{latent}" in text, (id, latent)
            assert f'data-v="{number(value)} · pos {where}"' in text
        for _, p in found.next_tokens[:3]:
            assert f"{100 * p:.1f} %" in text


def test_link_with_a_text_shows_it_read_and_one_asked_for_latent_first(open_page: Open, real: Workspace) -> None:
    found = probe(*computed(real, "mini-mamba.L1R-1x"), "x = [1, 2]")
    silent = next(i for i in range(64) if max(found.activations(i)) == 0)
    text = page_text(open_page(real, "probe", d="mini-mamba.L1R-1x", i=silent, text="x = [1, 2]"))
    assert (
        text.index("The latent you came with") < text.index(f"<b>silent</b>#{silent}") < text.index("Strongest latents")
    )
    assert "x = [1, 2]" in re.sub(r"<[^>]+>", "", text)


def test_steering_says_what_the_push_does(open_page: Open, real: Workspace) -> None:
    id = "mini-mamba.L1R-1x"
    at = open_page(real, "probe", d=id, text=TEXT)
    model, dictionary, planned = computed(real, id)
    found = probe(model, dictionary, planned, TEXT)
    latent, top, _ = found.latents(1)[0]
    assert at.number_input(key="sA").value == latent
    at.slider(key="fA").set_value(2.0).run()
    text = page_text(at)
    pushed = push(model, dictionary, planned, TEXT, latent, 2 * top)
    assert pushed.kl > 1e-4
    assert f"latent {latent} pushed by {number(2 * top)} on every position · KL {pushed.kl:.3g} nats" in text
    for before, after in zip(pushed.before, pushed.after, strict=True):
        assert f"{100 * before:.2f} %" in text and f"{100 * after:.2f} %" in text
    at.slider(key="fA").set_value(0.0).run()
    assert "pushed by" not in page_text(at)


def test_colour_and_unit_are_of_the_corpus_where_records_exist(
    open_page: Open, real: Workspace, tmp_path: Path
) -> None:
    """The latent one came with is drawn on its own corpus maximum, not on what this text happens to hold."""
    id = "mini-pythia.L1R-1x"
    ws = Workspace(Path(shutil.copytree(real.root, tmp_path / "ws")))
    meta = {"groups": GROUPS, "n_tokens": 1000, "vocab": "vocab.json"}
    with ws.create("latents", id, command="test", metadata=meta) as folder:
        write_records(folder, latents=64, contexts=20)
    longer = (
        TEXT
        + ", mode='rb') as f:\n        yield from (line.split()[0] for line in f if line)\n\nclass Writer(Base, X):\n  "
        "  pass"
    )
    found = probe(*computed(ws, id), longer)
    latent = found.latents(64)[-1][0]  # far from the strongest
    assert len(found.latents(64)) > 20
    top, vmax = max(found.activations(latent)), LatentRecords.open(ws.path("latents", id)).row(latent)["max"]
    text = page_text(open_page(ws, "probe", d=id, i=latent, text=longer))
    strip = text[text.index("The latent you came with") : text.index("Strongest latents")]
    assert f'class="t{level(top, max(top, vmax))} pk"' in strip and f"<b>{number(top)}</b>" in strip


def test_empty_long_and_hostile_texts(open_page: Open, real: Workspace) -> None:
    at = open_page(real, "probe", d="mini-pythia.L1R-1x", text="a")
    for given, said in (
        ("   ", None),
        ("", "There is no text yet"),
        ("<img src=x onerror=window.__pwn=1>\u202e</div><script>", None),
        ("word " * 700, "characters were left out"),
        ("word " * 700, "a link to this page does not carry it"),
        ("word " * 4100, "the first 20,000 are read"),
    ):
        at.text_area(key="pr_text").set_value(given).run()
        at.button(key="pr_run").click().run()
        text = page_text(at)
        assert not at.exception and "<img" not in text and "<script" not in text and "\u202e" not in text
        assert said is None or said in text, given[:20]


def test_a_token_says_what_fires_on_it_in_both_models(open_page: Open, real: Workspace) -> None:
    at = open_page(real, "probe", d="mini-pythia.L1R-1x", text=TEXT, at=3)
    text = page_text(at)
    assert text.count("latents fire here") == 2 and "what it fires on" in text
    for id in ("mini-pythia.L1R-1x", "mini-mamba.L1R-1x"):
        found = probe(*computed(real, id), TEXT)
        fires = {int(i): float(v) for i, v in zip(found.indices[3], found.values[3], strict=True) if v > 0}
        part = text[text.index(f"{id}</h2>") :]
        for latent, value in fires.items():
            assert f"<td>#{latent}</td>" in part and number(value) in part


def test_bytes_of_one_character_are_one_cell() -> None:
    text = "a 👩 b é"
    pieces = ["<bos>", "a", " ", "\ufffd", "\ufffd", "\ufffd", "\ufffd", " b", " ", "\ufffd", "\ufffd"]
    found = cells_of(pieces, text)
    assert [w for w, _ in found] == ["<bos>", "a", " ", "👩", " b", " ", "é"]
    assert [p for _, p in found if len(p) > 1] == [[3, 4, 5, 6], [9, 10]]
    assert "".join(w for w, _ in found[1:]) == text
    assert cells_of(["x", "\ufffd", "y"], "other") == [("x", [0]), ("\ufffd", [1]), ("y", [2])]


def test_what_is_read_and_the_change_of_a_push_are_figures(open_page: Open, real: Workspace) -> None:
    """Export on the page is a figure of the program: its numbers are the page's, and its link leads back there."""
    id = "mini-mamba.L1R-1x"
    model, dictionary, planned = computed(real, id)
    found = probe(model, dictionary, planned, TEXT)
    fires = {i: v for i, v, _ in found.latents(64)}
    at = open_page(real, "probe", d=id, text=TEXT)
    assert {b.proto.label for b in at.get("download_button")} >= {"Export what fires"}
    made = build(FigureSpec(figure="text_latents", source=f"dictionaries/{id}", options={"text": TEXT, "n": 5}), real)
    assert [p.title for p in made.panels] == [f"#{i} at {number(v)}" for i, v, _ in found.latents(5)]
    for _, row in made.table.iterrows():
        assert row["activation"] == pytest.approx(fires[row["latent"]], rel=1e-3)
    for panel in made.panels:
        latent = int(panel.frame["latent"].iloc[0])
        assert panel.frame["activation"].tolist() == pytest.approx(found.activations(latent), rel=1e-3)
        assert "".join(panel.frame["token"][1:]) == TEXT
    one = {"text": TEXT, "token": 3}
    here = build(FigureSpec(figure="text_latents", source=f"dictionaries/{id}", options=one), real)
    assert set(here.table["latent"]) == {int(i) for i, v in zip(found.indices[3], found.values[3], strict=True) if v}
    push_by = {"text": TEXT, "latent": latent, "factor": 2.0}
    steered = build(FigureSpec(figure="steered_next_token", source=f"dictionaries/{id}", options=push_by), real)
    want = push(model, dictionary, planned, TEXT, latent, 2 * fires[latent])
    rows = steered.table.set_index("token")
    for token, before, after in zip(want.tokens, want.before, want.after, strict=True):
        assert rows.loc[cell(token, 18), "without"] == pytest.approx(before, rel=1e-3)
        assert rows.loc[cell(token, 18), "with"] == pytest.approx(after, rel=1e-3)
    assert steered.table["change"].abs().is_monotonic_decreasing and f"{want.kl:.3g} nats" in steered.caption
    same.test_screen_and_paper_agree(steered)
    for figure in (made, here, steered):
        link = urlsplit(figure.permalink)
        query = dict(parse_qsl(link.query))
        page = page_text(open_page(real, link.path, **query))
        assert "cannot be shown" not in page and "made on data version" not in page
    assert f"latent {latent} pushed by" in page and "latents fire here" not in page
    spec = FigureSpec(figure="text_latents", source=f"dictionaries/{id}", options=one)
    assert bundle(spec, real).zip == bundle(spec, real).zip
    for bad, says in (({"text": "   "}, "the text is empty"), ({"text": "a", "token": 99}, "token 99 is not in")):
        with pytest.raises(UsageError, match=says):
            build(FigureSpec(figure="text_latents", source=f"dictionaries/{id}", options=bad), real)


def continued(at: AppTest) -> AppTest:
    """Wait until a continuation is done, and show it."""
    deadline = time.monotonic() + 120
    while not at.session_state["ct_stream"].done:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return at.run()


def test_a_text_is_continued_as_the_shell_does(open_page: Open, real: Workspace) -> None:
    """Base and steered side by side, greedy and drawn, with the perplexities of `workbench steer`."""
    id = "mini-mamba.L1R-1x"
    latent = probe(*computed(real, id), TEXT).latents(1)[0][0]
    want = steer(real, id, prompt=TEXT, add=[f"{latent}=20"], set=[f"{latent + 1}=0"], tokens=12)
    at = open_page(real, "probe", d=id, text=TEXT, cch=f"{latent}=20, {latent + 1}:=0", cn=12)
    assert "ct_stream" not in at.session_state  # nothing is made before it is asked for
    at = continued(at.button(key="ct_go").click().run())
    assert not at.exception
    assert [c.value for c in at.code] == [want.plain[0].text, want.steered[0].text]
    text = page_text(at)
    for one in (want.plain[0], want.steered[0]):
        assert f"12 tokens · perplexity {one.perplexity:.1f} under the unchanged model" in text
    drawn = steer(real, id, prompt=TEXT, tokens=8, temperature=1.0, seed=3)
    at = open_page(real, "probe", d=id, text=TEXT, cn=8, ct=1.0, cs=3)
    at = continued(at.button(key="ct_go").click().run())
    assert [c.value for c in at.code] == [drawn.plain[0].text]


def test_a_continuation_can_be_stopped_and_bad_changes_are_said(open_page: Open, real: Workspace) -> None:
    id = "mini-pythia.L1R-1x"
    at = open_page(real, "probe", d=id, text=TEXT, cn=100)
    at.button(key="ct_go").click().run()
    assert "ct_go" not in {b.key for b in at.button}  # one button in one place
    at.button(key="ct_stop").click().run()
    at = continued(at)
    made = at.session_state["ct_stream"]
    assert made.stop.is_set() and len(made.plain.ids) <= 100
    assert "ct_go" in {b.key for b in at.button} and "ct_stop" not in {b.key for b in at.button}
    assert len(made.plain.ids) == 100 or "stopped" in page_text(at)
    for bad, says in (("99999=1", "is not in the dictionary"), ("x", "LATENT=NUMBER"), ("1=2, 1=3", "changed twice")):
        at = open_page(real, "probe", d=id, text=TEXT, cch=bad)
        at.button(key="ct_go").click().run()
        assert says in page_text(at) and "ct_stream" not in at.session_state


def test_doses_are_measured_on_the_page_and_kept(open_page: Open, real: Workspace, tmp_path: Path) -> None:
    """The figure on the page is that of the result, and a link to it needs no model."""
    shutil.copytree(real.root, tmp_path / "ws")
    ws, id = Workspace(tmp_path / "ws"), "mini-pythia.L1R-1x"
    at = open_page(ws, "probe", d=id, text=TEXT, cch="3=1", cn=5, dd="0, 4, 8")
    at.button(key="ds_go").click().run()
    assert not at.exception
    (kept,) = ws.items("doses")
    want = steer(ws, id, prompt=TEXT, add=["3=1"], dose=[0, 4, 8], tokens=5)
    table = DoseRecords.open(kept.path).table
    assert table["kl"].tolist() == [d.kl for d in want.doses] and table["amount"].tolist() == [0, 4, 8]
    at = open_page(ws, "probe", d=id, ds=kept.id, dsv=kept.version)
    assert len(at.get("plotly_chart")) == 4 and "Reading loads the language models" in page_text(at)
    at = open_page(ws, "probe", d=id, text=TEXT)
    at.button(key="ds_go").click().run()
    assert "This cannot be measured" in page_text(at) and "--add LATENT=AMOUNT" in page_text(at)
