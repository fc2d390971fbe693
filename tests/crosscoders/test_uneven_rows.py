"""BatchTopK keeps rows of unequal length: step and gradients against plain dense autograd."""

from __future__ import annotations

import pytest
import torch

import sae
from crosscoders import CrosscoderConfig
from sae.backends import pick
from sae.encode import StepPlan


@pytest.mark.parametrize("backend", ["auto", "fallback"])
def test_uneven_rows_give_the_dense_gradients(backend):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 18, generator=g, dtype=torch.float64) * torch.linspace(0.1, 3, 40, dtype=torch.float64)[:, None]
    cfg = CrosscoderConfig(widths=[8, 10], d_sae=48, k=5, activation="batchtopk", dtype="float64", k_aux=0)
    trainer = sae.Trainer(cfg)
    trainer.step(x)
    cc = trainer.model
    cc.zero_grad()
    target = x * cc.scale_D
    y, _, values, _indices, _ = cc.reconstruct(
        target, StepPlan(5, pick(backend, target), cc.activation.selection_weights(cc))
    )
    counts = (values > 0).sum(1)
    assert counts.min() < counts.max() and counts.sum() == 5 * 40, "rows of unequal length are the point of this test"
    (y - target).square().sum().backward()
    got = [p.grad.clone() for p in (cc.enc_FD, cc.b_enc, cc.dec_FD, cc.b_dec)]
    cc.zero_grad()
    z = torch.addmm(cc.b_enc - cc.enc_FD @ cc.b_dec, target, cc.enc_FD.t())
    score = (z.relu() * cc.decoder_norms().sum(0)).detach()
    on = score >= score.flatten().topk(5 * 40).values[-1]
    dense = (z.relu() * on) @ cc.dec_FD + cc.b_dec
    assert torch.allclose(y, dense, atol=1e-10)
    (dense - target).square().sum().backward()
    for mine, theirs in zip(got, (cc.enc_FD.grad, cc.b_enc.grad, cc.dec_FD.grad, cc.b_dec.grad), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-9)
