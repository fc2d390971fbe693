"""From a store and a recipe to finished dictionaries: what ``workbench train`` and the demo run.

All dictionaries of one hook are trained together on one pass over its rows. A dictionary folder is complete when its
``manifest.json`` exists; an interrupted one keeps its checkpoints and goes on where it stopped.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from sae.config import MeshConfig
from sae.errors import ConfigError, UsageError
from sae.strict import StrictConfig, nearest, parse_config
from workbench.provenance import Input, write_manifest
from workbench.workspace import Workspace, dictionary_id

if TYPE_CHECKING:
    from sae import SAE
    from sae.parallel import Ranks
    from workbench.activations import ActivationStore

DEAD_ROWS = 100_000  # a latent that fires on none of this many rows counts as dead (Llama Scope §4.4)
_DERIVED = ("d_in", "d_out", "d_sae", "k", "seed")  # set by the recipe's own lists


class TrainRecipe(StrictConfig):
    """Which dictionaries to train on a store: every source × site × expansion × k × seed.

    ``sae`` overrides fields of :class:`sae.SAEConfig` (activation, lr, k_aux, k_start, …), at transcoder sites of
    :class:`sae.TranscoderConfig`, after ``preset`` (see :mod:`sae.presets`); widths, k and seeds come from the lists.
    ``harvest`` names the harvest recipe that makes the store where it is missing; with ``evaluate`` each dictionary is
    then measured inside its model, and ``summary`` exports the figure of all of them.
    """

    store: str = Field("demo", description="id of a store in the workspace")
    sources: tuple[str, ...] = Field((), description="sources of the store; empty = all")
    sites: tuple[str, ...] = Field(("*",), description="sites such as L2R, or patterns such as *R")
    expansions: tuple[int, ...] = Field((8,), min_length=1)
    ks: tuple[int, ...] = Field((16,), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    batch_size: int = Field(1024, ge=1)
    tokens: int = Field(600_000, ge=1, description="rows trained on, over as many epochs as that needs")
    data_seed: int = Field(0, ge=0)
    device: str = "cpu"
    parallel: MeshConfig = Field(
        default_factory=MeshConfig, description="how the processes torchrun started share the work"
    )
    sae: dict[str, Any] = Field(default_factory=dict)
    harvest: str = Field("", description="harvest recipe of the store, a file or a bundled name")
    evaluate: int = Field(
        0, ge=0, description="held-out sequences every dictionary is measured on inside its model; 0 = not"
    )
    summary: bool = Field(False, description="export the figure of all dictionaries of the store (needs evaluate)")

    @field_validator("sae")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [k for k in value if k in _DERIVED]:
            raise ValueError(f"{', '.join(taken)}: set by expansions, ks and seeds, not under [sae]")
        return value

    @model_validator(mode="after")
    def _summary_of_something(self) -> TrainRecipe:
        if self.summary and not self.evaluate:
            raise ConfigError("summary = true shows evaluations. Say on how many sequences: evaluate = 32.")
        return self

    @property
    def steps(self) -> int:
        """Training steps: the rows divided by the batch, rounded up."""
        return -(-self.tokens // self.batch_size)


@dataclass(frozen=True)
class Job:
    """One dictionary to be trained: its id, its place in the store, its configuration. A transcoder has two hooks:
    input, output.
    """

    id: str
    source: str
    hooks: tuple[str, ...]
    site: str
    config: Any

    @property
    def hook(self) -> str:
        """The hook it reads."""
        return self.hooks[0]


def streams_by_site(store: ActivationStore, source: str) -> list[tuple[str, tuple[Any, ...]]]:
    """(site, its streams) of one source of a store: an SAE's stream, or a transcoder's input and output."""
    from workbench.models.sites import site_of, transcoder_site

    streams = [s for s in store.spec.streams if s.source == source]
    found: list[tuple[str, tuple[Any, ...]]] = []
    for stream in streams:
        pairs = [(site, (stream, out)) for out in streams if (site := transcoder_site(stream.at, out.at))]
        found += pairs or ([] if stream.at.endswith("ln2.hook_out") else [(site_of(stream.at), (stream,))])
    return found


def config_of(recipe: TrainRecipe, streams: tuple[Any, ...], expansion: int, k: int, seed: int) -> Any:
    """The training configuration of one dictionary.

    Raises:
        ConfigError: a bad ``[sae]`` key or value.
    """
    from sae import SAEConfig, TranscoderConfig
    from sae.presets import merged, preset

    own = dict(recipe.sae)
    transcoder, name = len(streams) == 2, own.pop("preset", None)
    sizes = {"d_in": streams[0].width, "d_sae": expansion * streams[0].width, "k": k}
    published = {} if name is None else preset(str(name), **sizes, transcoder=transcoder)
    values = {**merged(published, own), **sizes, "seed": seed}
    if transcoder:
        return parse_config(TranscoderConfig, values | {"d_out": streams[1].width}, where="[sae]")
    if any(pattern.endswith(("TC", "*")) for pattern in recipe.sites):
        values.pop("skip", None)  # of the transcoders of the same recipe
    return parse_config(SAEConfig, values, where="[sae]")


def fits(site: str, recipe: TrainRecipe) -> bool:
    """Whether a recipe asks for a site."""
    from fnmatch import fnmatchcase

    return any(fnmatchcase(site, pattern) for pattern in recipe.sites)


def jobs_of(recipe: TrainRecipe, store: ActivationStore) -> list[Job]:
    """All dictionaries a recipe names, in order of source, site, expansion, k, seed.

    Raises:
        UsageError: a source or site the store does not have; the message names the nearest. ConfigError: a bad
        ``[sae]`` key.
    """
    from workbench.models.load import model_id

    names = [s.name for s in store.spec.sources]
    for wanted in recipe.sources:
        if wanted not in names:
            raise UsageError(f"store {recipe.store!r} has no source {wanted!r} ({nearest(wanted, names)})")
    jobs: list[Job] = []
    sites_seen: set[str] = set()
    for source in store.spec.sources:
        if recipe.sources and source.name not in recipe.sources:
            continue
        for site, streams in streams_by_site(store, source.name):
            sites_seen.add(site)
            if not fits(site, recipe):
                continue
            for expansion, k, seed in itertools.product(recipe.expansions, recipe.ks, recipe.seeds):
                config = config_of(recipe, streams, expansion, k, seed)
                id = dictionary_id(model_id(source.model), site, expansion, revision=source.revision, seed=seed)
                hooks = tuple(s.hook for s in streams)
                jobs.append(Job(id if len(recipe.ks) == 1 else f"{id}.k{k}", source.name, hooks, site, config))
    if not jobs:
        raise UsageError(
            f"no site of store {recipe.store!r} matches {list(recipe.sites)} (it has"
            f" {', '.join(sorted(sites_seen)) or 'none'})"
        )
    if len({j.id for j in jobs}) != len(jobs):
        raise ConfigError(
            f"two sources of store {recipe.store!r} give dictionaries of the same name; train them by separate recipes."
        )
    return jobs


def train_recipe(
    recipe: TrainRecipe,
    workspace: Workspace,
    *,
    command: str = "",
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
    ranks: Ranks | None = None,
) -> list[str]:
    """Train every dictionary of a recipe that is not complete yet; returns all their ids.

    Args:
        ranks: the processes that train together, each of which calls this; None where there is one.

    Raises:
        MissingError: the store is not in the workspace. UserError: see :func:`sae.train`.
    """
    from sae.parallel import SINGLE_PROCESS
    from workbench.activations import ActivationStore

    ranks = ranks or SINGLE_PROCESS
    if recipe.harvest:
        ranks.run_everywhere(
            lambda: (
                _harvest(recipe, workspace, say)
                if ranks.is_rank_zero and not workspace.complete("stores", recipe.store)
                else None
            )
        )
    store = ActivationStore.open(workspace.get("stores", recipe.store).path)
    jobs = jobs_of(recipe, store)
    complete = ranks.broadcast([workspace.complete("dictionaries", job.id) for job in jobs])
    groups: dict[tuple[str, tuple[str, ...]], list[Job]] = {}
    for job, finished in zip(jobs, complete, strict=True):
        if finished:
            say(f"{job.id}: complete, reused")
        else:
            groups.setdefault((job.source, job.hooks), []).append(job)
    for todo in groups.values():
        if recipe.device == "cpu":
            check_memory(todo, ranks.latents)
        say(f"training {', '.join(j.id for j in todo)}")
        _train_group(recipe, workspace, store, todo, command, progress, ranks)
    ranks.run_everywhere(lambda: _finish(recipe, workspace, jobs, command, say) if ranks.is_rank_zero else None)
    return [job.id for job in jobs]


def check_memory(configs_at_once: list[Job], parts: int = 1) -> None:
    """Refuse dictionaries that are trained together and cannot be held: weights, gradients and moments against this
    machine's memory.

    Args:
        parts: processes that share the latents.

    Raises:
        UsageError: they need more than there is; the message says how much.
    """
    import psutil

    have = psutil.virtual_memory().total
    configs = [job.config for job in configs_at_once]
    need = sum(
        4 * (8 if c.dtype == "float64" else 4) * c.d_sae * (c.d_in + (getattr(c, "d_out", 0) or c.d_in)) // parts
        for c in configs
    )
    if need > have:
        raise UsageError(
            f"{', '.join(job.id for job in configs_at_once)}: weights, gradients and moments need {need / 1e9:,.0f} GB,"
            f" this machine has {have / 1e9:,.0f} GB. Choose smaller expansions; `workbench plan RECIPE` says what one"
            " needs."
        )


def _harvest(recipe: TrainRecipe, workspace: Workspace, say: Callable[[str], None]) -> None:
    """Make the recipe's store."""
    from workbench.activations import HarvestRecipe, harvest
    from workbench.config import read_recipe

    plan = read_recipe(HarvestRecipe, recipe.harvest)
    if plan.id != recipe.store:
        raise ConfigError(
            f"harvest recipe {recipe.harvest!r} makes the store {plan.id!r}, the recipe trains on {recipe.store!r}."
            " Name one."
        )
    say(f"harvesting {plan.id}")
    harvest(plan, workspace)


