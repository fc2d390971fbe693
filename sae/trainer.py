"""One training step, and everything a later step depends on.

The trainer asks a config to ``build()`` a model and knows nothing else about it: SAEs and crosscoders train alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sae.backends import arranged, pick
from sae.config import TrainingConfig
from sae.devices import abilities, check, float32_products
from sae.encode import StepPlan
from sae.errors import ConfigError, NonFiniteError
from sae.metrics import fvu, l0, mean_row
from sae.model import SAE
from sae.parallel import SINGLE_PROCESS, Ranks, per_latent
from sae.rows import LocalRows, StepRows, median_norm
from sae.schedule import kept, learning_rate, warm_up

REVIVE_AFTER = (
    10  # times dead_after: earlier, latents that AuxK is still bringing back are thrown away and the error grows
)


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
        ranks: this process among those that train this dictionary together. Each calls :meth:`step` with the same
            batch, or with its :class:`sae.rows.Share` of it; each gets the same report.

    Example:
        ``trainer = Trainer(TopKConfig(d_in=256)); trainer.step(x); sae = trainer.dictionary()``
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        total_steps: int | None = None,
        device: str | torch.device = "cpu",
        ranks: Ranks = SINGLE_PROCESS,
    ):
        if total_steps is not None and total_steps < 1:
            raise ConfigError(f"total_steps = {total_steps} must be at least 1.")
        check(config, device)
        self.config, self.total_steps, self.ranks = config, total_steps, ranks
        self.model: SAE = config.build().shard(ranks).to(device)
        self.model.warm_up = warm_up(config, total_steps)
        self.generator = torch.Generator().manual_seed(config.seed)
        relative = {"enc_FD": config.details.encoder_rate, "b_dec": config.details.bias_rate}
        groups = [{"params": [p], "relative": relative.get(name, 1.0)} for name, p in self.model.named_parameters()]
        fused = abilities(device).fused_adam
        self.optimizer = torch.optim.Adam(
            groups, lr=config.rate(total_steps), betas=(config.beta1, config.beta2), fused=fused
        )
        self.backend = arranged(pick(config.backend, self.model.enc_FD), config.products, config.compiled)
        self.steps_done, self.rows_seen, self.reference_norm = 0, 0, 0.0
        self.since_F = torch.zeros(len(self.model.enc_FD), dtype=torch.int64, device=self.model.enc_FD.device)

    def step(self, x: Tensor | LocalRows, keep: Tensor | None = None) -> StepReport:
        """One full training step on raw rows ``x`` [B, d_in]; the first also initialises from them.

        Args:
            keep: [B] bool, False for rows to leave out (BOS and the like); they are counted in the report.

        Raises:
            ConfigError: another width, no rows left. NonFiniteError: NaN or infinity in the rows or in the loss; the
            model is as before.
        """
        with float32_products(self.config.products, self.model.enc_FD.device.type):
            return self._step(x, keep)

    def _step(self, x: Tensor | LocalRows, keep: Tensor | None) -> StepReport:
        part = self._part(x, keep)
        k = self.model.activation.keep(kept(self.config, self.steps_done, self.total_steps))
        lr = learning_rate(self.config, self.steps_done, self.total_steps)
        dead = self._dead()
        n_dead, _ = self.ranks.offset(len(dead))

        model, ranks = self.model, self.ranks
        rows, target = model.training_rows(part.x)
        plan = self._plan(k, dead, n_dead, part)
        y, aux_y, values, indices, penalty = model.reconstruct(rows, plan, target)
        residual = y - target
        square = self._square(residual, target, part.total)
        loss = square / (part.total * target.shape[1])
        aux = torch.full((), torch.nan)
        if aux_y.ndim == 2:
            leftover = plan.for_aux(residual.detach())
            aux = (leftover + aux_y).square().sum() / ranks.all_reduce_data(leftover.square().sum())
            loss = loss + self.config.aux_coefficient * aux
            aux = ranks.all_reduce_data(aux.detach())
        reported_loss = ranks.all_reduce_data(loss.detach())
        if penalty is not None:
            loss, reported_loss = loss + penalty, reported_loss + penalty.detach()
        self._check(reported_loss)

        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._share_gradients()
        if self.config.details.clip:
            self._clip(self.config.details.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["relative"]
        self.optimizer.step()
        self._revive(dead, -residual.detach(), part)
        model.constrain()
        self._count(values.detach(), indices, part.total)
        report = StepReport(
            step=self.steps_done,
            rows=part.total,
            masked=part.masked,
            loss=reported_loss,
            fvu=fvu(target, y.detach(), ranks, part.total),
            l0=l0(values.detach(), ranks, part.total),
            aux=aux,
            dead=n_dead,
            k=k,
            lr=lr,
            doubtful=(
                float(ranks.all_reduce_data(torch.tensor(sum(plan.doubts), device=target.device)))
                if plan.doubts
                else math.nan
            ),
        )
        self.steps_done += 1
        self.rows_seen += part.total
        return report

    def dictionary(self) -> SAE:
        """A folded copy: raw activations in, raw activations out.

        Of a dictionary dealt to several processes all of it, in each.
        """
        return self.model.gather().folded().requires_grad_(False).eval()

    def _part(self, x: Tensor | LocalRows, keep: Tensor | None) -> StepRows:
        """This process's rows of a batch; at step 0 the reference norm for outliers and the start of the model come
        from the whole batch.
        """
        where, first = f"training step {self.steps_done}", self.steps_done == 0
        share = (
            LocalRows.of_batch(x, keep, self.ranks).checked(self.model.row_width, where).to(self.model.enc_FD.device)
        )
        if first:
            self.reference_norm = median_norm(StepRows.of_all(share, self.ranks).gathered())
        part = StepRows.of_all(share.without(self.reference_norm, self.config.outlier_factor), self.ranks)
        if part.total == 0:
            raise ConfigError(
                f"{where}: every row is longer than {self.config.outlier_factor:g} median norms. Raise outlier_factor"
                " (0 keeps all)."
            )
        if first:
            self.model.initialise(part.gathered(), self.generator)
        return part

    def _dead(self) -> Tensor:
        return (self.since_F > self.config.dead_after).nonzero().flatten()

    def _share_gradients(self) -> None:
        """Sum what every process found: over the batch, and over the dictionary where latents
        contribute to one bias.
        """
        if self.ranks.world > 1:
            for name, p in self.model.named_parameters():
                assert p.grad is not None
                p.grad = self.ranks.all_reduce(p.grad) if name == "b_dec" else self.ranks.all_reduce_data(p.grad)

    def _clip(self, longest: float) -> None:
        """Shorten the gradient, if it is longer than that over all parameters of the whole dictionary."""
        if self.ranks.latents == 1:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), longest)
            return
        square = torch.zeros((), dtype=self.model.enc_FD.dtype, device=self.model.enc_FD.device)
        for name, p in self.model.named_parameters():
            assert p.grad is not None
            square += (
                self.ranks.all_reduce_latents(p.grad.square().sum()) if per_latent(name) else p.grad.square().sum()
            )
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), longest, square.sqrt())

    def _revive(self, dead: Tensor, residual: Tensor, part: StepRows) -> None:
        """Latents that AuxK could not reach (none of their pre-activations is positive) start anew, with a fresh
        optimiser.
        """
        lost = (
            dead[self.since_F[dead] > REVIVE_AFTER * self.config.dead_after]
            if self.config.revive and len(dead)
            else dead[:0]
        )
        if self.ranks.offset(len(lost))[0] == 0:
            return
        self.model.revive(lost, residual, self.generator, part)
        for name, p in self.model.named_parameters():
            if per_latent(name):
                self.optimizer.state[p]["exp_avg"][lost] = 0
                self.optimizer.state[p]["exp_avg_sq"][lost] = 0
        self.since_F[lost] = 0

    def _plan(self, k: int, dead: Tensor, n_dead: int, part: StepRows) -> StepPlan:
        k_aux = min(n_dead, self.config.k if self.config.k_aux is None else self.config.k_aux)
        use_aux = k_aux > 0 and self.config.aux_coefficient > 0
        return StepPlan(
            k=k,
            backend=self.backend,
            selection_F=self.model.activation.selection_weights(self.model),
            dead_N=dead if use_aux else None,
            k_aux=k_aux,
            aux_every=self.config.aux_every,
            aux_rows=part.nth(self.config.aux_every),
            tile_rows=self.config.tile_rows,
            bf16_preselect=self.config.bf16_preselect,
            ranks=self.ranks,
            rows=part.total,
        )

    def _square(self, residual: Tensor, target: Tensor, n: int) -> Tensor:
        """Squared error of all rows, each over its centred length where ``details.error`` says so."""
        if self.config.details.error == "mean":
            return residual.square().sum()
        length = torch.linalg.vector_norm(target - mean_row(target, self.ranks, n), dim=1).clamp_min(1e-12)
        return (residual.square().sum(1) / length).sum()

    def _check(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the loss became {loss.item()} in training step {self.steps_done} (learning rate"
                f" {self.config.rate(self.total_steps):g}). Lower lr or outlier_factor, or resume from the last"
                " checkpoint with another data seed."
            )

    def _count(self, values: Tensor, indices: Tensor, rows: int) -> None:
        times = torch.bincount(
            indices.flatten(), weights=(values > 0).flatten().to(values.dtype), minlength=len(self.since_F)
        )
        self.since_F.add_(rows).masked_fill_(self.ranks.all_reduce_max_data(times) > 0, 0)

    # --- state ---------------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, plain values): all that :meth:`restore` needs to go on bit for bit, of the whole dictionary in
        every process.
        """
        tensors = {f"model.{name}": self._whole(name, t) for name, t in self.model.state_dict().items()}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{name}.{key}"] = self._whole(name, value)
        tensors |= {"since_F": self._whole("since_F", self.since_F), "generator": self.generator.get_state()}
        plain = {"steps_done": self.steps_done, "rows_seen": self.rows_seen, "yardstick": self.reference_norm}
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Continue from a :meth:`state` of the same config, whatever the number of processes it comes from."""
        self.model.load_state_dict(
            {
                (name := n.removeprefix("model.")): self._mine(name, t)
                for n, t in tensors.items()
                if n.startswith("model.")
            }
        )
        for name, p in self.model.named_parameters():
            prefix = f"adam.{name}."
            state = {
                n.removeprefix(prefix): self._mine(name, t).clone() for n, t in tensors.items() if n.startswith(prefix)
            }
            if state:
                self.optimizer.state[p] = state
        self.since_F.copy_(self._mine("since_F", tensors["since_F"]))
        self.generator.set_state(tensors["generator"])
        self.steps_done, self.rows_seen, self.reference_norm = (
            int(plain["steps_done"]),
            int(plain["rows_seen"]),
            float(plain["yardstick"]),
        )

    def _whole(self, name: str, t: Tensor) -> Tensor:
        """All rows of a tensor that has one per latent; others as they are."""
        return self.ranks.all_gather(t.detach()) if per_latent(name) and t.ndim else t.detach()

    def _mine(self, name: str, t: Tensor) -> Tensor:
        """This process's rows of such a tensor."""
        return t[self.ranks.local_slice(self.model.d_sae)] if per_latent(name) and t.ndim else t
