"""Tasks with prerequisites, dealt to a few processes: each a worker with its own lab, started afresh and ended with the
run.

A task is the name of a shared experiment, or a few claims of one file. What tasks share is in the workspace, written
once and whole, so workers need to tell each other nothing. A worker that loses its parent ends with the task it is at.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from sae.errors import MismatchError, UserError
from workbench.claims.base import Claim
from workbench.claims.lab import BOTH_CORES, SHARED, Lab


@dataclass(frozen=True)
class Task:
    """``experiment``: a shared one to make, or ""; ``claims``: ids to measure, or none. ``after``.

    Names of tasks that come before.
    """

    name: str
    experiment: str = ""
    claims: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    cost: float = 1.0
    alone: bool = False  # uses every core by itself


def tasks_of(claims: Sequence[Claim], *, retrain: bool = False) -> list[Task]:
    """The tasks behind some claims, what is longest to the end first. Claims of one file are one task: they share what
    is in memory.

    Variants are trained with ``retrain`` only.
    """
    tasks: dict[str, Task] = {}

    def need(name: str) -> list[str]:
        what = name.split(" ")[0] if name not in SHARED else name
        if what == "variant" and not retrain:
            return []
        if name not in tasks:
            before, cost = SHARED[what]
            after = tuple(dict.fromkeys(n for b in before for n in need(b)))
            tasks[name] = Task(name, experiment=name, after=after, cost=cost, alone=name in BOTH_CORES)
        return [name]

    files: dict[str, list[Claim]] = {}
    for c in claims:
        files.setdefault(getattr(c.measure, "__module__", c.id), []).append(c)
    for module, group in files.items():
        after = tuple(dict.fromkeys(n for c in group for b in c.needs for n in need(b)))
        tasks[module] = Task(module, claims=tuple(c.id for c in group), after=after, cost=sum(c.cost for c in group))
    left: dict[str, float] = {}

    def to_the_end(name: str) -> float:
        if name not in left:
            left[name] = tasks[name].cost + max(
                (to_the_end(t.name) for t in tasks.values() if name in t.after), default=0.0
            )
        return left[name]

    return sorted(tasks.values(), key=lambda t: (not t.alone, -to_the_end(t.name)))


def run_tasks(tasks: Sequence[Task], lab: Lab, workers: int, done: Callable[[dict[str, Any]], None]) -> None:
    """Work through the tasks; ``done`` is told every claim's document as it is complete.

    A shared experiment that cannot be made leaves it to the claims that need it to say so.

    Raises:
        MismatchError: an experiment they share is there in another size or made otherwise.
        RuntimeError: a worker failed with something other than a :class:`UserError`, or was killed; what was complete
        stays.
    """
    open_, finished = list(tasks), set[str]()
    busy: dict[Any, Task] = {}
    with _started(lab, workers) as pool:
        idle = list(pool)
        while open_ or busy:
            for task in startable(open_, finished, busy, len(idle)):
                free = idle.pop()
                free.send(task)
                busy[free] = task
                open_.remove(task)
            for one in wait(list(busy)):
                pipe: Any = one
                try:
                    kind, what = pipe.recv()
                except (EOFError, OSError):
                    raise RuntimeError(
                        f"the process at work on {busy[pipe].name} was killed; run the same command to go on"
                    ) from None
                if kind == "say":
                    lab.say(what)
                elif kind == "document":
                    done(what)
                elif kind == "refused":
                    raise MismatchError(what)
                elif kind == "failed":
                    raise RuntimeError(f"{busy[pipe].name}:\n{what}")
                else:
                    finished.add(busy.pop(pipe).name)
                    idle.append(pipe)


def startable(tasks: Sequence[Task], finished: set[str], busy: dict[Any, Task], idle: int) -> list[Task]:
    """What may start now, most urgent first.

    A task that wants the machine to itself waits for the others, and they for it.
    """
    if any(t.alone for t in busy.values()):
        return []
    ready = [t for t in tasks if finished.issuperset(t.after)]
    alone = next((t for t in ready if t.alone), None)
    if alone is not None:
        return [] if busy else [alone]
    return ready[:idle]


@contextmanager
def _started(lab: Lab, workers: int) -> Iterator[list[Connection]]:
    """Pipes to ``workers`` fresh processes, ended on the way out."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    about = {
        "workspace": lab.workspace,
        "seeds": lab.seeds,
        "quick": lab.quick,
        "retrain": lab.retrain,
        "replace": lab.replace,
        "threads": lab.threads,
    }
    try:
        for i in range(workers):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, about), name=f"reproduce-{i}")
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        yield pipes
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _serve(pipe: Connection, about: dict[str, Any]) -> None:
    """A worker: tasks come in, lines and documents go out, until the pipe is closed."""
    import torch

    from workbench.claims import all_claims
    from workbench.claims.run import run_claim

    torch.set_num_threads(about["threads"] or torch.get_num_threads())
    lab = Lab(**about, say=lambda line: pipe.send(("say", line)))
    claims = {c.id: c for c in all_claims()}
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            task = pipe.recv()
            try:
                if task.experiment:
                    lab.make(task.experiment)
                for id in task.claims:
                    pipe.send(("document", run_claim(claims[id], lab)))
            except MismatchError as e:
                pipe.send(("refused", str(e)))
                continue
            except UserError as e:
                pipe.send(("say", f"{task.name}: {e}"))
            except (EOFError, BrokenPipeError):
                raise
            except Exception:  # noqa: BLE001 (the parent ends the run and says it)
                pipe.send(("failed", traceback.format_exc()))
                continue
            pipe.send(("finished", task.name))
