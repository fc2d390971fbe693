"""One evolution, settled before anything runs: its sources, its id, its models and its text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.analysis.evolution.recipe import (
    EvolveRecipe,
    analysis_content,
    companions,
    evolution_id,
    recorded_recipe,
    resolve_sources,
    training_content,
)
from workbench.analysis.evolution.snapshots import RowCache, Snapshots, Source
from workbench.provenance import Input, Manifest
from workbench.results.lines import STATEMENTS, lines_of
from workbench.results.reuse import inputs_now, reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace

if TYPE_CHECKING:
    from workbench.corpus import TokenPlan

OTHERWISE = "or give the recipe another id"


@dataclass(frozen=True)
class EvolutionPlan:
    """What a recipe means here. Made once by :func:`make_plan` and handed on as it is.

    Attributes:
        recipe: what was asked for. sources: what the crosscoder reads, in order. id: of both results.
        cache: rows shared with other runs over the same snapshots and text; None: each runs the models itself.
        beside: plans of the further sites (``also``), whose crosscoders are trained on the same pass.
    """

    recipe: EvolveRecipe
    sources: tuple[Source, ...]
    id: str
    cache: RowCache | None = None
    beside: tuple[EvolutionPlan, ...] = ()

    @cached_property
    def snapshots(self) -> Snapshots:
        """The sources as models, each loaded when it is first needed."""
        return Snapshots(self.sources, cache=self.cache)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the last source; all sources read the same tokens."""
        from workbench.models import load_tokenizer

        return load_tokenizer(self.sources[-1].model, self.sources[-1].revision)

    @property
    def tokens(self) -> np.ndarray:
        """[n_seq, ctx] training text, where rows are computed as they are needed."""
        return self.text.tokens

    @property
    def excluded(self) -> tuple[int, ...]:
        """Ids without rows, wherever they stand in the text."""
        return () if self.text.contract is None else self.text.contract.excluded_ids

    @property
    def marked(self) -> np.ndarray | None:
        """[n_seq, ctx] which tokens may be rows, where the text asks for the words of some roles only."""
        return self.text.rows

    @cached_property
    def text(self) -> TokenPlan:
        """The training text, by the contract of its tokenizer.

        Raises:
            UsageError: ``ctx`` is longer than a source has positions.
        """
        from workbench.corpus import plan_tokens
        from workbench.models.facts import model_config
        from workbench.models.limits import check_context

        for source in self.sources:
            check_context(model_config(source.model, source.revision), self.recipe.ctx, source.name)
        return plan_tokens(self.recipe.corpus, self.tokenizer, n_seq=self.recipe.n_seq, ctx=self.recipe.ctx)

    @cached_property
    def read(self) -> list[Input]:
        """What rows are made from: the sources' models by their weights, and text of files; where they come from a
        store, that stands for both.
        """
        from workbench.corpus.documents import corpus_inputs
        from workbench.models.weights import model_inputs

        if self.recipe.store:
            return []
        return model_inputs((s.model, s.revision) for s in self.sources) + corpus_inputs(self.recipe.corpus)

    def trained(self, workspace: Workspace, run: Run = QUIET) -> Item | None:
        """The crosscoder where the workspace holds it; None where it is to be trained.

        Raises:
            MismatchError: what is there is of another recipe, other models or another store.
        """
        names = [s.name for s in self.sources]
        stores = [i.as_input() for i in workspace.items("stores") if i.id == self.recipe.store]
        return reusable(
            workspace,
            "dictionaries",
            self.id,
            recipe=training_content(self.recipe, names),
            inputs=[*stores, *self.read],
            run=run,
            recorded=lambda m: (
                {"made by": m.command or "another command"}
                if (recipe := recorded_recipe(m)) is None
                else training_content(recipe, m.metadata.get("sources") or names)
            ),
            otherwise=OTHERWISE,
        )

    def analysed(self, workspace: Workspace, run: Run = QUIET) -> Item | None:
        """The complete ``evolution/`` where the workspace holds it; None where it is to be made.

        Raises:
            MismatchError: it is of another recipe, or of a crosscoder that was trained anew since.
        """
        names = [s.name for s in self.sources]

        def recorded(m: Manifest) -> dict[str, Any]:
            recipe = recorded_recipe(m)
            if recipe is None:
                return {}
            # What a further site leaves out (0) is served by a result that holds it.
            left_out = {key: 0 for key in ("loss_seqs", "prompts") if not getattr(self.recipe, key)}
            content = analysis_content(recipe, m.metadata.get("sources") or names) | left_out
            return content | ({"statements": m.metadata.get("statements", 1)} if statements else {})

        statements = self._statements()
        now = inputs_now(workspace, "evolution", self.id)
        return reusable(
            workspace,
            "evolution",
            self.id,
            recipe=analysis_content(self.recipe, names) | statements,
            inputs=[*now, *self.read],
            run=run,
            recorded=recorded,
            otherwise=OTHERWISE,
        )

    def _statements(self) -> dict[str, int]:
        """The schema of statements about several models, where the sources are of several."""
        return {"statements": STATEMENTS} if lines_of(self.sources) else {}

    def describe(self) -> dict[str, Any]:
        """What the evolution folder says of itself before anything is measured."""
        recipe = self.recipe
        return {
            "dictionary": self.id,
            "model": recipe.model if not recipe.sources else None,
            "sources": [s.name for s in self.sources],
            "models": list(dict.fromkeys(s.model for s in self.sources)),
            "revisions": [s.revision for s in self.sources],
            "hooks": [s.hook for s in self.sources],
            "site": recipe.site,
            "also": [other.id for other in self.beside],
            "preset": recipe.preset or None,
            **self._statements(),
        }


def with_ids(recipe: EvolveRecipe, workspace: Workspace, run: Run = QUIET) -> EvolveRecipe:
    """The recipe with its model folders called by their ids: a result holds no path."""
    from workbench.models.pointers import by_id

    sources = tuple(s.model_copy(update={"model": by_id(workspace, s.model, run=run)}) for s in recipe.sources)
    return recipe.model_copy(update={"model": by_id(workspace, recipe.model, run=run), "sources": sources})


def make_plan(recipe: EvolveRecipe, *, cache: RowCache | None = None) -> EvolutionPlan:
    """The plan of a recipe and of its further sites.

    Raises:
        UsageError, MissingError: see :func:`workbench.analysis.evolution.recipe.resolve_sources`.
    """
    sources = tuple(resolve_sources(recipe))
    beside = tuple(make_plan(other, cache=cache) for other in companions(recipe))
    return EvolutionPlan(recipe, sources, evolution_id(recipe, list(sources)), cache, beside)
