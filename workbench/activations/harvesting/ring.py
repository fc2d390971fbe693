"""Training without keeping the store: a bounded ring of shards, made just before they are read and removed after.

A shard is a pure function of the plan, so it can be made again whenever it is needed. Rows are shuffled within windows
of shards; the batches are the very ones that ``ActivationStore.batches(…, window=W)`` gives on the complete store.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import UntrustedFile, UsageError
from workbench.activations.disk import calls as disk
from workbench.activations.disk.locks import Lock
from workbench.activations.format.errors import ShardCorrupt, StoreBusy
from workbench.activations.format.shard import SHARDS, open_shard
from workbench.activations.format.spec import StoreSpec
from workbench.activations.read.batches import Batches
from workbench.activations.read.pool import ShardPool
from workbench.activations.read.shuffle import EpochOrder
from workbench.activations.read.store import ActivationStore
from workbench.activations.write.fill import joined, missing, write_plan_if_missing
from workbench.activations.write.writer import Producer, write_shard


class StreamingStore(ActivationStore):
    """A store of which at most ``capacity`` shards exist at a time; use it as a context manager.

    Rows, sequences and batches are read as from any store; a shard that is not there is made on the spot. One iteration
    of batches is active at a time: a new one ends the one before.
    """

    def __init__(
        self,
        folder: Path,
        spec: StoreSpec,
        tokens: np.ndarray,
        producer: Producer,
        *,
        capacity: int,
        **plan: np.ndarray | None,
    ):
        if spec.non_finite != "refuse":
            raise UsageError(
                "non_finite = 'skip-sequence' needs a store on disk: a stream fixes the order of its rows before the"
                " model gives them, so it cannot leave sequences out. Leave non_finite out."
            )
        if capacity < 2:
            raise UsageError(
                f"a stream needs room for at least 2 shards (files of rows), not {capacity}: one is read while the"
                " next is made."
            )
        super().__init__(Path(folder), spec, None)
        self.tokens_plan, self.producer, self.capacity = tokens, producer, capacity
        self._more = plan
        self._joined: Any = None
        self._lock: Lock | None = None
        self._session: _Session | None = None
        self._ring_pool = _MakingPool(self)

    @classmethod
    def from_recipe(cls, recipe: Any, workspace: Any, *, capacity: int, plan: Any = None) -> StreamingStore:
        """A stream of a :class:`~workbench.activations.HarvestRecipe`; it lives where its store would."""
        from workbench.activations.harvesting.forward import ModelProducer
        from workbench.activations.harvesting.run import prepare, with_ids

        recipe = with_ids(recipe, workspace)
        spec, plan, models = prepare(recipe, plan)
        producer = ModelProducer(spec, plan.tokens, models, device=recipe.device)
        return cls(
            workspace.new_path("stores", recipe.id),
            spec,
            plan.tokens,
            producer,
            capacity=capacity,
            doc_ids=plan.doc_ids,
            kinds=plan.kinds,
            rows=plan.rows,
        )

    def __enter__(self) -> StreamingStore:
        self._joined = joined(self.path, self.spec)
        self._joined.__enter__()
        try:
            write_plan_if_missing(
                self.path,
                self.spec,
                self.tokens_plan,
                self._more.get("doc_ids"),
                self._more.get("kinds"),
                self._more.get("rows"),
            )
            self._lock = Lock(self.path / "RING")
            if not self._lock.take(exclusive=True):
                marks = self._lock.others()
                hint = f" If that process is dead, remove {', '.join(marks)} there." if marks else ""
                raise StoreBusy(f"{self.path} is being streamed by another process. Give this stream another id.{hint}")
            self._forget_all_but_good()
        except BaseException as e:
            self.__exit__(type(e), e, None)
            raise
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._session:
            self._session.close()
        self.pool.close()
        if self._lock is not None:
            self._lock.close()
        self._joined.__exit__(*exc)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a stream belongs to the process that makes its shards and cannot be sent to another")

    @property
    def pool(self) -> ShardPool:
        """Open shards; missing ones are made. (A fork inherits the right to read, not the maker.)"""
        return self._ring_pool

    def _window(self, window: int) -> int:
        window = window or self.capacity // 2
        if window > self.capacity // 2:
            raise UsageError(
                f"window = {window} shards needs room for {2 * window}, this stream has {self.capacity}: raise its"
                " capacity, or lower window; one window is read while the next is made."
            )
        return window

    def _watched(self, batches: Batches) -> Batches:
        return replace(batches, on_group=self._consumed)

    def make(self, index: int) -> None:
        """Make one shard now, if it is not there."""
        if not (self.path / SHARDS / self.spec.shard_name(index)).exists():
            write_shard(self.path, self.spec, index, self.tokens_plan, self.producer, rows=self._more.get("rows"))

    def drop(self, index: int) -> None:
        """Remove one shard."""
        self._ring_pool.forget(index)
        disk.remove(self.path / SHARDS / self.spec.shard_name(index))

    def present(self) -> list[int]:
        """Shards that are on the disk now."""
        return sorted(set(range(self.spec.n_shards)) - set(missing(self.path, self.spec)))

    def _begin(self, batches: Batches) -> ShardPool:
        if self._session:
            self._session.close()
        self._session = _Session(self, batches)
        return self._ring_pool

    def _consumed(self, epoch: int, group: int) -> None:
        if self._session:
            self._session.consumed(epoch, group)

    def _forget_all_but_good(self) -> None:
        for index in self.present():
            try:
                open_shard(self.path, self.spec, index).close()
            except (ShardCorrupt, UntrustedFile):
                self.drop(index)
        for index in self.present()[self.capacity :]:
            self.drop(index)


class _MakingPool(ShardPool):
    """A pool that asks for missing shards before it opens them."""

    def __init__(self, store: StreamingStore):
        super().__init__(store.path, store.spec, None)
        self.store = store
        self.capacity = max(self.capacity, store.capacity)

    def get(self, index: int) -> Any:
        """See :meth:`ShardPool.get`."""
        session = self.store._session
        if session is not None and session.expects(index):
            session.wait_for(index)
        else:
            self.store.make(index)
        return super().get(index)

    def forget(self, index: int) -> None:
        """Let go of a shard that is about to be removed."""
        with self._mutex:
            self._open.pop(index, None)
            self._proven.pop(index, None)


class _Session:
    """One iteration over the stream: a thread makes shards in the order of their windows, at most ``capacity`` at a
    time.
    """

    def __init__(self, store: StreamingStore, batches: Batches):
        self.store = store
        self.change = threading.Condition()
        self.held: Counter[int] = Counter()  # windows made and not yet consumed that need a shard
        self.windows: list[tuple[int, int, list[int]]] = []  # (epoch, last group, shards) made or being made
        self.made: set[int] = set()
        self.error: BaseException | None = None
        self.closed = False
        self.plan = _windows(batches)
        self.spare = set(store.present())
        self.thread = threading.Thread(target=self._run, name="store-ring", daemon=True)
        self._announce()
        self.thread.start()

    def expects(self, index: int) -> bool:
        """Whether the maker has this shard on its list."""
        with self.change:
            return not self.closed and self.held[index] > 0

    def wait_for(self, index: int) -> None:
        """Wait until the maker has made a shard.

        Raises:
            whatever stopped the maker.
        """
        with self.change:
            while index not in self.made:
                if self.error is not None:
                    raise self.error
                if self.closed:
                    raise UsageError(
                        "a stream is read by one loop at a time, and a newer one ended this. Use the newer one, or"
                        " give each its own stream."
                    )
                self.change.wait(0.5)

    def consumed(self, epoch: int, group: int) -> None:
        """A group was read to its end: if its window is done, its shards are let go and the next window is begun."""
        with self.change:
            if not self.windows or self.windows[0][:2] != (epoch, group):
                return
            done = self.windows.pop(0)[2]
            self.held.subtract(done)
            self._announce()  # first, so that a shard the next window needs again is kept
            for index in done:
                if self.held[index] <= 0:
                    del self.held[index]
                    self.made.discard(index)
                    self.store.drop(index)
            self.change.notify_all()

    def _announce(self) -> None:
        """Put windows on the list while they fit into the ring."""
        while len(self.windows) < 2 and (window := next(self.plan, None)) is not None:
            self.windows.append(window)
            self.held.update(window[2])
        for index in [i for i in self.spare if not self.held[i]]:
            self.store.drop(index)
        self.spare = set()

    def _run(self) -> None:
        try:
            while not self.closed:
                with self.change:
                    todo = [i for _, _, shards in self.windows for i in shards if i not in self.made]
                    if not todo:
                        self.change.wait(0.5)
                        continue
                self.store.make(todo[0])
                with self.change:
                    self.made.add(todo[0])
                    self.change.notify_all()
        except BaseException as e:  # noqa: BLE001 (handed to the reader, which raises it)
            with self.change:
                self.error = e
                self.change.notify_all()

    def close(self) -> None:
        """Stop the maker after the shard it is at."""
        with self.change:
            self.closed = True
            self.change.notify_all()
        self.thread.join()


def _windows(batches: Batches) -> Iterator[tuple[int, int, list[int]]]:
    """(epoch, last group, shards) of every window from the batches' start on."""
    at = batches.start * batches.batch_size
    epoch, row = divmod(at, batches.order.epoch_rows)
    while batches.epochs is None or epoch < batches.epochs:
        order = EpochOrder(batches.order, epoch)
        first = order.group_at(row)
        for last, shards in order.windows():
            if last >= first:
                yield epoch, last, shards
        epoch, row = epoch + 1, 0
