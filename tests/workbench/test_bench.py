"""``workbench bench`` on the device at hand."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from sae.errors import MissingError, UsageError
from workbench.cli import app
from workbench.planning.bench import bench, parity

SMALL = {"rows": 64, "d_in": 32, "d_sae": 128, "k": 4}


def test_a_step_is_timed_in_units_of_the_product():
    found = bench("cpu", **SMALL, repeats=3)
    assert found.rows_per_second == pytest.approx(64 / found.seconds_per_step)
    assert found.flops * found.seconds_per_step == pytest.approx(found.products * 2 * 64 * 32 * 128)
    assert found.products > 1
    assert found.share_of_peak is None


def test_parity_is_small_and_able_to_fail(monkeypatch):
    assert parity("cpu") < 1e-4
    from workbench.planning import bench as module

    honest = module.Trainer

    def wrong(config, *, device):
        trainer = honest(config, device=device)
        if config.backend == "auto":
            step = trainer.step
            trainer.step = lambda x: step(x.flip(1))
        return trainer

    monkeypatch.setattr(module, "Trainer", wrong)
    assert parity("cpu") > 0.5


def test_devices_that_are_not_there_are_refused():
    with pytest.raises(UsageError, match="tpu"):
        bench("tpu", **SMALL)
    with pytest.raises(UsageError, match="k 4"):
        bench("cpu", **{**SMALL, "d_sae": 2})
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="cuda"):
            bench("cuda", **SMALL)


def test_the_verb_prints_what_it_measured():
    arguments = ["bench", "--rows", "64", "--d-in", "32", "--d-sae", "128", "--k", "4"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["rows"] == 64
    assert "dense products" in CliRunner().invoke(app, arguments).output
