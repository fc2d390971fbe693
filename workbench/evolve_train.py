"""The crosscoder of an evolution recipe: its configuration, its rows (online, or an aligned store), its training, by several processes too."""

from __future__ import annotations

import itertools
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError, UsageError
from sae.strict import parse_config
from workbench.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from crosscoders import Crosscoder, CrosscoderConfig
    from sae.parallel import Ranks
    from workbench.activations import ActivationStore
    from workbench.analysis.snapshots import Snapshots, Source
    from workbench.evolve import EvolveRecipe


def crosscoder_config(recipe: EvolveRecipe, sources: list[Source], widths: list[int]) -> CrosscoderConfig:
    """The crosscoder a recipe asks for.

    Raises:
        ConfigError: an unknown preset or key; the nearest is named.
    """
    from crosscoders import CrosscoderConfig, preset

    base = preset(recipe.preset).model_dump(exclude_defaults=True) if recipe.preset else {"dead_after": 50_000}
    values = base | recipe.crosscoder
    values |= {
        "widths": widths,
        "sources": [s.name for s in sources],
        "d_sae": recipe.expansion * widths[0],
        "k": recipe.k,
        "seed": recipe.seed,
    }
    return parse_config(CrosscoderConfig, values, where="[crosscoder]")


def train_crosscoder(
    recipe: EvolveRecipe,
    workspace: Workspace,
    snapshots: Snapshots,
    id: str,
    train_tokens: np.ndarray | None,
    *,
    command: str = "",
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks | None = None,
) -> Crosscoder:
    """The crosscoder of a recipe: read from the workspace where complete, else trained (resuming an interrupted run).

    ``ranks``: the processes that train it together, each of which calls this; None where there is one.
    """
    import sae as sae_room
    from crosscoders import Crosscoder
    from sae.parallel import ALONE
    from sae.refit import refit
    from workbench.analysis.snapshots import OnlineBatches
    from workbench.provenance import Input, write_manifest

    ranks = ranks or ALONE
    folder = workspace.path("dictionaries", id)
    if ranks.tell(workspace.complete("dictionaries", id)):
        return Crosscoder.load(folder)
    inputs: list[Input] = []
    if recipe.store:
        ranks.attempt(lambda: aligned_store(recipe, workspace, snapshots, say) if ranks.leader else None)  # one harvests, all read
        store = ranks.attempt(lambda: aligned_store(recipe, workspace, snapshots, say))
        batches, widths = _from_store(recipe, store, snapshots)
        inputs.append(Input(kind="stores", id=recipe.store, digest=store.digest))
    else:
        assert train_tokens is not None
        widths = snapshots.widths()
        unique = len(train_tokens) * (recipe.ctx - 1)
        batches = OnlineBatches(
            snapshots,
            train_tokens,
            recipe.batch_size,
            seed=recipe.seed,
            group=max(64, recipe.batch_size // 32),
            cache=recipe.tokens > 1.1 * unique,
        )
    config = crosscoder_config(recipe, list(snapshots.sources), widths)
    about = {
        "kind": "crosscoder",
        "model_name": snapshots.sources[0].model,
        "revision": None,
        "hook_name": snapshots.sources[0].hook,
        "site": recipe.site,
        "context_size": recipe.ctx,
        "store": recipe.store or None,
        "gate": config.gate if config.activation == "jumprelu" else "shared",
        "activation": config.activation,
        "preset": recipe.preset or None,
        "refit": recipe.refit,
    }
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.refit and (config.activation not in ("topk", "batchtopk") or config.shared_latents or config.dedicated):
        raise ConfigError(
            f"refit = {recipe.refit} replaces decoders that a penalty or a partition has shaped. Use it with topk or batchtopk, all latents free."
        )
    seen = Tail(batches, min(-(-recipe.refit // recipe.batch_size), recipe.steps))
    cc = sae_room.train(config, seen, total_steps=recipe.steps, out=folder, resume=True, metadata=about, progress=progress, ranks=ranks)
    assert isinstance(cc, Crosscoder)

    def publish() -> None:
        """Refit where the recipe asks for it, and complete the folder."""
        if recipe.refit:
            refit(cc, seen.rows(recipe.steps)).save(folder)
        write_manifest(
            folder,
            "dictionaries",
            id,
            command=command,
            recipe=recipe.model_dump(mode="json"),
            inputs=inputs,
            numbers={"d_in": cc.d_in, "d_sae": cc.d_sae, "k": recipe.k, "steps": recipe.steps, "n_sources": len(cc.widths)},
            metadata=about | {"sources": [s.name for s in snapshots.sources], "seed": recipe.seed},
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    ranks.attempt(lambda: publish() if ranks.leader else None)
    return ranks.attempt(lambda: Crosscoder.load(folder))


def train_together(
    recipe: EvolveRecipe, workspace: Workspace, ranks: Ranks, *, command: str = "", say: Callable[[str], None] = lambda line: None
) -> str:
    """Train the crosscoders of a recipe by all processes of ``ranks``; returns the id of its own. What :func:`workbench.evolve.evolve` does
    after that takes one process, which finds the crosscoder complete.

    Raises:
        UserError: in every process, that of the first in which something failed.
    """
    from workbench.analysis.snapshots import Snapshots
    from workbench.corpus import plan_tokens
    from workbench.evolve import companions, evolution_id, resolve_sources
    from workbench.models import load_tokenizer

    for other in companions(recipe):
        train_together(other, workspace, ranks, command=command, say=say)
    sources = ranks.attempt(lambda: resolve_sources(recipe))
    id = ranks.attempt(lambda: evolution_id(recipe, sources))
    if ranks.tell(any(workspace.complete(kind, id) for kind in ("evolution", "dictionaries"))):
        return id

    def read() -> tuple[Snapshots, np.ndarray | None]:
        """The models, and the text where rows are made as they are needed."""
        if recipe.store:
            return Snapshots(sources), None
        tokenizer = load_tokenizer(sources[-1].model, sources[-1].revision)
        return Snapshots(sources), plan_tokens(recipe.corpus, tokenizer, n_seq=recipe.n_seq, ctx=recipe.ctx).tokens

    snapshots, tokens = ranks.attempt(read)
    say(f"{ranks.world} processes train a crosscoder over {len(sources)} sources: {ranks}")
    train_crosscoder(recipe, workspace, snapshots, id, tokens, command=command, say=say, ranks=ranks)
    return id


class Tail:
    """Batches of rows, of which the last ``n`` that were asked for are remembered in float16; else what ``batches`` is."""

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
        """The last ``n`` of ``steps`` batches; those that an interrupted run saw before it was resumed are made again."""
        assert self.last.maxlen is not None
        if len(self.last) < self.last.maxlen:
            self.last.extend(x.half() for x in itertools.islice(self.batches.starting_at(steps - self.last.maxlen), self.last.maxlen))
        return (x.float() for x in self.last)


def aligned_store(recipe: EvolveRecipe, workspace: Workspace, snapshots: Snapshots, say: Callable[[str], None]) -> ActivationStore:
    """The recipe's store; where the workspace lacks it, it is harvested from the recipe's own sources, site and text.

    Raises:
        UsageError: sources at different sites (a store is read at one hook here).
    """
    from workbench.activations import ActivationStore, HarvestRecipe, harvest
    from workbench.activations.harvesting import SourceRecipe

    hooks = {s.hook for s in snapshots.sources}
    if len(hooks) > 1:
        raise UsageError(
            f"sources at {', '.join(sorted(hooks))}: training from a store needs one site. Leave out store to run the models instead."
        )
    if not workspace.complete("stores", recipe.store):
        say(f"harvesting store {recipe.store!r} of {len(snapshots)} sources")
        sources = tuple(SourceRecipe(model=s.model, revision=s.revision, name=s.name) for s in snapshots.sources)
        wanted = HarvestRecipe(
            id=recipe.store,
            sources=sources,
            hooks=(snapshots.sources[0].hook,),
            corpus=recipe.corpus,
            n_seq=recipe.n_seq,
            ctx=recipe.ctx,
            dtype="bfloat16",
            threads=recipe.threads or 1,
        )
        harvest(wanted, workspace)
    return ActivationStore.open(workspace.get("stores", recipe.store).path)


def _from_store(recipe: EvolveRecipe, store: ActivationStore, snapshots: Snapshots) -> tuple[Any, list[int]]:
    """Shuffled batches of an aligned store and its widths. Sources are matched by model and the revision they resolve to."""
    from workbench.models.load import resolve_revision

    hook = snapshots.sources[0].hook
    there = {(s.model, resolve_revision(s.model, s.revision)): s.name for s in store.spec.sources}
    missing = [s.name for s in snapshots.sources if (s.model, s.revision) not in there]
    if missing:
        raise UsageError(f"store {recipe.store!r} has no source for {', '.join(missing)} (it has {', '.join(store.sources)})")
    names = [there[s.model, s.revision] for s in snapshots.sources]
    widths = [store.width(hook, n) for n in names]
    return store.batches(hook, recipe.batch_size, seed=recipe.seed, source=names), widths
