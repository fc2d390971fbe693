"""Pruning leaves codes as they were, says which latents are left, and refuses to leave too few."""

from __future__ import annotations

import pytest
import torch

import sae
from sae import SAEConfig, Trainer, TranscoderConfig
from sae.errors import UserError
from sae.pruning import prune


def trained(config, rows):
    trainer = Trainer(config)
    for _ in range(10):
        trainer.step(rows)
    out = trainer.dictionary()
    with torch.no_grad():
        out.b_enc[::3] = -1e4  # every third latent is dead
        out.b_enc[1] = 1e4  # and one is on in every row
    return out


@pytest.mark.parametrize("activation", ["norm-topk", "batchtopk"])
def test_dead_latents_go_and_nothing_changes(activation, tmp_path):
    x = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    whole = trained(SAEConfig(d_in=8, d_sae=60, k=4, activation=activation, revive=False), x)
    fired = sae.evaluate(whole, [x]).fired_F
    out = prune(whole, [x])
    assert out.n == 500 and out.dead == int((fired == 0).sum()) >= 20 and out.dense == 0
    assert torch.equal(out.kept, fired.nonzero().flatten()) and out.dictionary.d_sae == len(out.kept) == 60 - out.dead
    torch.testing.assert_close(out.dictionary(x), whole(x), rtol=1e-5, atol=1e-2)
    assert torch.equal(out.dictionary.encode(x) > 0, (whole.encode(x) > 0)[:, out.kept])
    loaded = sae.load(out.dictionary.save(tmp_path / "p"))
    assert loaded.metadata["pruned_from"] == 60 and torch.equal(loaded(x), out.dictionary(x))
    thinner = prune(whole, [x], max_density=0.9)
    assert thinner.dense == 1 and 1 not in thinner.kept.tolist()


def test_transcoders_and_bounds():
    x = torch.randn(500, 14, generator=torch.Generator().manual_seed(0))
    whole = trained(TranscoderConfig(d_in=8, d_out=6, d_sae=60, k=4, skip=True, revive=False), x)
    out = prune(whole, [x]).dictionary
    assert isinstance(out, sae.Transcoder)
    torch.testing.assert_close(out(x[:, :8]), whole(x[:, :8]), rtol=1e-5, atol=1e-2)
    with pytest.raises(UserError, match="would be left"):
        prune(whole, [x], min_firings=501)
    with pytest.raises(UserError, match="max_density = 0"):
        prune(whole, [x], max_density=0)
