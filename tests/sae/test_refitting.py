"""The closed-form decoder: same codes, least error, and nothing left of a random start."""

from __future__ import annotations

import pytest
import torch

import sae
from crosscoders import CrosscoderConfig
from crosscoders.evolution import relative_norms
from sae.errors import ConfigError, UserError
from sae.refitting import refit
from tests.crosscoders.worlds import World


@pytest.fixture(scope="module")
def made():
    """A crosscoder after a short training over two sources, the first of which lacks ten of forty latents; rows [4000,
    40] twice; which latents are among those ten."""
    present = torch.ones(2, 40)
    present[0, 30:] = 0
    world = World([20, 20], present, rate=0.05)
    trainer = sae.Trainer(CrosscoderConfig(widths=[20, 20], d_sae=80, k=3, lr=3e-3, dtype="float64"), total_steps=120)
    for _ in range(120):
        trainer.step(world.batch(256)[0])
    cc, (x, codes), (fresh, _) = trainer.dictionary(), world.batch(4000), world.batch(4000)
    f = cc.encode(x.double())
    r = torch.corrcoef(torch.cat([codes.double().t(), f.t()]))[:40, 40:].nan_to_num()
    absent = ((r.max(0).values > 0.6) & (r.argmax(0) >= 30)).numpy()
    return cc, x.double(), fresh.double(), absent


def test_codes_stay_and_the_error_is_least(made):
    cc, x, fresh, _ = made
    out = refit(cc, x.split(700), ridge=0)
    assert torch.allclose(out.encode(x), cc.encode(x), atol=1e-9) and type(out) is type(cc)
    f = cc.encode(x)
    residual = x - out(x)
    on = f.sum(0) > 0
    assert residual.mean(0).abs().max() < 1e-8 and (f.t() @ residual)[on].abs().max() < 1e-6, "the normal equations"
    assert residual.square().sum() < (x - cc(x)).square().sum()
    held = refit(cc, x.split(700))
    assert (fresh - held(fresh)).square().sum() < (fresh - cc(fresh)).square().sum(), "also on rows it has not seen"
    assert torch.equal(cc.dec_FD, made[0].dec_FD), "the one that was given is as before"


def test_a_latent_absent_from_a_source_loses_the_row_it_began_with(made):
    cc, x, _, absent = made
    before, after = (relative_norms(d.decoder_norms().numpy())[0] for d in (cc, refit(cc, [x])))
    assert absent.sum() >= 5
    assert (
        after[absent].mean() < 0.5 * before[absent].mean()
        and before[absent].mean() > 0.25
        and after[absent].mean() < 0.15
    )


def test_latents_that_never_fire_keep_their_row_and_bad_input_is_named(made):
    cc, x, _, _ = made
    few = refit(cc, [x[:20]])
    silent = cc.encode(x[:20]).sum(0) == 0
    assert silent.any() and torch.equal(few.dec_FD[silent], cc.dec_FD[silent]) and torch.isfinite(few.dec_FD).all()
    with pytest.raises(ConfigError, match="ridge = -1"):
        refit(cc, [x], ridge=-1)
    with pytest.raises(UserError, match="no rows"):
        refit(cc, [])
