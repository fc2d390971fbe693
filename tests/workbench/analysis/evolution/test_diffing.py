"""Model diffing: planted differences are found, a shrunken norm is not taken for absence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sae
from crosscoders import Crosscoder, CrosscoderConfig
from crosscoders.gates import PerSource
from sae.activation import TopK
from sae.errors import UsageError
from sae.refitting import refit
from tests.crosscoders.worlds import World
from workbench.analysis.evolution import diffing as df


def test_classes_of_relative_norms():
    delta = df.relative_norm([1, 0, 2, 1, 0], [1, 3, 0, 2, 0])
    assert delta[:4] == pytest.approx([0.5, 1, 0, 0.75]) and np.isnan(delta[4])
    assert df.norm_class(delta).tolist() == ["shared", "second-only", "first-only", "mixed", "never"]


@pytest.fixture(scope="module")
def fine_tuned():
    """A base and a changed model: 28 shared latents, 6 new ones, 6 lost ones; the second source five times larger."""
    present = torch.ones(2, 40)
    present[0, 28:34], present[1, 34:] = 0, 0
    world = World([32, 32], present, rate=0.04, scales=[1.0, 5.0], aligned=True)
    trainer = sae.Trainer(
        CrosscoderConfig(widths=[32, 32], d_sae=64, k=3, lr=5e-3, sources=["base", "tuned"], dead_after=3000),
        total_steps=500,
    )
    for _ in range(500):
        trainer.step(world.batch(256)[0])
    cc, (x, codes) = trainer.dictionary(), world.batch(6000)
    f = cc.encode(x)
    a, b = codes - codes.mean(0), f - f.mean(0)
    partner = ((a.T @ b) / (a.norm(dim=0)[:, None] * b.norm(dim=0)[None, :].clamp_min(1e-9))).argmax(0).numpy()
    return cc, x, np.where(partner < 28, "shared", np.where(partner < 34, "second-only", "first-only")), partner


def test_planted_differences_are_found_and_confirmed(fine_tuned):
    cc, x, truth, partner = fine_tuned
    t = df.compare_sources(cc, "base", "tuned", x.split(2000))
    used = t[(t["n_fired"] > 30)]
    candidates = used[used["confirmed"].fillna(False)]
    right = candidates["class"].to_numpy() == truth[candidates["latent"]]
    assert right.mean() >= 0.95
    assert len(set(partner[candidates["latent"][right]])) / 12 >= 0.95
    shared = used[used["class"] == "shared"]
    assert len(shared) > 20 and shared["nu_error"].median() > 0.9 and shared["confirmed"].isna().all()
    assert "cosine" in t and "nu_error" not in df.compare_sources(cc, 0, 1)
    with pytest.raises(UsageError, match="did you mean 'tuned'"):
        df.compare_sources(cc, "base", "tunned")


def test_a_latent_shrunk_by_the_penalty_is_not_confirmed(fine_tuned):
    """Zeroing a shared latent's row at one source fakes absence by norm; latent scaling sees through it."""
    cc, x, truth, _ = fine_tuned
    t = df.compare_sources(cc, 0, 1, [x])
    chosen = int(t[(t["class"] == "shared") & (t["n_fired"] > 100) & (truth == "shared")]["latent"].iloc[0])
    with torch.no_grad():
        kept = cc.dec_FD[chosen, :32].clone()
        cc.dec_FD[chosen, :32] = 0
        faked = df.compare_sources(cc, 0, 1, [x]).loc[chosen]
        cc.dec_FD[chosen, :32] = kept
    assert faked["class"] == "second-only" and not faked["confirmed"]
    assert faked["nu_error"] > 0.5


def test_a_source_whose_gate_is_closed_does_not_have_the_latent():
    """With a gate per source a latent that never opens at one source has no presence there, whatever its decoder row
    says.
    """
    cc = Crosscoder([3, 3], 3, PerSource(1), sources=["open", "closed"])
    with torch.no_grad():
        cc.enc_FD.copy_(torch.cat([torch.eye(3), torch.zeros(3, 3)], dim=1))
        cc.dec_FD.copy_(torch.cat([torch.eye(3), 0.2 * torch.eye(3)], dim=1))
        cc.threshold_F.fill_(0.5)  # z n_s has to exceed 0.5: the second source opens above 2.5
    cc.folded_in = True
    codes = 1 + torch.rand(600, 3, generator=torch.Generator().manual_seed(0))
    x = torch.cat([codes, torch.zeros(600, 3)], dim=1)
    assert torch.allclose(cc(x), x, atol=1e-6)
    scaling = df.measure_scaling(cc.requires_grad_(False), x.split(200), reference=torch.zeros(3, dtype=torch.int64))
    assert scaling.error[0] == pytest.approx(torch.ones(3), abs=1e-4) and scaling.error[1] == pytest.approx(
        torch.zeros(3), abs=1e-4
    )
    assert scaling.own_norms[1] == pytest.approx(torch.zeros(3), abs=1e-4)


def test_norms_of_unrelated_models_are_compared_in_units_of_their_own():
    """Every latent is in both models, but one direction holds most of the second model's variance: that alone must not
    look like absence.
    """
    present = torch.ones(2, 40)
    present[1, 30:] = 0
    world = World([32, 32], present, rate=0.04)
    loud = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(5)), dim=0)
    generator = torch.Generator().manual_seed(6)

    def rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, codes = world.batch(n)
        x[:, 32:] += 8 * torch.rand(n, 1, generator=generator) * loud
        return x, codes

    trainer = sae.Trainer(CrosscoderConfig(widths=[32, 32], d_sae=64, k=4, lr=5e-3, dead_after=3000), total_steps=500)
    for _ in range(500):
        trainer.step(rows(256)[0])
    cc, (x, codes) = refit(trainer.dictionary(), [rows(6000)[0]]), rows(6000)
    f = cc.encode(x)
    r = torch.corrcoef(torch.cat([codes.t(), f.t()]))[:40, 40:].nan_to_num()
    known = (r.max(0).values > 0.8).numpy()
    absent = known & (r.argmax(0) >= 30).numpy()
    both = known & ~absent
    apart, as_one = (df.compare_sources(cc, 0, 1, common_basis=basis) for basis in (False, True))
    assert both.sum() > 20 and absent.sum() >= 8
    assert (as_one["class"][both] == "shared").mean() < 0.3 and (apart["class"][both] == "shared").mean() > 0.9
    missing = apart["class"][absent]
    assert (missing == "first-only").mean() >= 0.8 and (missing != "shared").all(), (
        "what is missing is still seen to be"
    )
    assert apart["norm_first"].equals(as_one["norm_first"])


def test_sources_of_unequal_width_have_no_cosine():
    cc = Crosscoder([4, 6], 8, TopK(2), sources=["transformer", "mamba"])
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        cc.enc_FD.copy_(torch.randn(8, 10, generator=g))
        cc.dec_FD.copy_(torch.randn(8, 10, generator=g))
    t = df.compare_sources(cc.requires_grad_(False), "transformer", "mamba", [torch.randn(200, 10, generator=g)])
    assert "cosine" not in t and t["nu_error"].notna().any()
