"""The rows that crosscoders of an evolution recipe train on, on their way: from an aligned store, cut up for several
sites, the last of them remembered; and their codes as a sparse matrix.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from sae.errors import UsageError
from sae.rows import LocalRows
from workbench.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.activations import ActivationStore
    from workbench.analysis.evolution.plan import EvolutionPlan
    from workbench.workspace import Workspace


class LastBatches:
    """Batches of rows, of which the last ``n`` that were asked for are remembered in float16; else
    what ``batches`` is.
    """

    def __init__(self, batches: Any, n: int):
        self.batches = batches
        self.last: deque[Tensor] = deque(maxlen=n)

    def __iter__(self) -> Iterator[Tensor]:
        return self._from(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)

    def starting_at(self, step: int) -> Iterator[Tensor]:
        """The same from ``step`` on."""
        return self._from(self.batches.starting_at(step))

    def _from(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        for x in batches:
            self.last.append(x.half())
            yield x

    def rows(self, steps: int) -> Iterator[Tensor]:
        """The last ``n`` of ``steps`` batches; those that an interrupted run saw before it was resumed
        are made again.
        """
        assert self.last.maxlen is not None
        if len(self.last) < self.last.maxlen:
            self.last.extend(
                x.half() for x in itertools.islice(self.batches.starting_at(steps - self.last.maxlen), self.last.maxlen)
            )
        return (x.float() for x in self.last)


class Columns:
    """Batches of rows cut up by columns: of each a mapping from name to its part."""

    def __init__(self, batches: Any, columns: dict[str, slice]):
        self.batches, self.columns = batches, columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._cut(self.batches)

    def starting_at(self, step: int) -> Iterator[dict[str, Any]]:
        """The same from ``step`` on."""
        return self._cut(self.batches.starting_at(step))

    def contract(self) -> dict[str, Any]:
        """All that decides the rows; of one training the columns follow from its configuration."""
        return dict(self.batches.contract())

    def share(self, part: int, parts: int) -> Columns:
        """The part of the ``part``-th of ``parts`` processes, of which nothing is remembered."""
        return Columns(self.batches.share(part, parts), self.columns)

    def _cut(self, batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
        for x in batches:
            whole = x.rows if isinstance(x, LocalRows) else x
            parts = {name: whole[:, columns] for name, columns in self.columns.items()}
            yield {n: replace(x, rows=p) for n, p in parts.items()} if isinstance(x, LocalRows) else parts


def aligned_store(plan: EvolutionPlan, workspace: Workspace, run: Run) -> ActivationStore:
    """The plan's store; where the workspace lacks it, it is harvested from the plan's own sources, site and text.

    Raises:
        UsageError: sources at different sites (a store is read at one hook here).
    """
    from workbench.activations import ActivationStore, HarvestRecipe, harvest
    from workbench.activations.harvesting.recipe import SourceRecipe

    recipe = plan.recipe
    hooks = {s.hook for s in plan.sources}
    if len(hooks) > 1:
        raise UsageError(
            f"sources at {', '.join(sorted(hooks))}: a store serves one of them at a time. Leave out store to run the"
            " models instead."
        )
    if not workspace.complete("stores", recipe.store):
        run.say(f"harvesting store {recipe.store!r} of {len(plan.sources)} sources")
        sources = tuple(SourceRecipe(model=s.model, revision=s.revision, name=s.name) for s in plan.sources)
        wanted = HarvestRecipe(
            id=recipe.store,
            sources=sources,
            hooks=(plan.sources[0].hook,),
            corpus=recipe.corpus,
            n_seq=recipe.n_seq,
            ctx=recipe.ctx,
            dtype="bfloat16",
            threads=recipe.threads or 1,
        )
        harvest(wanted, workspace, run=run)
    return ActivationStore.open(workspace.get("stores", recipe.store).path)


def store_batches(plan: EvolutionPlan, store: ActivationStore) -> tuple[Any, list[int]]:
    """Shuffled batches of an aligned store and its widths.

    Sources are matched by model and the revision they resolve to.
    """
    from workbench.models.load import resolve_revision

    recipe, hook = plan.recipe, plan.sources[0].hook
    there = {(s.model, resolve_revision(s.model, s.revision)): s.name for s in store.spec.sources}
    missing = [s.name for s in plan.sources if (s.model, s.revision) not in there]
    if missing:
        raise UsageError(
            f"store {recipe.store!r} has no source for {', '.join(missing)} (it has {', '.join(store.sources)})"
        )
    names = [there[s.model, s.revision] for s in plan.sources]
    widths = [store.width(hook, n) for n in names]
    return store.batches(hook, recipe.batch_size, seed=recipe.seed, source=names), widths


def to_csr(values: Tensor, indices: Tensor, n_latents: int) -> sparse.csr_array:
    """Kept latents (values, indices) [n, K] as a sparse matrix [n, F] without its zeros."""
    n, K = values.shape
    row = np.repeat(np.arange(n), K)
    v = values.reshape(-1).numpy()
    on = v > 0
    return sparse.csr_array((v[on], (row[on], indices.reshape(-1).numpy()[on])), shape=(n, n_latents))
