"""The baselines beside a crosscoder: one Top-K SAE per snapshot, *alone* or *warm*. Same latents F, same k, same
batches.

*alone*: each from random directions. It sees exactly the rows the crosscoder sees, as often, so the gap of explained
variance between the two is what sharing one code over all snapshots costs.
*warm*: each starts from the one before, so latent i of one snapshot's SAE is the descendant of latent i of the one
before, and latents are followed without a shared code (the route of *SAE-Track*). The last of S has been trained S
times as long.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from crosscoders.config import DEAD_AFTER, FEW_STEPS
from sae import SAE, TopKConfig, TopKSAE
from sae import train as train_sae
from sae.presets import preset
from sae.refitting import refit
from workbench.analysis.evolution.plan import OTHERWISE
from workbench.analysis.evolution.recipe import recorded_recipe, training_content
from workbench.corpus.documents import corpus_inputs
from workbench.dictionaries.publish import publish, work_folder
from workbench.models.weights import model_inputs
from workbench.provenance import Input, Manifest
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.stats import Estimate, interval95
from workbench.workspace import Workspace, dictionary_id

if TYPE_CHECKING:
    from crosscoders import Crosscoder
    from workbench.analysis.evolution.plan import EvolutionPlan
    from workbench.analysis.evolution.recipe import EvolveRecipe
    from workbench.analysis.evolution.snapshots import OnlineBatches, Source


class WarmTopKConfig(TopKConfig):
    """A Top-K SAE that starts from a saved one (``start``, a folder) instead of random directions; empty = random.

    ``start_scale`` is the factor that its training rows were multiplied with; a saved dictionary has it folded in.
    """

    PLACES: ClassVar[frozenset[str]] = frozenset({"start"})

    start: str = ""
    start_scale: float = 1.0

    def build(self) -> SAE:
        """The model; its weights are copied when the first batch tells the scale."""
        model = super().build()
        if self.start:
            model.initialise = functools.partial(warm_start, model, TopKSAE.load(self.start), self.start_scale)  # type: ignore[method-assign]
        return model


@torch.no_grad()
def warm_start(model: SAE, previous: SAE, previous_scale: float, x_BD: Tensor, generator: torch.Generator) -> None:
    """Give ``model`` the weights that ``previous`` (folded) was trained with, around the mean of the new rows in their
    own scale.

    Both trainings see rows of one size, so a residual stream that has grown meanwhile changes nothing.
    """
    x = x_BD.to(model.enc_FD.dtype)
    model.scale_D.copy_(model.measure_scale(x))
    model.enc_FD.copy_(previous.enc_FD)
    model.b_enc.copy_(previous.b_enc * previous_scale)
    model.dec_FD.copy_(previous.dec_FD)
    model.b_dec.copy_((x * model.scale_D).mean(0))
    model.constrain()


BASELINES = ("alone", "warm")


def alone_config(recipe: EvolveRecipe, width: int) -> WarmTopKConfig:
    """An SAE of one snapshot: as many latents, the same k, seed and (``few-steps``) preset as the
    recipe's crosscoder.
    """
    sizes = {"d_in": width, "d_sae": recipe.expansion * width, "k": recipe.k}
    few = preset(recipe.preset, d_in=width, d_sae=sizes["d_sae"], k=recipe.k) if recipe.preset == FEW_STEPS else {}
    return WarmTopKConfig(**few, **sizes, seed=recipe.seed, dead_after=DEAD_AFTER)


def tracked_id(recipe: EvolveRecipe, source: Source, kind: str) -> str:
    """``<model>@<revision>.<site>-<n>x[.s<seed>].k<k>.n<steps>.alone`` or ``.warm``."""
    from workbench.models.load import model_id

    id = dictionary_id(
        model_id(source.model), recipe.site, recipe.expansion, revision=source.revision, seed=recipe.seed
    )
    return f"{id}.k{recipe.k}.n{recipe.steps}.{kind}"


def track(
    plan: EvolutionPlan, workspace: Workspace, *, kinds: Sequence[str] = BASELINES, run: Run = QUIET
) -> dict[str, list[str]]:
    """Train the SAEs of a plan's sources in order, on the crosscoder's own text (complete ones are reused); their ids
    by kind.
    """
    from workbench.analysis.evolution.snapshots import OnlineBatches, Snapshots

    recipe = plan.recipe
    ids: dict[str, list[str]] = {kind: [] for kind in kinds}
    start, start_scale = "", 1.0
    for source in plan.sources:
        one = Snapshots([source])
        width = one.widths()[0]
        batches = OnlineBatches(
            one,
            plan.tokens,
            recipe.batch_size,
            seed=recipe.seed,
            group=recipe.group,
            cache=True,
            excluded=plan.excluded,
            marked=plan.marked,
        )
        for kind in kinds:
            config = alone_config(recipe, width)
            if kind == "warm":  # it need not find its directions
                config = config.model_copy(update={"lr": 1e-3})
            before = ids[kind][-1] if kind == "warm" and ids[kind] else None
            if before:
                config = config.model_copy(update={"start": start, "start_scale": start_scale})
            id = tracked_id(recipe, source, kind)
            ids[kind].append(id)
            made_from = [workspace.get("dictionaries", before).as_input()] if before else []
            made_from += [*model_inputs([(source.model, source.revision)]), *corpus_inputs(recipe.corpus)]
            if _made(recipe, workspace, source, id, made_from, run):
                continue
            run.say(f"{id}: {'warm start from ' + before if before else 'from random directions'}")
            _train_one(recipe, workspace, source, config, batches, id, before, made_from, run)
        if "warm" in kinds:
            first = next(iter(batches))  # the batch that set this SAE's scale
            start, start_scale = (
                str(workspace.path("dictionaries", ids["warm"][-1])),
                float(TopKSAE(width, 1, 1).measure_scale(first)[0]),
            )
    return ids


def _made(
    recipe: EvolveRecipe, workspace: Workspace, source: Source, id: str, made_from: list[Input], run: Run
) -> bool:
    """Whether the workspace holds this SAE.

    Raises:
        MismatchError: it was made with other settings, from other weights, or from another SAE before it.
    """

    def content(recipe: EvolveRecipe) -> dict[str, Any]:
        """The crosscoder's own settings count as far as an SAE shares them."""
        values = training_content(recipe, [source.name])
        few = {"preset": recipe.preset if recipe.preset == FEW_STEPS else ""}
        return {k: v for k, v in values.items() if k not in ("store", "common_basis", "crosscoder")} | few

    def recorded(m: Manifest) -> dict[str, Any]:
        made = recorded_recipe(m)
        return {"made by": m.command or "another command"} if made is None else content(made)

    have = reusable(
        workspace,
        "dictionaries",
        id,
        recipe=content(recipe),
        inputs=made_from,
        run=run,
        recorded=recorded,
        otherwise=OTHERWISE,
    )
    return have is not None


