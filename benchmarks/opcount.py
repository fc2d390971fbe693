"""Counts what a training step does instead of timing it: dense products and passes over (B, F).

``python benchmarks/opcount.py`` prints the counts of one step; the test suite holds them to their limits on any
machine. A *dense unit* is the encoder product, 2 B D F floating-point operations; matrix-vector products count too. A
*pass* is one full read or write of a (B, F) array; an operation that picks elements (gather) counts what it picks.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = (
    "view",
    "slice",
    "select",
    "t.",
    "transpose",
    "expand",
    "detach",
    "alias",
    "unsqueeze",
    "squeeze",
    "as_strided",
    "permute",
    "empty",
    "split",
)
MADE_ONLY = ("mm", "addmm", "mv", "addmv", "gather", "index_select", "index.", "take", "embedding", "sparse", "mkldnn")


class OpCounter(TorchDispatchMode):
    """Counts FLOPs of products and elements moved of arrays whose last axis is as wide as the dictionary.

    Attributes: flops; moved (elements of wide arrays read or written); by_op (elements per operation); widest (largest
    number of elements of any tensor made).
    """

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.d_sae, self.flops, self.moved, self.widest = d_sae, 0, 0, 0
        self.by_op: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        tensors = [a for a in torch.utils._pytree.tree_leaves((args, kwargs or {})) if isinstance(a, Tensor)]
        made = [a for a in torch.utils._pytree.tree_leaves(out) if isinstance(a, Tensor)]
        self.widest = max([self.widest, *(a.numel() for a in made if a.layout == torch.strided)])
        self.flops += self._products(name, tensors, made)
        if not name.startswith(VIEWS):
            wide = [a for a in (made if name.startswith(MADE_ONLY) else [*tensors, *made]) if self._is_wide(a)]
            if wide:
                self.moved += sum(a.numel() for a in wide)
                self.by_op[name] += sum(a.numel() for a in wide)
        return out

    def _is_wide(self, t: Tensor) -> bool:
        """Rows of pre-activations, whole or seen as groups; weights (F, D) and (D, F) are not."""
        return t.layout == torch.strided and t.ndim >= 2 and t.shape[1:].numel() == self.d_sae and t.is_floating_point()

    @staticmethod
    def _products(name: str, tensors: list[Tensor], made: list[Tensor]) -> int:
        if "sparse" in name or "sampled" in name:
            return 0
        if "_linear_pointwise" in name:
            x, w = tensors[:2]
            return 2 * x.shape[0] * w.shape[0] * w.shape[1]
        if name.startswith(("mm", "addmm", "bmm", "baddbmm")):
            a = tensors[-2]
            return 2 * made[0].numel() * a.shape[-1]
        if name.startswith(("mv", "addmv")):
            return 2 * tensors[-2].numel()
        return 0


def count_step(trainer: Any, x: Tensor) -> tuple[float, float, OpCounter]:
    """(dense units, passes over (B, F), counter) of ``trainer.step(x)``."""
    d, f = trainer.model.d_in, trainer.model.d_sae
    with OpCounter(f) as counter:
        trainer.step(x)
    return counter.flops / (2 * len(x) * d * f), counter.moved / (len(x) * f), counter


def main() -> None:
    from sae import TopKConfig, Trainer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller shape only")
    args = parser.parse_args()
    shapes = [(1024, 256, 4096, 32)] if args.quick else [(1024, 256, 4096, 32), (2048, 512, 16384, 32)]
    print(
        f"{'B':>6} {'D':>5} {'F':>6} {'k':>3}  {'latents':>8} {'dense units':>12} {'(B,F) passes':>13}"
        f" {'largest tensor / BF':>20}"
    )
    for b, d, f, k in shapes:
        trainer = Trainer(TopKConfig(d_in=d, d_sae=f, k=k))
        x = torch.randn(b, d, generator=torch.Generator().manual_seed(0))
        trainer.step(x)
        for label, dead in (("live", 0), ("30% dead", int(0.3 * f))):
            trainer.since_F[:dead] = trainer.config.dead_after + 1
            units, passes, counter = count_step(trainer, x)
            print(f"{b:6} {d:5} {f:6} {k:3}  {label:>8} {units:12.3f} {passes:13.2f} {counter.widest / (b * f):20.2f}")


if __name__ == "__main__":
    main()
