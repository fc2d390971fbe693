"""The demo on a real language model: activations of three layers, a dictionary on each and a transcoder in the middle,
their records, labels, evaluations and a map, a graph, and the model's induction heads.

The forward pass takes most of the time. So the model is timed first, and where all the tokens would take longer than
their part of the demo, the shorter recipe is taken; a workspace that has a store goes on with that one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import workbench
from sae.errors import UsageError
from workbench.activations import ActivationStore, HarvestRecipe
from workbench.activations.format.spec import read_spec
from workbench.config import read_recipe
from workbench.corpus.config import corpus_config
from workbench.dictionaries.recipe import TrainRecipe, jobs_of
from workbench.run import Run
from workbench.workspace import Item, Workspace

FULL, SHORT, TRAIN = "real-harvest", "real-harvest-short", "real-train"
FORWARD_SECONDS = 480.0  # what the harvest may take of the demo's quarter of an hour
RECORD_TOKENS, SEQUENCES = 60_000, 16
PROMPT = "The capital of France is"
INDUCTION_PROMPTS = 16  # a demonstration: `workbench circuits` takes 64


@dataclass(frozen=True)
class RealDemo:
    """What the demo runs on: the model, the harvest recipe, and the training recipe that reads its store."""

    model: str
    harvest: HarvestRecipe
    harvest_name: str  # bundled name of the recipe; empty where it was made for this call
    train: TrainRecipe

    def dictionary_ids(self, workspace: Workspace) -> list[str]:
        """Ids of the dictionaries, the residual ones first."""
        store = ActivationStore.open(workspace.get("stores", self.harvest.id).path)
        jobs = jobs_of(self.train, store)
        return [j.id for j in sorted(jobs, key=lambda j: j.site.endswith("TC"))]


def plan_demo(workspace: Workspace, model_name: str, text: Path | None, run: Run) -> RealDemo:
    """Choose layers, text and length.

    Raises:
        UsageError: a model without residual sites at three depths. MissingError: no such model, or no such folder.
    """
    from workbench.models import load_model, model_id, sites

    model = load_model(model_name)
    n = len(model.blocks)
    if n < 3:
        raise UsageError(f"{model_name} has {n} layers; the demo looks at three depths. Choose a deeper model.")
    middle = n // 2
    known = sites(model)
    hooks = [f"L{n // 6}R", f"L{middle}R", f"L{middle}TC", f"L{n * 5 // 6}R"]
    hooks = [h for h in dict.fromkeys(hooks) if h in known]
    full, short = (read_recipe(HarvestRecipe, name) for name in (FULL, SHORT))
    own = text is not None or model_name != full.sources[0].model or tuple(hooks) != full.hooks
    changes: dict[str, Any] = {"hooks": tuple(hooks)}
    if model_name != full.sources[0].model:
        changes |= {"id": f"real-{model_id(model_name)}", "sources": ({"model": model_name},)}
    if text is not None:
        given = corpus_config(str(text), 0).model_dump()
        shares = {"tiled_share": 0.0, "snippet_share": 0.0, "agreement_share": 0.0}
        changes["corpus"] = {**given, **shares, "split": "all", "heldout": "documents"}
    made = [HarvestRecipe.model_validate({**r.model_dump(), **changes}) if own else r for r in (full, short)]
    name, recipe = (FULL, made[0]) if _takes_all(workspace, model, made[0], run) else (SHORT, made[1])
    train = read_recipe(TrainRecipe, TRAIN)
    if own:
        train = TrainRecipe.model_validate({**train.model_dump(), "store": recipe.id, "sites": hooks, "harvest": ""})
    return RealDemo(model_name, recipe, "" if own else name, train)


def _takes_all(workspace: Workspace, model: Any, recipe: HarvestRecipe, run: Run) -> bool:
    """Whether the long recipe is taken: the store that is there decides, else the speed of the forward pass here."""
    folder = workspace.path("stores", recipe.id)
    if (folder / "store.json").is_file():
        return read_spec(folder).n_seq == recipe.n_seq
    speed = tokens_per_second(model, recipe)
    seconds = recipe.n_seq * recipe.ctx / speed
    fits = seconds <= FORWARD_SECONDS
    rest = "" if fits else f"; all {recipe.n_seq * recipe.ctx:,} would take {seconds / 60:.0f} min, so fewer are taken"
    run.say(f"the forward pass does {speed:,.0f} tokens a second here{rest}")
    return fits


def tokens_per_second(model: Any, recipe: HarvestRecipe, sequences: int = 4) -> float:
    """Tokens a second of the harvest's own forward pass, the better of two tries, on the recipe's threads."""
    import torch

    from workbench.activations.harvesting.forward import capture, resolve_hooks

    names = list(dict.fromkeys(resolve_hooks(model, list(recipe.hooks), {}).values()))
    tokens = (torch.arange(sequences * recipe.ctx) * 7919 % int(model.cfg.d_vocab)).reshape(sequences, recipe.ctx)
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        taken = []
        for _ in range(2):
            begin = time.perf_counter()
            capture(model, tokens, names)
            taken.append(time.perf_counter() - begin)
    finally:
        torch.set_num_threads(threads)
    return tokens.numel() / min(taken)


@dataclass(frozen=True)
class _Step:
    title: str
    share: float  # of the whole demo's time, as measured once; only for the line that says what is left
    run: Any  # (Run) -> ids


def steps(workspace: Workspace, demo: RealDemo) -> list[_Step]:
    """The demo's steps in order."""
    ids = partial(demo.dictionary_ids, workspace)

    def harvest(run: Run) -> list[str]:
        return [workbench.harvest(workspace, demo.harvest_name or demo.harvest, run=run).id]

    def train(run: Run) -> list[str]:
        wanted = TRAIN if demo.harvest_name else demo.train
        return [item.id for item in workbench.train(workspace, wanted, run=run).all]

    def features(run: Run) -> list[str]:
        return [workbench.features(workspace, id, tokens=RECORD_TOKENS, run=run).id for id in ids()]

    def labels(run: Run) -> list[str]:
        return [workbench.explain(workspace, id, tokens=RECORD_TOKENS, run=run).id for id in ids()]

    def evaluate(run: Run) -> list[str]:
        return [workbench.evaluate(workspace, id, sequences=SEQUENCES, run=run).id for id in ids()]

    def map(run: Run) -> list[str]:
        residual = [i for i in ids() if not i.rsplit(".", 1)[-1].split("-")[0].endswith("TC")]
        return [workbench.map(workspace, residual[len(residual) // 2], run=run).id]

    def graph(run: Run) -> list[str]:
        return _unless_refused(run, lambda: workbench.graph(workspace, PROMPT, model=demo.model, run=run))

    def induction(run: Run) -> list[str]:
        def make() -> Item:
            return workbench.circuits(workspace, demo.model, prompts=INDUCTION_PROMPTS, control="none", run=run)

        return _unless_refused(run, make)

    return [
        _Step("activations", 0.40, harvest),
        _Step("dictionaries", 0.23, train),
        _Step("latent records", 0.08, features),
        _Step("labels by rule", 0.04, labels),
        _Step("evaluation", 0.10, evaluate),
        _Step("map", 0.04, map),
        _Step("graph", 0.04, graph),
        _Step("induction", 0.07, induction),
    ]


def _unless_refused(run: Run, make: Callable[[], Item]) -> list[str]:
    """The id of what is made; none, and why, where the model is refused: the other steps do not need it."""
    try:
        return [make().id]
    except UsageError as e:
        run.say(f"left out: {e}")
        return []


def run_real_demo(workspace: Workspace, model: str, text: Path | None, run: Run) -> dict[str, Any]:
    """Run every step; returns what was made per step, with seconds. Complete results are reused."""
    demo = plan_demo(workspace, model, text, run)
    todo = steps(workspace, demo)
    out: dict[str, Any] = {}
    worked = share = 0.0
    for i, step in enumerate(todo):
        left = worked / share * sum(s.share for s in todo[i:]) if share else None
        about = "" if left is None else f", about {max(1, round(left / 60))} min left"
        run.say(f"— {step.title} (step {i + 1} of {len(todo)}{about})")
        begin = time.perf_counter()
        ids = step.run(replace(run, command=""))
        seconds = time.perf_counter() - begin
        if seconds > 2:  # what was there already says nothing about the pace
            worked, share = worked + seconds, share + step.share
        out[step.title] = {"ids": ids, "seconds": round(seconds, 1)}
    return out
