"""The fast scan equals the definition: values, gradients, states across block borders."""

import sys
import types

import pytest
import torch

from workbench.models import scan_cuda
from workbench.models.scan import selective_scan, selective_scan_loop


def arguments(n_seq: int, length: int, width: int, n_state: int, seed: int = 0) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    x, dt = randn(n_seq, length, width), torch.nn.functional.softplus(randn(n_seq, length, width))
    A, B, C = -torch.exp(randn(width, n_state)), randn(n_seq, length, n_state), randn(n_seq, length, n_state)
    return [v.requires_grad_() for v in (x, dt, A, B, C, randn(n_seq, width, n_state))]


@pytest.mark.parametrize("n_seq,length", [(1, 1), (3, 31), (4, 32), (5, 33), (6, 97)])
def test_equals_the_loop_in_values_and_gradients(n_seq: int, length: int) -> None:
    args = arguments(n_seq, length, 6, 3)
    weights = [torch.randn(n_seq, length, 6, dtype=torch.float64), torch.randn(n_seq, 6, 3, dtype=torch.float64)]
    results = []
    for scan in (selective_scan, selective_scan_loop):
        outputs = scan(*args)
        loss = sum((out * w).sum() for out, w in zip(outputs, weights, strict=True))
        results.append([*outputs, *torch.autograd.grad(loss, args)])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-10, atol=1e-10)


def test_gradcheck_against_finite_differences() -> None:
    assert torch.autograd.gradcheck(selective_scan, arguments(5, 34, 2, 2), fast_mode=True)


def test_a_sequence_scanned_in_two_halves_is_the_same() -> None:
    x, dt, A, B, C, h0 = (v.detach() for v in arguments(2, 50, 4, 3))
    whole, last = selective_scan(x, dt, A, B, C, h0)
    first, middle = selective_scan(x[:, :20], dt[:, :20], A, B[:, :20], C[:, :20], h0)
    second, end = selective_scan(x[:, 20:], dt[:, 20:], A, B[:, 20:], C[:, 20:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, last)


def test_only_block_borders_are_kept_for_the_backward_pass() -> None:
    x, dt, A, B, C, h0 = arguments(4, 128, 8, 32)
    y, _ = selective_scan(x, dt, A, B, C, h0)
    saved = sum(v.numel() for v in y.grad_fn.saved_tensors)  # type: ignore[union-attr]
    assert saved < 128 * 4 * 8 * 32 / 2  # less than half of all states [B, L, D, N], inputs included


def test_the_cuda_kernel_is_called_in_its_own_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the kernel's signature and documented layout (time last); the kernel itself needs its device."""

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        assert all(v.is_contiguous() for v in (u, delta, A, B, C)) and B.shape == (u.shape[0], A.shape[1], u.shape[2])
        y, last = selective_scan_loop(*(v.transpose(1, 2) for v in (u, delta)), A, *(v.transpose(1, 2) for v in (B, C)))
        return (y.transpose(1, 2), last) if return_last_state else y.transpose(1, 2)

    module = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn = selective_scan_fn  # type: ignore[attr-defined]
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    scan_cuda._kernel.cache_clear()
    try:
        *args, _h0 = arguments(2, 9, 5, 3)
        for got, want in zip(scan_cuda.cuda_scan(*args), selective_scan_loop(*args), strict=True):
            torch.testing.assert_close(got, want)
        assert not scan_cuda.cuda_scan_available(args[0])  # tensors on the CPU
    finally:
        scan_cuda._kernel.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_cuda_kernel_equals_the_loop() -> None:
    pytest.importorskip("mamba_ssm")
    *args, _h0 = (v.detach().float().cuda() for v in arguments(2, 70, 8, 4))
    for got, want in zip(scan_cuda.cuda_scan(*args), selective_scan_loop(*args), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
