"""Every gate against its formula written the plain dense way: outputs, penalties and all gradients."""

from __future__ import annotations

import pytest
import torch

import sae
from crosscoders import Crosscoder, CrosscoderConfig
from sae.backends import pick
from sae.encode import StepPlan
from tests.crosscoders.worlds import World

WIDTHS, F, K, B = [6, 9], 40, 3, 50


def model(activation: str, **values) -> Crosscoder:
    """An untrained float64 crosscoder with generic weights."""
    cc = CrosscoderConfig(
        widths=WIDTHS, d_sae=F, k=K, activation=activation, dtype="float64", window=1.5, **values
    ).build()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (cc.enc_FD, cc.dec_FD, cc.b_dec):
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        cc.b_enc.copy_(0.1 * torch.randn(F, generator=g, dtype=torch.float64))
    return cc


def rows() -> torch.Tensor:
    return torch.randn(B, sum(WIDTHS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plan(cc: Crosscoder) -> StepPlan:
    return StepPlan(K, pick("auto", cc.enc_FD), cc.activation.selection_weights(cc))


def z_and_norms(cc: Crosscoder, x: torch.Tensor):
    z = (x - cc.b_dec) @ cc.enc_FD.t() + cc.b_enc
    return z, torch.stack([b.norm(dim=1) for b in cc.dec_FD.split(WIDTHS, 1)])


def oracle(cc: Crosscoder, x: torch.Tensor, name: str):
    """(reconstruction, penalty on the error summed over dimensions / its scale) by autograd on dense tensors."""
    z, n = z_and_norms(cc, x)
    act, D = cc.activation, sum(WIDTHS)
    if name in ("topk", "batchtopk"):
        score = z.relu() * n.sum(0).detach()
        if name == "topk":
            mask = torch.zeros_like(z).scatter_(1, score.topk(K, dim=1).indices, 1)
        else:
            mask = torch.zeros(z.numel(), dtype=z.dtype).scatter_(0, score.flatten().topk(K * B).indices, 1).view_as(z)
        return (z.relu() * mask) @ cc.dec_FD + cc.b_dec, torch.zeros((), dtype=z.dtype)
    if name == "l1":
        f = z.relu()
        return f @ cc.dec_FD + cc.b_dec, act.coefficient * (f * n.sum(0)).sum(1).mean() / D
    t = 0.1 * torch.exp(0.1 * cc.log_threshold_F)

    def jump(v):  # rectangle-window estimator of dH/dt, in terms of a surrogate that autograd differentiates
        on = (v > t).to(v.dtype)
        window = (((v - t).abs() < act.window / 2) & (v > 0)).to(v.dtype)
        surrogate = -(t * (t / act.window).detach()) * window
        return v * on + (surrogate - surrogate.detach())

    if name == "jumprelu":
        f_s = [jump(z)] * 2
    else:
        f_s = [jump(z * n[s]) / n[s] for s in range(2)]
    blocks = cc.dec_FD.split(WIDTHS, 1)
    y = torch.cat([f @ b for f, b in zip(f_s, blocks, strict=True)], 1) + cc.b_dec
    p = torch.stack([torch.tanh(act.c * f * n[s]).mean(0) for s, f in enumerate(f_s)]).mean(0)
    return y, act.coefficient * (p * (1 + p / act.s)).sum() * 2 / D


@pytest.mark.parametrize("name", ["topk", "batchtopk", "l1", "jumprelu", "per-source"])
def test_outputs_penalties_and_gradients_are_those_of_the_formula(name):
    cc = model("jumprelu", gate="per-source") if name == "per-source" else model(name)
    x, target = rows(), rows().flip(0)
    got_y, _, values, indices, penalty = cc.reconstruct(x, plan(cc))
    got = (got_y - target).square().mean() + (0 if penalty is None else penalty)
    got_gradients = torch.autograd.grad(got, list(cc.parameters()), allow_unused=True)
    y, want_penalty = oracle(cc, x, name)
    want = (y - target).square().mean() + want_penalty
    want_gradients = torch.autograd.grad(want, list(cc.parameters()), allow_unused=True)
    assert torch.allclose(got_y, y, atol=1e-9) and torch.allclose(got, want, atol=1e-10)
    for (label, _), a, b in zip(cc.named_parameters(), got_gradients, want_gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-9), label
    assert values.shape == indices.shape and (values >= 0).all()
    if name == "batchtopk":
        assert int((values > 0).sum()) == K * B


def test_batch_top_k_repeats_its_search_when_one_row_takes_everything():
    cc = model("batchtopk")
    x = rows() * 1e-3
    x[0] *= 1e5
    _, _, values, _, _ = cc.reconstruct(x, plan(cc))
    z, n = z_and_norms(cc, x)
    score = z.relu() * n.sum(0)
    cut = score.flatten().topk(K * B).values.min()
    assert int((values[0] > 0).sum()) == int((score[0] >= cut).sum()) > 2 * K


def test_penalty_warms_up_and_spares_shared_latents():
    cc = CrosscoderConfig(
        widths=[5, 5],
        d_sae=8,
        k=2,
        activation="l1",
        penalty_warmup=4,
        shared_latents=8,
        shared_penalty=0.5,
        dtype="float64",
    ).build()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        cc.enc_FD.copy_(torch.randn(8, 10, generator=g))
        cc.dec_FD.copy_(torch.randn(8, 10, generator=g))
    x = torch.randn(20, 10, generator=g, dtype=torch.float64)
    seen = [float(cc.reconstruct(x, plan(cc))[4].detach()) for _ in range(6)]
    assert seen[:4] == pytest.approx([seen[3] * k / 4 for k in (1, 2, 3, 4)]) and seen[4] == seen[5] == seen[3]
    cc.shared_penalty = 1.0
    assert float(cc.reconstruct(x, plan(cc))[4].detach()) == pytest.approx(2 * seen[5])


@pytest.mark.parametrize(
    "values",
    [
        {"activation": "batchtopk"},
        {"activation": "jumprelu", "gate": "per-source", "coefficient": 0.1, "start_norm": 0.5},
    ],
)
def test_gated_crosscoders_train_and_survive_their_folder(values, tmp_path):
    world = World([12, 12], torch.ones(2, 30))
    trainer = sae.Trainer(CrosscoderConfig(widths=[12, 12], d_sae=40, k=3, lr=5e-3, **values), total_steps=120)
    for _ in range(120):
        report = trainer.step(world.batch(128)[0])
    assert report.ev > 0.7
    model, x = trainer.model.eval(), world.batch(300)[0]
    loaded = sae.load(trainer.dictionary().save(tmp_path / "cc"))
    assert isinstance(loaded, Crosscoder)
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), atol=1e-4)
        assert torch.allclose(loaded.decode(loaded.encode(x)), loaded(x), atol=1e-4)
    assert torch.allclose(loaded.decoder_norms(), model.decoder_norms(), rtol=1e-4)


def test_resuming_a_gated_run_is_exact():
    world = World([8, 8], torch.ones(2, 20))
    data = [world.batch(64)[0] for _ in range(12)]
    config = CrosscoderConfig(widths=[8, 8], d_sae=24, k=2, activation="batchtopk")
    whole, first, second = (sae.Trainer(config, total_steps=12) for _ in range(3))
    for x in data:
        whole.step(x)
    for x in data[:5]:
        first.step(x)
    second.restore(*first.state())
    for x in data[5:]:
        second.step(x)
    for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
