"""Pretrained models in a workspace: the one that is there for a recipe, or the run that makes it."""

from __future__ import annotations

import shutil
from typing import Any

from sae.errors import MismatchError
from workbench.config import data_dir
from workbench.corpus.documents import corpus_inputs
from workbench.models.pretrain import Pretraining, PretrainRecipe
from workbench.provenance import Input, Manifest, read_manifest
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace


def trained_model(
    recipe: PretrainRecipe, workspace: Workspace, *, criteria: bool = False, run: Run = QUIET
) -> Item | None:
    """The model of a recipe where the workspace holds it, trained or as a pointer to a bundled one; None where it is to
    be trained.

    Args:
        criteria: the card is to hold criteria, too.

    Raises:
        MismatchError: a model of this name is there that was made from another recipe, text or start.
    """

    def recorded(m: Manifest) -> dict[str, Any]:
        name = m.metadata.get("bundled")
        made = m if name is None else read_manifest(data_dir() / "models" / name)
        return {**made.recipe, "criteria": "criteria" in made.numbers or not criteria}

    return reusable(
        workspace,
        "models",
        recipe.name,
        recipe={**recipe.model_dump(mode="json"), "criteria": True},
        inputs=inputs_of(recipe, workspace),
        run=run,
        recorded=recorded,
        otherwise="or give the recipe another name",
    )


def inputs_of(recipe: PretrainRecipe, workspace: Workspace) -> list[Input]:
    """What a model is made from beside its recipe: the model it continues, and text of files."""
    from workbench.models.weights import model_inputs

    start = [] if recipe.start is None else model_inputs([(_start_of(recipe, workspace), None)])
    return start + corpus_inputs(recipe.corpus)


def _start_of(recipe: PretrainRecipe, workspace: Workspace) -> str:
    local = recipe.start is not None and (workspace.path("models", recipe.start) / "config.json").is_file()
    return str(workspace.path("models", str(recipe.start)) if local else recipe.start)


def open_run(
    recipe: PretrainRecipe, workspace: Workspace, tokenizer: Any = None, *, replace: bool = False
) -> Pretraining:
    """Start or resume the run of a recipe in ``models/.<name>.work`` of a workspace.

    Args:
        replace: where an interrupted run of another recipe lies there, remove it and start from the beginning.

    Raises:
        MismatchError: an interrupted run of another recipe lies there. MissingError: the recipe continues a model that
            is neither in the workspace nor bundled.
    """
    from workbench.models.load import load_hf
    from workbench.models.tokenizer import read_tokenizer

    work = workspace.new_path("models", recipe.name).with_name(f".{recipe.name}.work")
    tokenizer = tokenizer if tokenizer is not None else read_tokenizer(data_dir() / "tokenizer")
    start = None
    if recipe.start is not None:
        start = load_hf(_start_of(recipe, workspace))
        start.set_attn_implementation("sdpa")
    try:
        return Pretraining(recipe, work, tokenizer, start=start)
    except MismatchError:
        if not replace:
            raise
        shutil.rmtree(work)
        return Pretraining(recipe, work, tokenizer, start=start)
