"""The verb about how real the latents of a dictionary are."""

from __future__ import annotations

from pathlib import Path

from workbench.run import Run, opened, recorded
from workbench.workspace import Item, Workspace


@recorded("trust")
def trust(
    workspace: Workspace | str | Path,
    dictionary: str,
    *,
    tokens: int = 100_000,
    min_firings: int = 20,
    train: bool = True,
    ablations: int = 32,
    seed: int = 0,
    store: str | None = None,
    model: str | None = None,
    hook: str | None = None,
    replace: bool = False,
    run: Run | None = None,
) -> Item:
    """A card of evidence for every latent: found again in other seeds and in the untrained model, encoder against
    decoder, absorption, effect on the loss, its rule on near misses, stability; each with n and chance.

    Args:
        tokens: held-out ones of its store, at most. min_firings: latents that fire less are not matched. train: harvest
            and train what it is held against where the workspace has none (a second seed, another seed of the model,
            the untrained model, rules). ablations: tokens on which each latent is ablated; 0 = none. store, model,
            hook: where the dictionary does not name them.

    Raises:
        MismatchError: one is there with another recipe or other inputs, and not ``replace``.
        UsageError, MissingError: a dictionary of several sources, or one whose store is not in the workspace.

    Examples:
        >>> cards = trust("workspace", "mini-pythia.L1R-8x", train=False)
    """
    from workbench.analysis.trust.run import TrustRecipe, make_trust
    from workbench.dictionaries.reference import find_dictionary
    from workbench.models.pointers import by_id

    workspace, run = opened(workspace, run, replace_results=replace)
    model = None if model is None else by_id(workspace, model, run=run)
    reference = find_dictionary(workspace, dictionary, store=store, model_name=model, hook_name=hook)
    recipe = TrustRecipe(tokens=tokens, min_firings=min_firings, ablations=ablations, seed=seed)
    return make_trust(workspace, reference, recipe, train=train, run=run)
