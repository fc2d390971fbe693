"""The trainer: against a plain dense trainer step for step, on data whose truth is known, and on bad input."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae import TopKConfig, TopKSAE, Trainer, evaluate, train_many
from sae.config import OptimizerDetails, TrainingConfig
from sae.errors import ConfigError, NonFiniteError, UserError
from sae.schedule import learning_rate


class Toy:
    """Rows that are sparse non-negative sums of G unit features in D < G dimensions, firing by Zipf's
    law; off-centre.
    """

    def __init__(self, seed: int, *, d: int = 32, features: int = 64, mean_active: float = 4.0, noise: float = 0.01):
        self.generator = torch.Generator().manual_seed(seed)
        self.features_GD = nnf.normalize(torch.randn(features, d, generator=self.generator), dim=1)
        rate = 1 / (torch.arange(features) + 4.0)
        self.rate = (rate / rate.sum() * mean_active).clamp_max(0.5)
        self.offset, self.noise = torch.randn(d, generator=self.generator), noise

    def rows(self, n: int) -> Tensor:
        on = torch.rand(n, len(self.rate), generator=self.generator) < self.rate
        size = 1 + torch.rand(n, len(self.rate), generator=self.generator)
        x = (on * size) @ self.features_GD + self.offset
        return 3 * (x + self.noise * torch.randn(x.shape, generator=self.generator))

    def mcc(self, sae: TopKSAE) -> float:
        """Mean over features of the cosine to the latent matched to it one to one (Hungarian)."""
        from scipy.optimize import linear_sum_assignment

        cosine = (self.features_GD @ nnf.normalize(sae.W_dec, dim=1).t()).numpy()
        return float(cosine[linear_sum_assignment(-cosine)].mean())


def dense_training(config: TopKConfig, batches: list[Tensor], like: Trainer, dead: Tensor) -> list[Tensor]:
    """What the trainer does, the plain way: autograd over dense codes, torch's Adam, unit-norm rows.

    Losses per step.
    """
    start = Trainer(config)
    start.model.initialise(batches[0], start.generator)
    m = start.model
    params = [p.detach().clone().requires_grad_() for p in (m.enc_FD, m.dec_FD, m.b_enc, m.b_dec)]
    W_enc, W_dec, b_enc, b_dec = params
    rates = (config.details.encoder_rate, 1, 1, config.details.bias_rate)
    adam, losses = torch.optim.Adam([{"params": [p]} for p in params], betas=(config.beta1, config.beta2)), []
    for step, x in enumerate(batches):
        target = x * m.scale_D
        pre = (target - b_dec) @ W_enc.t() + b_enc
        f = torch.relu(pre) * torch.zeros_like(pre).scatter(1, pre.topk(config.k).indices, 1.0)
        residual = target - (f @ W_dec + b_dec)
        loss = residual.square().mean()
        rows = slice(None, None, config.aux_every)
        aux = pre[rows, dead]
        aux = torch.relu(aux) * torch.zeros_like(aux).scatter(1, aux.topk(config.k_aux).indices, 1.0)
        left = residual.detach()[rows]
        loss = loss + config.aux_coefficient * (left - aux @ W_dec[dead]).square().sum() / left.square().sum()
        adam.zero_grad()
        loss.backward()
        for group, rate in zip(adam.param_groups, rates, strict=True):
            group["lr"] = rate * learning_rate(config, step, None)
        adam.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        losses.append(loss.detach())
    return [torch.stack(losses), *[p.detach() for p in params]]


@pytest.mark.parametrize(
    "backend,details",
    [("auto", {}), ("fallback", {}), ("dense", {}), ("auto", {"encoder_rate": 0.5, "bias_rate": 0.1})],
)
def test_trainer_equals_a_dense_trainer_step_for_step(backend: str, details: dict[str, float]) -> None:
    toy = Toy(0, d=12, features=24)
    batches = [toy.rows(64).double() for _ in range(25)]
    config = TopKConfig(
        d_in=12,
        d_sae=48,
        k=4,
        k_aux=3,
        aux_every=2,
        warmup_steps=5,
        dtype="float64",
        backend=backend,
        details=OptimizerDetails(**details),
    )
    trainer, dead = Trainer(config), torch.arange(5, 17)
    losses = []
    for x in batches:
        trainer.since_F.zero_()[dead] = config.dead_after + 1
        losses.append(trainer.step(x).loss)
    m = trainer.model
    got = [torch.stack(losses), m.enc_FD.detach(), m.dec_FD.detach(), m.b_enc.detach(), m.b_dec.detach()]
    for a, b in zip(got, dense_training(config, batches, trainer, dead), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_toy_superposition_is_recovered(seed: int) -> None:
    """Twice as many features as dimensions, firing by Zipf's law. (The trainer's seed is another: equal draws would be
    the truth.)
    """
    toy = Toy(seed, d=64, features=128)
    trainer = Trainer(TopKConfig(d_in=64, d_sae=128, k=4, seed=seed + 100, dead_after=10_000))
    for _ in range(1500):
        trainer.step(toy.rows(512))
    sae = trainer.dictionary()
    assert toy.mcc(sae) >= 0.9
    result = evaluate(sae, [toy.rows(4096)])
    assert result.ev >= 0.8
    assert result.dead <= 0.05


@pytest.mark.parametrize("shift", [3.0, 100.0])
def test_dead_latents_revive(shift: float) -> None:
    """Half the latents are switched off by their bias; the defaults bring them back, and without them
    they stay dead.
    """
    alive = {}
    for on in (False, True):
        toy = Toy(3)
        trainer = Trainer(
            TopKConfig(d_in=32, d_sae=128, k=4, k_aux=None if on else 0, revive=on, lr=3e-3, dead_after=2_000)
        )
        for _ in range(20):
            trainer.step(toy.rows(512))
        with torch.no_grad():
            trainer.model.b_enc[64:] -= shift
        for _ in range(150):
            trainer.step(toy.rows(512))
        result = evaluate(trainer.dictionary(), [toy.rows(20_000)])
        alive[on] = int((result.fired_F[64:] > 0).sum())
    assert alive[False] <= 16
    assert alive[True] >= 56


@pytest.mark.parametrize("config", [TrainingConfig, TopKConfig])
def test_defaults_run(config: type[TrainingConfig]) -> None:
    assert len(config.model_fields) <= 25
    if config is TrainingConfig:
        with pytest.raises(NotImplementedError):
            config().build()
        return
    trainer = Trainer(config())
    x = Toy(0, d=256, features=300).rows(256)
    losses = [float(trainer.step(x).loss) for _ in range(3)]
    assert losses[2] < losses[0]


def test_several_from_one_pass_equal_single_runs() -> None:
    toy = Toy(5, d=16, features=32)
    batches = [toy.rows(128) for _ in range(30)]
    configs = {"k2": TopKConfig(d_in=16, d_sae=64, k=2), "k4": TopKConfig(d_in=16, d_sae=64, k=4, seed=1)}
    together = train_many(configs, batches, total_steps=30)
    for name, config in configs.items():
        alone = train_many({"x": config}, batches, total_steps=30)["x"]
        assert all(
            torch.equal(a, b)
            for a, b in zip(alone.state_dict().values(), together[name].state_dict().values(), strict=True)
        )


def test_several_sites_take_their_own_rows() -> None:
    a, b = Toy(6, d=16, features=32), Toy(7, d=24, features=32)
    batches = [{"L0R": a.rows(64), "L1R": (b.rows(64), torch.arange(64) > 0)} for _ in range(5)]
    configs = {"L0R": TopKConfig(d_in=16, d_sae=32, k=2), "L1R": TopKConfig(d_in=24, d_sae=32, k=2)}
    trained = train_many(configs, batches, total_steps=5, metadata={"model_name": "m", "L1R": {"hook_name": "h"}})
    assert (trained["L0R"].d_in, trained["L1R"].d_in) == (16, 24)
    assert trained["L1R"].metadata == {"seed": 0, "model_name": "m", "hook_name": "h"}
    assert "hook_name" not in trained["L0R"].metadata


def test_folded_dictionary_behaves_like_the_model_in_training() -> None:
    toy = Toy(8)
    trainer = Trainer(TopKConfig(d_in=32, d_sae=64, k=4))
    for _ in range(20):
        trainer.step(toy.rows(256))
    sae, x = trainer.dictionary(), toy.rows(100)
    torch.testing.assert_close(sae(x), trainer.model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.decode(sae.encode(x)), sae(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert bool((sae.scale_D == 1).all())
    deep = sae(x.view(4, 25, 32))  # any leading shape
    torch.testing.assert_close(deep.view(100, 32), sae(x))


def test_values_are_differentiable_in_the_rows() -> None:
    sae = Trainer(TopKConfig(d_in=8, d_sae=16, k=3, dtype="float64"))
    x = Toy(9, d=8, features=16).rows(64).double()
    sae.step(x)
    d = sae.dictionary()
    assert torch.autograd.gradcheck(lambda r: d(r), x[:3].clone().requires_grad_())


def test_masked_rows_are_left_out_and_counted() -> None:
    toy = Toy(10)
    x = toy.rows(256)
    x[7] *= 1000
    x[9] *= 1000
    report = Trainer(TopKConfig(d_in=32, d_sae=64, k=4)).step(x, keep=torch.arange(256) >= 5)
    assert (report.rows, report.masked) == (249, 7)
    with_all = Trainer(TopKConfig(d_in=32, d_sae=64, k=4, outlier_factor=0)).step(x)
    assert (with_all.rows, with_all.masked) == (256, 0)


def test_rows_in_doubt_are_counted_where_bfloat16_proposes() -> None:
    x = Toy(13).rows(256)
    report = Trainer(TopKConfig(d_in=32, d_sae=256, k=4, bf16_preselect=True)).step(x)
    assert 0 <= report.doubtful <= 256 and report.row()["doubtful"] == report.doubtful
    twins = Trainer(TopKConfig(d_in=32, d_sae=256, k=4, bf16_preselect=True))
    twins.step(x)
    with torch.no_grad():
        twins.model.enc_FD.copy_(twins.model.enc_FD[:1].expand(256, 32))  # bfloat16 cannot tell them apart
    assert twins.step(x).doubtful > 64
    assert math.isnan(Trainer(TopKConfig(d_in=32, d_sae=256, k=4)).step(x).doubtful)


def test_bad_rows_name_the_place_and_leave_the_model_alone() -> None:
    toy = Toy(11)
    trainer = Trainer(TopKConfig(d_in=32, d_sae=64, k=4))
    trainer.step(toy.rows(64))
    before = {n: t.clone() for n, t in trainer.state()[0].items()}
    bad = toy.rows(64)
    bad[3, 1], bad[17, 0] = torch.nan, torch.inf
    with pytest.raises(NonFiniteError, match=r"training step 1: 2 of 64 rows.*rows 3, 17"):
        trainer.step(bad)
    with pytest.raises(ConfigError, match=r"expected \[rows, 32\]"):
        trainer.step(torch.randn(4, 31))
    with pytest.raises(ConfigError, match="empty batch"):
        trainer.step(toy.rows(4), keep=torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ConfigError, match="longer than 10 median norms"):
        trainer.step(toy.rows(4) * 1e4)
    assert all(torch.equal(t, before[n]) for n, t in trainer.state()[0].items())


def test_a_loss_that_is_not_finite_stops_the_training_and_keeps_the_model() -> None:
    toy = Toy(12)
    trainer = Trainer(TopKConfig(d_in=32, d_sae=64, k=4))
    trainer.step(toy.rows(64))
    with torch.no_grad():
        trainer.model.b_dec[0] = torch.nan
    before = {n: t.clone() for n, t in trainer.state()[0].items()}
    with pytest.raises(NonFiniteError, match="the loss became nan in training step 1"):
        trainer.step(toy.rows(64))
    assert all(
        torch.equal(t.nan_to_num(7), before[n].nan_to_num(7))
        for n, t in trainer.state()[0].items()
        if t.is_floating_point()
    )


def test_other_bad_requests() -> None:
    with pytest.raises(UserError, match="nothing to learn"):
        Trainer(TopKConfig(d_in=8, d_sae=16, k=2)).step(torch.ones(32, 8) * 5)
    with pytest.raises(ConfigError, match="k = 40 latents per row cannot be kept of d_sae = 16"):
        TopKConfig(d_in=8, d_sae=16, k=40)
    with pytest.raises(ConfigError, match="k_start = 3 must lie between k = 4"):
        TopKConfig(d_in=8, d_sae=16, k=4, k_start=3)
    with pytest.raises(ConfigError, match="total_steps = 0"):
        Trainer(TopKConfig(), total_steps=0)
