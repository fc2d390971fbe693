"""The recipe of ``workbench train``: which dictionaries to make from a store, and the jobs it comes to."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from sae.config import MeshConfig
from sae.errors import ConfigError, UsageError
from sae.presets import GATED
from sae.strict import StrictConfig, nearest, parse_config
from workbench.config import corpus_name
from workbench.workspace import dictionary_id, new_id

if TYPE_CHECKING:
    from workbench.activations import ActivationStore
    from workbench.provenance import Manifest

_DERIVED = ("d_in", "d_out", "d_sae", "k", "seed", "heads", "keys", "values")  # set by the recipe's own lists


class TrainRecipe(StrictConfig):
    """Which dictionaries to train on a store: every source × site × expansion × k × seed.

    ``sae`` overrides fields of :class:`sae.SAEConfig` (activation, lr, k_aux, k_start, …), at transcoder sites of
    :class:`sae.TranscoderConfig`, at sites of writes (``L2W``) of :class:`sae.WriteConfig`, after ``preset`` (see
    :mod:`sae.presets`); widths, k and seeds come from the lists.
    ``harvest`` names the harvest recipe that makes the store where it is missing; with ``evaluate`` each dictionary is
    then measured inside its model, and ``summary`` exports the figure of all of them.
    """

    store: str = Field("demo", description="id of a store in the workspace")
    sources: tuple[str, ...] = Field((), description="sources of the store; empty = all")
    sites: tuple[str, ...] = Field(("*",), description="sites such as L2R, or patterns such as *R")
    expansions: tuple[int, ...] = Field(
        (8,), min_length=1, description="latents per dimension of the rows, one dictionary for each"
    )
    ks: tuple[int, ...] = Field((16,), min_length=1, description="latents kept per row, one dictionary for each")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="seeds of the initial directions, one dictionary for each"
    )
    batch_size: int = Field(1024, ge=1, description="rows of a training step")
    tokens: int = Field(600_000, ge=1, description="rows trained on, over as many epochs as that needs")
    data_seed: int = Field(0, ge=0, description="of the order of rows, the same for all dictionaries")
    device: str = Field("cpu", description="where it trains: cpu, cuda, cuda:N or mps")
    parallel: MeshConfig = Field(
        default_factory=MeshConfig, description="how the processes torchrun started share the work"
    )
    suffix: str = Field("", pattern=r"^[A-Za-z0-9-]*$", description="ends the ids, to keep dictionaries beside others")
    sae: dict[str, Any] = Field(
        default_factory=dict, description="how each is trained, as a table of its own: preset, activation, lr, …"
    )
    harvest: str = Field("", description="harvest recipe of the store, a file or a bundled name")
    evaluate: int = Field(
        0, ge=0, description="held-out sequences every dictionary is measured on inside its model; 0 = not"
    )
    summary: bool = Field(False, description="export the figure of all dictionaries of the store (needs evaluate)")
    log_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        (),
        description="also send every logged step there: event files in WORKSPACE/logs, or a W&B project (offline unless"
        " WANDB_MODE says otherwise)",
    )

    @field_serializer("harvest", when_used="json")
    def _named(self, value: str) -> str:
        """As results keep it: a file by its name."""
        return corpus_name(value) if Path(value).expanduser().is_absolute() else value

    @field_validator("sae")
    @classmethod
    def _known(cls, value: dict[str, Any]) -> dict[str, Any]:
        if taken := [k for k in value if k in _DERIVED]:
            raise ValueError(f"{', '.join(taken)}: expansions, ks and seeds set this; leave it out under [sae]")
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
    input, output; so has a dictionary of writes: keys, values.
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
    """(site, its streams) of one source of a store: an SAE's stream, a transcoder's input and output, or the keys and
    values of what a recurrent layer writes.
    """
    from workbench.models.sites import is_write, pair_site, reads_mlp, site_of

    streams = [s for s in store.spec.streams if s.source == source]
    found: list[tuple[str, tuple[Any, ...]]] = []
    for stream in streams:
        pairs = [(site, (stream, out)) for out in streams if (site := pair_site(stream.at, out.at))]
        found += pairs or ([] if reads_mlp(stream.at) or is_write(stream.at) else [(site_of(stream.at), (stream,))])
    return found


def config_of(recipe: TrainRecipe, streams: tuple[Any, ...], expansion: int, k: int, seed: int, heads: int = 1) -> Any:
    """The training configuration of one dictionary. ``heads`` of a recurrent layer: of a dictionary of its writes.

    Raises:
        ConfigError: a bad ``[sae]`` key or value.
    """
    from sae import SAEConfig, TranscoderConfig
    from sae.presets import kind_of, merged, preset
    from workbench.models.sites import write_site

    own = dict(recipe.sae)
    if len(streams) == 2 and write_site(streams[0].at, streams[1].at):
        return _writes_config(own, streams, expansion * row_width(streams), k, seed, heads)
    transcoder, name = len(streams) == 2, own.pop("preset", None)
    sizes = {"d_in": streams[0].width, "d_sae": expansion * row_width(streams), "k": k}
    published = {} if name is None else preset(str(name), **sizes, kind=kind_of(own), transcoder=transcoder)
    values = {**merged(published, own), **sizes, "seed": seed}
    if transcoder:
        return parse_config(TranscoderConfig, values | {"d_out": streams[1].width}, where="[sae]")
    if any(pattern.endswith(("TC", "*")) for pattern in recipe.sites):
        values.pop("skip", None)  # of the transcoders of the same recipe
    return parse_config(SAEConfig, values, where="[sae]")


def row_width(streams: tuple[Any, ...]) -> int:
    """Numbers of a row that ``expansions`` count latents for: what is read; of a write its keys and values."""
    from workbench.models.sites import write_site

    both = len(streams) == 2 and write_site(streams[0].at, streams[1].at)
    return int(sum(s.width for s in streams) if both else streams[0].width)


def _writes_config(own: dict[str, Any], streams: tuple[Any, ...], d_sae: int, k: int, seed: int, heads: int) -> Any:
    """The configuration of a dictionary of writes."""
    from sae import WriteConfig
    from sae.presets import kind_of, merged, preset

    keys, values = (s.width // heads for s in streams)
    sizes = {"d_in": heads * keys * values, "d_sae": d_sae, "k": k}
    name = own.pop("preset", None)
    without_bias = {"details": {"bias_rate": 0.0}, "start": {"bias": "zero", "pre_bias": False}}
    published = merged({} if name is None else preset(str(name), **sizes, kind=kind_of(own) or "topk"), without_bias)
    shape = {"heads": heads, "keys": keys, "values": values}
    return parse_config(WriteConfig, {**merged(published, own), **sizes, **shape, "seed": seed}, where="[sae]")


def heads_of(store: ActivationStore, source: str, streams: tuple[Any, ...]) -> int:
    """Heads of the recurrent layer whose writes these streams are; 1 for any other.

    Raises:
        ConfigError: the store does not say.
    """
    from workbench.models.sites import write_site

    if len(streams) != 2 or not write_site(streams[0].at, streams[1].at):
        return 1
    about = next((s.about for s in store.spec.sources if s.name == source), {})
    told = about.get("write_heads", {}).get(streams[0].at)
    if not told:
        raise ConfigError(f"store {store.spec.id!r} does not say how many heads {streams[0].at} has. Harvest it again.")
    return int(told)


def content_of(recipe: TrainRecipe, job: Job) -> dict[str, Any]:
    """What decides one dictionary of a recipe beside its store; two recipes that agree in it make the same one.

    How many processes share the work, who is told of it, and what is done afterwards, is not in it; ``tokens`` are
    those of whole batches, and ``lr`` is the peak rate of this run where it is to be derived.
    """
    return {
        "source": job.source,
        "hooks": list(job.hooks),
        "batch_size": recipe.batch_size,
        "tokens": recipe.steps * recipe.batch_size,
        "data_seed": recipe.data_seed,
        "device": recipe.device.split(":")[0],
        "sae": job.config.model_dump(mode="json") | {"lr": job.config.rate(recipe.steps)},
    }


def recorded_content(have: Manifest, job: Job, store: ActivationStore) -> dict[str, Any]:
    """:func:`content_of` a dictionary that exists under a job's id, from its manifest; where something other than
    ``workbench train`` made it, just that.
    """
    try:
        recipe = parse_config(TrainRecipe, have.recipe, where=have.id)
        streams = tuple(store.spec.stream(job.source, hook) for hook in job.hooks)
        numbers, about = have.numbers, have.metadata
        # One without its settings is older: its recipe stands for what it stands for today, but for two things.
        older, preset = "settings" not in about, recipe.sae.get("preset")
        if older and preset is None and "lr" not in recipe.sae:
            recipe = recipe.model_copy(update={"sae": {**recipe.sae, "lr": 1e-3}})
        sizes = int(numbers["d_sae"]) // row_width(streams), int(numbers["k"]), int(about["seed"])
        config = config_of(recipe, streams, *sizes, heads_of(store, job.source, streams))
        if not older:
            config = parse_config(type(config), about["settings"], where=have.id)
        read = [str(about[k]) for k in ("hook_name", "hook_name_out") if about.get(k)]
    except (ConfigError, KeyError, TypeError, ValueError):
        return {"made by": have.command or "another command"}
    hooks = tuple(job.hooks) if read == [s.at for s in streams] else tuple(read)
    found = content_of(recipe, Job(have.id, str(about.get("source")), hooks, job.site, config))
    if older and preset == "few-steps" and config.activation.kind in GATED:
        found["sae"]["preset"] = "few-steps as it was, one for all kinds"
    return found


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
                config = config_of(recipe, streams, expansion, k, seed, heads_of(store, source.name, streams))
                id = dictionary_id(model_id(source.model), site, expansion, revision=source.revision, seed=seed)
                hooks = tuple(s.hook for s in streams)
                id += ("" if len(recipe.ks) == 1 else f".k{k}") + (f".{recipe.suffix}" if recipe.suffix else "")
                jobs.append(Job(new_id(id), source.name, hooks, site, config))
    if not jobs:
        raise UsageError(
            f"no site of store {recipe.store!r} matches {list(recipe.sites)} (it has"
            f" {', '.join(sorted(sites_seen)) or 'none'})"
        )
    if len({j.id for j in jobs}) != len(jobs):
        raise ConfigError(
            f"two sources of store {recipe.store!r} give dictionaries of the same name. Train them by separate"
            " recipes, each with a suffix."
        )
    return jobs
