"""The crosscoder of an evolution recipe: its configuration, its rows (online, or an aligned store), its training, by
several processes too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sae.errors import ConfigError
from sae.strict import parse_config
from workbench.analysis.evolution.rows import Columns, Tail, aligned_store, store_batches
from workbench.workspace import Workspace

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from crosscoders import Crosscoder, CrosscoderConfig
    from sae.parallel import Ranks
    from workbench.analysis.evolution.plan import EvolveRecipe
    from workbench.analysis.evolution.snapshots import RowCache, Snapshots, Source
    from workbench.provenance import Input


def crosscoder_config(recipe: EvolveRecipe, sources: list[Source], widths: list[int]) -> CrosscoderConfig:
    """The crosscoder a recipe asks for.

    Raises:
        ConfigError: an unknown preset or key; the nearest is named.
    """
    from crosscoders import CrosscoderConfig, preset
    from crosscoders.config import DEAD_AFTER
    from sae.presets import merged

    sizes = {"widths": widths, "d_sae": recipe.expansion * widths[0], "k": recipe.k}
    base = (
        preset(recipe.preset, **sizes).model_dump(exclude_defaults=True)
        if recipe.preset
        else {"dead_after": DEAD_AFTER}
    )
    values = merged(base, recipe.crosscoder) | sizes | {"sources": [s.name for s in sources], "seed": recipe.seed}
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
    from sae.parallel import SINGLE_PROCESS
    from workbench.analysis.evolution.snapshots import OnlineBatches
    from workbench.provenance import Input

    ranks = ranks or SINGLE_PROCESS
    folder = workspace.path("dictionaries", id)
    if ranks.broadcast(workspace.complete("dictionaries", id)):
        return Crosscoder.load(folder)
    inputs: list[Input] = []
    if recipe.store:
        ranks.run_everywhere(
            lambda: aligned_store(recipe, workspace, snapshots, say) if ranks.is_rank_zero else None
        )  # one harvests, all read
        store = ranks.run_everywhere(lambda: aligned_store(recipe, workspace, snapshots, say))
        batches, widths = store_batches(recipe, store, snapshots)
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
    config, about = planned(recipe, list(snapshots.sources), widths)
    folder.mkdir(parents=True, exist_ok=True)
    seen = Tail(batches, _last_batches(recipe))
    cc = sae_room.train(
        config, seen, total_steps=recipe.steps, out=folder, resume=True, metadata=about, progress=progress, ranks=ranks
    )
    assert isinstance(cc, Crosscoder)
    ranks.run_everywhere(
        lambda: (
            _finish(recipe, workspace, id, cc, seen.rows(recipe.steps), inputs, about, command)
            if ranks.is_rank_zero
            else None
        )
    )
    return ranks.run_everywhere(lambda: Crosscoder.load(folder))


def planned(recipe: EvolveRecipe, sources: list[Source], widths: list[int]) -> tuple[CrosscoderConfig, dict[str, Any]]:
    """The crosscoder a recipe asks for, and what its folder says about it.

    Raises:
        ConfigError: see :func:`crosscoder_config`; or decoders to be fitted anew that a penalty or a partition shapes.
    """
    config = crosscoder_config(recipe, sources, widths)
    if recipe.refit and (config.activation not in ("topk", "batchtopk") or config.shared_latents or config.dedicated):
        raise ConfigError(
            f"refit = {recipe.refit} replaces decoders that a penalty or a partition has shaped. Use it with topk or"
            " batchtopk, all latents free."
        )
    about = {
        "kind": "crosscoder",
        "model_name": sources[0].model,
        "revision": None,
        "hook_name": sources[0].hook,
        "site": recipe.site,
        "context_size": recipe.ctx,
        "store": recipe.store or None,
        "gate": config.gate if config.activation == "jumprelu" else "shared",
        "activation": config.activation,
        "preset": recipe.preset or None,
        "refit": recipe.refit,
    }
    return config, about


def _last_batches(recipe: EvolveRecipe) -> int:
    """How many batches hold the rows that decoders are fitted to."""
    return min(-(-recipe.refit // recipe.batch_size), recipe.steps)


def _finish(
    recipe: EvolveRecipe,
    workspace: Workspace,
    id: str,
    cc: Crosscoder,
    rows: Iterable[Tensor],
    inputs: list[Input],
    about: dict[str, Any],
    command: str,
) -> None:
    """Fit the decoders where the recipe says so, and complete the folder."""
    from sae.refitting import refit
    from workbench.provenance import write_manifest

    folder = workspace.path("dictionaries", id)
    if recipe.refit:
        cc = refit(cc, rows)
        cc.save(folder)
    write_manifest(
        folder,
        "dictionaries",
        id,
        command=command,
        recipe=recipe.model_dump(mode="json"),
        inputs=inputs,
        numbers={"d_in": cc.d_in, "d_sae": cc.d_sae, "k": recipe.k, "steps": recipe.steps, "n_sources": len(cc.widths)},
        metadata=about | {"sources": list(cc.sources), "seed": recipe.seed},
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def train_together(
    recipe: EvolveRecipe,
    workspace: Workspace,
    ranks: Ranks,
    *,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Train the crosscoders of a recipe by all processes of ``ranks``; returns the id of its own. What
    :func:`workbench.analysis.evolution.plan.evolve` does after that takes one process, which finds it complete.

    Raises:
        UserError: in every process, that of the first in which something failed.
    """
    from workbench.analysis.evolution.plan import companions, evolution_id, resolve_sources
    from workbench.analysis.evolution.snapshots import Snapshots
    from workbench.corpus import plan_tokens
    from workbench.models import load_tokenizer

    for other in companions(recipe):
        train_together(other, workspace, ranks, command=command, say=say)
    sources = ranks.run_everywhere(lambda: resolve_sources(recipe))
    id = ranks.run_everywhere(lambda: evolution_id(recipe, sources))
    if ranks.broadcast(any(workspace.complete(kind, id) for kind in ("evolution", "dictionaries"))):
        return id

    def read() -> tuple[Snapshots, np.ndarray | None]:
        """The models, and the text where rows are made as they are needed."""
        if recipe.store:
            return Snapshots(sources), None
        tokenizer = load_tokenizer(sources[-1].model, sources[-1].revision)
        return Snapshots(sources), plan_tokens(recipe.corpus, tokenizer, n_seq=recipe.n_seq, ctx=recipe.ctx).tokens

    snapshots, tokens = ranks.run_everywhere(read)
    say(f"{ranks.world} processes train a crosscoder over {len(sources)} sources: {ranks}")
    train_crosscoder(recipe, workspace, snapshots, id, tokens, command=command, say=say, ranks=ranks)
    return id


