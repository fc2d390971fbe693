"""Where this process stands among several that train one dictionary, and the few things they ask of each other.

Processes form a mesh of ``data x latents``. Along *data* each has its part of every batch and gradients are summed;
along *latents* each has its part of the dictionary: d_sae / latents consecutive latents, with their optimiser state.
The kept latents of a row are the exact k best of all parts. A single process is the mesh 1 x 1
(:data:`SINGLE_PROCESS`), where every method returns its argument: the code that trains reads, and computes, the same.

Gradients: :meth:`Ranks.all_reduce_data` and :meth:`Ranks.all_reduce_latents` hand the gradient of a sum to each summand
unchanged, since every process differentiates the same loss. Parameters that all processes hold receive their parts on
several of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from sae.errors import ConfigError, UserError

T = TypeVar("T")
Op = Literal["sum", "max"]
PATIENCE = timedelta(hours=6)  # one process measures and writes while the others wait
GO_ON = "The last checkpoint is whole: run the same command again, with as many processes as you like."
NOT_BEGUN = "Nothing was trained or written: see what that process says, and run the same command again."


class ProcessLost(UserError):
    """Another process of this run is gone."""


def per_latent(name: str) -> bool:
    """Whether a tensor of a model has one row per latent, by its name: ``b_enc``, and those whose axes begin with F."""
    return name == "b_enc" or name.rpartition("_")[2].startswith("F")


class Ranks:
    """This process in a mesh of ``data`` x ``latents`` processes; see the module.

    Attributes:
        data, latents: processes along either axis. data_rank, latents_rank: this one's place.
        leader: whether this one prints, logs and writes.
    """

    def __init__(self, mesh: Any = None):
        self.mesh = mesh
        sizes, place = ((1, 1), (0, 0)) if mesh is None else (tuple(mesh.shape), tuple(mesh.get_coordinate()))
        self.data, self.latents = int(sizes[0]), int(sizes[1])
        self.data_rank, self.latents_rank = int(place[0]), int(place[1])
        self.world = self.data * self.latents
        self.is_rank_zero = self.data_rank == 0 and self.latents_rank == 0

    def __str__(self) -> str:
        return f"data {self.data} x latents {self.latents}"

    # --- who has what --------------------------------------------------------------------------------------------

    def local_slice(self, n_latents: int) -> slice:
        """The latents of this process.

        Raises:
            ConfigError: they cannot be dealt evenly.
        """
        if n_latents % self.latents:
            raise ConfigError(
                f"d_sae = {n_latents} latents cannot be divided evenly among {self.latents} processes. Choose a"
                f" multiple of {self.latents}."
            )
        width = n_latents // self.latents
        return slice(self.latents_rank * width, (self.latents_rank + 1) * width)

    def local(self, wanted: slice, n_latents: int) -> slice:
        """Where the latents ``wanted`` lie in this process's part; an empty slice where they do not."""
        mine = self.local_slice(n_latents)
        start, stop = max(wanted.start or 0, mine.start), min(wanted.stop, mine.stop)
        return slice(start - mine.start, max(start, stop) - mine.start)

    # --- what is asked -------------------------------------------------------------------------------------------

    def all_reduce_data(self, t: Tensor) -> Tensor:
        """The sum over the parts of the batch; differentiable."""
        return t if self.data == 1 else _Sum.apply(t, self, 0)

    def all_reduce_latents(self, t: Tensor) -> Tensor:
        """The sum over the parts of the dictionary; differentiable."""
        return t if self.latents == 1 else _Sum.apply(t, self, 1)

    def all_reduce(self, t: Tensor) -> Tensor:
        """The sum over all processes; not differentiable."""
        return t if self.world == 1 else self.reduce(self.reduce(t.detach(), 0), 1)

    def all_reduce_max_data(self, t: Tensor) -> Tensor:
        """The largest over the parts of the batch."""
        return t if self.data == 1 else self.reduce(t, 0, "max")

    def all_reduce_max(self, t: Tensor) -> Tensor:
        """The largest over all processes."""
        return t if self.world == 1 else self.reduce(self.reduce(t, 0, "max"), 1, "max")

    def offset(self, n: int) -> tuple[int, int]:
        """(global length, offset of this shard) of a list that is spread over the processes of the latents axis.

        Args:
            n: entries of the list on this process.
        """
        if self.latents == 1:
            return n, 0
        counts = self.gather_latents(torch.tensor([n], device=self.device)).flatten().tolist()
        return sum(counts), sum(counts[: self.latents_rank])

    def gather_data(self, t: Tensor) -> Tensor:
        """[data, ...]: this tensor, of one shape everywhere, from every part of the batch."""
        return t[None] if self.data == 1 else self._gather(t, 0)

    def gather_latents(self, t: Tensor) -> Tensor:
        """[latents, ...]: this tensor, of one shape everywhere, from every part of the dictionary."""
        return t[None] if self.latents == 1 else self._gather(t, 1)

    def all_gather(self, t: Tensor) -> Tensor:
        """A tensor with one row per latent, put together from all parts."""
        return t if self.latents == 1 else self.gather_latents(t).flatten(0, 1)

    def global_top_k(self, scores_BK: Tensor, k: int) -> Tensor:
        """[B, K] bool: which of this part's candidates are among the ``k`` best of a row's candidates in all parts.

        Every part gives its own k best, or all it has; so nothing is approximated. Of equal scores the lower latent
        wins.
        """
        rows, width = scores_BK.shape
        everyone = self.gather_latents(scores_BK).transpose(0, 1).reshape(rows, self.latents * width)
        least = torch.topk(everyone, k, dim=1).values[:, -1:]
        above, tied = everyone > least, everyone == least
        kept = above | (tied & (tied.cumsum(1) <= k - above.sum(1, keepdim=True)))
        return kept[:, self.latents_rank * width : (self.latents_rank + 1) * width]

    def raise_everywhere(self, problem: UserError | None) -> None:
        """Raise one process's problem in all of them, so that none waits for the others in vain.

        Raises:
            UserError: ``problem``, or that of the first process that has one.
        """
        if self.world > 1:
            import torch.distributed as dist

            found: list[tuple[type[UserError], str] | None] = [None] * self.world
            if int(self.all_reduce(torch.tensor([problem is not None], device=self.device, dtype=torch.int64))):
                with reraise_as_process_lost():
                    dist.all_gather_object(found, problem and (type(problem), str(problem)))
            first = next((f for f in found if f is not None), None)
            if problem is None and first is not None:
                problem = first[0].__new__(first[0])
                problem.args, problem.said_elsewhere = (first[1],), True  # type: ignore[attr-defined]
        if problem is not None:
            raise problem

    def run_everywhere(self, action: Callable[[], T]) -> T:
        """What ``action`` returns, once it has succeeded in every process.

        Raises:
            UserError: that of the first process in which it failed.
        """
        try:
            result, problem = action(), None
        except UserError as e:
            result, problem = None, e
        self.raise_everywhere(problem)
        return result  # type: ignore[return-value]

    def broadcast(self, value: Any) -> Any:
        """Rank zero's ``value``, in every process; all wait for it."""
        if self.world == 1:
            return value
        import torch.distributed as dist

        box = [value]
        with reraise_as_process_lost():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @property
    def device(self) -> torch.device:
        """Where tensors that are exchanged live."""
        if self.mesh is None or self.mesh.device_type == "cpu":
            return torch.device("cpu")
        return torch.device(self.mesh.device_type, torch.accelerator.current_device_index())

    def reduce(self, t: Tensor, axis: int, op: Op = "sum") -> Tensor:
        """A collective over one axis of the mesh (0 data, 1 latents); returns a new tensor, or ``t`` where the axis has
        one process.
        """
        if self.mesh.size(axis) == 1:
            return t
        from torch.distributed import _functional_collectives as collectives

        with reraise_as_process_lost():
            return collectives.wait_tensor(collectives.all_reduce(t.contiguous(), op, (self.mesh, axis)))

    def _gather(self, t: Tensor, axis: int) -> Tensor:
        import torch.distributed as dist

        out = t.new_empty(self.mesh.size(axis), *t.shape)
        with reraise_as_process_lost():
            dist.all_gather_into_tensor(
                out.view(-1, *t.shape[1:]) if t.ndim else out, t.detach().contiguous(), group=self.mesh.get_group(axis)
            )
        return out


