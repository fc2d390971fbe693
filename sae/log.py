"""What a run tells: a table of numbers kept with its checkpoints, a progress bar, and optional loggers."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sae.errors import ConfigError, MissingError
from sae.files import write_bytes

COLUMNS = ("step", "rows", "masked", "loss", "fvu", "l0", "aux", "dead", "k", "lr", "rows_seen", "doubtful")


class Logger(Protocol):
    """Anything that takes a step's numbers."""

    def log(self, name: str, row: dict[str, float]) -> None:
        """``name`` is the dictionary, ``row`` the numbers of COLUMNS."""


class Table:
    """One row per logged step, as float64: it goes into checkpoints and comes back bit for bit."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def add(self, row: dict[str, float]) -> None:
        self.rows.append([row[c] for c in COLUMNS])

    def tensor(self) -> Tensor:
        """[n, len(COLUMNS)] float64."""
        return torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS))

    def restore(self, saved: Tensor) -> None:
        """Take over the rows of a checkpoint.

        Raises:
            ConfigError: they have other columns, written by another version of this program.
        """
        if saved.ndim != 2 or saved.shape[1] != len(COLUMNS):
            raise ConfigError(
                f"the checkpoint's log has shape {tuple(saved.shape)}, this version writes {len(COLUMNS)} columns."
                " Start anew."
            )
        self.rows = saved.tolist()

    def write(self, path: Path) -> None:
        """Write ``metrics.parquet`` atomically. What was not computed (AuxK, doubtful) is absent, not zero."""
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        columns: dict[str, Any] = {}
        for j, name in enumerate(COLUMNS):
            values = [r[j] for r in self.rows]
            whole = name in ("step", "rows", "masked", "dead", "k", "rows_seen", "doubtful")
            columns[name] = pa.array(
                [None if math.isnan(v) else int(v) if whole else v for v in values],
                type=pa.int64() if whole else pa.float64(),
            )
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink)
        write_bytes(path, sink.getvalue())


class TensorBoardLogger:
    """Scalars ``<dictionary>/<column>`` for TensorBoard."""

    def __init__(self, folder: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as e:
            raise MissingError(
                "TensorBoard logging needs the package 'tensorboard'. Install it, or leave the logger out."
            ) from e
        self.writer = SummaryWriter(str(folder))

    def log(self, name: str, row: dict[str, float]) -> None:
        for column, value in row.items():
            if not math.isnan(value):
                self.writer.add_scalar(f"{name}/{column}", value, int(row["step"]))


class WandbLogger:
    """Scalars ``<dictionary>/<column>`` for Weights & Biases (offline unless WANDB_MODE says otherwise)."""

    def __init__(self, project: str, **settings: Any):
        try:
            import wandb
        except ImportError as e:
            raise MissingError("W&B logging needs the package 'wandb'. Install it, or leave the logger out.") from e
        self.run = wandb.init(project=project, **{"mode": os.environ.get("WANDB_MODE", "offline"), **settings})
        self.run.define_metric("*", step_metric="training_step")

    def log(self, name: str, row: dict[str, float]) -> None:
        # W&B's own step must grow with every call; several dictionaries share one training step
        told = {f"{name}/{c}": v for c, v in row.items() if not math.isnan(v)}
        self.run.log(told | {"training_step": int(row["step"])})


def write_row(loggers: Sequence[Logger], name: str, row: dict[str, float]) -> None:
    """Hand a row to every logger."""
    for logger in loggers:
        logger.log(name, row)
