"""``workbench bench`` on the device at hand."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from sae import devices
from sae.errors import MissingError, UsageError
from workbench.cli import app
from workbench.planning import bench as module
from workbench.planning.bench import WAYS, bench, ev_changes, parity

SMALL = {"rows": 64, "d_in": 32, "d_sae": 128, "k": 4}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(module, "EV_STEPS", 12)
    monkeypatch.setattr(module, "EV_SEEDS", 2)


def test_a_step_is_timed_in_units_of_the_product():
    found = bench("cpu", **SMALL, repeats=3, ways=("float32",)).ways[0].measured
    assert found.rows_per_second == pytest.approx(64 / found.seconds_per_step)
    assert found.flops * found.seconds_per_step == pytest.approx(found.products * 2 * 64 * 32 * 128)
    assert found.products > 1
    assert found.share_of_peak is None


def test_every_arithmetic_is_measured_or_says_why_not(monkeypatch):
    """TF32 is no processor's; where nothing compiles, what would be compiled says so and the rest is measured."""
    monkeypatch.setattr(devices, "why_not_compiled", lambda kind: "no C++ compiler")
    found = {way.name: way for way in bench("cpu", **SMALL, repeats=1).ways}
    assert list(found) == list(WAYS)
    assert {name for name, way in found.items() if way.refused} == {"tf32", "compiled", "bf16, compiled"}
    assert "cpu has no TF32" in found["tf32"].refused
    assert "no C++ compiler" in found["compiled"].refused
    for name in ("float32", "bf16", "bf16 candidates"):
        assert found[name].measured.seconds_per_step > 0
        assert len(found[name].measured.ev_change) == 2
    assert found["float32"].measured.parity < 1e-4 < found["bf16"].measured.parity < 0.5


def test_parity_is_small_and_able_to_fail(monkeypatch):
    assert parity("cpu") < 1e-4
    honest = module.Trainer

    def wrong(config, **kwargs):
        trainer = honest(config, **kwargs)
        if config.backend == "auto":
            step = trainer.step
            trainer.step = lambda x: step(x.flip(1))
        return trainer

    monkeypatch.setattr(module, "Trainer", wrong)
    assert parity("cpu") > 0.5


def test_explained_variance_is_compared_at_length(monkeypatch):
    monkeypatch.setattr(module, "EV_STEPS", 100)
    assert max(abs(d) for d in ev_changes("cpu")) < 5e-3
    assert 0 < max(abs(d) for d in ev_changes("cpu", products="bf16")) < 0.02


def test_a_described_gpu_is_compared_with_its_description(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert module._described("cuda", {}) == 48e12
    assert (
        module._described("cuda:1", {"products": "bf16"})
        == module._described("cuda", {"bf16_preselect": True})
        == 500e12
    )
    assert module._described("cuda", {"products": "tf32"}) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "something else")
    assert module._described("cuda", {}) is None


def test_what_is_not_there_is_refused():
    with pytest.raises(UsageError, match="tpu"):
        bench("tpu", **SMALL)
    with pytest.raises(UsageError, match="k 4"):
        bench("cpu", **{**SMALL, "d_sae": 2})
    with pytest.raises(UsageError, match="fp8; choose of float32, tf32"):
        bench("cpu", **SMALL, ways=("fp8",))
    if not torch.cuda.is_available():
        with pytest.raises(MissingError, match="cuda"):
            bench("cuda", **SMALL)


def test_the_verb_prints_what_it_measured():
    arguments = ["bench", "--rows", "64", "--d-in", "32", "--d-sae", "128", "--k", "4", "--repeats", "1"]
    arguments += ["--arithmetic", "float32", "--arithmetic", "tf32"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["ways"][0]["measured"]["parity"] < 1e-4
    said = CliRunner().invoke(app, arguments).output
    assert "dense products" in " ".join(said.split())
    assert "It lacks: pinned, tf32" in " ".join(said.split())
    assert "tf32: not measured: products = 'tf32': cpu has no TF32 here" in " ".join(said.split())
