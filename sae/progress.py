"""The progress bar of a training run: what it learns, how fast, and how close to the machine's floor."""

from __future__ import annotations

import sys
import time
from typing import Any, Self

import torch

from sae.trainer import Trainer


def matmul_peak(trainer: Trainer, rows: int = 256, repeats: int = 3) -> float:
    """FLOP/s of the plain encoder product of this model on this machine, best of a few runs."""
    w = trainer.model.enc_FD.detach()
    x = torch.zeros(rows, w.shape[1], dtype=w.dtype, device=w.device)
    best = float("inf")
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        x @ w.t()
        if w.is_cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return 2 * rows * w.numel() / best


class Progress:
    """``loss, EV, L0, dead, tokens/s, fraction of matmul peak`` on one line; silent unless shown."""

    def __init__(self, trainer: Trainer, total_steps: int, done: int, *, show: bool):
        self.trainer, self.bar = trainer, None
        self.rows, self.begin = 0, time.perf_counter()
        if show:
            from tqdm import tqdm

            self.bar = tqdm(total=total_steps, initial=done, file=sys.stderr, unit="step", dynamic_ncols=True)
            self.peak = matmul_peak(trainer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, rows: int) -> None:
        """One step is done."""
        self.rows += rows
        if self.bar is not None:
            self.bar.update(1)

    def show(self, row: dict[str, float]) -> None:
        """Show the numbers of a logged step."""
        if self.bar is None:
            return
        rate = self.rows / (time.perf_counter() - self.begin)
        share = rate * 2 * self.trainer.model.enc_FD.numel() / self.peak
        masked = f" masked={row['masked']:.0f}" if row["masked"] else ""
        uncertain_rows = f" doubtful={row['doubtful']:.0f}" if row["doubtful"] > 0 else ""
        learnt = (
            f"loss={row['loss']:.4f} EV={1 - row['fvu']:.3f} L0={row['l0']:.1f}"
            f" dead={row['dead']:.0f}{masked}{uncertain_rows}"
        )
        self.bar.set_postfix_str(f"{learnt} {rate:,.0f} tok/s {share:.0%} of matmul peak")
