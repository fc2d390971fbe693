"""Several processes on this machine that train together, and what they and a single process come to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from sae.parallel import SINGLE_PROCESS, Ranks, process_mesh
from sae.trainer import Trainer

CONTEXT = multiprocessing.get_context("fork")
PATIENCE = 200  # seconds for all processes of a world; most need two


def _one(
    rank: int, world: int, task: Callable[[Callable[..., Any]], Any], out: Path, parent: Connection, stay: bool
) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    import torch.distributed as dist

    try:
        # a file instead of a server: no port that another program may take, no process that must outlive the others
        dist.init_process_group("gloo", init_method=f"file://{out / 'addresses'}", rank=rank, world_size=world)
        torch.save(task(process_mesh), out / f"{rank}.pt")
        parent.send("done")
        parent.poll(
            PATIENCE if stay else 0
        )  # all leave together: one that leaves early may cut off the last messages of the others
        os._exit(0)  # a group of which one is gone could not be left in order
    except BaseException:
        (out / f"{rank}.txt").write_text(f"process {rank}: {traceback.format_exc()}")
        os._exit(1)


def in_processes(world: int, task: Callable[[Callable[..., Any]], Any], out: Path, *, killed: int = -1) -> list[Any]:
    """What ``task(together)`` returns in each of ``world`` processes; process ``killed`` is expected to die of SIGKILL.

    Then each of the others leaves when it has noticed, as after an error: that is how those hear of it that wait for
    these.
    """
    out.mkdir(parents=True, exist_ok=True)
    pipes = [CONTEXT.Pipe() for _ in range(world)]
    processes = [
        CONTEXT.Process(target=_one, args=(rank, world, task, out, pipes[rank][1], killed < 0)) for rank in range(world)
    ]
    for p in processes:
        p.start()
    busy, end = set(range(world)), time.monotonic() + PATIENCE
    while busy and time.monotonic() < end:
        news = wait([*(processes[n].sentinel for n in busy), *(pipes[n][0] for n in busy)], end - time.monotonic())
        busy = {n for n in busy if processes[n].sentinel not in news and pipes[n][0] not in news}
    for n, p in enumerate(processes):
        if n in busy:
            p.kill()
        pipes[n][0].send("leave")
        p.join()
        for side in pipes[n]:
            side.close()
    problems = [f.read_text() for f in sorted(out.glob("*.txt"))] + [
        f"process {n} was not done in {PATIENCE} s" for n in sorted(busy)
    ]
    assert not problems, "\n".join(problems)
    assert [p.exitcode for p in processes] == [-signal.SIGKILL if rank == killed else 0 for rank in range(world)]
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(world) if rank != killed]


def rows(step: int, width: int, n: int = 48, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """A batch: a pure function of the step, with a few rows far too long."""
    g = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(n, 6, generator=g, dtype=torch.float64) @ torch.randn(
        6, width, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )
    x = x + 0.3 * torch.randn(n, width, generator=g, dtype=torch.float64) + 2
    x[torch.randint(n, (2,), generator=g)] *= 60
    return x.to(dtype)


def trained(
    config: Any, steps: int, ranks: Ranks = SINGLE_PROCESS, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    """All that a run comes to: training state (whole), folded weights, and every report."""
    trainer = Trainer(config, total_steps=steps, ranks=ranks)
    reports, revived, revive = [], [], trainer.model.revive
    trainer.model.revive = lambda latents, *rest: (revived.append(len(latents)), revive(latents, *rest))  # type: ignore[assignment]
    for step in range(steps):
        keep = torch.arange(48) % 11 != 3 if step % 3 == 1 else None
        reports.append(trainer.step(rows(step, trainer.model.row_width, dtype=dtype), keep).row())
    tensors, plain = trainer.state()
    folded = {f"folded.{n}": t for n, t in trainer.dictionary().state_dict().items()}
    return {
        "tensors": {**{n: t.clone() for n, t in tensors.items()}, **folded},
        "plain": plain,
        "reports": reports,
        "revived": revived,
    }
