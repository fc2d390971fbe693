"""Verbs that hold models and dictionaries against each other, follow them through training, and trace what they do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sae.errors import MissingError, UsageError
from sae.strict import parse_config
from workbench.analysis.evolution.recipe import EvolveRecipe
from workbench.config import recorded_recipe
from workbench.run import Run, opened, recorded
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    from workbench.analysis.graph.run import Intervened


@recorded("compare")
def compare(
    workspace: Workspace | str | Path,
    pair: tuple[str, str],
    *,
    tokens: int = 100_000,
    min_firings: int = 30,
    baselines: str = "all",
    pattern: str = "",
    store: str | None = None,
    codes: bool = True,
    seed: int = 0,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Match the latents of two dictionaries or models on the same tokens by their largest pairwise Pearson correlation
    (MPPC; *Towards Universality*, arXiv 2410.06672), beside every available baseline.

    Args:
        pair: two ids, or two models: all residual dictionaries of each. tokens: held-out ones first. min_firings:
            latents that fire less take no part. baselines: ``all``, ``none``, or names separated by commas. pattern:
            part of the ids to choose by. store: whose tokens, where A does not name one. codes: keep them, so that any
            pair can be seen on the same tokens.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: A or B cannot be meant, or what they need is not in the workspace.

    Examples:
        >>> matches = compare("workspace", ("mini-pythia", "mini-mamba"))
    """
    from workbench.analysis.comparison.compare import BASELINES, CompareRecipe
    from workbench.analysis.comparison.run import compare_and_write

    workspace, run = opened(workspace, run, replace_results=replace)
    given = {"tokens": tokens, "min_firings": min_firings, "codes": codes, "seed": seed}
    if baselines != "all":
        spelt = {s.replace("-", " "): s for s in BASELINES}  # sae-seed and sae seed are one
        names = [] if baselines == "none" else [s.strip().replace("-", " ") for s in baselines.split(",")]
        given["baselines"] = [spelt.get(s, s) for s in names]  # type: ignore[assignment]
    recipe = CompareRecipe.model_validate(given)
    return compare_and_write(workspace, *pair, recipe, pattern=pattern, store=store, run=run)


