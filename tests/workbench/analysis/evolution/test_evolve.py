"""The evolve verb on four bundled snapshots, its folder and reader, and the pieces whose truth can be planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from crosscoders import Crosscoder, evaluate_sources
from sae.activation import TopK
from sae.errors import ConfigError, CorruptError, MissingError, UsageError
from workbench import Run, evolve
from workbench.analysis.evolution import orders
from workbench.analysis.evolution.analyse import to_csr
from workbench.analysis.evolution.emergence import emergence_table
from workbench.analysis.evolution.phases import end_of_ngram_phase, first_solved
from workbench.analysis.evolution.recipe import EvolveRecipe, evolution_id, resolve_sources
from workbench.analysis.evolution.scrubber import choose_windows, scrub
from workbench.config import read_recipe
from workbench.models.load import revisions
from workbench.results.evolution import Evolution
from workbench.workspace import Workspace


def small() -> EvolveRecipe:
    known = revisions("mini-pythia")
    return EvolveRecipe(
        model="mini-pythia",
        revisions=(known[0], known[len(known) // 2], known[-2], known[-1]),
        expansion=1,
        k=8,
        tokens=8_000,
        n_seq=64,
        batch_size=256,
        heldout_seqs=16,
        ngram_seqs=200,
        contexts=2,
        prompts=12,
        prompt_length=17,
        permutations=20,
        attribution="all",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Workspace, Evolution]:
    ws = Workspace(tmp_path_factory.mktemp("ws"))
    id = evolve(ws, small()).id
    return ws, Evolution.open(ws.get("evolution", id).path, verify=True)


def test_the_folder_holds_what_its_format_says(made):
    ws, e = made
    assert e.id == "mini-pythia@4-snapshots.L1R-1x" and len(e) == 128 and len(e.sources) == 4
    cc = Crosscoder.load(ws.get("dictionaries", e.id).path)
    assert np.allclose(e.norms(np.arange(128)), cc.decoder_norms().numpy().T)
    assert np.allclose(e.norms([3, 5], "raw"), cc.decoder_norms(raw=True).numpy().T[[3, 5]])
    assert (
        e.norms([0], "free").shape == (1, 4)
        and e.cosines(7).shape == (4, 4)
        and np.allclose(np.diag(e.cosines(7)), 1, atol=2e-3)
    )
    assert e.steps.tolist() == [int(s.removeprefix("step")) for s in e.sources] == e.phases["step"].tolist()
    assert {"class", "kind", "complexity", "emergence_0.5_step", "emergence_free_step", "turning_step"} <= set(
        e.table.columns
    )
    for column in (
        "loss",
        "kl_unigram",
        "kl_bigram",
        "kl_to_bigram",
        "h1",
        "h2",
        "ev",
        "dimensionality",
        "accuracy_induction",
    ):
        assert np.isfinite(e.phases[column]).all(), column
    assert e.phases["loss"].iloc[0] > e.phases["loss"].iloc[-1] and e.phases["h2"].iloc[0] < e.phases["h1"].iloc[0]
    nulls = e.statistics[e.statistics["null"] == "snapshot labels"]
    assert len(nulls) and nulls.loc[nulls["value"].notna(), "null_n"].eq(20).all()
    assert set(e.attribution["ranking"]) >= {"attribution", "magnitude", "random", "frequency"} and set(
        e.attribution["source"]
    ) == set(e.sources)
    assert e.attribution_latents["n"].eq(6).all(), "ranked on half of the prompts"
    assert e.manifest.inputs[0].id == e.id and e.manifest.metadata["dictionary"] == e.id


def test_contexts_are_shown_at_every_snapshot(made):
    _, e = made
    fired = e.table.sort_values("n_fired", ascending=False)["latent"].iloc[0]
    contexts = e.contexts(int(fired))
    assert len(contexts) == 2 and len({c.seq for c in contexts}) == 2
    for c in contexts:
        assert c.readings.shape == (4, len(c.tokens)) and c.code.argmax() == c.peak and c.code.max() > 0
        assert c.tokens == [e.vocab[i] for i in c.ids]
    silent = e.table[e.table["n_fired"] == 0]["latent"]
    assert all(e.contexts(int(i)) == [] for i in silent[:2])
    with pytest.raises(UsageError, match="latent 128 is not in"):
        e.contexts(128)


def test_the_training_page_shows_it(made, monkeypatch):
    from streamlit.testing.v1 import AppTest

    workspace, evolution = made
    monkeypatch.setenv("WORKBENCH_WORKSPACE", str(workspace.root))
    app = AppTest.from_file(
        str(Path(__file__).resolve().parents[4] / "ui" / "workbench_ui" / "app.py"), default_timeout=60
    ).run()
    at = app.switch_page("app_pages/training.py").run()
    assert not at.exception and not [h for h in at.get("html") if "cannot be shown" in str(h.value)]
    order = at.selectbox(key="sort")
    assert {"emerges at step", "peaks at step", "fades at step", "lifespan", "class"} <= set(order.options)
    order.set_value("emergence_0.5_step").run()
    shown = at.dataframe(key="tr_table").value
    born = evolution.table.set_index("latent")["emergence_0.5_step"].reindex(shown["latent"]).astype("Float64")
    assert (
        born.dropna().is_monotonic_increasing
        and shown["emergence_0.5_step"].astype("Float64").tolist() == born.tolist()
    )


def test_a_complete_result_is_reused_and_a_changed_one_is_noticed(made):
    ws, e = made
    said: list[str] = []
    assert evolve(ws, small(), run=Run(say=said.append)).id == e.id and said == [f"{e.id}: complete, reused"]
    path = e.folder / "decnorm_free.npy"
    kept = path.read_bytes()
    path.write_bytes(kept[:-4])
    with pytest.raises(CorruptError, match="decnorm_free"):
        Evolution.open(e.folder, verify=True)
    path.write_bytes(kept)
    with pytest.raises(MissingError, match="workbench evolve"):
        Evolution.open(ws.root / "evolution" / "nothing")


def test_sources_and_recipes_that_cannot_be_meant(tmp_path):
    with pytest.raises(MissingError, match="no revision 'step1'"):
        resolve_sources(EvolveRecipe(revisions=("step0", "step1")))
    with pytest.raises(UsageError, match="at least two sources"):
        resolve_sources(EvolveRecipe(revisions=("step0",)))
    with pytest.raises(UsageError, match="the same"):
        resolve_sources(EvolveRecipe(revisions=("step0", "step0")))
    (tmp_path / "typo.toml").write_text("revision = ['step0']\n")
    with pytest.raises(ConfigError, match=r"unknown key 'revision' \(did you mean 'revisions'"):
        read_recipe(EvolveRecipe, tmp_path / "typo.toml")
    (tmp_path / "twice.toml").write_text("[crosscoder]\nd_sae = 4\n")
    with pytest.raises(ConfigError, match="d_sae: the recipe sets this itself"):
        read_recipe(EvolveRecipe, tmp_path / "twice.toml")
    pair = EvolveRecipe(sources=({"model": "mini-pythia"}, {"model": "mini-mamba"}), site="L2R")
    assert [s.name for s in resolve_sources(pair)] == ["mini-pythia", "mini-mamba"]
    layers = EvolveRecipe(sources=({"model": "mini-pythia", "site": "L0R"}, {"model": "mini-pythia", "site": "L1R"}))
    names = [s.name for s in resolve_sources(layers)]
    assert (
        names[0].endswith("L0R")
        and names[1].endswith("L1R")
        and "__" not in evolution_id(layers, resolve_sources(layers))
    )


@pytest.mark.parametrize(
    "recipe", ["mini-evolve", "demo-evolve", "mini-aligned", "mini-transformer-mamba", "mini-diff"]
)
def test_bundled_recipes_are_valid(recipe):
    assert read_recipe(EvolveRecipe, recipe).steps >= 100


def test_snapshots_are_spread_evenly():
    all_of_them = resolve_sources(EvolveRecipe())
    some = resolve_sources(EvolveRecipe(snapshots=4))
    assert len(some) == 4 and some[0] == all_of_them[0] and some[-1] == all_of_them[-1]
    assert len(resolve_sources(EvolveRecipe(snapshots=99))) == len(all_of_them)


def test_a_further_site_has_its_own_evolution_and_its_latents_count(made):
    """Previous-token latents live at L1R and induction latents at L2R: an order between them needs both sites."""
    ws, at_l1r = made
    recipe = small().model_copy(update={"site": "L0R", "also": ("L1R",)})
    both = Evolution.open(evolve(ws, recipe).path)
    assert both.metadata["also"] == [at_l1r.id] and at_l1r.id in {i.id for i in both.manifest.inputs}, (
        "the complete one is reused"
    )
    language = [
        "source",
        "loss",
        "kl_unigram",
        "kl_to_bigram",
        "h1",
    ]  # the models' own: read from the run beside this one
    pd.testing.assert_frame_equal(both.phases[language], at_l1r.phases[language])
    rows = both.statistics.set_index("claim")["note"]
    for first, second in orders.ORDER:
        note = rows[f"{first} latents emerge before {second} latents"]
        for kind in (first, second):
            born = {
                e.metadata["site"]: e.table["alive"] & (e.table["kind"] == kind) & (e.table["emergence_0.5_index"] >= 0)
                for e in (at_l1r, both)
            }
            counted = [f"{site} {on.sum()}" for site, on in sorted(born.items()) if on.any()]
            n = sum(on.sum() for on in born.values())
            assert (f"{n} ({', '.join(counted)})" if n else "0 ") in note
    with pytest.raises(ValueError, match="names a site twice"):
        EvolveRecipe(site="L1R", also=("L1R",))
    with pytest.raises(ValueError, match="neither sources nor store"):
        EvolveRecipe(site="L1R", also=("L2R",), store="s")


def test_orders_between_kinds_that_live_at_different_sites():
    """Planted: previous-token latents at one site, induction latents born later at another; swapped births are not
    found.
    """
    norms, table = planted(1, 7)
    kinds = table["kind"].replace({"token": "previous-token"})
    apart = table.assign(kind=kinds, site=np.where(kinds == "previous-token", "L1R", "L2R"))
    claim = "previous-token latents emerge before induction latents"
    row = {r["claim"]: r for r in orders.class_orders(norms, apart, n=200)}[claim]
    assert row["verdict"] == "found" and row["note"].startswith("40 (L1R 40) and 40 (L2R 40) latents")
    norms, table = planted(7, 1)
    swapped = table.assign(kind=table["kind"].replace({"token": "previous-token"}))
    assert {r["claim"]: r for r in orders.class_orders(norms, swapped, n=200)}[claim]["verdict"] == "not found"


def equal_sources(S: int = 3, d: int = 8, F: int = 20) -> Crosscoder:
    """A crosscoder whose sources have the same encoder: one model seen S times."""
    cc = Crosscoder([d] * S, F, TopK(4))
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        cc.enc_FD.copy_(torch.randn(F, d, generator=g).repeat(1, S))
        cc.dec_FD.copy_(cc.enc_FD / S)
        cc.b_enc.copy_(0.1 * torch.randn(F, generator=g))
    cc.folded_in = True
    return cc.requires_grad_(False)


def test_readings_of_equal_snapshots_are_the_activation_itself():
    cc, ctx = equal_sources(), 10
    g = torch.Generator().manual_seed(1)
    x = torch.randn(6, ctx - 1, 8, generator=g).repeat(1, 1, 3)
    tokens = np.arange(60).reshape(6, ctx)
    codes = to_csr(*cc.encode_sparse(x.reshape(-1, 24)), 20)
    windows = choose_windows(codes, ctx, contexts=3, length=6)
    made = scrub(cc, lambda seq: x[torch.from_numpy(seq)].reshape(-1, 24), tokens, codes, windows)
    on = made.code > 0
    assert on.any()
    for s in range(3):
        assert np.abs(made.acts[:, :, s].astype(int) - made.code)[on].max() <= 1
    dense = codes.toarray()
    for i in range(20):
        used = windows.seq[i] >= 0
        assert len(set(windows.seq[i][used])) == used.sum()
        for k in np.flatnonzero(used):
            row = windows.seq[i, k] * (ctx - 1) + windows.start[i, k] + windows.peak[i, k] - 1
            assert dense[row, i] == dense[windows.seq[i, k] * (ctx - 1) : (windows.seq[i, k] + 1) * (ctx - 1), i].max()
            assert (
                made.tokens[i, k, windows.peak[i, k]]
                == tokens[windows.seq[i, k], windows.start[i, k] + windows.peak[i, k]]
            )


def test_codes_as_a_sparse_matrix_are_the_codes():
    cc = equal_sources()
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(2))
    assert np.allclose(to_csr(*cc.encode_sparse(x), 20).toarray(), cc.encode(x).numpy(), atol=1e-6)
    assert isinstance(to_csr(*cc.encode_sparse(x), 20), sparse.csr_array)
    assert evaluate_sources(cc, [x]).n == 50


def test_solved_and_the_end_of_the_phase():
    assert first_solved([0.5, 0.9, 0.7, 0.85, 0.95]) == 3 and first_solved([0.9, 0.9]) == 0
    assert first_solved([0.9, 0.5]) == -1 and first_solved([]) == -1
    assert end_of_ngram_phase([3, 2, 1, 1.5, 4]) == 2


def planted(early: int, late: int, n: int = 40, S: int = 12) -> tuple[np.ndarray, pd.DataFrame]:
    """Token latents born around ``early`` and induction latents around ``late``, with noise."""
    rng = np.random.default_rng(0)
    births = np.concatenate([rng.integers(early, early + 2, n), rng.integers(late, late + 2, n)])
    norms = ((np.arange(S)[:, None] >= births) * rng.uniform(0.8, 1, (S, 2 * n)) + 0.01).astype(np.float32)
    table = emergence_table(norms, range(S), n_fired=np.full(2 * n, 100))
    return norms, table.assign(kind=["token"] * n + ["induction"] * n)


def test_orders_are_found_where_planted_and_only_there():
    norms, table = planted(1, 7)
    rows = {r["claim"]: r for r in orders.class_orders(norms, table, n=200)}
    found = rows["token latents emerge before induction latents"]
    assert (
        found["verdict"] == "found"
        and found["low"] > 0
        and found["null"] == "snapshot labels"
        and found["null_n"] == 200
    )
    assert rows["token latents emerge before context latents"]["verdict"] == "too few"
    norms, table = planted(4, 4)
    same = {r["claim"]: r for r in orders.class_orders(norms, table, n=200)}
    assert same["token latents emerge before induction latents"]["verdict"] == "not found"


def test_phases_follow_what_was_measured():
    """The n-gram phase ends before induction is solved; columns without a number leave their claims out."""
    S = 5
    phases = pd.DataFrame(
        {"step": range(S), "dimensionality": [3.0, 1, 2, 3, 4], "accuracy_induction": [0.0, 0, 0, 0.9, 1]}
    )
    kl = {"kl_to_bigram": [3.0, 1, 2, 3, 4], "kl_unigram": [1.0, 2, 3, 4, 5], "kl_bigram": [4.0, 1, 2, 3, 4]}
    rows = {r["claim"]: r for r in orders.phase_claims(phases.assign(**kl), None, np.ones(4, bool))}
    assert [r["verdict"] for r in rows.values()] == ["found"] * 4
    nothing = orders.phase_claims(phases.assign(**dict.fromkeys(kl, np.nan)), None, np.ones(4, bool))
    assert [r["claim"] for r in nothing] == ["total dimensionality first falls, then grows (minimum inside the run)"]
    late = phases.assign(**kl, accuracy_induction=[0.9, 1, 1, 1, 1])
    assert "not found" in {r["verdict"] for r in orders.phase_claims(late, None, np.ones(4, bool))}


def test_rows_shared_between_runs_are_those_of_the_models_and_made_once(monkeypatch):
    import workbench.activations.harvesting.forward as forward
    from workbench.analysis.evolution.snapshots import OnlineBatches, RowCache, Snapshots

    sources = {
        site: resolve_sources(EvolveRecipe(site=site, revisions=("step0", "step512"))) for site in ("L1R", "L2R")
    }
    runs, real = [], forward.capture
    monkeypatch.setattr(
        forward, "capture", lambda model, ids, hooks, *a, **k: runs.append(len(ids)) or real(model, ids, hooks, *a, **k)
    )
    tokens = np.random.default_rng(0).integers(1, 200, (6, 12))
    plain = {site: Snapshots(s).rows(tokens) for site, s in sources.items()}
    alone, cache = len(runs), RowCache([s[0].hook for s in sources.values()])
    for site, s in sources.items():
        shared = OnlineBatches(Snapshots(s, cache=cache), tokens, 1, seed=0)
        for _ in range(2):
            assert torch.allclose(shared.rows_of(np.arange(6)), plain[site].flatten(0, 1), rtol=2e-3, atol=2e-3)
    assert alone == 4 and len(runs) == 4 + 2  # both sites of both snapshots by one run each
    tight = RowCache([s[0].hook for s in sources.values()], max_bytes=1)
    assert (
        torch.allclose(Snapshots(sources["L1R"], cache=tight).rows(tokens), plain["L1R"], rtol=2e-3, atol=2e-3)
        and not tight.kept
    )


def test_rows_of_other_weights_under_a_known_name_are_not_taken_for_the_same():
    from workbench import load_model
    from workbench.analysis.evolution.snapshots import RowCache, Snapshots, Source

    source = Source("mine", "mine", None, "blocks.1.hook_resid_post")
    cache, tokens = RowCache([source.hook]), np.random.default_rng(0).integers(1, 200, (2, 8))
    old, new = (
        Snapshots([source], load=lambda name, revision, step=step: load_model("mini-pythia", step), cache=cache)
        for step in ("step0", "step512")
    )
    first, second = old.rows(tokens), new.rows(tokens)
    assert not torch.allclose(first, second, atol=1e-2)
    assert torch.equal(old.rows(tokens), first) and len(cache.kept) == 4
