"""Metric definitions against closed forms; the trainer reports the same ones."""

from __future__ import annotations

import pytest
import torch

from sae import TopKConfig, TopKSAE, Trainer, evaluate
from sae.errors import UserError
from sae.metrics import fvu, l0


def rows(n: int = 512, d: int = 8) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 + 5


def test_fvu_of_known_predictors() -> None:
    x = rows()
    assert float(fvu(x, x)) == 0
    assert float(fvu(x, x.mean(0).expand_as(x))) == pytest.approx(1.0)
    half = x.mean(0) + 0.5 * (x - x.mean(0))
    assert float(fvu(x, half)) == pytest.approx(0.25)
    assert float(fvu(x, torch.zeros_like(x))) > 2  # centred: predicting nothing is worse than predicting the mean


def test_l0_counts_active_latents_only() -> None:
    assert float(l0(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))) == 1.5


def test_evaluation_of_a_constant_predictor_is_zero_and_independent_of_batching() -> None:
    x = rows()
    sae = TopKSAE(8, 16, 4, dtype=torch.float64)  # zero weights: predicts its bias
    with torch.no_grad():
        sae.b_dec.copy_(x.mean(0))
    whole, parts = evaluate(sae, [x]), evaluate(sae, x.split(100))
    assert whole.ev == pytest.approx(0, abs=1e-12)
    assert (whole.l0, whole.dead, whole.n) == (0, 1, 512)
    assert parts.fvu == pytest.approx(whole.fvu, rel=1e-12)


def test_trainer_and_evaluation_agree() -> None:
    x = rows()
    trainer = Trainer(TopKConfig(d_in=8, d_sae=16, k=3, dtype="float64"))
    trainer.step(x)
    before = trainer.dictionary()
    report = trainer.step(x)  # its numbers are those of the model before its update
    result = evaluate(before, [x])
    assert result.fvu == pytest.approx(float(report.fvu), rel=1e-9)
    assert result.l0 == pytest.approx(float(report.l0))
    assert report.ev == pytest.approx(result.ev)


def test_nothing_to_evaluate_on() -> None:
    sae = TopKSAE(8, 16, 4)
    with pytest.raises(UserError, match="no rows"):
        evaluate(sae, [])
    with pytest.raises(UserError, match="all the same"):
        evaluate(sae, [torch.ones(5, 8)])
