"""Every activation as an SAE: gradients against a dense oracle, learning of planted latents, folding, and the way
through a folder.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf

import sae
from sae import SAEConfig, Trainer
from sae.backends import pick
from sae.encode import StepPlan
from sae.errors import ConfigError, UserError
from sae.strict import parse_config

D, F, K, B = 10, 48, 3, 40
KINDS = {
    "topk": "topk",
    "norm-topk": "norm-topk",
    "batchtopk": "batchtopk",
    "matryoshka": {"kind": "matryoshka", "prefixes": [0.25, 0.5]},
    "matryoshka topk": {"kind": "topk", "prefixes": [0.1, 0.3, 0.7]},
    "l1": {"kind": "l1", "coefficient": 1.2},
    "tanh-quad": {"kind": "jumprelu", "penalty": "tanh-quad", "window": 1.5},
    "tanh": {"kind": "jumprelu", "penalty": "tanh", "window": 1.5, "threshold_lr": 1.0},
    "l0": {"kind": "jumprelu", "penalty": "l0", "coefficient": 0.2, "window": 1.5},
    "l0-target": {"kind": "jumprelu", "penalty": "l0-target", "window": 1.5},
}


def model(kind, **values):
    out = SAEConfig(d_in=D, d_sae=F, k=K, activation=KINDS[kind], dtype="float64", **values).build()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (out.enc_FD, out.dec_FD, out.b_dec):
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        out.b_enc.copy_(0.1 * torch.randn(F, generator=g, dtype=torch.float64))
    return out


def oracle(m, x, target, kind):
    """(reconstruction, penalty) by autograd on dense tensors."""
    act, n = m.activation, m.dec_FD.norm(dim=1)
    z = (x - m.b_dec if m.centred else x) @ m.enc_FD.t() + m.b_enc
    zero = torch.zeros((), dtype=z.dtype)
    if "topk" in kind or kind == "matryoshka":
        score = z.relu() * (1 if kind in ("topk", "matryoshka topk") else n.detach())
        per_row = kind in ("topk", "norm-topk", "matryoshka topk")
        if per_row:
            mask = torch.zeros_like(z).scatter_(1, score.topk(K, dim=1).indices, 1)
        else:
            mask = torch.zeros(z.numel(), dtype=z.dtype).scatter_(0, score.flatten().topk(K * B).indices, 1).view_as(z)
        f = z.relu() * mask
        errors = [(f[:, :p] @ m.dec_FD[:p] + m.b_dec - target).square().mean() for p in getattr(act, "prefixes", ())]
        return f @ m.dec_FD + m.b_dec, sum(errors, zero)
    if kind == "l1":
        f = z.relu()
        return f @ m.dec_FD + m.b_dec, act.coefficient * (f * n).sum(1).mean() / D
    t = (act.threshold or 1.0) * torch.exp(act.threshold_rate * m.log_threshold_F)
    near = ((z - t).abs() < act.window / 2).to(z.dtype)
    shift = -(t * (t / act.window).detach()) * near * (z > 0)  # what autograd differentiates with respect to t
    f = z * (z > t) + (shift - shift.detach())
    count = -(t / act.window) * near
    p = torch.tanh(act.c * f * n).mean(0)
    fired = ((z > t).to(z.dtype) + (count - count.detach())).mean(0)
    penalty = {
        "tanh-quad": (p * (1 + p / act.s)).sum() / D,
        "tanh": p.sum() / D,
        "l0": fired.sum(),
        "l0-target": (fired.sum() / K - 1).square(),
    }[kind]
    return f @ m.dec_FD + m.b_dec, act.coefficient * penalty


@pytest.mark.parametrize("pre_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_penalties_and_gradients_are_those_of_the_formula(kind, pre_bias):
    m = model(kind, start={"pre_bias": pre_bias})
    g = torch.Generator().manual_seed(1)
    x = torch.randn(B, D, generator=g, dtype=torch.float64)
    target = x.flip(0)
    plan = StepPlan(K, pick("auto", m.enc_FD), m.activation.selection_weights(m))
    y, _, values, indices, penalty = m.reconstruct(x, plan, target)
    got = (y - target).square().mean() + (0 if penalty is None else penalty)
    want_y, want_penalty = oracle(m, x, target, kind)
    want = (want_y - target).square().mean() + want_penalty
    assert torch.allclose(y, want_y, atol=1e-9) and torch.allclose(got, want, atol=1e-10)
    ours = torch.autograd.grad(got, list(m.parameters()))
    theirs = torch.autograd.grad(want, list(m.parameters()))
    for (label, _), a, b in zip(m.named_parameters(), ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9), label
    assert values.shape == indices.shape and (values >= 0).all()


class World:
    """Rows that are sums of a few of ``n`` unit directions."""

    def __init__(self, n=24, d=16):
        self.g = torch.Generator().manual_seed(3)
        self.features = nnf.normalize(torch.randn(n, d, generator=self.g), dim=1)

    def batch(self, rows):
        on = torch.rand(rows, len(self.features), generator=self.g) < 0.1
        return (on * (0.5 + torch.rand(on.shape, generator=self.g))) @ self.features * 5 + 2


TRAINED = KINDS | {
    "tanh-quad": {"kind": "jumprelu", "penalty": "tanh-quad", "coefficient": 0.02},
    "tanh": {"kind": "jumprelu", "penalty": "tanh", "coefficient": 0.2},
    "l0": {"kind": "jumprelu", "penalty": "l0", "coefficient": 0.02},
    "l0-target": "jumprelu",
}


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "matryoshka topk"])
def test_it_learns_planted_directions_and_is_the_same_after_folding_and_loading(kind, tmp_path):
    world = World()
    config = SAEConfig(d_in=16, d_sae=32, k=3, activation=TRAINED[kind], lr=5e-3)
    trainer = Trainer(config, total_steps=400)
    for _ in range(400):
        trainer.step(world.batch(256))
    x = world.batch(1000)
    trained, folded = trainer.model.eval(), trainer.dictionary()
    report = sae.evaluate(folded, [x])
    cosine = (nnf.normalize(folded.W_dec, dim=1) @ world.features.t()).amax(0)
    assert report.ev > 0.7 and 1 < report.l0 < 7, (report.ev, report.l0)
    assert cosine.median() > 0.8  # of random directions: 0.5
    loaded = sae.load(folded.save(tmp_path / "a"))
    assert isinstance(loaded, sae.TopKSAE if kind in ("topk", "norm-topk") else sae.ThresholdSAE)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), trained(x), rtol=1e-4, atol=1e-3)
        assert torch.equal(folded.encode(x) > 0, trained.encode(x) > 0)
        assert torch.equal(loaded(x), folded(x)) and torch.equal(loaded.encode(x), folded.encode(x))
    norms = folded.W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-4)  # a latent's activation is the length it adds


def test_l0_target_reaches_its_target():
    world = World()
    trainer = Trainer(SAEConfig(d_in=16, d_sae=32, k=2, activation="jumprelu", lr=5e-3), total_steps=400)
    for _ in range(400):
        trainer.step(world.batch(256))
    assert sae.evaluate(trainer.dictionary(), [world.batch(2000)]).l0 == pytest.approx(2, rel=0.15)


def test_matryoshka_prefixes_reconstruct_better_alone():
    alone = {}
    for kind in ("batchtopk", "matryoshka"):
        world = World()
        trainer = Trainer(SAEConfig(d_in=16, d_sae=32, k=3, activation=KINDS[kind], lr=5e-3), total_steps=300)
        for _ in range(300):
            trainer.step(world.batch(256))
        out, x = trainer.dictionary(), world.batch(2000)
        f = out.encode(x)
        f[:, 8:] = 0
        alone[kind] = float((x - out.decode(f)).square().sum() / (x - x.mean(0)).square().sum())
    assert alone["matryoshka"] < 0.8 * alone["batchtopk"]


def test_top_k_converts_and_threshold_kinds_say_that_they_need_not():
    x = World().batch(2000)
    trainer = Trainer(SAEConfig(d_in=16, d_sae=32, k=3, activation="norm-topk"))
    for _ in range(20):
        trainer.step(x)
    jump = sae.to_jumprelu(trainer.dictionary(), [x])
    assert sae.evaluate(jump, [x]).l0 == pytest.approx(3, rel=0.02)
    with pytest.raises(UserError, match="thresholds already"):
        sae.to_jumprelu(jump, [x])


@pytest.mark.parametrize(
    "values,message",
    [
        ({"activation": "batchtop"}, "activation"),
        ({"activation": {"kind": "l1", "threshold": 0.1}}, "'l1' has no threshold; it goes with jumprelu"),
        ({"activation": {"kind": "batchtopk", "coefficient": 1}}, "goes with l1 or jumprelu"),
        ({"activation": {"kind": "jumprelu", "windw": 1}}, "window"),
        ({"activation": {"kind": "matryoshka", "prefixes": [0.5, 0.25]}}, "ascending"),
        ({"activation": "l1", "k_start": 64}, "k_start = 64"),
        ({"activation": "topk", "start": {"norm": 0.5}}, "norm-topk"),
        ({"start": {"norm": -1}}, "positive"),
    ],
)
def test_contradictions_are_errors_with_a_remedy(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(SAEConfig, values, where="[sae]")
