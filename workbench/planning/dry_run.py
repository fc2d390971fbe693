"""``--dry-run``: everything a recipe would build, on the meta device, and one batch of what it would read.

Shapes and names are those of the real run: models from their configuration, dictionaries, gradients and optimiser
state, the store's document. Nothing is computed, written or fetched; data that is not on this machine is named with the
command that brings it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sae.errors import MissingError, UserError
from sae.strict import parse_config, read_toml

if TYPE_CHECKING:
    from sae.config import TrainingConfig
    from workbench.activations import HarvestRecipe
    from workbench.activations.format.spec import StoreSpec
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.dictionaries.recipe import TrainRecipe
    from workbench.workspace import Workspace


@dataclass
class Built:
    """What a dry run built (name -> parameters, bytes), the batch it read, and what is not on this machine."""

    kind: str
    objects: list[dict[str, Any]] = field(default_factory=list)
    batch: dict[str, Any] | None = None
    missing: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "dry_run": True,
            "kind": self.kind,
            "objects": self.objects,
            "batch": self.batch,
            "missing": self.missing,
        }


# --- stores that are not there yet
# -------------------------------------------------------------------------------------


def harvest_recipe_of(store: str, beside: Path | None = None) -> HarvestRecipe | None:
    """The harvest recipe that would make a store: one in the same folder as another recipe, or a bundled one, with this
    id.
    """
    from workbench.activations import HarvestRecipe
    from workbench.config import data_dir

    for folder in dict.fromkeys([*([beside] if beside else []), data_dir() / "recipes"]):
        for path in sorted(folder.glob("*harvest*.toml")):
            values = read_toml(path)
            if values.get("id") == store:
                return parse_config(HarvestRecipe, values, where=str(path))
    return None


def planned_spec(recipe: HarvestRecipe) -> StoreSpec:
    """The ``store.json`` a harvest would write, but for the digests of weights and tokens, which nobody has yet.

    Raises:
        MissingError: a model whose configuration is not here. UsageError: a hook it does not have.
    """
    from workbench.activations.format.spec import Source, StoreSpec, Stream
    from workbench.activations.harvesting.forward import resolve_hooks, widths
    from workbench.activations.harvesting.run import HELDOUT_SHARE
    from workbench.models.facts import meta_model
    from workbench.models.sites import reads_mlp, site_of, write_shapes

    sources: list[Source] = []
    streams: list[Stream] = []
    models: dict[str, Any] = {}
    for s in recipe.sources:
        if s.model not in models:
            models[s.model] = meta_model(s.model, s.revision)  # snapshots of one model have one shape
        model = models[s.model]
        hooks, writes = resolve_hooks(model, *recipe.hooks_of(s)), write_shapes(model)
        for hook, at in hooks.items():
            try:
                site_of(at)
                width = math.prod(writes[at]) if at in writes else int(model.cfg.d_model)
            except UserError:
                width = int(model.cfg.d_model) if reads_mlp(at) else widths(model, 0, [at])[at]
            streams.append(Stream(key=f"h{len(streams):03d}", source=s.source, hook=hook, at=at, width=width))
        about = {"write_heads": {hook: heads for hook, (heads, _) in writes.items()}} if writes else {}
        sources.append(Source(name=s.source, model=s.model, revision=s.revision, about=about))
    names = ("id", "n_seq", "ctx", "exclude", "seqs_per_shard", "batch_size", "dtype", "block_rows", "non_finite")
    return StoreSpec(
        sources=tuple(sources),
        streams=tuple(streams),
        plan={},
        heldout_seqs=recipe.n_seq // HELDOUT_SHARE,
        row_mask=any(c.roles for c in (recipe.corpus, *recipe.corpus.parts)),
        **{n: getattr(recipe, n) for n in names},
    )


def store_or_plan(store: str, workspace: Workspace, beside: Path | None = None) -> Any:
    """The store of the workspace, or an object with the ``spec`` it would have.

    Raises:
        MissingError: neither the store nor a recipe that makes it.
    """
    from workbench.activations import ActivationStore

    if workspace.complete("stores", store):
        return ActivationStore.open(workspace.path("stores", store))
    recipe = harvest_recipe_of(store, beside)
    if recipe is None:
        return ActivationStore.open(workspace.get("stores", store).path)  # says what is missing and how to make it
    return SimpleNamespace(spec=planned_spec(recipe), recipe=recipe)


# --- one dry run per kind of recipe
# ------------------------------------------------------------------------------------


def dry_harvest(recipe: HarvestRecipe, workspace: Workspace) -> Built:
    """Models on the meta device, the store's document, one batch of tokens."""
    from workbench.models.facts import model_facts
    from workbench.planning.counts import SIZES

    built = Built("harvest")
    spec = planned_spec(recipe)
    first = {s.model: s.revision for s in reversed(recipe.sources)}
    for s in recipe.sources:
        n = model_facts(s.model, first[s.model]).resident
        built.objects.append(
            {
                "object": f"model {s.model}{f' at {s.revision}' if s.revision else ''}",
                "parameters": n,
                "bytes": SIZES[recipe.model_dtype] * n,
            }
        )
    _name_weights(built, [(s.model, s.revision) for s in recipe.sources])
    built.objects.append(
        {"object": f"store {recipe.id}: {len(spec.streams)} streams, {spec.n_shards} shards", "bytes": on_disk(spec)}
    )
    _read_tokens(built, recipe)
    return built


