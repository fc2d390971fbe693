"""A killed training of a crosscoder goes on with nothing else: differences are named; replaced, it is as if alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sae import Trainer
from sae.errors import MismatchError
from workbench.analysis.evolution.plan import make_plan
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.analysis.evolution.train import train_plans
from workbench.run import Run
from workbench.workspace import Workspace

RECIPE = EvolveRecipe(
    id="born", revisions=("step0", "step512"), tokens=64 * 12, batch_size=64, n_seq=64, ctx=16, k=4, expansion=1
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed: 0 there, 1 asked"),
        ({"batch_size": 32, "tokens": 32 * 12}, "batch_size: 64 there, 32 asked"),
    ],
)
def test_a_killed_crosscoder_goes_on_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], says: str
) -> None:
    ws, apart, step = Workspace(tmp_path / "ws"), Workspace(tmp_path / "apart"), Trainer.step

    def killed(self: Trainer, *args: Any) -> Any:
        if self.steps_done == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Trainer, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            train_plans([make_plan(RECIPE)], ws)
    changed = make_plan(RECIPE.model_copy(update=change))
    with pytest.raises(MismatchError, match=says) as refused:
        train_plans([changed], ws)
    assert "--replace" in str(refused.value) and not ws.items("dictionaries")
    train_plans([changed], ws, run=Run(replace=True))
    train_plans([changed], apart)
    for name in ("sae_weights.safetensors", "cfg.json", "manifest.json"):
        assert (ws.path("dictionaries", "born") / name).read_bytes() == (
            apart.path("dictionaries", "born") / name
        ).read_bytes()
