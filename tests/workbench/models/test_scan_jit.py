"""The compiled scan equals the plain loop in double precision, values and gradients, at odd shapes and strides."""

from __future__ import annotations

import pytest
import torch

from workbench.models.scan import selective_scan, selective_scan_loop
from workbench.models.scan_jit import CompiledScan


def _arguments(shape: tuple[int, int, int, int], seed: int = 0, far: float = 1.0) -> list[torch.Tensor]:
    b, length, d, n = shape
    g = torch.Generator().manual_seed(seed)
    x, B, C, h = (torch.randn(*s, generator=g) for s in ((b, length, d), (b, length, n), (b, length, n), (b, d, n)))
    dt = torch.nn.functional.softplus(torch.randn(b, length, d, generator=g)) * far
    return [x, dt, -torch.exp(torch.randn(d, n, generator=g)), B, C, h]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 16, 8, 4), (2, 33, 21, 5), (4, 50, 24, 16)])
def test_values_and_gradients_equal_the_loop(shape):
    single = [v.requires_grad_() for v in _arguments(shape)]
    double = [v.detach().double().requires_grad_() for v in single]
    results = []
    for function, arguments in ((CompiledScan.apply, single), (selective_scan_loop, double)):
        y, last = function(*arguments)
        loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + last.sin().sum()
        results.append((y, last, *torch.autograd.grad(loss, arguments)))
    for ours, want in zip(*results, strict=True):
        assert ours.dtype == torch.float32 and (ours - want).abs().max() <= 3e-6 * want.abs().max().clamp(min=1)


def test_strong_decay_underflows_to_zero_not_to_nonsense():
    arguments = _arguments((1, 8, 4, 4), far=1e4)
    y, last = CompiledScan.apply(*arguments)
    want_y, want_last = selective_scan_loop(*(v.double() for v in arguments))
    assert (
        torch.isfinite(y).all()
        and torch.allclose(y, want_y.float(), rtol=1e-5)
        and torch.allclose(last, want_last.float(), rtol=1e-5)
    )


def test_strided_inputs_and_no_gradient():
    arguments = _arguments((2, 20, 8, 4))
    strided = [v.transpose(0, 1).contiguous().transpose(0, 1) for v in arguments]
    with torch.inference_mode():
        a, b = CompiledScan.apply(*arguments), CompiledScan.apply(*strided)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not a[0].requires_grad


def test_float32_on_the_cpu_takes_it_and_float64_does_not():
    x = [v.requires_grad_() for v in _arguments((1, 5, 4, 2))]
    assert "CompiledScan" in type(selective_scan(*x)[0].grad_fn).__name__
    assert (
        "CompiledScan"
        not in type(selective_scan(*(v.detach().double().requires_grad_() for v in x))[0].grad_fn).__name__
    )