def _evaluate(
    recipe: TrainRecipe, workspace: Workspace, jobs: list[Job], command: str, say: Callable[[str], None]
) -> None:
    """Every dictionary inside its model; each model is loaded once, complete evaluations are reused."""
    from workbench.analysis.evaluation.run import EvaluationRequest, evaluate_dictionary
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models import load_model

    at: tuple[str, str | None] | None = None
    model: Any = None
    for job in jobs:
        planned = find_dictionary(workspace, job.id)
        if at != (planned.model_name, planned.revision):
            at = (planned.model_name, planned.revision)
            model = load_model(*at)
        item = evaluate_dictionary(
            workspace, planned, EvaluationRequest(sequences=recipe.evaluate), model=model, command=command
        )
        n = item.manifest.numbers
        say(
            f"{job.id}: EV {n['ev']['value']:.3f}, L0 {n['l0']['value']:.1f}, delta LM loss"
            f" {n['delta_ce']['value']:.3f} nats"
        )


def _finish(
    recipe: TrainRecipe, workspace: Workspace, jobs: list[Job], command: str, say: Callable[[str], None]
) -> None:
    """What follows the last dictionary, where the recipe asks for it."""
    if recipe.evaluate:
        _evaluate(recipe, workspace, jobs, command, say)
    if recipe.summary:
        from workbench.exporting.bundles import bundle, write_bundle
        from workbench.exporting.spec import FigureSpec

        spec = FigureSpec.model_validate(
            {"figure": "suite_summary", "source": f"stores/{recipe.store}", "style": {"width": 10.0}}
        )
        say(f"figure: {write_bundle(bundle(spec, workspace), workspace, command=command).path}")


