"""Index, charts and table queries: pure functions on generated records."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from tests.ui.synthetic import make_workspace
from workbench.cli import VERBS
from workbench.markup.charts import histogram, logit_bars
from workbench.markup.latent import VIEWS, contexts_html
from workbench.results.family import UNKNOWN
from workbench.results.records import Histogram, LatentRecords, LogitEffects
from workbench.results.searching import END
from workbench.workspace import Workspace
from workbench_ui.kit import data, facts, matching
from workbench_ui.kit.context_bar import best_match, choices
from workbench_ui.kit.index import Index, read_index, signature, step
from workbench_ui.views import latent_table
from workbench_ui.views.latent_table import Query, select
from workbench_ui.views.missing import gaps


@pytest.fixture(scope="module")
def index(full: Workspace) -> Index:
    return read_index(full.root)


@pytest.fixture(scope="module")
def records(full: Workspace) -> LatentRecords:
    return LatentRecords.open(full.path("latents", "mini-pythia.L1R-8x"))


def test_index_knows_where_dictionaries_sit(index: Index) -> None:
    assert list(index.dictionaries) == [
        "mini-pythia@step512.L2R-8x",
        "mini-pythia.L1R-8x",
        "mini-pythia.L2R-8x",
        "mini-mamba.L2R-8x",
        "mini-mamba.L2S-8x",
    ]
    d = index.dictionaries["mini-mamba.L2S-8x"]
    assert (d.architecture, d.layer, d.place, d.records) == ("Mamba", 2, "layer 2, Mamba mixer output", None)
    assert index.dictionaries["mini-pythia@step512.L2R-8x"].revision == "step512"
    assert index.find("dictionaries", "../../etc/passwd") is None and index.find("nonsense", "x") is None


def test_index_notices_a_new_result(full: Workspace, tmp_path: Path) -> None:
    ws = Workspace(tmp_path / "w")
    before = signature(ws.root)
    with ws.create("dictionaries", "a.L0R-4x") as tmp:
        (tmp / "cfg.json").write_text("{}")
    assert signature(ws.root) != before


def test_selectors_offer_what_exists(index: Index) -> None:
    d = index.dictionaries["mini-pythia.L2R-8x"]
    assert choices(index, d, "model") == ["mini-pythia", "mini-mamba"]
    assert choices(index, d, "site") == ["L2R", "L1R"]
    assert choices(index, d, "revision") == ["step512", "final"]
    assert best_match(index, d, "model", "mini-mamba").id == "mini-mamba.L2R-8x"
    assert best_match(index, d, "revision", "step512").id == "mini-pythia@step512.L2R-8x"
    assert best_match(index, d, "model", "no such model") is d


def test_snapshots_sort_by_step() -> None:
    assert sorted(["final", "step1024", "step16", "step0"], key=step) == ["step0", "step16", "step1024", "final"]


def test_gaps_name_commands(index: Index) -> None:
    commands = [g.command for g in gaps(index)]
    assert "workbench features mini-mamba.L2S-8x" in commands
    assert all(re.fullmatch(r"workbench \w+ \S.*", c) for c in commands)
    verbs = {c.split()[1] for c in commands}
    assert verbs <= set(VERBS) and not verbs & {"compare", "circuits", "evolve", "map", "graph"}  # these exist already


def test_no_command_is_named_that_cannot_work(index: Index) -> None:
    """A crosscoder trained while its models ran has no rows for latent records, one over an aligned store has."""
    bare = index.dictionaries["mini-mamba.L2S-8x"]
    entry = bare.entry
    assert bare.has_rows and entry is not None

    def crosscoder(store: str | None) -> Index:
        metadata = {**entry.metadata, "sources": ["step0", "step512"], "store": store}
        changed = replace(entry, manifest=entry.manifest.model_copy(update={"metadata": metadata}))
        return replace(index, entries={**index.entries, "dictionaries": {bare.id: changed}})

    online, kept = crosscoder(None), crosscoder("aligned")
    assert not online.dictionaries[bare.id].has_rows and kept.dictionaries[bare.id].has_rows
    assert not any("features" in g.command for g in gaps(online))
    assert f"workbench features {bare.id}" in [g.command for g in gaps(kept)]


def test_histogram_says_n_and_counts(records: LatentRecords) -> None:
    h = records.histogram(3)
    markup = histogram(h)
    assert f"{h.n:,} of 100,000 tokens" in markup and "show as table" in markup and 'role="img"' in markup
    shown = sum(int(n.replace(",", "")) for n in re.findall(r": ([\d,]+) tokens", markup))
    assert shown == h.n == int(h.counts.sum())


def test_histogram_scales() -> None:
    counts = np.zeros(64, dtype=np.uint32)
    counts[[0, 10, 63]] = [1, 999, 9]
    h = Histogram(counts, np.geomspace(0.01, 10, 65).astype(np.float32), int(counts.sum()), 2000)
    heights = [float(x) for x in re.findall(r'<i style="height:([\d.]+)%', histogram(h))]
    assert (
        heights[0] == pytest.approx(100 * np.log10(2) / 3, abs=0.06)
        and max(heights) == 100
        and heights[-1] == pytest.approx(33.3, abs=0.1)
    )
    assert max(float(x) for x in re.findall(r'<i style="height:([\d.]+)%', histogram(h, log=False))[1:]) == 100


def test_histogram_of_a_silent_latent() -> None:
    h = Histogram(np.zeros(64, dtype=np.uint32), np.geomspace(0.01, 10, 65).astype(np.float32), 0, 500)
    assert "never fired" in histogram(h) and "<i " not in histogram(h)


def test_logit_bars_share_one_scale() -> None:
    effects = LogitEffects([(1, " a", 4.0), (2, "b", 1.0)], [(3, "<b>", -2.0)], "folded")
    markup = logit_bars(effects)
    assert [float(x) for x in re.findall(r"width:([\d.]+)%", markup)] == [100.0, 25.0, 50.0]
    assert "&lt;b&gt;" in markup and "+4" in markup and "-2" in markup and "folded" in markup


def test_a_direct_effect_says_how_many_layers_it_leaves_out() -> None:
    said = {n: logit_bars(LogitEffects([(1, "a", 1.0)], [], "", n)) for n in (None, 0, 1, 20)}
    assert "no layer comes after it" in said[0] and "1 layer after it may turn" in said[1]
    assert "20 layers after it may turn" in said[20] and "layers after it may turn" in said[None]


def test_layers_after_a_latent_are_of_its_site(full: Workspace) -> None:
    r = LatentRecords.open(full.path("latents", "mini-pythia.L1R-8x"))
    assert r.logits(3).layers_after is None
    r.metadata["model_layers"] = 6
    assert r.logits(3).layers_after == 4


def test_contexts_count_shown_and_available(records: LatentRecords) -> None:
    markup = contexts_html(records, 3, "All", n=2, window=8, breaks=False, vmax=float(records.row(3)["max"]))
    assert markup.count('class="ctx"') == 2 * len(VIEWS["All"])
    assert markup.count(f"2 shown of {records.available(3, 'top'):,}") == len(VIEWS["All"])
    assert markup.count("silent</b>") == 2


def around(records: LatentRecords, latent: int) -> str:
    """The text around the peaks of the three strongest contexts, token by token."""
    parts = []
    for c in records.contexts(latent, "top", 3):
        parts.append("".join(c.tokens[max(0, c.peak - 8) : c.peak + 5]))
    return "\x1f".join(parts)


def brute(records: LatentRecords, query: Query) -> list[int]:
    """The query in plain pandas."""
    t = records.table
    texts = pd.Series([around(records, i) for i in t["latent"]], index=t.index)
    if query.alive:
        t = t[t["n_fired"] > 0]
    t = t[(t["density"] >= query.density[0]) & (t["density"] <= query.density[1])]
    if query.text:
        hit = [
            any(query.text in str(v).lower() for v in values)
            for values in zip(t["label"], t["peak_text"], t["promoted_text"], texts[t.index], strict=True)
        ]
        t = t[hit]
    column = latent_table.SORTS[query.sort]
    return t.sort_values(column, ascending=not query.descending, kind="stable")["latent"].tolist()


@pytest.mark.parametrize(
    "query",
    (
        Query(sort="max activation"),
        Query(sort="density", descending=False),
        Query(text="pattern 1", sort="skew"),
        Query(density=(1e-3, 1e-2), sort="mean activation"),
        Query(text=" w1", sort="kurtosis"),
        Query(text="e w", sort="max activation"),
    ),
)
def test_select_equals_plain_pandas(records: LatentRecords, query: Query) -> None:
    query = Query(
        query.text.strip(), query.sort, query.descending, query.density, query.strength, query.alive, query.labelled
    )
    got = select(str(records.folder), records.version, query).tolist()
    assert got == brute(records, query) and got


def test_strength_filter_is_a_percentile(records: LatentRecords) -> None:
    top = select(str(records.folder), records.version, Query(strength=(90, 100), alive=False))
    assert len(top) == pytest.approx(0.1 * len(records), abs=1)
    rest = set(range(len(records))) - set(top.tolist())
    assert records.table["max"].fillna(0)[top].min() >= records.table["max"].fillna(0)[list(rest)].max()


def test_page_of_rows(records: LatentRecords) -> None:
    rows = latent_table.page(records, np.array([5, 3]))
    assert [r["latent"] for r in rows] == [5, 3]
    assert [r["max"] for r in rows] == pytest.approx([records.row(5)["max"], records.row(3)["max"]])
    assert all(r["context"].tokens and len(r["profile"]) == 16 for r in rows)
    assert set(rows[0]) <= {name for name, _ in latent_table.COLUMNS} | {"mean"}


def test_filtered_table_as_csv_is_whole_and_in_order(full: Workspace, records: LatentRecords) -> None:
    """What the download of the latents page writes: every latent asked for, in its order, tokens as JSON strings."""
    import io
    import json

    from workbench.exporting.tables import to_csv

    ids = [7, 3, 200, 36]
    part = records.table.iloc[[records.position(i) for i in ids]]
    back = pd.read_csv(io.BytesIO(to_csv(part, ["peak_text"])), keep_default_na=False)
    assert back["latent"].tolist() == ids and set(back.columns) == set(records.table.columns)
    peaks = [json.loads(t) if t else None for t in back["peak_text"]]
    assert peaks == [records.row(i).get("peak_text") for i in ids]


def test_search_finds_what_reading_every_text_finds(full: Workspace) -> None:
    made = full.get("latents", "mini-pythia.L1R-8x")
    folder, key = str(made.path), made.version
    hay = data.haystack(folder, key)
    texts = [part.decode() for part in hay.text.split(END)[:-1]]
    assert len(texts) == len(hay.ends) > 1
    ones = [
        "",
        "w1",
        "W1",
        "pattern 3",
        "a.c",
        "[",
        "␣w",
        "é",
        texts[1][2:9],
        texts[0][-3:] + texts[1][:3],
        "\x1f",
        "\x1e",
    ]
    for text in ones:
        plain = [text.lower().replace("\x1e", " ") in held for held in texts]
        assert data.holding(folder, key, text).tolist() == plain, text


def test_an_answer_is_kept_for_one_run_and_no_longer(open_page: Callable[..., AppTest], tmp_path: Path) -> None:
    """Within a run the workspace is looked at once; a result that comes is there on the next."""
    from workbench_ui.kit.once import once_per_run

    asked: list[int] = []
    count = once_per_run(lambda n: asked.append(n) or len(asked))
    assert [count(1), count(1)] == [1, 2]  # outside a run nothing is kept

    def page() -> None:
        import streamlit as st

        st.text(f"{st.session_state['count'](7)} {st.session_state['count'](7)} {st.session_state['count'](8)}")

    at = AppTest.from_function(page)
    at.session_state["count"] = count
    assert at.run().text[0].value == "3 3 4"
    assert at.run().text[0].value == "5 5 6"

    ws = make_workspace(tmp_path / "ws")
    at = open_page(ws, "overview")
    before = sum("mini-mamba.L2R-8x" in str(e.value) for e in at.get("html"))
    shutil.rmtree(ws.path("latents", "mini-mamba.L2R-8x"))
    shutil.rmtree(ws.path("dictionaries", "mini-mamba.L2R-8x"))
    assert before > sum("mini-mamba.L2R-8x" in str(e.value) for e in at.run().get("html"))


def test_what_is_shown_first_has_fired_often_enough() -> None:
    """A rule that fits a handful of tokens perfectly comes behind a plainer one that rests on many."""
    table = pd.DataFrame(
        {
            "label": ["fits three tokens", "fits many", None],
            "label_score": [1.0, 0.7, np.nan],
            "n_fired": [facts.ENOUGH - 1, facts.ENOUGH, 500],
            "density": [49 / 60_000, 50 / 60_000, 500 / 60_000],
            "max": [3.0, 2.0, 2.0],
            "peak_text": [" see", " also", " the"],
        }
    )
    value = facts._interest(table, {"complexity": np.array([0.9, 0.5, 0.5]), "twin_r": np.array([0.9, 0.1, 0.1])})
    assert value.argmax() == 1 and value.argmin() == 0
    weak = facts._interest(table, {"n_strong": np.array([99, facts.ENOUGH_STRONG - 1, facts.ENOUGH_STRONG])})
    assert weak.argmax() == 2
    silent = facts._interest(table.assign(n_fired=[0, 50, 500]), {})
    assert silent[0] < value[0]  # what never fired comes last of all


def test_what_previews_are_drawn_with_is_read_once_while_nobody_waits():
    code = (
        "import sys\n"
        "from workbench_ui.kit import ahead\n"
        "ahead.REST = 0.01\n"
        "assert 'matplotlib.figure' not in sys.modules\n"
        "timer = ahead.read_ahead()\n"
        "assert ahead.read_ahead() is timer\n"
        "timer.join()\n"
        "assert 'matplotlib.backends.backend_agg' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_comparisons_between_architectures_come_first_and_name_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def comparison(id: str, a: str, b: str) -> SimpleNamespace:
        return SimpleNamespace(id=id, version="1", metadata={"a": {"dictionaries": [a]}, "b": {"dictionaries": [b]}})

    kinds = {"t.L1R": "Transformer", "seed.L1R": "Transformer", "m.L1R": "Mamba", "x.L1R": UNKNOWN}
    near, far = comparison("a-seed", "t.L1R", "seed.L1R"), comparison("b-mamba", "t.L1R", "m.L1R")
    in_order = [far, near, comparison("c-unknown", "t.L1R", "x.L1R")]
    found = [near, far, in_order[-1]]
    known = {id: SimpleNamespace(id=id, architecture=kind) for id, kind in kinds.items()}
    monkeypatch.setattr(data, "index", lambda: SimpleNamespace(dictionaries=known, of=lambda kind: found))
    monkeypatch.setattr(data, "workspace_folder", lambda: "ws")
    assert matching.comparisons() == in_order
    assert facts._matches_key(known["t.L1R"])[1] == (("b-mamba", "1", "ab"),)
    found.remove(far)
    assert facts._matches_key(known["t.L1R"])[1] == (("a-seed", "1", "ab"), ("c-unknown", "1", "ab"))
