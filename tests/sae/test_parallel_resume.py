"""Checkpoints of any number of processes, continued by another; a process that dies; problems that all must hear of."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae import TopKConfig, checkpoint, train
from sae.errors import ConfigError, NonFiniteError, UserError
from sae.parallel import SINGLE_PROCESS, ProcessLost, Ranks, process_mesh
from tests.sae.worlds import in_processes, rows

STEPS, WIDTH = 16, 12
CONFIG = TopKConfig(d_in=WIDTH, d_sae=32, k=3, lr=2e-2, dead_after=40, aux_every=2, dtype="float64", warmup_steps=3)


class Batches:
    """A pure function of the step; kills or poisons where it is told to."""

    def __init__(self, start: int = 0, *, kill: int = -1, poison: int = -1):
        self.start, self.kill, self.poison = start, kill, poison

    def __iter__(self) -> Iterator[Tensor]:
        for step in range(self.start, 1000):
            if step == self.kill and os.environ.get("RANK") == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            x = rows(step, WIDTH)
            if step == self.poison:
                x[-1, 0] = torch.nan  # among the rows of the last process
            yield x

    def starting_at(self, step: int) -> Batches:
        return Batches(step, kill=self.kill, poison=self.poison)


def run(out: Path, ranks: Ranks = SINGLE_PROCESS, batches: Batches | None = None, config: TopKConfig = CONFIG) -> None:
    train(
        config,
        batches or Batches(),
        total_steps=STEPS,
        out=out,
        resume=True,
        checkpoint_every=4,
        log_every=1,
        ranks=ranks,
    )


def result(out: Path) -> dict[str, Tensor]:
    _, tensors, _ = checkpoint.newest(out / "checkpoints") or (None, {}, None)
    return tensors


def lost(out: Path, mesh: tuple[int, int]) -> Any:
    """A task whose process 1 dies in step 9; the others say what they make of it."""

    def task(process_mesh: Any) -> str:
        try:
            with process_mesh(*mesh) as ranks:
                run(out, ranks, Batches(kill=9))
        except ProcessLost as e:
            return str(e)
        return "no complaint"

    return task


@pytest.mark.faults
@pytest.mark.parametrize(("mesh", "then"), [((2, 1), (1, 1)), ((1, 2), (2, 2)), ((2, 2), (2, 1))], ids=str)
def test_a_killed_process_leaves_a_checkpoint_that_any_number_continues(mesh, then, tmp_path):
    torch.set_num_threads(1)
    run(tmp_path / "whole")
    out = tmp_path / "out"
    said = in_processes(mesh[0] * mesh[1], lost(out, mesh), tmp_path / "first", killed=1)
    assert all("stopped answering" in s and "run the same command again" in s for s in said)
    found = checkpoint.newest(out / "checkpoints")
    assert found is not None and found[0].name == "step_00000008" and not list((out / "checkpoints").glob(".*"))

    if then == (1, 1):
        run(out)
    else:
        in_processes(then[0] * then[1], lambda process_mesh: _go_on(process_mesh, then, out), tmp_path / "second")
    want, got = result(tmp_path / "whole"), result(out)
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=1e-8, atol=1e-8, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert (out / "cfg.json").read_bytes() == (tmp_path / "whole" / "cfg.json").read_bytes()


def _go_on(process_mesh: Any, mesh: tuple[int, int], out: Path) -> None:
    with process_mesh(*mesh) as ranks:
        run(out, ranks)


@pytest.mark.parametrize(
    ("mesh", "change", "poison", "words"),
    [
        ((2, 1), {}, 0, "hold NaN"),
        ((2, 1), {}, 5, "hold NaN"),
        ((1, 2), {}, 5, "hold NaN"),
        ((1, 2), {"d_sae": 33}, None, "divided evenly among 2 processes"),
    ],
)
def test_one_bad_row_or_width_stops_all_with_the_same_words(tmp_path, mesh, change, poison, words):
    batches = Batches() if poison is None else Batches(poison=poison)

    def task(process_mesh: Any) -> str:
        with process_mesh(*mesh) as ranks:
            try:
                run(tmp_path / "run", ranks, batches, CONFIG.model_copy(update=change))
            except UserError as e:
                return f"{type(e).__name__}: {e}"
        return "nothing was wrong"

    first, second = in_processes(2, task, tmp_path / "world")
    assert first == second and words in first
    assert first.startswith((ConfigError if change else NonFiniteError).__name__)


def _appears(path: Path, within: float = 1.0) -> bool:
    """Whether a file is made in this time: how long the other process is given to run ahead, as it must not."""
    end = time.monotonic() + within
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return path.exists()


def test_none_goes_on_before_all_have_made_the_groups_and_none_leaves_before_all_are_done(tmp_path):
    """The process that keeps the addresses must not end while another still asks for them (a config error once came
    that early).
    """

    def task(process_mesh: Any) -> list[bool]:
        import torch.distributed.device_mesh as device_mesh

        first, make = os.environ["RANK"] == "0", device_mesh.init_device_mesh

        def slowly(*args: Any, **options: Any) -> Any:
            mesh = make(*args, **options)
            if not first:
                _appears(tmp_path / "first is in")
                (tmp_path / "second is in").touch()
            return mesh

        device_mesh.init_device_mesh = slowly
        try:
            with process_mesh(1, 2):
                seen = [(tmp_path / "second is in").exists()]
                if first:
                    (tmp_path / "first is in").touch()
                else:
                    _appears(tmp_path / "first is out")
                    (tmp_path / "second is done").touch()
            seen.append((tmp_path / "second is done").exists())
            if first:
                (tmp_path / "first is out").touch()
        finally:
            device_mesh.init_device_mesh = make
        return seen

    assert in_processes(2, task, tmp_path / "world") == [[True, True], [True, True]]


def test_what_one_cannot_read_is_told_by_all_before_there_is_a_mesh(tmp_path):
    """As ``workbench train`` reads its recipe: the file may be missing on one machine."""

    def task(process_mesh: Any) -> list[str]:
        said = []
        for problem in (None, ConfigError("recipe.toml does not exist.")):
            try:
                with process_mesh() as everyone:
                    sizes = everyone.run_everywhere(
                        lambda problem=problem: _sizes(problem if everyone.data_rank else None)
                    )
                    with process_mesh(*sizes) as ranks:
                        said.append(str(ranks))
            except ConfigError as e:
                said.append(str(e))
        return said

    said = in_processes(2, task, tmp_path / "world")
    assert said == [["data 1 x latents 2", "recipe.toml does not exist."]] * 2


def _sizes(problem: UserError | None) -> tuple[int, int]:
    if problem is not None:
        raise problem
    return 1, 2


def test_the_harness_says_which_process_failed_and_why(tmp_path):
    def task(process_mesh: Any) -> None:
        with process_mesh() as ranks:
            if ranks.data_rank:
                raise ValueError("words of the second")

    with pytest.raises(AssertionError, match=r"(?s)process 1: .*words of the second"):
        in_processes(2, task, tmp_path / "world")


def test_a_mesh_must_fit_the_processes(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with process_mesh() as ranks:
        assert ranks is SINGLE_PROCESS
    with pytest.raises(ConfigError, match="data = 2 times latents = 2 is not the number of processes, 1"):
        with process_mesh(2, 2):
            pass


def test_float32_first_step_selects_the_same_latents(tmp_path):
    config = TopKConfig(d_in=WIDTH, d_sae=64, k=4)
    alone = _first(config, SINGLE_PROCESS)
    for mesh in ((2, 1), (1, 2)):
        each = in_processes(
            2, lambda process_mesh, mesh=mesh: _meshed(process_mesh, mesh, config), tmp_path / f"{mesh[0]}"
        )
        for got in each:
            assert got["loss"] == pytest.approx(alone["loss"], rel=1e-5)
            assert torch.equal(got["kept"], alone["kept"])


def _meshed(process_mesh: Any, mesh: tuple[int, int], config: TopKConfig) -> dict[str, Any]:
    with process_mesh(*mesh) as ranks:
        return _first(config, ranks)


def _first(config: TopKConfig, ranks: Ranks) -> dict[str, Any]:
    """Loss of the first steps, and the latents kept of every row in the second."""
    from sae.trainer import Trainer

    trainer, seen = Trainer(config, total_steps=10, ranks=ranks), []
    inner = trainer.model.reconstruct

    def reconstruct(read: Tensor, plan: Any, *rest: Any) -> Any:
        out = inner(read, plan, *rest)
        seen.append((out[2].detach(), out[3], plan))
        return out

    trainer.model.reconstruct = reconstruct  # type: ignore[method-assign]
    losses = [trainer.step(rows(step, WIDTH, dtype=torch.float32)).row()["loss"] for step in range(3)]
    values, indices, _ = seen[1]
    kept = torch.zeros(len(values), config.d_sae // ranks.latents, dtype=torch.int64).scatter_add_(
        1, indices, (values > 0).long()
    )
    mine = torch.zeros(len(kept), config.d_sae, dtype=torch.int64)
    mine[:, ranks.local_slice(config.d_sae)] = kept
    total = ranks.all_reduce_latents(mine)
    n = int(ranks.all_reduce_max_data(torch.tensor(len(total))))
    everyone = ranks.gather_data(torch.nn.functional.pad(total, (0, 0, 0, n - len(total)), value=-1)).flatten(0, 1)
    return {"loss": losses, "kept": everyone[everyone[:, 0] >= 0]}
