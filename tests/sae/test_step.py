"""The sparse step against plain dense autograd: values, gradients, AuxK, several sources, every backend."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sae.backends import pick
from sae.backends.cpu import works_here
from sae.backends.select import top_k
from sae.encode import StepPlan, encode
from sae.step import SparseStep

BACKENDS = [
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(not works_here(), reason="this build of PyTorch has no sparse CSR products (MKL)"),
    ),
    "fallback",
    "dense",
]


def problem(seed: int = 0, *, rows: int = 24, d: int = 6, f: int = 32, shift: float = 0.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return [make(rows, d) + 1, make(f, d), make(f) + shift, make(f, d), make(d)]


def dense_step(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor, plan: StepPlan
) -> tuple[Tensor, Tensor]:
    """The definition, left to autograd: reconstruction, and what the dead latents make of the residual."""
    pre = (x - b_dec) @ W_enc.t() + b_enc
    weight = torch.ones_like(b_enc) if plan.selection_F is None else plan.selection_F

    def keep(p: Tensor, w: Tensor, k: int) -> Tensor:
        mask = torch.zeros_like(p).scatter(1, torch.topk((p * w).detach(), k, dim=1).indices, 1.0)
        return torch.relu(p) * mask

    y = keep(pre, weight, plan.k) @ W_dec + b_dec
    if plan.dead_N is None:
        return y, x.new_zeros(0)
    dead = plan.dead_N
    aux = keep(pre[:: plan.aux_every, dead], weight[dead], min(plan.k_aux, len(dead)))
    return y, aux @ W_dec[dead]


def loss_of(y: Tensor, aux_y: Tensor, x: Tensor, every: int) -> Tensor:
    residual = x - y
    loss = residual.square().sum() / x.numel()
    if aux_y.numel():
        left = residual.detach()[::every]
        loss = loss + (left - aux_y).square().sum() / left.square().sum() / 32
    return loss


def gradients(step, tensors: list[Tensor], plan: StepPlan) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    y, aux_y = step(*leaves, plan)[:2]
    loss = loss_of(y, aux_y, leaves[0], plan.aux_every)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 5, 32])
@pytest.mark.parametrize("shift", [0.0, -4.0], ids=["dense-positive", "few-positive"])
@pytest.mark.parametrize(
    "dead", [None, [3], [0, 7, 8, 31], list(range(32))], ids=["no-dead", "one-dead", "some-dead", "all-dead"]
)
def test_gradients_equal_dense_autograd(backend: str, k: int, shift: float, dead: list[int] | None) -> None:
    tensors = problem(shift=shift)
    plan = StepPlan(
        k, pick(backend, tensors[0]), dead_N=None if dead is None else torch.tensor(dead), k_aux=3, tile_rows=7
    )
    for got, want in zip(gradients(SparseStep.apply, tensors, plan), gradients(dense_step, tensors, plan), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_selection_weights_and_every_second_row(backend: str) -> None:
    tensors = problem(1)
    weights = torch.linspace(0.3, 3, 32, dtype=torch.float64)
    plan = StepPlan(
        4, pick(backend, tensors[0]), selection_F=weights, dead_N=torch.arange(9), k_aux=4, aux_every=2, tile_rows=5
    )
    for got, want in zip(gradients(SparseStep.apply, tensors, plan), gradients(dense_step, tensors, plan), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_ties_keep_k_latents_with_exact_gradients() -> None:
    """Duplicate latents tie; any choice is right, and the gradients are those of the choice made."""
    tensors = problem(2)
    tensors[1][16:], tensors[2][16:] = tensors[1][:16], tensors[2][:16]
    leaves = [t.clone().requires_grad_() for t in tensors]
    y, _, _, indices = SparseStep.apply(*leaves, StepPlan(5, pick("auto", leaves[0])))
    assert all(len(set(row)) == 5 for row in indices.tolist())
    x, W_enc, b_enc, W_dec, b_dec = leaves
    mask = torch.zeros(24, 32, dtype=torch.float64).scatter(1, indices, 1.0)
    y_dense = (torch.relu((x - b_dec) @ W_enc.t() + b_enc) * mask) @ W_dec + b_dec
    torch.testing.assert_close(y, y_dense)
    for got, want in zip(
        torch.autograd.grad(y.square().sum(), leaves), torch.autograd.grad(y_dense.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


def test_gradcheck() -> None:
    tensors = [t.requires_grad_() for t in problem(3, rows=5, d=3, f=8)]
    plan = StepPlan(2, pick("auto", tensors[0]), dead_N=torch.tensor([1, 6]), k_aux=1)
    assert torch.autograd.gradcheck(lambda *t: SparseStep.apply(*t, plan)[:3], tensors)


def test_aux_oracle_with_a_bias() -> None:
    """AuxK trains encoder *and* decoder rows of dead latents only, sees a detached residual, and uses the bias once."""
    tensors = problem(4)
    positive = ((tensors[0] - tensors[4]) @ tensors[1].t() + tensors[2] > 0).sum(0)
    dead = ((positive > 6) & (positive < 20)).nonzero().flatten()[:3]
    assert len(dead) == 3
    plan = StepPlan(4, pick("auto", tensors[0]), dead_N=dead, k_aux=2)
    without = gradients(SparseStep.apply, tensors, StepPlan(4, plan.backend))
    with_aux = gradients(SparseStep.apply, tensors, plan)
    for place in (2, 4):  # W_enc, W_dec
        moved = (with_aux[place] - without[place]).abs().sum(1) > 0
        assert moved[dead].all() and int(moved.sum()) == len(dead)
    leaves = [t.clone().requires_grad_() for t in tensors]
    aux_y = SparseStep.apply(*leaves, plan)[1]
    (g_dec,) = torch.autograd.grad(aux_y.sum(), leaves[4], retain_graph=True)
    pre = (leaves[0] - leaves[4]) @ leaves[1].t() + leaves[2]
    mask = torch.zeros_like(pre[:, dead]).scatter(1, pre[:, dead].topk(2, dim=1).indices, 1.0)
    (want,) = torch.autograd.grad(((torch.relu(pre[:, dead]) * mask) @ leaves[3][dead]).sum(), leaves[4])
    torch.testing.assert_close(g_dec, want)  # only through the encoder: the reconstruction of the residual adds no bias


def test_bf16_preselection_keeps_the_same_latents() -> None:
    """On Gaussian rows 2k candidates are always enough, and the kept values are full-precision ones."""
    x, W_enc, b_enc = (t.float() for t in problem(6, rows=200, d=64, f=1024)[:3])
    exact = encode(x, W_enc, b_enc, StepPlan(16, pick("auto", x)))
    plan = StepPlan(16, pick("auto", x), bf16_preselect=True)
    fast = encode(x, W_enc, b_enc, plan)
    assert torch.equal(exact[1], fast[1])
    torch.testing.assert_close(exact[0], fast[0], rtol=1e-5, atol=1e-4)
    assert plan.doubts[0] < 0.05 * 200


def test_bf16_preselection_says_when_it_is_not_certain() -> None:
    x, W_enc, b_enc = (t.float() for t in problem(6, rows=50, d=64, f=1024)[:3])
    W_enc = W_enc[:1] + 1e-3 * W_enc  # a thousand near-copies: bfloat16 cannot tell them apart
    plan = StepPlan(16, pick("auto", x), bf16_preselect=True)
    encode(x, W_enc, b_enc * 0, plan)
    assert plan.doubts[0] > 0.5 * 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_dots_of_latents_in_any_order(backend: str) -> None:
    x, weight = problem(7)[:2]
    indices = torch.stack([torch.randperm(32, generator=torch.Generator().manual_seed(r))[:5] for r in range(len(x))])
    want = torch.einsum("bd,bkd->bk", x, weight[indices])
    torch.testing.assert_close(pick(backend, x).dots(x, weight, indices), want)


@pytest.mark.parametrize(
    "shape,k", [((7, 4096), 32), ((3, 24576), 32), ((5, 48), 48), ((4, 30), 7), ((6, 1000), 3), ((2, 64), 1)]
)
def test_two_stage_top_k_is_exact(shape: tuple[int, int], k: int) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    x[0] = torch.linspace(0, 1, shape[1])  # the winners all sit in few groups
    values, indices = top_k(x, k)
    want = torch.topk(x, k, dim=1)
    assert torch.equal(values.sort(1).values, want.values.sort(1).values)
    assert torch.equal(x.gather(1, indices), values)
    assert all(len(set(row)) == k for row in indices.tolist())