class _Sum(torch.autograd.Function):
    """The sum over one axis of the mesh, whose gradient every summand receives as it is."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, ranks: Ranks, axis: int) -> Tensor:
        return ranks.reduce(t, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None, None


SINGLE_PROCESS = Ranks()


def started_together() -> int:
    """Processes that were started together with this one (by torchrun or Slurm); 1 where it runs alone."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def process_mesh(data: int = 0, latents: int = 1, *, device: str = "cpu") -> Iterator[Ranks]:
    """The mesh of the processes that torchrun started: gloo between CPUs, NCCL between GPUs.
    :data:`SINGLE_PROCESS` where there is one process.

    Inside of one ``with process_mesh()`` another may make a mesh of another form; the outer one waits. All processes
    are through making the groups before any goes on, and all have done their work before any leaves in order: the one
    that keeps the others' addresses would take them along.

    Args:
        data, latents: the mesh; ``data = 0`` is as many as there are processes for.
        device: ``cpu`` or ``cuda``; every process of a machine takes its own GPU.

    Raises:
        ConfigError: the mesh is not that of the processes there are. ProcessLost: a process ended while others waited
        for it.

    Example:
        ``with process_mesh() as everyone: recipe = everyone.run_everywhere(read)``, and in it
        ``with process_mesh(recipe.data, recipe.latents) as ranks: …``
    """
    world = started_together()
    data = data or max(1, world // latents)
    if data * latents != world:
        raise ConfigError(
            f"data = {data} times latents = {latents} is not the number of processes, {world}. "
            f"Start torchrun with {data * latents} processes, or change [parallel]."
        )
    if world == 1:
        yield SINGLE_PROCESS
        return
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        raise ConfigError(
            f"device = {device!r}: processes share CPUs or NVIDIA GPUs. Start one process without torchrun."
        )
    if kind != "cpu":
        torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
    began = not dist.is_initialized()
    with reraise_as_process_lost(NOT_BEGUN):
        if began:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
        mesh = init_device_mesh(kind, (data, latents), mesh_dim_names=("data", "latents"))
        barrier()
    try:
        yield Ranks(mesh)
        with reraise_as_process_lost():
            barrier()
    except ProcessLost:
        raise  # taking leave of a broken group could wait for ever
    except BaseException:
        if began:
            dist.destroy_process_group()
        raise
    if began:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait here for all processes; over gloo, whatever device they compute on."""
    import torch.distributed as dist

    dist.all_reduce(torch.zeros(1))


def _reason(e: RuntimeError) -> str:
    """What a network library says happened, without its source lines and its advice."""
    return str(e).splitlines()[0].rpartition("] ")[2].partition(". ")[0][:120]


@contextmanager
def reraise_as_process_lost(then: str = GO_ON) -> Iterator[None]:
    """A process that no longer answers becomes one clear error that says what to do."""
    try:
        yield
    except RuntimeError as e:
        raise ProcessLost(f"another process of this run stopped answering ({_reason(e)}). {then}") from e
