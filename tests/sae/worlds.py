"""Several processes on this machine that train together, and what they and a single process come to."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae.parallel import ALONE, Ranks, together
from sae.trainer import Trainer

CONTEXT = multiprocessing.get_context("fork")


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _one(rank: int, world: int, port: int, task: Callable[[Callable[..., Any]], Any], out: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    import torch.distributed as dist

    try:
        dist.init_process_group("gloo")
        result = task(together)
        torch.save(result, out / f"{rank}.pt")
        os._exit(0)  # a group of which one is gone could not be left in order
    except BaseException:
        (out / f"{rank}.txt").write_text(traceback.format_exc())
        os._exit(1)


def in_processes(world: int, task: Callable[[Callable[..., Any]], Any], out: Path, *, killed: int = -1) -> list[Any]:
    """What ``task(together)`` returns in each of ``world`` processes; process ``killed`` is expected to die of SIGKILL."""
    out.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = [CONTEXT.Process(target=_one, args=(rank, world, port, task, out)) for rank in range(world)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(120)
    for p in processes:
        if p.is_alive():
            p.kill()
    problems = [f.read_text() for f in sorted(out.glob("*.txt"))]
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


def trained(config: Any, steps: int, ranks: Ranks = ALONE, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """All that a run comes to: training state (whole), folded weights, and every report."""
    trainer = Trainer(config, total_steps=steps, ranks=ranks)
    reports, revived, revive = [], [], trainer.model.revive
    trainer.model.revive = lambda latents, *rest: (revived.append(len(latents)), revive(latents, *rest))  # type: ignore[assignment]
    for step in range(steps):
        keep = torch.arange(48) % 11 != 3 if step % 3 == 1 else None
        reports.append(trainer.step(rows(step, trainer.model.row_width, dtype=dtype), keep).row())
    tensors, plain = trainer.state()
    folded = {f"folded.{n}": t for n, t in trainer.dictionary().state_dict().items()}
    return {"tensors": {**{n: t.clone() for n, t in tensors.items()}, **folded}, "plain": plain, "reports": reports, "revived": revived}
