"""The figure of several models over their training: lags are read where two models have snapshots of one step."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.ui.synthetic_results import add_architectures
from workbench.exporting.figures import FigureSpec, build
from workbench.exporting.kinds.architectures import PARTS, there_from_the_start, too_few
from workbench.markup.names import listed
from workbench.workspace import Workspace

ID, BEHIND = "several", "mini-hybrid behind mini-pythia"


def figure_of(tmp_path, third, **options):
    ws = Workspace(tmp_path / "ws")
    add_architectures(ws, ID, ["a"], third=third)
    return build(FigureSpec(figure="evolution_architectures", source=f"evolution/{ID}", options=options), ws)


@pytest.mark.parametrize("measure", ["own", "norm", "explained"])
def test_a_third_model_has_its_lags_behind_both_others(tmp_path, measure):
    made = figure_of(tmp_path, (0, 64, 256, 1024, 4000), measure=measure)
    table = made.table.set_index(["pair", "part"])
    assert list(made.table["pair"].unique()) == [
        "mini-mamba behind mini-pythia",
        BEHIND,
        "mini-hybrid behind mini-mamba",
    ]
    assert table.loc[BEHIND, "snapshots"].tolist() == [5] * 3 and table.loc[BEHIND, "lag"].abs().max() < 0.2
    first = table.loc["mini-mamba behind mini-pythia"]
    assert (first["snapshots"] == 6).all() and first.loc[PARTS[-1], "lag"] == pytest.approx(2, abs=0.4)
    assert table.loc["mini-hybrid behind mini-mamba", "lag"][PARTS[-1]] < -1
    curve = made.panels[0].frame
    zero = curve[curve["training_step"] == 0]["step"]
    assert zero.nunique() == 1 and zero.iloc[0] == 8, "step 0 is at one place for all of them"
    assert "mini-pythia, mini-mamba and mini-hybrid share" in made.caption
    assert too_few(made.table) and "too few to say" not in made.caption
    assert "0 of 72 are there at the first snapshot of every model" in made.caption


def test_without_snapshots_of_one_step_there_is_no_lag(tmp_path):
    made = figure_of(tmp_path, (0, 24, 96, 384, 1536, 12288))
    hybrid = made.table[made.table["pair"].str.contains("hybrid")]
    assert len(hybrid) == 6 and hybrid["lag"].isna().all() and (hybrid["snapshots"] == 0).all()
    assert not made.panels[1].frame["pair"].str.contains("hybrid").any() and len(made.panels[1].frame) == 3
    assert f"{BEHIND}: too few snapshots of one step" in made.caption


def test_latents_that_all_models_have_from_the_start_are_counted():
    models = [{"model": "a", "steps": [0, 16, 64]}, {"model": "b", "steps": [0, 64, 256]}]
    born = pd.DataFrame({"a": [8.0, 8, 8, 20, np.nan], "b": [32.0, 32, 33, 32, 32]})  # step 0 is half of the next
    assert there_from_the_start(born, models) == 2


def test_names_in_a_row():
    assert [listed("abc"[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
