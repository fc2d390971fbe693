"""Training on real activations: 6,144 rows of a miniature Transformer's residual stream, committed beside this test.

Over eight seeds the held-out explained variance lay between 0.8146 and 0.8183 and at most 1.2 % of the latents stayed
dead; the tolerance is five times that spread, for other processors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sae import TopKConfig, Trainer, evaluate
from sae.config import derived_rate
from sae.folder import read_tensors
from sae.presets import preset

ROWS = Path(__file__).parent / "golden/mini_pythia_rows.safetensors"


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 8))])
def test_explained_variance_on_real_rows(seed: int) -> None:
    rows = read_tensors(ROWS)["rows"].float()
    train, held_out = rows[:5120], rows[5120:]
    trainer = Trainer(TopKConfig(d_in=128, d_sae=1024, k=16, seed=seed, lr=2e-3), total_steps=150)
    order = torch.Generator().manual_seed(seed)
    for _ in range(150):
        trainer.step(train[torch.randperm(len(train), generator=order)[:512]])
    result = evaluate(trainer.dictionary(), [held_out])
    assert 0.806 <= result.ev <= 0.824
    assert result.l0 > 15.9
    assert evaluate(trainer.dictionary(), [train]).dead <= 0.03


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 4))])
def test_the_preset_for_few_steps_explains_more_and_leaves_few_latents_dead(seed: int) -> None:
    """Over four seeds the error was 0.75 of that at the rate by size alone, and at most 4.4 % of the latents dead. The
    defaults, whose rate rises in so short a run, lie between.
    """
    rows = read_tensors(ROWS)["rows"].float()
    train, held_out, found = rows[:5120], rows[5120:], {}
    settings: dict[str, dict[str, Any]] = {"few-steps": preset("few-steps", d_in=128, d_sae=1024, k=16)}
    settings |= {"defaults": {}, "by size": {"lr": derived_rate(1024)}}
    for name, own in settings.items():
        trainer = Trainer(TopKConfig(**{"d_in": 128, "d_sae": 1024, "k": 16, "seed": seed, **own}), total_steps=60)
        order = torch.Generator().manual_seed(seed)
        for _ in range(60):
            trainer.step(train[torch.randperm(len(train), generator=order)[:512]])
        found[name] = evaluate(trainer.dictionary(), [held_out])
        assert evaluate(trainer.dictionary(), [train]).dead <= 0.07
    error = {name: 1 - e.ev for name, e in found.items()}
    assert error["few-steps"] <= 0.85 * error["by size"] and error["few-steps"] < error["defaults"] < error["by size"]
