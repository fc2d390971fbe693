"""From a store and a recipe to finished dictionaries: what ``workbench train`` and the demo run.

All dictionaries of one hook are trained together on one pass over its rows. A dictionary folder is complete when its
``manifest.json`` exists; an interrupted one keeps its checkpoints and goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from sae.errors import ConfigError, UsageError
from sae.strict import StrictConfig, nearest, parse_config
from workbench.provenance import Input, write_manifest
from workbench.workspace import Workspace, dictionary_id

if TYPE_CHECKING:
    from sae import SAE
    from workbench.activations import ActivationStore

DEAD_ROWS = 100_000  # a latent that fires on none of this many rows counts as dead (Llama Scope §4.4)
_DERIVED = ("d_in", "d_sae", "k", "seed")  # set by the recipe's own lists


class TrainRecipe(StrictConfig):
    """Which dictionaries to train on a store: every source × site × expansion × k × seed.

    ``sae`` overrides fields of :class:`sae.TopKConfig` (lr, k_aux, k_start, …); widths, k and seeds come from the lists.
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
    sae: dict[str, Any] = Field(default_factory=dict)

    @field_validator("sae")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [k for k in value if k in _DERIVED]:
            raise ValueError(f"{', '.join(taken)}: set by expansions, ks and seeds, not under [sae]")
        return value

    @property
    def steps(self) -> int:
        """Training steps: the rows divided by the batch, rounded up."""
        return -(-self.tokens // self.batch_size)


@dataclass(frozen=True)
class Job:
    """One dictionary to be trained: its id, its place in the store, its configuration."""

    id: str
    source: str
    hook: str
    site: str
    config: Any


def jobs_of(recipe: TrainRecipe, store: ActivationStore) -> list[Job]:
    """All dictionaries a recipe names, in order of source, site, expansion, k, seed.

    Raises:
        UsageError: a source or site the store does not have; the message names the nearest. ConfigError: a bad ``[sae]`` key.
    """
    from fnmatch import fnmatchcase

    from sae import TopKConfig
    from workbench.models.load import model_id
    from workbench.models.sites import site_of

    names = [s.name for s in store.spec.sources]
    for wanted in recipe.sources:
        if wanted not in names:
            raise UsageError(f"store {recipe.store!r} has no source {wanted!r} ({nearest(wanted, names)})")
    jobs: list[Job] = []
    sites_seen: set[str] = set()
    for source in store.spec.sources:
        if recipe.sources and source.name not in recipe.sources:
            continue
        for stream in (s for s in store.spec.streams if s.source == source.name):
            site = site_of(stream.at)
            sites_seen.add(site)
            if not any(fnmatchcase(site, pattern) for pattern in recipe.sites):
                continue
            for expansion in recipe.expansions:
                for k in recipe.ks:
                    for seed in recipe.seeds:
                        values = {"d_in": stream.width, "d_sae": expansion * stream.width, "k": k, "seed": seed, **recipe.sae}
                        config = parse_config(TopKConfig, values, where="[sae]")
                        id = dictionary_id(model_id(source.model), site, expansion, revision=source.revision, seed=seed)
                        jobs.append(Job(id if len(recipe.ks) == 1 else f"{id}.k{k}", source.name, stream.hook, site, config))
    if not jobs:
        raise UsageError(
            f"no site of store {recipe.store!r} matches {list(recipe.sites)} (it has {', '.join(sorted(sites_seen)) or 'none'})"
        )
    if len({j.id for j in jobs}) != len(jobs):
        raise ConfigError(f"two sources of store {recipe.store!r} give dictionaries of the same name; train them by separate recipes.")
    return jobs


def train_recipe(
    recipe: TrainRecipe,
    workspace: Workspace,
    *,
    command: str = "",
    progress: bool | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Train every dictionary of a recipe that is not complete yet; returns all their ids.

    Raises:
        MissingError: the store is not in the workspace. UserError: see :func:`sae.train`.
    """
    from workbench.activations import ActivationStore

    store = ActivationStore.open(workspace.get("stores", recipe.store).path)
    jobs = jobs_of(recipe, store)
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        if workspace.complete("dictionaries", job.id):
            say(f"{job.id}: complete, reused")
        else:
            groups.setdefault((job.source, job.hook), []).append(job)
    for (source, hook), todo in groups.items():
        say(f"training {', '.join(j.id for j in todo)}")
        _train_group(recipe, workspace, store, source, hook, todo, command, progress)
    return [job.id for job in jobs]


def _train_group(
    recipe: TrainRecipe,
    workspace: Workspace,
    store: ActivationStore,
    source: str,
    hook: str,
    todo: list[Job],
    command: str,
    progress: bool | None,
) -> None:
    """Train the dictionaries of one hook together, measure them, and write their manifests last."""
    import sae as sae_room

    about = store.source(source)
    batches = store.batches(hook, recipe.batch_size, seed=recipe.data_seed, source=source, split="train")
    for job in todo:
        metadata = {
            "model_name": about.model,
            "revision": about.revision,
            "hook_name": store.spec.stream(source, hook).at,
            "site": job.site,
            "store": recipe.store,
            "source": source,
            "context_size": store.ctx,
        }
        folder = workspace.path("dictionaries", job.id)
        folder.mkdir(parents=True, exist_ok=True)
        dictionary = sae_room.train(
            job.config,
            batches,
            total_steps=recipe.steps,
            out=folder,
            resume=True,
            device=recipe.device,
            metadata=metadata,
            progress=progress,
        )
        write_manifest(
            folder,
            "dictionaries",
            job.id,
            command=command,
            recipe=recipe.model_dump(mode="json"),
            inputs=[Input(kind="stores", id=recipe.store, digest=store.digest)],
            numbers=measure(dictionary, store, hook, source)
            | {"d_in": job.config.d_in, "d_sae": job.config.d_sae, "k": job.config.k, "steps": recipe.steps},
            metadata=metadata | {"kind": dictionary.kind, "seed": job.config.seed},
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def measure(dictionary: SAE, store: ActivationStore, hook: str, source: str, *, batch_size: int = 4096) -> dict[str, float | int]:
    """Held-out explained variance (centred) and L0, and the share of latents that fire on none of 100,000 rows.

    Every figure comes with the number of rows it rests on.
    """
    import itertools

    from sae import evaluate

    heldout = evaluate(dictionary, store.batches(hook, batch_size, seed=0, source=source, split="heldout", epochs=1))
    n_batches = -(-min(DEAD_ROWS, len(store)) // batch_size)
    firing = evaluate(dictionary, itertools.islice(iter(store.batches(hook, batch_size, seed=1, source=source, split="train")), n_batches))
    return {
        "explained_variance": round(heldout.ev, 6),
        "l0": round(heldout.l0, 4),
        "n_heldout": heldout.n,
        "dead_share": round(firing.dead, 6),
        "n_dead_rows": firing.n,
    }