def _train_group(
    recipe: TrainRecipe,
    workspace: Workspace,
    store: ActivationStore,
    todo: list[Job],
    command: str,
    progress: bool | None,
    ranks: Ranks,
) -> None:
    """Train the dictionaries of one site on one pass over its rows, measure them, and write their manifests last."""
    import sae as sae_room

    source, hooks = todo[0].source, todo[0].hooks
    about = store.source(source)
    named = [store.spec.stream(source, hook).at for hook in hooks]
    metadata = {
        "model_name": about.model,
        "revision": about.revision,
        "hook_name": named[0],
        **({"hook_name_out": named[1]} if len(named) == 2 else {}),
        "site": todo[0].site,
        "store": recipe.store,
        "source": source,
        "context_size": store.ctx,
    }
    folders = {job.id: workspace.path("dictionaries", job.id) for job in todo}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    made = sae_room.train_many(
        {job.id: job.config for job in todo},
        store.batches(list(hooks), recipe.batch_size, seed=recipe.data_seed, source=source, split="train"),
        total_steps=recipe.steps,
        out=folders[todo[0].id].parent,
        resume=True,
        device=recipe.device,
        metadata=metadata | {job.id: {"activation": job.config.activation.kind} for job in todo},
        progress=progress,
        ranks=ranks,
    )

    def publish(job: Job) -> None:
        """Measure one dictionary and complete its folder."""
        write_manifest(
            folders[job.id],
            "dictionaries",
            job.id,
            command=command,
            recipe=recipe.model_dump(mode="json"),
            inputs=[Input(kind="stores", id=recipe.store, digest=store.digest)],
            numbers=measure(made[job.id], store, list(hooks), source)
            | {
                "d_in": job.config.d_in,
                "d_sae": job.config.d_sae,
                "k": job.config.k,
                "steps": recipe.steps,
            },
            metadata=metadata
            | {
                "kind": made[job.id].kind,
                "seed": job.config.seed,
                "activation": job.config.activation.kind,
            },
        )
        shutil.rmtree(folders[job.id] / "checkpoints", ignore_errors=True)

    for job in todo:
        ranks.run_everywhere(lambda job=job: publish(job) if ranks.is_rank_zero else None)  # type: ignore[misc]


def measure(
    dictionary: SAE, store: ActivationStore, hook: str | list[str], source: str, *, batch_size: int = 4096
) -> dict[str, float | int]:
    """Held-out explained variance (centred) and L0, and the share of latents that fire on none of 100,000 rows.

    Every figure comes with the number of rows it rests on.
    """
    from sae import evaluate

    heldout = evaluate(dictionary, store.batches(hook, batch_size, seed=0, source=source, split="heldout", epochs=1))
    n_batches = -(-min(DEAD_ROWS, len(store)) // batch_size)
    firing = evaluate(
        dictionary,
        itertools.islice(iter(store.batches(hook, batch_size, seed=1, source=source, split="train")), n_batches),
    )
    return {
        "explained_variance": round(heldout.ev, 6),
        "l0": round(heldout.l0, 4),
        "n_heldout": heldout.n,
        "dead_share": round(firing.dead, 6),
        "n_dead_rows": firing.n,
    }