@recorded("transplant")
def transplant(
    workspace: Workspace | str | Path,
    pair: tuple[str, str],
    *,
    sequences: int = 8,
    pool: int = 256,
    level: float = 0.5,
    below: int = 96,
    latents: int | None = None,
    seed: int = 0,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Does a latent's partner do its work? Take latents of dictionary B out of B's forward pass, put in what their best
    partners in A write, mapped into B's space by the decoders of other matched pairs, and measure how much of the
    damage that repairs, beside nulls and a ceiling.

    Args:
        pair: ids of dictionaries A and B, of models that read the same tokens. sequences: per latent. pool: sequences
            these are drawn from. level: correlation from which a pair counts as matched; all of these are measured, or
            ``latents`` of them evenly over r. below: pairs under the level that are measured too.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: see :func:`workbench.analysis.transplant.run.transplant_and_write`.

    Examples:
        >>> transplant("workspace", ("mini-pythia.L1R-8x", "mini-mamba.L1R-8x")).manifest.numbers["repaired"]["median"]
    """
    from workbench.analysis.transplant.run import TransplantRecipe, transplant_and_write

    workspace, run = opened(workspace, run, replace_results=replace)
    recipe = TransplantRecipe(sequences=sequences, pool=pool, level=level, below=below, latents=latents, seed=seed)
    return transplant_and_write(workspace, *pair, recipe, run=run)


@recorded("substitute")
def substitute(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    atoms: int = 64,
    firings: int = 24,
    sequences: int = 128,
    window: int = 16,
    strongest: bool = False,
    seed: int = 0,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Do the atoms of a dictionary of writes do a recurrent layer's work? Where an atom fires, put it, scaled by its
    code, in the place of the layer's own write, and see how far the model's predictions and the layer's later reads
    move, beside writing nothing, another atom, a random write, and principal directions (WriteSAE, arXiv 2605.12770).

    Args:
        dictionary: id of a dictionary of site W, as ``train mini-write`` makes them. atoms: at most so many, evenly
            over how often they fire. firings: per atom. sequences: of its store, held-out ones first. window: positions
            that are looked at, from the write on. strongest: only firings at which the atom is the strongest of its
            write, as WriteSAE tries them.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: see :func:`workbench.analysis.substitution.run.substitute_and_write`.

    Examples:
        >>> substitute("workspace", "mini-mamba.L1W-2x").manifest.numbers["win_rate"]["win_rate"]
    """
    from workbench.analysis.substitution.run import SubstituteRecipe, substitute_and_write

    workspace, run = opened(workspace, run, replace_results=replace)
    size = {"atoms": atoms, "firings": firings, "sequences": sequences, "window": window}
    recipe = SubstituteRecipe(**size, strongest=strongest, seed=seed)
    return substitute_and_write(workspace, dictionary, recipe, run=run)


@recorded("circuits")
def circuits(
    workspace: Workspace | str | Path,
    model: str,
    *,
    revision: str | None = None,
    task: str = "induction",
    prompts: int = 64,
    length: int | None = None,
    seed: int = 0,
    control: str = "step0",
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Where a model keeps and reads what it needs: total and direct effects of heads, states, writes and convolution
    taps, each metric with n and bootstrap interval (arXiv 2410.06672, section 5).

    Args:
        model: bundled, a folder, or a Hugging Face id. revision: a snapshot. task: a bundled task or a TOML file.
            length: tokens per induction prompt. control: snapshot to compare the largest effect with; ``none``.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: an unknown task, model or snapshot.

    Examples:
        >>> circuits("workspace", "mini-mamba", prompts=32).manifest.numbers["write_peak"]
    """
    from workbench.analysis.circuits.run import make_circuits

    workspace, run = opened(workspace, run, replace_results=replace)
    return make_circuits(
        workspace,
        model,
        revision=revision,
        task=task,
        n_prompts=prompts,
        length=length,
        seed=seed,
        control=None if control == "none" else control,
        run=run,
    )


@recorded("states")
def states(
    workspace: Workspace | str | Path,
    model: str,
    *,
    text: Sequence[str] = (),
    task: str = "induction",
    prompts: int = 4,
    length: int | None = None,
    revision: Sequence[str] = (),
    snapshots: int = 6,
    dictionary: Sequence[str] = (),
    seed: int = 0,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """What every layer of a model keeps of every token, how long it lives, who reads it, and by how much later
    predictions fall without it.

    Args:
        model: bundled, a folder, or a Hugging Face id. text: texts to follow; without one, ``prompts`` prompts of
            ``task``, ``length`` tokens each. revision: snapshots in order; without one, ``snapshots`` of them at even
            distances. dictionary: dictionaries of writes (site W), one per layer, whose atoms tell what was written.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: an unknown model, snapshot, task or dictionary, or a layer that cannot be read.

    Examples:
        >>> states("workspace", "mini-mamba", text=["import os"]).manifest.numbers["largest_effect"]
    """
    from workbench.analysis.memory.run import make_states

    workspace, run = opened(workspace, run, replace_results=replace)
    return make_states(
        workspace,
        model,
        texts=text,
        task=task,
        prompts=prompts,
        length=length,
        revisions=revision,
        snapshots=snapshots,
        dictionaries=dictionary,
        seed=seed,
        run=run,
    )


@recorded("graph")
def graph(
    workspace: Workspace | str | Path,
    prompt: str,
    *,
    model: str = "mini-pythia",
    revision: str | None = None,
    site: str = "R",
    dictionary: Sequence[str] = (),
    node_share: float = 0.8,
    edge_share: float = 0.98,
    freeze: bool = True,
    max_tokens: int = 64,
    split: bool = False,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Trace which latents of each layer make which latents of the next, and which make the next token (Marks et al.
    2024, arXiv 2403.19647; Ameisen et al. 2025 for transcoders).

    Args:
        site: ``R``: between residual streams; ``TC``: through the transcoders of the MLPs. dictionary: ids, instead of
            ``site``. node_share, edge_share: shares of influence that kept nodes and edges hold. freeze: hold attention
            patterns, norms and gates at this prompt's values. max_tokens: longest prompt. split: also take every edge
            apart by attention heads, or by the channels of a Mamba's state, and attention scores by pairs of latents.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError: an empty or too long prompt. UserError: see :mod:`workbench.analysis.graph.choose`.

    Examples:
        >>> graph("workspace", "def __init__(self", model="mini-mamba").manifest.numbers["nodes"]
    """
    from workbench.analysis.graph.run import make_graph

    workspace, run = opened(workspace, run, replace_results=replace)
    return make_graph(
        workspace,
        prompt,
        model,
        revision=revision,
        site=site,
        dictionaries=tuple(dictionary),
        node_share=node_share,
        edge_share=edge_share,
        freeze=freeze,
        max_tokens=max_tokens,
        split=split,
        run=run,
    )


def intervene(
    workspace: Workspace | str | Path,
    graph: str,
    *,
    set: Sequence[str] = (),
    swap: Sequence[str] = (),
    check: bool = False,
    freeze: bool | None = None,
    max_tokens: int = 64,
    run: Run | None = None,
) -> Intervened:
    """Hold latents of a graph at other values, run the model, and put what it does beside what the graph predicts.

    Nothing is written.

    Args:
        graph: id of a graph in the workspace. set: ``NODE=0``, ``NODE=1.5``, ``NODE=x2``, several nodes ``A,B=0``; all
            changes act together. swap: ``A=B``. check: also ablate every latent with a kept edge into a target, one at
            a time. freeze: hold attention patterns, norms and gates; None = as the graph was drawn.

    Raises:
        MissingError: no such graph, or a dictionary of it is gone. UsageError: no such node, or a bad value.

    Examples:
        >>> intervene("workspace", "mini-pythia.def-init-self.0a1b2c3d", set=["3_17_5=0"]).intervention.kl
    """
    from workbench.analysis.graph.run import intervene_on

    workspace, run = opened(workspace, run)
    return intervene_on(
        workspace, graph, sets=set, swaps=swap, check=check, freeze=freeze, max_tokens=max_tokens, run=run
    )


@recorded("evolve")
def evolve(
    workspace: Workspace | str | Path,
    recipe: EvolveRecipe | str | Path,
    *,
    site: str | None = None,
    seed: int | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """Train a crosscoder over the snapshots of a model and follow its latents: emergence, phases, attribution, with
    their nulls (*Evolution of Concepts*, arXiv 2509.17196). Processes that torchrun started train together; then the
    first analyses, and the others wait for it.

    Args:
        recipe: a file, a bundled name, the recipe, or a model with snapshots. site, seed: instead of the recipe's.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, ConfigError, MissingError: the recipe asks for what does not exist.

    Examples:
        >>> evolve("workspace", "mini-evolve").manifest.numbers["explained_variance"]
    """
    from sae.parallel import process_mesh
    from workbench.analysis.evolution.plan import make_plan, with_ids
    from workbench.analysis.evolution.run import run_plan
    from workbench.analysis.evolution.train import train_plans

    workspace, run = opened(workspace, run, replace_results=replace)
    with process_mesh() as everyone:
        wanted = everyone.run_everywhere(lambda: evolve_recipe(recipe, site=site, seed=seed, workspace=workspace))
        wanted = everyone.run_everywhere(lambda: with_ids(wanted, workspace, run))
        plan = everyone.run_everywhere(lambda: make_plan(wanted))
        done = everyone.run_everywhere(
            lambda: plan.analysed(workspace, Run(replace=run.replace)) if everyone.is_rank_zero else None
        )
        if everyone.world > 1 and everyone.broadcast(done is None):
            with process_mesh(wanted.parallel.data, wanted.parallel.latents) as ranks:
                train_plans([plan, *plan.beside], workspace, run=run, ranks=ranks)
        everyone.run_everywhere(lambda: run_plan(plan, workspace, run=run) if everyone.is_rank_zero else None)
        everyone.broadcast(None)
    return workspace.get("evolution", plan.id)


def evolve_recipe(
    recipe: EvolveRecipe | str | Path,
    *,
    site: str | None = None,
    seed: int | None = None,
    workspace: Workspace | None = None,
) -> EvolveRecipe:
    """The recipe that is meant: the object, a file or bundled name, that of a result (``kind/id``), or the defaults for
    a model's name.

    Raises:
        MissingError: neither a recipe nor a model at hand. UsageError: the recipe of a model that is not trained yet.
    """
    given = {} if seed is None else {"seed": seed}
    given |= {} if site is None else {"site": site, "also": ()}  # type: ignore[dict-item]
    if not isinstance(recipe, EvolveRecipe):
        made = None if workspace is None else recorded_recipe(str(recipe), workspace)
        recipe = _named(str(recipe)) if made is None else parse_config(EvolveRecipe, made, where=str(recipe))
    return recipe.model_copy(update=given)


def _named(what: str) -> EvolveRecipe:
    from sae.strict import read_toml
    from workbench.config import find_recipe, read_recipe
    from workbench.models.load import find_folder

    try:
        path = find_recipe(what)
    except MissingError as e:
        if Path(what).suffix == ".toml":
            raise
        if find_folder(what) is None:
            raise MissingError(f"{e}, nor a model at hand") from e
        return EvolveRecipe(model=what)
    if path != Path(what) and "architecture" in read_toml(path):  # the recipe a bundled model of this name is made by
        if find_folder(what) is None:
            raise UsageError(
                f"{what!r} is a recipe for `workbench pretrain {what}`, and there is no such model yet. Run that first."
            )
        return EvolveRecipe(model=what)
    return read_recipe(EvolveRecipe, what)
