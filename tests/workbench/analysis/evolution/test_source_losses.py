"""The loss with a source's share of a reconstruction in place: nothing for a perfect one, mean-ablation for an empty
one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crosscoders import Crosscoder
from sae.activation import TopK
from tests.workbench.fakes import FakeBridge
from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots, Source
from workbench.analysis.evolution.source_losses import source_losses

HOOK = "blocks.0.hook_resid_post"
TOKENS = np.random.default_rng(0).integers(1, 50, (10, 18)).astype(np.int32)


def two_models() -> Snapshots:
    models = {"a": FakeBridge(), "b": FakeBridge(seed=1)}
    return Snapshots(
        [Source("a", "a", None, HOOK), Source("b", "b", None, HOOK)], load=lambda name, revision: models[name]
    )


def measured(cc: Crosscoder, snapshots: Snapshots) -> dict[tuple[str, str], float]:
    rows = OnlineBatches(snapshots, TOKENS, 1, seed=0)
    table = source_losses(cc, snapshots, rows.rows_of, TOKENS, batch=4)
    assert (table.loc[table["metric"] == "delta_ce", "n"] == 10 * 16).all() and set(table["source"]) == {"a", "b"}
    return {(r.source, r.metric): r.value for r in table.itertuples()}


def test_a_perfect_crosscoder_costs_nothing_and_an_empty_one_its_bias():
    snapshots = two_models()
    widths = [16, 16]
    D = sum(widths)
    cc = Crosscoder(widths, 2 * D, TopK(2 * D))
    with torch.no_grad():  # x = relu(x) - relu(-x): every row exactly
        eye = torch.eye(D)
        cc.enc_FD.copy_(torch.cat([eye, -eye]))
        cc.dec_FD.copy_(torch.cat([eye, -eye]))
    cc.folded_in = True
    perfect = measured(cc.requires_grad_(False), snapshots)
    for name in "ab":
        assert perfect[name, "delta_ce"] == pytest.approx(0, abs=1e-5) and perfect[name, "ev"] == pytest.approx(
            1, abs=1e-5
        )
        assert perfect[name, "ce_recovered_mean"] == pytest.approx(1, abs=1e-3)
    cc.dec_FD[:, : widths[0]] = 0  # source a alone loses its reconstruction: nothing changes for b
    broken = measured(cc, snapshots)
    assert broken["a", "ce_spliced"] == pytest.approx(broken["a", "ce_zero"], rel=1e-5) and broken["a", "kl"] > 1e-4
    assert broken["b", "delta_ce"] == pytest.approx(0, abs=1e-5)
