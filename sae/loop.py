"""The training loop: rows in, a dictionary out, on one screen.

``train(TopKConfig(d_in=256), batches, total_steps=1000, out="runs/a")`` trains one dictionary; ``train_many`` several
from one pass over the data (a k sweep, seeds, sites).
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae import checkpoint
from sae.changes import Change, changes, said
from sae.config import TrainingConfig, derived_rate
from sae.errors import ConfigError, MismatchError, MissingError, NonFiniteError, UserError
from sae.log import Logger, Table, write_row
from sae.model import SAE
from sae.parallel import SINGLE_PROCESS, Ranks
from sae.prefetch import on_device
from sae.rows import LocalRows
from sae.trainer import Trainer

Rows = Tensor | LocalRows | tuple[Tensor | LocalRows, Tensor | None]
Batch = Rows | Mapping[str, Rows]


def contract(config: TrainingConfig, total_steps: int, batches: Any) -> dict[str, Any]:
    """What a run must have in common with an interrupted one to go on from it: its configuration (folders left out),
    its length, and all that decides its rows, where the batches can say that (``.contract()``).
    """
    own: Callable[[], Any] | None = getattr(batches, "contract", None)
    values = {
        "config": config.model_dump(mode="json", exclude=set(config.PLACES)),
        "total_steps": total_steps,
        "rate": None if config.lr is not None else config.rate(total_steps),  # else it is the configuration's
        "data": own() if own is not None else None,
    }
    return dict(json.loads(json.dumps(values)))


def changes_since(checkpointed: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Change]:
    """In what a run differs from the one that wrote a checkpoint with these values; an older checkpoint may hold fewer
    of them, and rows of unknown origin are not compared.
    """
    if wanted.get("rate") is not None and "rate" not in checkpointed:
        # before a derived rate depended on the length of the run
        checkpointed = {**checkpointed, "rate": derived_rate(wanted["config"]["d_sae"])}
    shared = [k for k, v in wanted.items() if v is not None and checkpointed.get(k) is not None]
    return changes({k: checkpointed[k] for k in shared}, {k: wanted[k] for k in shared})


class _Run:
    """One dictionary in the making: its trainer, its log, its place on disk."""

    def __init__(
        self,
        name: str,
        config: TrainingConfig,
        total_steps: int,
        out: Path | None,
        device: str,
        metadata: Mapping[str, Any],
        ranks: Ranks = SINGLE_PROCESS,
        batches: Any = None,
    ):
        self.contract = contract(config, total_steps, batches)
        self.name, self.config, self.out, self.ranks, self.table = name, config, out, ranks, Table()
        self.trainer = Trainer(config, total_steps=total_steps, device=device, ranks=ranks)
        self.trainer.model.metadata = {"seed": config.seed, **metadata}

    def resume(self, source: Path | None) -> int:
        """Restore the newest checkpoint in ``source`` (a checkpoint, or a folder of them); the number of steps already
        done.
        """
        if source is None:
            return 0
        found = self.ranks.run_everywhere(lambda: self._found(source) if self.ranks.is_rank_zero else None)
        path = self.ranks.broadcast(found and found[0])
        if path is None:
            return 0
        _, tensors, plain = self.ranks.run_everywhere(lambda: found or (path, *checkpoint.read(path)))
        if plain.get("config"):
            plain = {**plain, "config": self.config.of_checkpoint(plain["config"])}
        if found_changes := changes_since(plain, self.contract):
            raise MismatchError(
                f"{path} belongs to another run: {said(found_changes)}. Use the same settings, or another output"
                " folder.",
                found_changes,
            )
        self.table.restore(tensors.pop("log"))
        self.trainer.restore(tensors, plain)
        return self.trainer.steps_done

    @staticmethod
    def _found(source: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        if (source / "MANIFEST.json").exists() and (source / "state.json").exists():
            return (source, *checkpoint.read(source))
        return checkpoint.newest(source / "checkpoints" if (source / "checkpoints").is_dir() else source)

    def checkpoint(self, keep: set[int]) -> None:
        if self.out is None:
            return
        tensors, plain = self.trainer.state()
        self.ranks.run_everywhere(lambda: self._write(tensors, plain, keep) if self.ranks.is_rank_zero else None)

    def _write(self, tensors: dict[str, Tensor], plain: dict[str, Any], keep: set[int]) -> None:
        assert self.out is not None
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise NonFiniteError(
                f"weights or optimiser state became NaN or infinite by step {self.trainer.steps_done}: not saved."
                " Lower the learning rate (lr)."
            )
        plain |= self.contract
        checkpoint.write(
            self.out / "checkpoints", self.trainer.steps_done, {**tensors, "log": self.table.tensor()}, plain
        )
        checkpoint.prune(self.out / "checkpoints", keep)

    def finish(self) -> SAE:
        sae = self.trainer.dictionary()
        self.ranks.run_everywhere(lambda: self._save(sae) if self.ranks.is_rank_zero else None)
        return sae

    def _save(self, sae: SAE) -> None:
        if self.out is not None:
            self.table.write(self.out / "metrics.parquet")
            sae.save(self.out)


def _from(batches: Iterable[Batch], start: int, ranks: Ranks) -> Iterator[Batch]:
    """The batches from step ``start`` on: asked for where the iterable can, skipped otherwise; this process's share
    where it deals them.
    """
    share_of_batches = getattr(batches, "share", None)
    if share_of_batches is not None and ranks.data > 1:
        batches = share_of_batches(ranks.data_rank, ranks.data)
    starting_at = getattr(batches, "starting_at", None)
    if starting_at is not None:
        return iter(starting_at(start))
    return itertools.islice(iter(batches), start, None)


def _rows_of(batch: Batch, name: str) -> tuple[Tensor | LocalRows, Tensor | None]:
    batch_of_name = batch[name] if isinstance(batch, Mapping) else batch
    return batch_of_name if isinstance(batch_of_name, tuple) else (batch_of_name, None)


def _about(metadata: Mapping[str, Any], name: str, names: Iterable[str]) -> dict[str, Any]:
    """What holds for all, and what ``metadata[name]`` says of this one."""
    return {k: v for k, v in metadata.items() if k not in set(names)} | dict(metadata.get(name, {}))


def train(
    config: TrainingConfig,
    batches: Iterable[Batch],
    *,
    total_steps: int,
    out: str | Path | None = None,
    resume: str | Path | bool | None = None,
    **options: Any,
) -> SAE:
    """Train one dictionary on ``total_steps`` batches of raw rows and return it folded: raw activations in and out.

    Args, Raises: see :func:`train_many`, which this calls with one config; ``options`` are its other arguments.
    """
    return train_many({"": config}, batches, total_steps=total_steps, out=out, resume=resume, **options)[""]


def train_many(
    configs: Mapping[str, TrainingConfig],
    batches: Iterable[Batch],
    *,
    total_steps: int,
    out: str | Path | None = None,
    resume: str | Path | bool | None = None,
    device: str = "cpu",
    metadata: Mapping[str, Any] | None = None,
    checkpoint_every: int | None = None,
    checkpoint_series: Sequence[int] = (),
    log_every: int = 10,
    loggers: Sequence[Logger] = (),
    progress: bool | None = None,
    ranks: Ranks = SINGLE_PROCESS,
) -> dict[str, SAE]:
    """Train several dictionaries (a k sweep, seeds, sites) from one pass over the data; names to folded dictionaries.

    Args:
        configs: what to train, by name. Each comes out exactly as if trained alone.
        batches: any iterable of tensors [B, d_in]; of pairs (rows, keep [B] bool); or, for several sites, of mappings
            from name to either. One with ``.starting_at(step)`` is asked for its later part on resume, others are
            skipped through.
        out: folder for ``cfg.json``, ``sae_weights.safetensors``, ``metrics.parquet`` and ``checkpoints/``, a
        sub-folder per name.
        resume: a checkpoint, a folder of them, or True for those in ``out``. Where there is none, training starts at
        step 0.
        metadata: plain values for ``cfg.json`` (model_name, hook_name, ...); those of one dictionary under its name.
        checkpoint_every: steps between checkpoints for resuming; None = a tenth of the run. Two are kept.
        checkpoint_series: steps whose checkpoints are kept for good, e.g. ``sae.checkpoint.log_spaced(total_steps)``.
        progress: show a bar; None = where standard error is a terminal.
        ranks: the processes that train together (see :mod:`sae.parallel`). All call this with the same arguments and
            get the same dictionaries; the leader alone writes and tells. Batches that have ``.share(part, parts)`` are
            asked for this process's :class:`sae.rows.Share` of each, of others it takes its rows. The number of
            processes may change between runs.

    Raises:
        UserError: the batches end early. MismatchError: the checkpoint to resume is another run's; the message names
            what differs. ConfigError, NonFiniteError, OutOfSpace: see :meth:`sae.trainer.Trainer.step`;
            the last good checkpoint stays.
    """
    from sae.progress import Progress

    device = str(ranks.device) if ranks.world > 1 else device  # of several GPUs this process's own
    folder = None if out is None else Path(out)
    runs = [
        _Run(n, c, total_steps, folder and folder / n, device, _about(metadata or {}, n, configs), ranks, batches)
        for n, c in configs.items()
    ]
    source = folder if resume is True else Path(resume) if resume else None
    if resume is True and folder is None:
        raise ConfigError("resume = True needs out, the folder that holds the checkpoints.")
    if source is not None and resume is not True and not source.exists():
        raise MissingError(f"{source} does not exist: nothing to resume from.")
    done = [r.resume(source / r.name if source else None) for r in runs]
    every, series = checkpoint_every or max(1, total_steps // 10), set(checkpoint_series)

    begin = min(done)
    stream = on_device(_from(batches, begin, ranks), device)
    show = ranks.is_rank_zero and (sys.stderr.isatty() if progress is None else progress)
    with Progress(runs[0].trainer, total_steps, begin, show=show) as bar:
        for step in range(begin, total_steps):
            batch = ranks.run_everywhere(lambda: next(stream, None))
            if batch is None:
                raise UserError(
                    f"the batches ended after {step} of {total_steps} steps. Ask for fewer steps, or give more rows"
                    " (more text, or epochs)."
                )
            for run in runs:
                if run.trainer.steps_done > step:
                    continue  # its checkpoint was newer than another run's
                report = run.trainer.step(*_rows_of(batch, run.name))
                if step % log_every == 0 or step == total_steps - 1:
                    row = report.row() | {"rows_seen": float(run.trainer.rows_seen)}
                    run.table.add(row)
                    write_row(loggers if ranks.is_rank_zero else (), run.name or "sae", row)
                    bar.show(row)
                if (step + 1) % every == 0 or step + 1 in series or step + 1 == total_steps:
                    run.checkpoint(series)
            bar.advance(report.rows)
    return {r.name: r.finish() for r in runs}