def _name_weights(built: Built, models: Iterable[tuple[str, str | None]]) -> None:
    """Say which models are not on this machine; the snapshots of one together."""
    from workbench.models.facts import fetched, how_to_get

    absent: dict[str, list[str]] = {}
    for model, revision in dict.fromkeys(models):
        if not fetched(model, revision):
            absent.setdefault(model, []).append(revision or "")
    for model, revisions in absent.items():
        if len(revisions) == 1:
            built.missing.append(f"weights of {model}: {how_to_get(model, revisions[0] or None)}")
        else:
            command = how_to_get(model, "$r")
            built.missing.append(
                f"weights of {model} at {len(revisions)} revisions: for r in {' '.join(revisions)}; do {command}; done"
            )


def _read_tokens(built: Built, recipe: HarvestRecipe) -> None:
    from workbench.corpus import plan_tokens
    from workbench.models import load_tokenizer

    try:
        tokenizer = load_tokenizer(recipe.sources[0].model, recipe.sources[0].revision)
        tokens = plan_tokens(recipe.corpus, tokenizer, n_seq=recipe.batch_size, ctx=recipe.ctx).tokens
    except MissingError as e:
        built.missing.append(str(e))
        return
    built.batch = {"what": "tokens", "shape": list(tokens.shape), "from": recipe.corpus.dataset or recipe.corpus.kind}


def dry_train(recipe: TrainRecipe, workspace: Workspace, beside: Path | None = None) -> Built:
    """Every dictionary with gradients and optimiser state on the meta device, and one batch of the store."""
    from workbench.dictionaries.recipe import jobs_of

    built = Built("train")
    store = store_or_plan(recipe.store, workspace, beside)
    configs: dict[str, dict[str, Any]] = {}
    for job in jobs_of(recipe, store):
        key = job.config.model_copy(update={"seed": 0}).model_dump_json()
        configs.setdefault(key, {"config": job.config, "first": job.id, "n": 0})["n"] += 1
    for entry in configs.values():
        more = f" and {entry['n'] - 1} more like it" if entry["n"] > 1 else ""
        built.objects.append({"object": f"dictionary {entry['first']}{more}", **training_state(entry["config"])})
    _read_rows(built, store, recipe.store, recipe.batch_size)
    return built


def dry_evolve(recipe: EvolveRecipe, workspace: Workspace, beside: Path | None = None) -> Built:
    """The models and the crosscoder on the meta device, and one batch of its store or its text."""
    from workbench.activations.harvesting.recipe import HarvestRecipe, SourceRecipe
    from workbench.analysis.evolution.recipe import resolve_sources
    from workbench.analysis.evolution.train import crosscoder_config
    from workbench.models.facts import model_facts

    built = Built("evolve")
    sources = resolve_sources(recipe)
    first = {s.model: s.revision for s in reversed(sources)}
    for name in dict.fromkeys(s.model for s in sources):
        n, times = model_facts(name, first[name]).resident, sum(s.model == name for s in sources)
        built.objects.append(
            {"object": f"model {name}, {times} snapshots or sites", "parameters": n * times, "bytes": 4 * n * times}
        )
    config = crosscoder_config(recipe, sources, [model_facts(s.model, first[s.model]).d_model for s in sources])
    built.objects.append({"object": f"crosscoder over {len(sources)} sources", **training_state(config)})
    if recipe.store:
        _read_rows(built, store_or_plan(recipe.store, workspace, beside), recipe.store, recipe.batch_size)
    else:
        source = SourceRecipe(model=sources[-1].model, revision=sources[-1].revision)
        text = HarvestRecipe(
            id="tokens", sources=(source,), hooks=(sources[-1].hook,), n_seq=32, ctx=recipe.ctx, corpus=recipe.corpus
        )
        _read_tokens(built, text)
    return built


def training_state(config: TrainingConfig) -> dict[str, int]:
    """Parameters of a dictionary, and the bytes of weights, gradients and Adam's moments, built on the meta device."""
    import torch

    with torch.device("meta"):
        model = config.build()
        optimizer = torch.optim.Adam(model.parameters(), lr=config.peak_lr)
        for p in model.parameters():
            p.grad = torch.empty_like(p)
        optimizer.step()
    moments = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor) and t.ndim]
    tensors = [
        *model.parameters(),
        *(p.grad for p in model.parameters() if p.grad is not None),
        *moments,
        *model.buffers(),
    ]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def _read_rows(built: Built, store: Any, name: str, batch_size: int) -> None:
    from workbench.planning.cost import size

    if not hasattr(store, "batches"):
        built.missing.append(
            f"store {name!r}: made by `workbench harvest` with the recipe of that id ({size(on_disk(store.spec))} on"
            " disk)"
        )
        _name_weights(built, [(s.model, s.revision) for s in store.spec.sources])
        return
    stream = store.spec.streams[0]
    rows = next(iter(store.batches(stream.hook, batch_size, seed=0, source=stream.source)))
    built.batch = {"what": "rows", "shape": list(rows.shape), "from": f"store {name}"}


def on_disk(spec: StoreSpec) -> int:
    """Bytes a store takes, as its plan says."""
    from workbench.planning.counts import stored_bytes

    return stored_bytes(spec.n_rows, spec.row_bytes, spec.n_seq * spec.ctx)


def lines_of(built: Built) -> list[str]:
    """A dry run as lines for a person."""
    from workbench.planning.cost import size

    lines = []
    for o in built.objects:
        count = f"{o['parameters']:,} parameters, " if "parameters" in o else ""
        lines.append(f"  {o['object']}: {count}{size(o['bytes'])}")
    if built.batch:
        lines.append(f"  read one batch: {built.batch['what']} {built.batch['shape']} from {built.batch['from']}")
    lines += [f"  not here: {m}" for m in built.missing]
    return [
        *lines,
        f"dry run of a {built.kind} recipe: {len(built.objects)} objects built on the meta device, nothing run or"
        " written.",
    ]
