"""A whole comparison on the bundled models' activations, with dictionaries whose relations are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from sae import TopKSAE
from sae.errors import CorruptError, MissingError, UsageError
from workbench import Run
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.analysis.comparison.compare import CompareRecipe, compare
from workbench.analysis.comparison.run import compare_and_write, parts_of
from workbench.analysis.comparison.sides import find_group
from workbench.analysis.comparison.tables import tables
from workbench.cli import app
from workbench.exporting import FigureSpec, figure_kinds
from workbench.exporting.figures import build
from workbench.provenance import write_manifest
from workbench.results.matches import READINGS, MatchRecords
from workbench.workspace import Workspace

F, K, D = 64, 8, 128
RECIPE = CompareRecipe(tokens=1400, min_firings=10, neuron_tokens=1400, candidates=10)


def save(
    ws: Workspace,
    id: str,
    model: str,
    site: str,
    sae: TopKSAE,
    *,
    seed: int = 0,
    revision: str | None = None,
    store: str | None = "tiny",
    source: str = "",
) -> None:
    hook = f"blocks.{site[1]}.hook_resid_post"
    sae.metadata = {"model_name": model, "revision": revision, "hook_name": hook, "site": site, "seed": seed}
    if store:
        sae.metadata |= {"store": store, "source": source or model}
    folder = ws.path("dictionaries", id)
    sae.save(folder)
    write_manifest(folder, "dictionaries", id, command=f"workbench train {id}", metadata=sae.metadata | {"kind": "sae"})


def random_sae(seed: int, mean: torch.Tensor, order: torch.Tensor | None = None) -> TopKSAE:
    """Random directions about the data's mean; ``order`` permutes the latents."""
    sae = TopKSAE(D, F, K)
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(F, D, generator=g), dim=1)
    with torch.no_grad():
        sae.enc_FD.copy_(directions if order is None else directions[order])
        sae.dec_FD.copy_(sae.enc_FD)
        sae.b_dec.copy_(mean)
    return sae