def _train_one(
    recipe: EvolveRecipe,
    workspace: Workspace,
    source: Source,
    config: WarmTopKConfig,
    batches: OnlineBatches,
    id: str,
    before: str | None,
    made_from: list[Input],
    run: Run,
) -> None:
    """One SAE of a baseline, into ``dictionaries/<id>``."""
    from sae.loop import contract

    about = {
        "model_name": source.model,
        "revision": source.revision,
        "hook_name": source.hook,
        "site": recipe.site,
        "context_size": recipe.ctx,
        "warm_start": before,
    }
    folder = work_folder(workspace, id, contract(config, recipe.steps, batches), run, otherwise=OTHERWISE)
    folder.mkdir(parents=True, exist_ok=True)
    made = train_sae(config, batches, total_steps=recipe.steps, out=folder, resume=True, metadata=about)
    if (
        recipe.refit and not before and id.endswith(".alone")
    ):  # as the crosscoder's; the warm chain goes on from trained decoders
        n = min(-(-recipe.refit // recipe.batch_size), recipe.steps)
        refit(made, itertools.islice(batches.starting_at(recipe.steps - n), n)).save(folder)
    publish(
        workspace,
        folder,
        id,
        recipe=recipe,
        inputs=made_from,
        numbers={"d_in": config.d_in, "d_sae": config.d_sae, "k": config.k, "steps": recipe.steps},
        metadata=about | {"kind": "sae", "seed": recipe.seed},
        run=run,
    )


@dataclass(frozen=True)
class Gaps:
    """``table``: one row per source (see :func:`measure_gaps`); ``drawn`` [resamples, S] the gaps of every bootstrap
    draw.
    """

    table: pd.DataFrame
    drawn: np.ndarray

    def mean(self, sources: slice = slice(None)) -> Estimate:
        """Mean gap over some sources, with the interval of that mean."""
        part, drawn = self.table[sources], self.drawn[:, sources].mean(1)
        low, high = interval95(drawn)
        unit = f"batches of held-out rows ({int(part['rows'].iloc[0])} rows)"
        return Estimate(
            float(part["gap"].mean()),
            float(low),
            float(high),
            int(part["n"].iloc[0]),
            unit,
            "bootstrap over batches, 95 %",
        )


@torch.no_grad()
def measure_gaps(
    cc: Crosscoder,
    dictionaries: list[SAE],
    names: list[str],
    batches: Iterable[Tensor],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> Gaps:
    """Explained variance of the crosscoder and of each snapshot's own SAE on the same held-out rows [B, sum(D)]; one
    row per source.

    ``gap`` = SAE - crosscoder, with a 95 % bootstrap interval over batches (``n`` of them, ``rows`` rows); both L0
    beside it.
    """
    errors: list[np.ndarray] = []  # [2, S] of every batch, squared
    squares: list[list[float]] = []
    summed: list[list[Tensor]] = []
    l0, counts = np.zeros((2, len(names))), []
    for x in batches:
        y, on, _ = cc.reconstructed_by_source(x)
        mine, parts = cc.split(y), cc.split(x)
        one = np.zeros((2, len(names)))
        for s, (part, sae) in enumerate(zip(parts, dictionaries, strict=True)):
            v, i = sae.encode_sparse(part)
            one[:, s] = [float(t.double().square().sum()) for t in (part - mine[s], part - sae.decode_sparse(v, i))]
            l0[:, s] += int((on[s] > 0).sum()), int((v > 0).sum())
        errors.append(one)
        squares.append([float(p.double().square().sum()) for p in parts])
        summed.append([p.double().sum(0) for p in parts])
        counts.append(len(x))
    rows = sum(counts)
    spread = np.zeros((len(counts), len(names)))  # around the mean of all rows
    for s in range(len(names)):
        total_D = torch.stack([one[s] for one in summed])
        mean_D = total_D.sum(0) / rows
        spread[:, s] = (
            np.array(squares)[:, s] - 2 * (total_D @ mean_D).numpy() + np.array(counts) * float(mean_D @ mean_D)
        )
    total = np.concatenate([np.stack(errors), spread[:, None]], axis=1)  # [batches, 3, S]
    ev = 1 - total.sum(0)[:2] / total.sum(0)[2]
    weights = np.random.default_rng(seed).multinomial(len(total), np.full(len(total), 1 / len(total)), size=resamples)
    drawn = np.einsum("rb,bqs->rqs", weights, total)
    gaps = (drawn[:, 0] - drawn[:, 1]) / drawn[:, 2]
    low, high = interval95(gaps, axis=0)
    columns = {"source": names, "ev_crosscoder": ev[0], "ev_sae": ev[1], "gap": ev[1] - ev[0], "low": low, "high": high}
    table = pd.DataFrame(
        columns | {"l0_crosscoder": l0[0] / rows, "l0_sae": l0[1] / rows, "n": len(total), "rows": rows}
    )
    return Gaps(table, gaps)
