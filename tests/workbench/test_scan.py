"""The fast scan equals the definition: values, gradients, states across block borders."""

import pytest
import torch

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
