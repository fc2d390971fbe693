"""Every gate against its formula written the plain dense way: outputs, penalties and all gradients."""

from __future__ import annotations

import pytest
import torch

import sae
from crosscoders import Crosscoder, CrosscoderConfig, evaluate_sources
from sae.backends import pick
from sae.encode import StepPlan
from sae.errors import ConfigError
from sae.refitting import refit
from tests.crosscoders.worlds import World

WIDTHS, F, K, B = [6, 9], 40, 3, 50


def model(activation: str, **values) -> Crosscoder:
    """An untrained float64 crosscoder with generic weights."""
    kind = {"kind": activation} | ({"window": 1.5} if activation == "jumprelu" else {})
    cc = CrosscoderConfig(widths=WIDTHS, d_sae=F, k=K, activation=kind, dtype="float64", **values).build()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in (cc.enc_FD, cc.dec_FD, cc.b_dec):
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
        cc.b_enc.copy_(0.1 * torch.randn(F, generator=g, dtype=torch.float64))
        if cc.activation.architecture == "topk-own-magnitude":
            cc.own_FS.copy_(0.2 * torch.randn(F, 2, generator=g, dtype=torch.float64))
    return cc


def of(name: str) -> Crosscoder:
    return {
        "per-source": lambda: model("jumprelu", gate="per-source"),
        "own-magnitude": lambda: model("topk", gate="own-magnitude"),
    }.get(name, lambda: model(name))()


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
    blocks = cc.dec_FD.split(WIDTHS, 1)
    if name == "own-magnitude":
        parts = zip((x - cc.b_dec).split(WIDTHS, 1), cc.enc_FD.split(WIDTHS, 1), cc.own_FS.unbind(1), strict=True)
        f_s = [(rows @ enc.t() + cc.b_enc + own).relu() for rows, enc, own in parts]
        score = torch.stack([(f * m).square() for f, m in zip(f_s, n, strict=True)]).sum(0).detach()
        mask = torch.zeros_like(z).scatter_(1, score.topk(K, dim=1).indices, 1)
        return torch.cat([(f * mask) @ b for f, b in zip(f_s, blocks, strict=True)], 1) + cc.b_dec, z.new_zeros(())
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
    y = torch.cat([f @ b for f, b in zip(f_s, blocks, strict=True)], 1) + cc.b_dec
    p = torch.stack([torch.tanh(act.c * f * n[s]).mean(0) for s, f in enumerate(f_s)]).mean(0)
    return y, act.coefficient * (p * (1 + p / act.s)).sum() * 2 / D


@pytest.mark.parametrize("name", ["topk", "batchtopk", "l1", "jumprelu", "per-source", "own-magnitude"])
def test_outputs_penalties_and_gradients_are_those_of_the_formula(name):
    cc = of(name)
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
        activation={"kind": "l1", "warmup": 4},
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
        {"activation": {"kind": "jumprelu", "coefficient": 0.1}, "gate": "per-source", "start": {"norm": 0.5}},
        {"gate": "own-magnitude"},
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
        if values.get("gate") == "own-magnitude":
            with pytest.raises(ConfigError, match=r"source_values"):
                loaded.decode(loaded.encode(x))
        else:
            assert torch.allclose(loaded.decode(loaded.encode(x)), loaded(x), atol=1e-4)
    assert torch.allclose(loaded.decoder_norms(), model.decoder_norms(), rtol=1e-4)


