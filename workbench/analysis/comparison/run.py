"""``workbench compare`` as a function: find the two sides, reuse what is complete, compare, write."""

from __future__ import annotations

from sae.errors import UsageError
from workbench.analysis.comparison.compare import CompareRecipe, check_baselines, compare
from workbench.analysis.comparison.sides import Group, find_group, model_seed_of, sae_seed_of, untrained_of
from workbench.analysis.comparison.tables import write_comparison
from workbench.provenance import Input
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id


def compare_and_write(
    workspace: Workspace,
    a: str,
    b: str,
    recipe: CompareRecipe,
    *,
    pattern: str = "",
    store: str | None = None,
    run: Run = QUIET,
) -> Item:
    """Compare A and B (on the tokens of ``store``, by default A's own) and write ``matches/<a>__<b>/``; a complete
    comparison of the same dictionaries and recipe is reused.

    It is another one when a dictionary changed, or when one that could serve as a skyline has come to the workspace.

    Raises:
        MismatchError: one of other dictionaries or of another recipe is there.
        UsageError, MissingError: A or B cannot be meant, or what they need is not in the workspace.
    """
    sides = find_group(workspace, a, pattern=pattern), find_group(workspace, b, pattern=pattern)
    if [s.id for s in sides[0].references] == [s.id for s in sides[1].references]:
        raise UsageError(
            f"{a!r} and {b!r} are the same dictionaries: every latent would be its own best match. Name two."
        )
    id = check_id(f"{sides[0].name}__{sides[1].name}")
    check_baselines(recipe)
    inputs = _inputs(workspace, sides, recipe, store)
    wanted = recipe.model_dump(mode="json")
    if (have := reusable(workspace, "matches", id, recipe=wanted, inputs=inputs, run=run)) is not None:
        return have
    with run.bar(f"{a} × {b}", parts_of(workspace, a, b, recipe, pattern=pattern), "part") as bar:
        found = compare(workspace, *sides, recipe, store=store, bar=bar)
    from workbench.analysis.latents.records_run import model_vocab
    from workbench.models import load_model

    vocab = model_vocab(load_model(sides[0].model[0], revision=sides[0].model[1]))
    return write_comparison(workspace, found, vocab, command=run.command)


def _groups(workspace: Workspace, sides: tuple[Group, Group], recipe: CompareRecipe) -> list[Group]:
    """Both sides and the groups of dictionaries their baselines would read."""
    groups = list(sides)
    for name, find in (("sae seed", sae_seed_of), ("model seed", model_seed_of)):
        if name in recipe.baselines:
            groups += [found for g in sides if (found := find(workspace, g)) is not None]
    if "untrained" in recipe.baselines:
        untrained = [untrained_of(workspace, g) for g in sides]
        groups += [g for g in untrained if g is not None] if all(untrained) else []
    return groups


def _inputs(workspace: Workspace, sides: tuple[Group, Group], recipe: CompareRecipe, store: str | None) -> list[Input]:
    """All dictionaries the comparison would read, and the store whose tokens it is on."""
    read = {s.id: s.input for g in _groups(workspace, sides, recipe) for s in g.references}
    tokens = store or sides[0].references[0].metadata.get("store")
    return [*read.values(), *(i.as_input() for i in workspace.items("stores") if i.id == tokens)]


def parts_of(workspace: Workspace, a: str, b: str, recipe: CompareRecipe, *, pattern: str = "") -> int:
    """How often :func:`compare_and_write` reaches a new part: dictionaries to encode, the match itself, baselines and
    shifts.
    """
    sides = find_group(workspace, a, pattern=pattern), find_group(workspace, b, pattern=pattern)
    dictionaries = {s.id for g in _groups(workspace, sides, recipe) for s in g.references}
    return len(dictionaries) + 1 + len(recipe.baselines) + len(recipe.shifts)
