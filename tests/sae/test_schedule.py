"""Learning rate and K, step by step."""

from __future__ import annotations

import pytest

from sae import SAEConfig, TopKConfig, Trainer, TranscoderConfig, WriteConfig
from sae.config import OptimizerDetails
from sae.schedule import kept, learning_rate


def test_warm_up_stable_decay() -> None:
    config = TopKConfig(lr=1.0, warmup_steps=10, decay_share=0.2)
    rates = [learning_rate(config, s, 100) for s in range(100)]
    assert rates[0] == 1 / 11
    assert rates[:10] == sorted(rates[:10])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert learning_rate(config.model_copy(update={"decay_share": 0.0}), 99, 100) == 1.0


def test_without_a_number_of_steps_the_rate_stays_constant() -> None:
    config = TopKConfig(warmup_steps=5000, k_start=64)
    assert learning_rate(config, 100, None) == learning_rate(config, 10**6, None) == config.peak_lr
    assert kept(config, 0, None) == config.k


def test_the_default_rate_follows_the_number_of_latents() -> None:
    assert TopKConfig(d_sae=2**14).peak_lr == 1e-3
    assert TopKConfig(d_sae=2**12).peak_lr == 2e-3
    assert TopKConfig(d_sae=64).peak_lr == 0.01
    assert TopKConfig(d_sae=2**14, lr=3e-4).peak_lr == 3e-4
    assert Trainer(TopKConfig(d_sae=2**12)).optimizer.param_groups[0]["lr"] == 2e-3


def test_a_derived_rate_rises_in_short_runs_of_top_k() -> None:
    config = SAEConfig(d_sae=2**14)
    assert config.lr is None and [config.rate(n) for n in (None, 10**6, 2000)] == [1e-3] * 3
    assert config.rate(1000) == pytest.approx(1e-3 * 2**0.5) and config.rate(400) == config.rate(10) == 2e-3
    assert SAEConfig(d_sae=64).rate(10) == 0.01  # never higher
    assert SAEConfig(lr=3e-4).rate(10) == 3e-4
    assert (config.details.encoder_rate, config.details.bias_rate) == (0.6, 0.1)
    assert SAEConfig.model_validate(config.model_dump()) == config == SAEConfig(d_sae=2**14, lr=None)
    for details in ({"encoder_rate": 1.0}, OptimizerDetails(encoder_rate=1.0)):
        assert (SAEConfig(details=details).details.encoder_rate, SAEConfig(details=details).details.bias_rate) == (
            1,
            0.1,
        )
    assert TopKConfig(lr=None).details == config.details and TopKConfig().rate(0) == TopKConfig().rate(1)
    assert SAEConfig(lr=1e-3).details.bias_rate == SAEConfig(activation="l1").details.bias_rate == 1.0
    trainer = Trainer(config, total_steps=400)
    assert trainer.optimizer.param_groups[0]["lr"] == learning_rate(config, 200, 400) == 2e-3


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka", "l1", "jumprelu"])
def test_rates_of_other_kinds_do_not_depend_on_the_length(kind: str) -> None:
    assert SAEConfig(activation=kind).lr == SAEConfig(activation={"kind": kind}).lr == 1e-3
    assert SAEConfig(activation=kind, lr=None, d_sae=2**12).rate(10) == 2e-3


def test_rates_of_rows_that_are_no_activations_are_not_derived_from_the_length() -> None:
    sizes = {"d_in": 4, "d_sae": 2**12, "k": 2}
    for config in (TranscoderConfig(**sizes), WriteConfig(**sizes, heads=1, keys=2, values=2)):
        assert config.lr == config.rate(10) == 1e-3 and config.details.encoder_rate == 1.0
        again = type(config).model_validate({**config.model_dump(), "lr": None})
        assert again.rate(10) == 2e-3 and again.details == config.details


def test_a_short_run_is_not_all_warm_up() -> None:
    assert learning_rate(TopKConfig(lr=1.0, warmup_steps=1000), 5, 50) == 1.0


def test_k_falls_linearly() -> None:
    config = TopKConfig(k=8, k_start=48, k_anneal_share=0.1)
    ks = [kept(config, s, 100) for s in range(100)]
    assert ks[0] == 48
    assert ks[5] == 28
    assert ks[10:] == [8] * 90
    assert kept(TopKConfig(k=8), 0, 100) == 8
