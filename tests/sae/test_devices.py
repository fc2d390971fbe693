"""Devices that lack what others have: the second way gives the same numbers, and what has none is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from crosscoders.config import CrosscoderConfig
from sae import SAEConfig, TopKConfig, Trainer, devices
from sae.backends import arranged, pick
from sae.errors import ConfigError, MissingError, UsageError

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("topk", "batchtopk", "matryoshka", "l1", "jumprelu", "transcoder", "crosscoder-topk", "crosscoder-batchtopk")


@pytest.fixture(scope="module")
def outcomes() -> dict:
    """In a process of its own: to PyTorch the device exists from then on."""
    command = [sys.executable, "-m", "tests.sae.apple", *KINDS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_what_it_lacks_is_found_by_trying(outcomes):
    here, cpu = outcomes["abilities"]["apple"], outcomes["abilities"]["cpu"]
    assert not any(here[name] for name in ("float64", "sparse", "bags", "kth", "fused_adam", "pinned", "tf32"))
    assert all(cpu[name] for name in ("float64", "sparse", "bags", "kth", "fused_adam"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_way_ends_where_the_first_does(outcomes, kind):
    there, cpu = outcomes[kind]["apple"], outcomes[kind]["cpu"]
    assert (there.pop("where"), cpu.pop("where")) == ("apple", "cpu")
    assert there.keys() == cpu.keys()
    for name in there:
        if isinstance(there[name], str):
            assert there[name] == cpu[name], name
        else:
            a, b = (torch.tensor(x[name], dtype=torch.float64) for x in (there, cpu))
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


# --- what a config asks for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lacking, asked, says",
    [
        ("float64", {"dtype": "float64"}, "no 64-bit numbers"),
        ("bfloat16", {"products": "bf16"}, "products = 'bf16'.* no bfloat16"),
        ("bfloat16", {"bf16_preselect": True}, "bf16_preselect = true"),
        ("tf32", {"products": "tf32"}, "no TF32"),
    ],
)
def test_what_a_device_lacks_is_refused_before_anything_is_built(monkeypatch, lacking, asked, says):
    monkeypatch.setattr(devices, "_tried", lambda kind: replace(everything, **{lacking: False}))
    everything = devices.Abilities(*[True] * 8)
    with pytest.raises(ConfigError, match=says):
        Trainer(TopKConfig(d_in=4, d_sae=8, k=2, **asked))


def test_no_compiler_is_said(monkeypatch):
    def none(*_args, **_kwargs):
        raise RuntimeError("no C++ compiler\nand more")

    devices.why_not_compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", none)
    with pytest.raises(ConfigError, match=r"compiled = true: .*\(no C\+\+ compiler\)"):
        Trainer(TopKConfig(d_in=4, d_sae=8, k=2, compiled=True))
    devices.why_not_compiled.cache_clear()


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"dtype": "float64", "products": "bf16"}, "float64"),
        ({"products": "bf16", "bf16_preselect": True}, "Leave one out"),
        ({"activation": "l1", "products": "bf16"}, "not l1"),
        ({"activation": "jumprelu", "compiled": True}, "not jumprelu"),
    ],
)
def test_contradictions_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        SAEConfig(d_in=4, d_sae=8, k=2, **settings)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"activation": {"kind": "l1"}}, "not l1"),
        ({"activation": {"kind": "jumprelu"}, "gate": "per-source"}, "not per-source"),
        ({"gate": "own-magnitude"}, "not own-magnitude"),
    ],
)
def test_crosscoders_of_other_encoders_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        CrosscoderConfig(widths=[4, 4], d_sae=8, k=2, compiled=True, **settings)


def test_devices_that_are_not_there():
    with pytest.raises(UsageError, match="device tpu"):
        devices.check_device("tpu")
    with pytest.raises(UsageError, match="cuda:x"):
        devices.check_device("cuda:x")
    with pytest.raises(MissingError, match="cuda:999"):
        devices.check_device("cuda:999")
    devices.check_device("cpu")


# --- rounded and compiled products -----------------------------------------------------------------------------------


def test_float32_products_are_what_they_are_said_to_be():
    """TF32 on a GPU is a switch of the whole process: on inside, off where float32 was asked for, then as before."""
    reduced = torch.backends.cuda.matmul
    before, allowed = torch.get_float32_matmul_precision(), reduced.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("high")
    try:
        with devices.float32_products("float32", "cuda"):
            assert torch.get_float32_matmul_precision() == "highest"
            assert not reduced.allow_bf16_reduced_precision_reduction
            with devices.float32_products("tf32", "cuda"):
                assert torch.get_float32_matmul_precision() == "high"
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
        assert reduced.allow_bf16_reduced_precision_reduction == allowed
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["auto", "fallback"])
def test_bf16_rounds_factors_and_not_sums(backend):
    """4,096 ones add up to 4,096; a running sum of 16 bits would stay at 256."""
    x, weight, bias = torch.ones(2, 4096), torch.ones(3, 4096), torch.full((3,), 2.0**-10)
    linear = arranged(pick(backend, x), "bf16", False).linear
    assert linear(x, weight, bias).dtype == torch.float32
    assert (linear(x, weight, bias) == 4096 + 2.0**-10).all()
    odd = torch.full((1, 1), 1 + 2.0**-9)  # one bit more than bfloat16 has
    assert float(linear(odd, torch.ones(1, 1), torch.zeros(1))) == 1.0


def _trained(rows: torch.Tensor, **settings) -> tuple[float, torch.Tensor]:
    """(explained variance of the last tenth of the steps, decoder)"""
    config = TopKConfig(d_in=rows.shape[1], d_sae=256, k=8, lr=3e-3, **settings)
    trainer, batches = Trainer(config, total_steps=100), rows.split(128)
    ev = [trainer.step(batches[i % len(batches)]).ev for i in range(100)]
    return sum(ev[-10:]) / 10, trainer.dictionary().dec_FD.clone()


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Sparse combinations of 96 directions in 32 dimensions, and noise."""
    g = torch.Generator().manual_seed(0)
    codes = torch.rand(1024, 96, generator=g) * (torch.rand(1024, 96, generator=g) < 0.05)
    return codes @ torch.randn(96, 32, generator=g) + 0.05 * torch.randn(1024, 32, generator=g)


def test_bf16_products_cost_little_and_not_nothing(rows):
    (exact, decoder), (rounded, other) = _trained(rows), _trained(rows, products="bf16")
    assert exact > 0.5
    assert float((decoder - other).norm() / decoder.norm()) > 0
    assert abs(exact - rounded) < 0.01


def test_compiled_products_are_the_same(rows):
    if why := devices.why_not_compiled("cpu"):
        pytest.skip(f"torch.compile does not work here: {why}")
    (exact, decoder), (compiled, other) = _trained(rows), _trained(rows, compiled=True)
    assert abs(exact - compiled) < 1e-3
    assert float((decoder - other).norm() / decoder.norm()) < 0.05
