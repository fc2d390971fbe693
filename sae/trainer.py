"""One training step, and everything a later step depends on.

The trainer asks a config to ``build()`` a model and knows nothing else about it: SAEs and crosscoders train alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sae.backends import pick
from sae.config import TrainingConfig
from sae.encode import StepPlan
from sae.errors import ConfigError, NonFiniteError
from sae.metrics import fvu, l0
from sae.model import SAE
from sae.rows import check_rows, median_norm, ordinary
from sae.schedule import kept, learning_rate

REVIVE_AFTER = 10  # times dead_after: earlier, latents that AuxK is still bringing back are thrown away and the error grows


@dataclass(frozen=True)
class StepReport:
    """What one step did. Tensors stay on the device until :meth:`row` reads them (on a GPU that waits for it)."""

    step: int  # number of this step, from 0
    rows: int  # rows trained on
    masked: int  # rows left out: outliers, and those the caller excluded
    loss: Tensor  # mean squared error in training scale, plus AuxK and penalty
    fvu: Tensor
    l0: Tensor
    aux: Tensor  # AuxK: share of the residual the dead latents leave; NaN where there was none
    dead: int  # latents that have not fired in config.dead_after rows
    k: int
    lr: float
    doubtful: float  # rows for which bfloat16 may have proposed too few candidates; NaN without bf16_preselect

    @property
    def ev(self) -> float:
        """Explained variance of this batch, centred."""
        return 1.0 - float(self.fvu)

    def row(self) -> dict[str, float]:
        """Plain numbers, for logs."""
        return {f.name: float(getattr(self, f.name)) for f in fields(self)}


class Trainer:
    """Trains ``config.build()`` on raw rows.

    Args:
        config: what to train. total_steps: for decay and K-annealing; without it the learning rate stays constant.
        device: where the model lives; rows are moved there.

    Example:
        ``trainer = Trainer(TopKConfig(d_in=256)); trainer.step(x); sae = trainer.dictionary()``
    """

    def __init__(self, config: TrainingConfig, *, total_steps: int | None = None, device: str | torch.device = "cpu"):
        if total_steps is not None and total_steps < 1:
            raise ConfigError(f"total_steps = {total_steps} must be at least 1.")
        self.config, self.total_steps = config, total_steps
        self.model: SAE = config.build().to(device)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.peak_lr, betas=(config.beta1, config.beta2), fused=True)
        self.backend = pick(config.backend, self.model.enc_FD)
        self.steps_done, self.rows_seen, self.yardstick = 0, 0, 0.0
        self.since_F = torch.zeros(self.model.d_sae, dtype=torch.int64, device=self.model.enc_FD.device)

    def step(self, x: Tensor, keep: Tensor | None = None) -> StepReport:
        """One full training step on raw rows ``x`` [B, d_in]; the first also initialises from them.

        Args:
            keep: [B] bool, False for rows to leave out (BOS and the like); they are counted in the report.

        Raises:
            ConfigError: another width, no rows left. NonFiniteError: NaN or infinity in the rows or in the loss; the model is as before.
        """
        x, masked = self._rows(x, keep)
        k = self.model.activation.keep(kept(self.config, self.steps_done, self.total_steps))
        lr = learning_rate(self.config, self.steps_done, self.total_steps)
        dead = self._dead()

        model = self.model
        rows, target = model.training_rows(x)
        plan = self._plan(k, dead)
        y, aux_y, values, indices, penalty = model.reconstruct(rows, plan, target)
        residual = y - target
        square = self._square(residual, target)
        loss = square / residual.numel()
        aux = torch.full((), torch.nan)
        if aux_y.numel():
            leftover = residual.detach()[:: self.config.aux_every]
            aux = (leftover + aux_y).square().sum() / leftover.square().sum()
            loss = loss + self.config.aux_coefficient * aux
        if penalty is not None:
            loss = loss + penalty
        self._check(loss)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.details.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.details.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self._revive(dead, -residual.detach())
        model.constrain()
        self._count(values.detach(), indices)
        report = StepReport(
            step=self.steps_done,
            rows=len(x),
            masked=masked,
            loss=loss.detach(),
            fvu=fvu(target, y.detach()),
            l0=l0(values.detach()),
            aux=aux.detach(),
            dead=len(dead),
            k=k,
            lr=lr,
            doubtful=sum(plan.doubts) if plan.doubts else math.nan,
        )
        self.steps_done += 1
        self.rows_seen += len(x)
        return report

    def dictionary(self) -> SAE:
        """A folded copy: raw activations in, raw activations out."""
        return self.model.folded().requires_grad_(False).eval()

    def _rows(self, x: Tensor, keep: Tensor | None) -> tuple[Tensor, int]:
        n, where = len(x), f"training step {self.steps_done}"
        if keep is not None:
            x = x[keep]
        check_rows(x, self.model.row_width, where=where)
        x = x.to(self.model.enc_FD.device)
        if self.steps_done == 0:
            self.yardstick = median_norm(x)
        usual = ordinary(x, self.yardstick, self.config.outlier_factor)
        if usual is not None:
            x = x[usual]
            if len(x) == 0:
                raise ConfigError(
                    f"{where}: every row is longer than {self.config.outlier_factor:g} median norms. Raise outlier_factor (0 keeps all)."
                )
        if self.steps_done == 0:
            self.model.initialise(x, self.generator)
        return x, n - len(x)

    def _dead(self) -> Tensor:
        return (self.since_F > self.config.dead_after).nonzero().flatten()

    def _revive(self, dead: Tensor, residual: Tensor) -> None:
        """Latents that AuxK could not reach (none of their pre-activations is positive) start anew, with a fresh optimiser."""
        lost = dead[self.since_F[dead] > REVIVE_AFTER * self.config.dead_after] if self.config.revive and len(dead) else dead[:0]
        if len(lost) == 0:
            return
        self.model.revive(lost, residual, self.generator)
        for p, state in self.optimizer.state.items():
            if p.shape[0] == self.model.d_sae:
                state["exp_avg"][lost] = 0
                state["exp_avg_sq"][lost] = 0
        self.since_F[lost] = 0

    def _plan(self, k: int, dead: Tensor) -> StepPlan:
        k_aux = self.config.k if self.config.k_aux is None else self.config.k_aux
        use_aux = k_aux > 0 and self.config.aux_coefficient > 0 and len(dead) > 0
        return StepPlan(
            k=k,
            backend=self.backend,
            selection_F=self.model.activation.selection_weights(self.model),
            dead_N=dead if use_aux else None,
            k_aux=k_aux,
            aux_every=self.config.aux_every,
            tile_rows=self.config.tile_rows,
            bf16_preselect=self.config.bf16_preselect,
        )

    def _square(self, residual: Tensor, target: Tensor) -> Tensor:
        """Squared error of all rows, each over its centred length where ``details.error`` says so."""
        if self.config.details.error == "mean":
            return residual.square().sum()
        length = torch.linalg.vector_norm(target - target.mean(0), dim=1).clamp_min(1e-12)
        return (residual.square().sum(1) / length).sum()

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the loss became {loss.item()} in training step {self.steps_done} (learning rate {self.config.peak_lr:g}). "
                "Lower lr or outlier_factor, or resume from the last checkpoint with another data seed."
            )

    def _count(self, values: Tensor, indices: Tensor) -> None:
        fired = torch.bincount(indices.flatten(), weights=(values > 0).flatten().to(values.dtype), minlength=len(self.since_F)) > 0
        self.since_F.add_(len(values)).masked_fill_(fired, 0)

    # --- state ---------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that :meth:`restore` needs to go on bit for bit."""
        tensors = {f"model.{name}": t.detach() for name, t in self.model.state_dict().items()}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{name}.{key}"] = value
        tensors |= {"since_F": self.since_F, "generator": self.generator.get_state()}
        plain = {"steps_done": self.steps_done, "rows_seen": self.rows_seen, "yardstick": self.yardstick}
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Continue from a :meth:`state` of the same config."""
        self.model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
        for name, p in self.model.named_parameters():
            prefix = f"adam.{name}."
            state = {n.removeprefix(prefix): t.clone() for n, t in tensors.items() if n.startswith(prefix)}
            if state:
                self.optimizer.state[p] = state
        self.since_F.copy_(tensors["since_F"])
        self.generator.set_state(tensors["generator"])
        self.steps_done, self.rows_seen, self.yardstick = int(plain["steps_done"]), int(plain["rows_seen"]), float(plain["yardstick"])
