"""The plan of a recipe file: what kind it is, what it will work on, and the amounts that follow.

A train or evolve recipe whose store does not exist yet is planned from the harvest recipe that would make the store;
models that are not on this machine from their bundled configuration. So every recipe that ships can be planned without
a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae.strict import parse_config, read_toml
from workbench.planning.calibrate import RunModel, this_machine
from workbench.planning.cost import ONE, Layout, Plan
from workbench.planning.counts import SIZES, Dictionary, Reading, Run, plan_harvest, plan_pretraining, plan_training
from workbench.planning.machine import Machine

if TYPE_CHECKING:
    from workbench.activations import HarvestRecipe
    from workbench.activations.format.spec import StoreSpec, Stream
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.dictionaries.recipe import Job, TrainRecipe
    from workbench.workspace import Workspace

TRIED = 2**22  # numbers of a batch (tokens times width) with which a model is timed, at most
MEASURED_TRAIN_ROWS = 100_000  # rows counted for dead latents after training (workbench.dictionaries.train.DEAD_ROWS)


@dataclass(frozen=True)
class PlannedRecipe:
    """A recipe understood: its kind, its plan under a layout, and the largest dictionary (d_in, d_sae, k) it trains."""

    kind: str
    plan: Callable[[Layout], Plan]
    shape: tuple[int, int, int] | None = None
    divisible: int = 1  # latents of every dictionary are a multiple of this
    jobs: int = 1  # dictionaries or shards that are independent
    batch_size: int = 0
    recipe: Any = None


def plan_recipe(recipe: str, workspace: Workspace, layout: Layout = ONE) -> Plan:
    """The plan of a recipe file or bundled recipe on one device, or laid out over several.

    Raises:
        MissingError: no such recipe; or neither the store of a train recipe nor a recipe that makes it.
    """
    return planned_recipe(recipe, workspace).plan(layout)


def planned_recipe(recipe: str, workspace: Workspace, *, online: bool = False) -> PlannedRecipe:
    """Read a recipe for planning. ``online``: rows come from the models as they are needed, never from a store."""
    from workbench.config import find_recipe, kind_of

    path = find_recipe(recipe)
    values = read_toml(path)
    kind = kind_of(values, str(path))
    if kind == "pretrain":
        return _pretraining(values, str(path))
    if kind == "harvest":
        from workbench.activations import HarvestRecipe

        return _harvest(parse_config(HarvestRecipe, values, where=str(path)))
    from workbench.planning.dry_run import store_or_plan

    if kind == "train":
        from workbench.dictionaries.recipe import TrainRecipe, jobs_of

        training = parse_config(TrainRecipe, values, where=str(path))
        store = store_or_plan(training.store, workspace, path.parent)
        return _training(training, jobs_of(training, store), store, online)
    from workbench.analysis.evolution.recipe import EvolveRecipe

    return _evolve(parse_config(EvolveRecipe, values, where=str(path)), workspace, path.parent)


def _pretraining(values: dict[str, Any], where: str) -> PlannedRecipe:
    import torch

    from workbench.models.facts import parameter_count
    from workbench.models.pretrain import PretrainRecipe, build_model, hf_config

    recipe = parse_config(PretrainRecipe, values, where=where)
    with torch.device("meta"):
        parameters = parameter_count(build_model(hf_config(recipe, 512)))
    made = plan_pretraining(
        tokens=recipe.steps * recipe.batch * recipe.ctx,
        steps=recipe.steps,
        parameters=parameters,
        snapshots=len(recipe.saved_steps),
        activations=float(recipe.batch * recipe.ctx * recipe.d_model * recipe.n_layers * 4 * 24),
    )
    return PlannedRecipe("pretrain", lambda layout: made, recipe=recipe)


def _harvest(recipe: HarvestRecipe) -> PlannedRecipe:
    from workbench.models.facts import deepest_layer, model_facts
    from workbench.planning.dry_run import planned_spec

    spec = planned_spec(recipe)
    first = {s.model: s.revision for s in reversed(spec.sources)}
    runs = []
    for source in spec.sources:
        own = [s for s in spec.streams if s.source == source.name]
        runs.append(
            Run(
                model_facts(source.model, first[source.model]),
                deepest_layer(s.at for s in own),
                tuple(s.width for s in own),
            )
        )

    def plan(layout: Layout) -> Plan:
        return plan_harvest(
            runs,
            n_seq=recipe.n_seq,
            ctx=recipe.ctx,
            rows_per_seq=spec.rows_per_seq,
            itemsize=spec.itemsize,
            seqs_per_shard=recipe.seqs_per_shard,
            batch_size=recipe.batch_size,
            compute=recipe.model_dtype,
            workers=layout.devices,
        )

    return PlannedRecipe("harvest", plan, jobs=spec.n_shards, recipe=recipe)


def _training(recipe: TrainRecipe, jobs: list[Job], store: Any, online: bool) -> PlannedRecipe:
    from workbench.models.facts import deepest_layer, model_facts

    spec: StoreSpec = store.spec
    dictionaries = [dictionary_of(job.config) for job in jobs]
    sites = {(j.source, j.hook) for j in jobs}
    groups = {(j.source, j.hooks) for j in jobs}  # the dictionaries of a place are trained on one pass over its rows
    widest = max(
        ([spec.stream(source, hook) for hook in hooks] for source, hooks in groups),
        key=lambda g: sum(s.width for s in g),
    )
    width, held = sum(s.width for s in widest), buffers(spec, widest, recipe.batch_size)
    heldout = (spec.n_seq - spec.train_rows // spec.rows_per_seq) * spec.rows_per_seq
    measured = heldout + min(MEASURED_TRAIN_ROWS, spec.train_rows)
    if online:
        deepest = {s: deepest_layer([spec.stream(*s).at]) for s in sites}
        source = next(s for s in spec.sources if s.name == next(iter(sites))[0])
        made_by = getattr(store, "recipe", None)
        compute = getattr(made_by, "model_dtype", "float32")
        facts = model_facts(source.model, source.revision)
        mean_depth = max(1, round(sum(deepest.values()) / len(deepest)))
        reading = Reading(
            width * spec.itemsize, held, (facts, spec.ctx, mean_depth), compute=compute, at_once=spec.batch_size
        )
    else:
        reading = Reading(width * spec.itemsize, held, measured_rows=measured)

    def plan(layout: Layout) -> Plan:
        return plan_training(
            dictionaries,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            reading=reading,
            passes=len(groups),
            layout=layout,
        )

    return PlannedRecipe(
        "train", plan, _largest(dictionaries), _powers(dictionaries), len(jobs), recipe.batch_size, recipe
    )


def buffers(spec: StoreSpec, streams: Sequence[Stream], batch_size: int) -> float:
    """Bytes that shuffled batches of some streams of a store hold, as these say themselves."""
    from workbench.activations.read.batches import Batches
    from workbench.activations.read.store import make_order

    def never(batches: Batches) -> Any:
        raise AssertionError("a plan reads nothing")

    order = make_order(spec, streams, seed=0)
    return float(Batches(never, tuple(streams), order, batch_size, spec.id, spec.dtype).buffer_bytes)


def _evolve(recipe: EvolveRecipe, workspace: Workspace, beside: Any) -> PlannedRecipe:
    from workbench.analysis.evolution.recipe import resolve_sources
    from workbench.analysis.evolution.snapshots import AT_ONCE
    from workbench.analysis.evolution.train import crosscoder_config
    from workbench.models.facts import deepest_layer, model_facts
    from workbench.planning.dry_run import store_or_plan

    sources = resolve_sources(recipe)
    first = {s.model: s.revision for s in reversed(sources)}
    facts = [model_facts(s.model, first[s.model]) for s in sources]
    one = dictionary_of(crosscoder_config(recipe, sources, [f.d_model for f in facts]))
    if recipe.store:
        spec = store_or_plan(recipe.store, workspace, beside).spec
        hook = [s for s in spec.streams if s.at == spec.streams[0].at]
        reading = Reading(one.d_in * spec.itemsize, buffers(spec, hook, recipe.batch_size))
    else:
        blocks = sum(deepest_layer([s.hook]) for s in sources)  # of equal models, each as deep as its own hook
        reading = Reading(0, 0.0, (facts[0], recipe.ctx, blocks), models=len(sources), at_once=AT_ONCE)

    def plan(layout: Layout) -> Plan:
        made = plan_training(
            [one], steps=recipe.steps, batch_size=recipe.batch_size, reading=reading, layout=layout, kind="evolve"
        )
        made.notes.append("the crosscoder's training only; the analyses after it are not planned")
        if recipe.also:
            made.notes.append(f"{1 + len(recipe.also)} sites are followed one after another: so many times the time")
        return made

    return PlannedRecipe("evolve", plan, _largest([one]), _powers([one]), 1, recipe.batch_size, recipe)


def dictionary_of(config: Any) -> Dictionary:
    """What a training config's cost depends on."""
    from sae.encode import tile_size

    widths = getattr(config, "widths", None)
    d_in = sum(widths) if widths else int(config.d_in)
    size = SIZES[config.dtype]
    activation = getattr(config, "activation", "topk")
    dense = (activation if isinstance(activation, str) else str(getattr(activation, "kind", "topk"))) in (
        "l1",
        "jumprelu",
    )
    return Dictionary(
        d_in, int(config.d_sae), int(config.k), size, dense, config.tile_rows or tile_size(int(config.d_sae), size)
    )


