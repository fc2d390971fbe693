"""What a step costs, counted rather than timed: a regression fails here on any machine."""

from __future__ import annotations

import pytest
import torch

from benchmarks.opcount import count_step
from sae import TopKConfig, Trainer
from sae.backends import select

B, D, F, K = 2048, 32, 2048, 8


def trainer(**changes: object) -> tuple[Trainer, torch.Tensor]:
    t = Trainer(TopKConfig(d_in=D, d_sae=F, k=K, tile_rows=256, **changes))  # type: ignore[arg-type]
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0))
    t.step(x)
    return t, x


@pytest.mark.parametrize("backend", ["auto", "fallback"])
@pytest.mark.parametrize("dead", [0, int(0.3 * F)], ids=["live", "30% dead"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_one_dense_product_and_three_passes(
    backend: str, dead: int, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    t, x = trainer(backend=backend, bf16_preselect=bf16)
    t.since_F[:dead] = t.config.dead_after + 1
    selected = []
    honest = select.top_columns
    monkeypatch.setattr(select, "top_columns", lambda rows, k: (selected.append(rows.numel()), honest(rows, k))[1])
    units, passes, counter = count_step(t, x)
    assert units <= 1.1
    assert passes + sum(n for n in selected if n >= F * 256) / (B * F) <= 3, dict(counter.by_op)
    assert counter.widest <= B * F / 4  # tiles only: the whole of (B, F) never exists
    assert units >= 0.99  # the counter sees the product it is meant to see


def test_the_counter_catches_a_dense_step() -> None:
    t, x = trainer(backend="dense")
    units, passes, _ = count_step(t, x)
    assert units > 4
    assert passes > 5