ORDER = torch.randperm(F, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    ws = Workspace(tmp_path_factory.mktemp("ws"))
    sources = [{"model": "mini-pythia"}, {"model": "mini-mamba"}]
    recipe = {
        "id": "tiny",
        "hooks": ["L0R", "L1R"],
        "n_seq": 24,
        "ctx": 64,
        "seqs_per_shard": 8,
        "batch_size": 8,
        "sources": sources,
    }
    harvest(HarvestRecipe.model_validate(recipe), ws)
    store = ActivationStore.open(ws.path("stores", "tiny"))
    for m, model in enumerate(("mini-pythia", "mini-mamba")):
        for layer in (0, 1):
            mean = store.read(f"blocks.{layer}.hook_resid_post", source=model).mean(0)
            save(ws, f"{model}.L{layer}R-1x", model, f"L{layer}R", random_sae(10 * m + layer, mean))
            if model == "mini-pythia":  # "another seed" that learned the same latents in another order
                save(ws, f"{model}.L{layer}R-1x.s1", model, f"L{layer}R", random_sae(layer, mean, ORDER), seed=1)
    return ws


class Counted:
    """A progress bar that keeps the parts it was told of."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    @contextmanager
    def __call__(self, label: str, total: int | None, unit: str) -> Iterator[Counted]:
        yield self

    def part(self, name: str) -> None:
        self.parts.append(name)

    def update(self, n: int = 1) -> None:
        """Rows encoded on the way."""


@pytest.fixture(scope="module")
def records(workspace: Workspace) -> MatchRecords:
    item = compare_and_write(
        workspace, "mini-pythia", "mini-mamba", RECIPE, run=Run(command="workbench compare mini-pythia mini-mamba")
    )
    return MatchRecords.open(item.path)


def dense(workspace: Workspace, id: str, records: MatchRecords) -> np.ndarray:
    """[rows, F] codes on the compared tokens, the long way round."""
    store = ActivationStore.open(workspace.path("stores", "tiny"))
    sae = TopKSAE.load(workspace.path("dictionaries", id))
    sequences = np.load(records.folder / "sequences.npy")
    x = torch.cat([store.sequence(int(s), sae.metadata["hook_name"], sae.metadata["source"]) for s in sequences])
    with torch.no_grad():
        return sae.encode(x).numpy().astype(np.float64)


def test_best_partners_equal_brute_force_over_all_layers(workspace: Workspace, records: MatchRecords) -> None:
    a = dense(workspace, "mini-pythia.L1R-1x", records)
    others = ["mini-mamba.L0R-1x", "mini-mamba.L1R-1x"]
    b = np.concatenate([dense(workspace, id, records) for id in others], axis=1)
    with np.errstate(all="ignore"):
        r = np.corrcoef(a, b, rowvar=False)[:F, F:]
    r[:, (b > 0).sum(0) < RECIPE.min_firings] = np.nan
    best = records.best[(records.best["direction"] == "ab") & (records.best["dictionary"] == "mini-pythia.L1R-1x")]
    fired = (a > 0).sum(0)
    assert (best["n_fired"].to_numpy() == fired).all() and best["r"].isna().to_numpy()[fired < RECIPE.min_firings].all()
    alive = np.flatnonzero(fired >= RECIPE.min_firings)
    assert len(alive) > 20
    np.testing.assert_allclose(best["r"].to_numpy()[alive], np.nanmax(r[alive], axis=1), atol=1e-6)
    where = np.nanargmax(r[alive], axis=1)
    assert (best["partner"].to_numpy()[alive] == where % F).all()
    assert list(best["partner_dictionary"].iloc[alive]) == [others[w // F] for w in where]
    together = [int(((a[:, i] > 0) & (b[:, w] > 0)).sum()) for i, w in zip(alive, where, strict=True)]
    assert best["n_cofire"].to_numpy()[alive].tolist() == together


def test_every_baseline_is_there_or_says_why(records: MatchRecords) -> None:
    assert records.metadata["series"] == [
        "random",
        "random partner",
        "shuffle",
        "shift",
        "neurons",
        "cross",
        "even",
        "sae seed",
        "same-token",
        "token-conditional",
        "token-conditional null",
        "random partner same-token",
        "random partner token-conditional",
        "random partner token-conditional null",
        "sae seed same-token",
        "sae seed token-conditional",
        "sae seed token-conditional null",
        "neurons shift",
        "neurons token-conditional",
        "neurons token-conditional null",
    ]
    missing = records.metadata["missing"]
    assert set(missing) == {"untrained", "model seed ab", "model seed ba", "sae seed ba"} and all(
        "are needed" in v for v in missing.values()
    )
    summary = records.table("summary").set_index(["direction", "series"])
    assert summary.loc[("ab", "sae seed"), "mean"] == pytest.approx(1, abs=1e-6)  # the same latents, permuted
    assert 900 < summary.loc[("ab", "neurons"), "n"] <= 2 * 512  # a neuron may be constant on these tokens
    assert summary.loc[("ab", "shuffle"), "mean"] < summary.loc[("ab", "cross"), "mean"] < 1
    assert (summary["low"] <= summary["mean"] + 1e-9).all() and (summary["mean"] <= summary["high"] + 1e-9).all()
    order = records.table("order")
    last = order[(order["direction"] == "ab") & (order["higher"] == "sae seed")].iloc[0]
    given = order[(order["direction"] == "ab") & (order["reading"] == "token-conditional")]
    assert given["lower"].tolist() == ["token-conditional"] and given["higher"].tolist() == [
        "sae seed token-conditional"
    ]
    assert last["lower"] == "cross" and last["holds"] and last["low"] > 0 and last["paired"]
    assert records.table("depth")["count"].sum() == records.best["r"].ge(RECIPE.level).sum()
    shifts = records.table("shifts")
    assert shifts.groupby("direction")["mean"].idxmax().map(shifts["shift"]).eq(0).all() and len(shifts) == 10
    assert records.metadata["skylines"]["sae seed ab"] == ["mini-pythia.L0R-1x.s1", "mini-pythia.L1R-1x.s1"]


def test_with_massive_rows_correlation_and_chance_are_given_without_them_too(
    workspace: Workspace, records: MatchRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert records.metadata["massive"] == {
        "n": 0,
        "of": records.metadata["n_tokens"],
        "dictionaries": dict.fromkeys(
            [*records.metadata["a"]["dictionaries"], *records.metadata["b"]["dictionaries"]], 0
        ),
    }
    seen: list[np.ndarray] = []

    class Every9th:  # the second side's are others than the first one's
        def __init__(self, n: int):
            self.rows = np.arange(n) % 9 == len(seen)
            seen.append(self.rows)

        @classmethod
        def of(cls, rows: Any, hook: Any, ranges: Any, *, source: Any = None) -> Every9th:
            return cls(len(rows))

    monkeypatch.setattr("workbench.analysis.comparison.compare.Massive", Every9th)
    ids = "mini-pythia.L1R-1x", "mini-mamba.L0R-1x"
    recipe = RECIPE.model_copy(update={"baselines": ("shuffle",), "shifts": (), "codes": False})
    found = compare(workspace, *(find_group(workspace, id) for id in ids), recipe)
    kept = ~np.any(seen, axis=0)
    assert found.massive["n"] == (~kept).sum() and list(found.massive["dictionaries"]) == list(ids)
    x, y = (dense(workspace, id, records)[kept] for id in ids)
    with np.errstate(all="ignore"):
        r = np.corrcoef(x, y, rowvar=False)[:F, F:]
    r[:, (y > 0).sum(0) < RECIPE.min_firings] = np.nan
    alive = (x > 0).sum(0) >= RECIPE.min_firings
    inliers = found.series["ab", "inliers"][0].r
    np.testing.assert_allclose(inliers[alive], np.nanmax(r[alive], axis=1), atol=1e-6)
    every, chance = found.series["ab", "cross"][0].r, found.series["ab", "inliers shuffle"][0].r
    assert np.abs(every - inliers)[alive].max() > 1e-3 and np.nanmean(chance) < np.nanmean(inliers)
    summary = tables(found)["summary"].set_index(["direction", "series"])["n"]
    assert summary["ab", "inliers"] == summary["ab", "inliers shuffle"] == np.isfinite(inliers).sum()


def test_pairs_and_strips_are_on_the_same_tokens(workspace: Workspace, records: MatchRecords) -> None:
    row = records.best[records.best["direction"] == "ab"].dropna(subset=["r"]).sort_values("r").iloc[-1]
    a, i, b, j = row["dictionary"], int(row["latent"]), row["partner_dictionary"], int(row["partner"])
    x, y = dense(workspace, a, records)[:, i], dense(workspace, b, records)[:, j]
    pair = records.pair(a, i, b, j)
    assert pair.r == pytest.approx(row["r"], abs=1e-6) and pair.n_cofire == row["n_cofire"] and pair.n_tokens == len(x)
    assert (
        pair.joint.sum() == len(x)
        and pair.joint[0, 0] == int(((x == 0) & (y == 0)).sum())
        and pair.null_q99 == pytest.approx(row["null_q99"])
    )
    assert pair.joint[1:, 1:].sum() == pair.n_cofire
    per = 63  # rows per sequence: position 0 is left out
    shifted = records.pair(a, i, b, j, shift=1)
    xs, ys = x.reshape(-1, per)[:, :-1].ravel(), y.reshape(-1, per)[:, 1:].ravel()
    assert shifted.r == pytest.approx(np.corrcoef(xs, ys)[0, 1], abs=1e-9) and shifted.n_tokens == len(xs)
    store = ActivationStore.open(workspace.path("stores", "tiny"))
    for strip in records.strips(a, i, b, j, by="a", n=3, width=20):
        assert strip.ids == store.sequence_tokens(strip.seq)[strip.start : strip.start + 20].tolist()
        s = np.flatnonzero(np.load(records.folder / "sequences.npy") == strip.seq)[0]
        at = [strip.start + k - 1 for k in range(20)]  # place of a position among the rows
        want = [0.0 if p < 0 else x.reshape(-1, per)[s, p] for p in at]
        np.testing.assert_allclose(strip.acts_a, want, rtol=1e-6)
        assert strip.acts_a[strip.peak] == max(x.reshape(-1, per)[s])
    with pytest.raises(UsageError, match="did you mean"):
        records.pair("mini-pythia.L2R-1x", 0, b, 0)
    with pytest.raises(UsageError, match="latent 64 is not in"):
        records.of(a, F)


def test_activations_are_computed_where_no_store_has_them(workspace: Workspace) -> None:
    """A dictionary of an unknown store gives the same result through its model."""
    source = TopKSAE.load(workspace.path("dictionaries", "mini-mamba.L1R-1x"))
    save(workspace, "foreign.L1R-1x", "mini-mamba", "L1R", source, store="elsewhere", seed=5)
    recipe = RECIPE.model_copy(update={"baselines": (), "shifts": (0,)})
    counted = Counted()
    item = compare_and_write(workspace, "mini-pythia.L0R-1x", "foreign.L1R-1x", recipe, run=Run(bar=counted))
    assert len(counted.parts) == parts_of(
        workspace, "mini-pythia.L0R-1x", "foreign.L1R-1x", recipe
    )  # the progress bar ends at its total
    live = MatchRecords.open(item.path)
    stored = MatchRecords.open(compare_and_write(workspace, "mini-pythia.L0R-1x", "mini-mamba.L1R-1x", recipe).path)
    np.testing.assert_allclose(live.best["r"], stored.best["r"], atol=1e-5)
    assert live.metadata["series"] == ["cross"] and live.best["null_q99"].isna().all()


def test_complete_comparisons_are_reused_and_others_made_again(workspace: Workspace, records: MatchRecords) -> None:
    before = workspace.get("matches", records.id).digest
    again = compare_and_write(
        workspace, "mini-pythia", "mini-mamba", RECIPE, run=Run(bar=lambda *what: pytest.fail(f"{what} again"))
    )
    assert again.digest == before
    again = compare_and_write(
        workspace,
        "mini-pythia.L0R-1x",
        "mini-mamba.L0R-1x",
        RECIPE.model_copy(update={"baselines": ("shuffle",), "codes": False}),
    )
    assert again.manifest.metadata["series"] == ["shuffle", "cross"] and not MatchRecords.open(again.path).has_codes
    with pytest.raises(MissingError, match="--no-codes"):
        MatchRecords.open(again.path).of("mini-pythia.L0R-1x", 0)


def test_every_figure_of_a_comparison_is_built_from_its_tables(workspace: Workspace, records: MatchRecords) -> None:
    source = f"matches/{records.id}"
    row = records.best.dropna(subset=["r"]).iloc[0]
    for name, kind in figure_kinds().items():
        if kind.source != "matches":
            continue
        options = {"dictionary": row["dictionary"], "latent": int(row["latent"])} if name == "pair" else {}
        data = build(FigureSpec(figure=name, source=source, options=options), workspace)
        assert len(data.data) and len(data.table) and data.caption.endswith(".") and data.alt and data.n, name
        assert f"v={records.version}" in data.permalink and "universality" in data.references
    shown = build(FigureSpec(figure="mppc_order", source=source), workspace).data
    want = records.table("summary")
    want = want[~want["series"].str.endswith(READINGS)]
    np.testing.assert_array_equal(shown["mean"], want["mean"])
    with pytest.raises(UsageError, match=r"'model seed' is not in .*are needed"):
        build(FigureSpec(figure="mppc_distribution", source=source, options={"series": ["model seed"]}), workspace)


def test_names_that_cannot_be_meant(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="did you mean 'mini-mamba'"):
        find_group(workspace, "mini-mambo")
    with pytest.raises(MissingError, match="workbench train"):
        find_group(Workspace(tmp_path / "empty"), "mini-mamba")
    with pytest.raises(UsageError, match="baseline 'nonsense'"):
        compare_and_write(
            workspace, "mini-pythia", "mini-mamba", RECIPE.model_copy(update={"baselines": ("nonsense",)})
        )
    with pytest.raises(MissingError, match="workbench compare"):
        MatchRecords.open(tmp_path)
    assert [s.id for s in find_group(workspace, "mini-pythia").references] == [
        "mini-pythia.L0R-1x",
        "mini-pythia.L1R-1x",
    ]


def test_command_line(workspace: Workspace, records: MatchRecords) -> None:
    runner = CliRunner()
    root = [
        "--workspace",
        str(workspace.root),
        "--tokens",
        "1400",
        "--min-firings",
        "10",
        "--baselines",
        "shuffle, even",
        "--replace",
    ]
    done = runner.invoke(app, ["compare", "mini-pythia.L0R-1x", "mini-mamba.L1R-1x", "--json", *root])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["id"] == "mini-pythia.L0R-1x__mini-mamba.L1R-1x" and told["numbers"]["ab"]["series"]["shuffle"]["n"] > 0
    wrong = runner.invoke(app, ["compare", "mini-pythia", "nobody", *root])
    assert wrong.exit_code == 1 and "nobody" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_damaged_comparison_is_named(workspace: Workspace, records: MatchRecords, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / records.id
    shutil.copytree(records.folder, copy)
    (copy / "codes" / "mini-pythia.L0R-1x" / "row.npy").write_bytes(b"x")
    with pytest.raises(CorruptError, match=r"row\.npy"):
        MatchRecords.open(copy).of("mini-pythia.L0R-1x", 0)
    (copy / "shifts.parquet").unlink()
    with pytest.raises(CorruptError, match=r"shifts\.parquet.*workbench compare mini-pythia mini-mamba"):
        MatchRecords.open(copy)
    assert isinstance(records.table("layers"), pd.DataFrame)