def _largest(dictionaries: list[Dictionary]) -> tuple[int, int, int]:
    one = max(dictionaries, key=lambda o: o.parameters)
    return one.d_in, one.d_sae, one.k


def _powers(dictionaries: list[Dictionary]) -> int:
    """The largest power of two that divides every dictionary's latents: how far they can be dealt evenly."""
    import math

    whole = math.gcd(*(o.d_sae for o in dictionaries))
    return whole & -whole


def measured_here(planned: PlannedRecipe, workspace: Workspace) -> Machine:
    """This machine, measured at the shapes of a recipe: its dictionary, and a batch of each model that is on this
    machine.
    """
    models, store = _models_of(planned), None
    if planned.kind == "harvest":
        from workbench.planning.dry_run import planned_spec

        store = planned_spec(planned.recipe)
    root = workspace.root if workspace.root.is_dir() else None
    read, kind = _reading_rate(planned, workspace), _work(planned)
    if planned.shape is None:
        return this_machine(models=models, store=store, disk=root, kind=kind)
    d, f, k = planned.shape
    if d * f > 2**26:  # a dictionary this machine is not meant for: its rates at a size it can hold
        d, f = min(d, 4096), 2**14
    here = this_machine(
        d, f, min(k, f), max(64, min(planned.batch_size or 1024, 2**22 // d)), models=models, disk=root, kind=kind
    )
    return here.model_copy(update={"disk_read": read}) if read else here


def _models_of(planned: PlannedRecipe) -> list[RunModel]:
    """The models of a harvest that are on this machine, at batches of a size they can be tried at; of snapshots of one
    model the first.
    """
    from workbench.activations.harvesting.forward import resolve_hooks
    from workbench.models.facts import fetched, meta_model

    recipe, found = planned.recipe, []
    if planned.kind == "harvest" and recipe.device == "cpu":
        for s in {s.model: s for s in reversed(recipe.sources)}.values():
            if fetched(s.model, s.revision):
                model = meta_model(s.model, s.revision)
                hooks = tuple(dict.fromkeys(resolve_hooks(model, *recipe.hooks_of(s)).values()))
                n = max(1, min(recipe.batch_size, TRIED // (recipe.ctx * int(model.cfg.d_model))))
                found.append(RunModel(s.model, s.revision, hooks, n, recipe.ctx, recipe.threads))
    return found


def _work(planned: PlannedRecipe) -> str:
    """What a recipe's process does: ``model`` runs language models, ``train`` trains on a store, ``both``."""
    online = planned.kind == "evolve" and not planned.recipe.store
    return "both" if online else "train" if planned.kind in ("train", "evolve") else "model"


def _reading_rate(planned: PlannedRecipe, workspace: Workspace) -> float:
    """Bytes per second of shuffled rows from the recipe's own store, over one group of them; 0 where the store is not
    there yet.
    """
    import itertools
    import time

    from workbench.activations import ActivationStore

    name = getattr(planned.recipe, "store", "")
    if not name or not workspace.complete("stores", name):
        return 0.0
    store = ActivationStore.open(workspace.path("stores", name))
    first = store.spec.streams[0]
    sources = store.sources if planned.kind == "evolve" else [first.source]
    batches = store.batches(first.hook, planned.batch_size, seed=0, source=sources, split="train")
    begin, rows = time.perf_counter(), 0
    for x in itertools.islice(batches, max(1, batches.group_rows // planned.batch_size)):
        rows += len(x)
    return rows * x.shape[1] * store.spec.itemsize / (time.perf_counter() - begin)