def train_sites(
    recipes: Sequence[EvolveRecipe],
    workspace: Workspace,
    *,
    command: str = "",
    progress: bool | None = None,
    cache: RowCache | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """The crosscoders of recipes that differ in their site, from one pass over the text: a model is run once for all of
    them.

    Each comes out as :func:`train_crosscoder` alone would make it. Complete ones are left out; a single one is left to
    that function.
    """
    from crosscoders import Crosscoder
    from sae import train_many
    from workbench.analysis.evolution.plan import evolution_id, resolve_sources
    from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots
    from workbench.corpus import plan_tokens
    from workbench.models import load_tokenizer

    wanted = {evolution_id(r, sources): (r, sources) for r in recipes for sources in [resolve_sources(r)]}
    wanted = {id: one for id, one in wanted.items() if not workspace.complete("dictionaries", id)}
    if len(wanted) < 2:
        return
    recipe, sources = next(iter(wanted.values()))
    say(
        f"crosscoders at {', '.join(r.site for r, _ in wanted.values())} over {len(sources)} sources:"
        f" {', '.join(s.name for s in sources)}"
    )
    tokens = plan_tokens(
        recipe.corpus, load_tokenizer(sources[-1].model, sources[-1].revision), n_seq=recipe.n_seq, ctx=recipe.ctx
    ).tokens
    snapshots = Snapshots([s for _, some in wanted.values() for s in some], cache=cache)
    widths = snapshots.widths()
    group, again = max(64, recipe.batch_size // 32), recipe.tokens > 1.1 * len(tokens) * (recipe.ctx - 1)
    batches = OnlineBatches(snapshots, tokens, recipe.batch_size, seed=recipe.seed, group=group, cache=again)
    plans, columns, at = {}, {}, 0
    for id, (r, some) in wanted.items():
        mine, widths = widths[: len(some)], widths[len(some) :]
        plans[id] = planned(r, some, mine)
        columns[id] = slice(at, at := at + sum(mine))
    seen = Tail(batches, _last_batches(recipe))
    out = workspace.path("dictionaries", next(iter(wanted))).parent
    made = train_many(
        {id: config for id, (config, _) in plans.items()},
        Columns(seen, columns),
        total_steps=recipe.steps,
        out=out,
        resume=True,
        metadata={id: about for id, (_, about) in plans.items()},
        progress=progress,
    )
    for id, cc in made.items():
        assert isinstance(cc, Crosscoder)
        rows = (x[:, columns[id]] for x in seen.rows(recipe.steps))
        _finish(wanted[id][0], workspace, id, cc, rows, [], plans[id][1], command)