def test_dead_latents_of_all_sources_reconstruct_what_the_others_leave():
    cc, x = of("own-magnitude"), rows()
    dead = torch.arange(5, 15)
    with_aux = StepPlan(K, pick("auto", cc.enc_FD), dead_N=dead, k_aux=2, aux_every=2)
    _, aux, _, _, _ = cc.reconstruct(x, with_aux)
    parts = zip((x - cc.b_dec).split(WIDTHS, 1), cc.enc_FD.split(WIDTHS, 1), cc.own_FS.unbind(1), strict=True)
    f_s = [(r @ enc.t() + cc.b_enc + own).relu()[::2] for r, enc, own in parts]
    blocks = cc.dec_FD.split(WIDTHS, 1)
    score = torch.stack([(f * b.norm(dim=1)).square() for f, b in zip(f_s, blocks, strict=True)]).sum(0)
    mask = torch.zeros_like(score).scatter_(1, dead[score[:, dead].topk(2, dim=1).indices], 1)
    want = torch.cat([(f * mask) @ b for f, b in zip(f_s, blocks, strict=True)], 1)
    assert aux.shape == (B // 2, sum(WIDTHS)) and torch.allclose(aux, want, atol=1e-9)
    (got,) = torch.autograd.grad(aux.square().sum(), [cc.enc_FD], retain_graph=True)
    (wanted,) = torch.autograd.grad(want.square().sum(), [cc.enc_FD])
    assert torch.allclose(got, wanted, atol=1e-8)


def test_magnitudes_of_their_own_find_what_one_magnitude_cannot():
    """Every latent is in both sources, each time with two independent strengths, which one code cannot say."""
    g = torch.Generator().manual_seed(0)
    directions = [torch.nn.functional.normalize(torch.randn(20, 16, generator=g), dim=1) for _ in range(2)]

    def batch(n: int) -> torch.Tensor:
        on = torch.rand(n, 20, generator=g) < 0.1
        return torch.cat([(on * (0.1 + 2 * torch.rand(n, 20, generator=g))) @ d for d in directions], 1)

    found = {}
    for gate in ("shared", "own-magnitude"):
        trainer = sae.Trainer(CrosscoderConfig(widths=[16, 16], d_sae=40, k=3, lr=1e-2, gate=gate), total_steps=150)
        for _ in range(150):
            trainer.step(batch(256))
        made = trainer.dictionary()
        x = batch(4000)
        found[gate] = evaluate_sources(made, [x]).ev
        fitted = refit(made, [x])
        assert torch.allclose(fitted.encode(x), made.encode(x), atol=1e-4)
        assert found[gate] < evaluate_sources(fitted, [x]).ev < found[gate] + 0.05
    assert found["own-magnitude"] > found["shared"] + 0.02
    parts, indices = made.source_values(x)
    values, again = made.encode_sparse(x)
    assert torch.equal(indices, again)
    # after folding a norm is what a latent usually adds at that source, and a code the length it adds to the whole row
    norms = made.decoder_norms()
    pooled = torch.stack([f * norms[s][indices] for s, f in enumerate(parts)]).square().sum(0).sqrt()
    assert torch.allclose(pooled, values, atol=1e-4)
    for f in parts:
        assert (f[values > 0].square().mean().sqrt() - 1).abs() < 0.1


def test_a_latent_that_one_source_lacks_has_no_norm_there():
    present = torch.ones(2, 30)
    present[1, :15] = 0
    world = World([16, 16], present)
    trainer = sae.Trainer(
        CrosscoderConfig(widths=[16, 16], d_sae=40, k=3, lr=1e-2, gate="own-magnitude"), total_steps=150
    )
    for _ in range(150):
        trainer.step(world.batch(256)[0])
    made = trainer.dictionary()
    truth = torch.nn.functional.normalize(world.rows[0], dim=1)
    rows = torch.nn.functional.normalize(made.decoder_blocks()[0], dim=1)
    best = (truth @ rows.t()).max(1)
    n = made.decoder_norms()
    share = n[1] / n.amax(0)
    missing, there = share[best.indices[:15]], share[best.indices[15:]]
    assert best.values.median() > 0.9 and missing.median() < 0.3 < 0.7 < there.median()


@pytest.mark.parametrize("gate", [{"activation": "batchtopk"}, {"gate": "own-magnitude"}])
def test_resuming_a_gated_run_is_exact(gate):
    world = World([8, 8], torch.ones(2, 20))
    data = [world.batch(64)[0] for _ in range(12)]
    config = CrosscoderConfig(widths=[8, 8], d_sae=24, k=2, **gate)
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


def test_latents_on_are_counted_at_every_source():
    """A latent whose gate only one source opens is on there and nowhere else; one gate for all is on at all of them."""
    cc, x = of("per-source"), rows()
    with torch.no_grad():
        z, n = z_and_norms(cc, x)
        open_ = z * n[:, None] > cc.activation.learnt(cc)
    want = open_.sum(2).double().mean(1).tolist()
    found = evaluate_sources(cc, x.split(20))
    assert found.l0_S == pytest.approx(want) and want[0] != want[1]
    assert found.l0 == pytest.approx(sum(want) / 2) and found.l0 < float(open_.any(0).sum(1).double().mean())
    assert torch.equal(found.fired_F, open_.any(0).sum(0))
    shared = evaluate_sources(of("topk"), [x])
    assert shared.l0_S == (shared.l0,) * 2
