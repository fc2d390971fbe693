"""One evolution, settled before anything runs: its sources, its id, its models and its text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from workbench.analysis.evolution.recipe import EvolveRecipe, companions, evolution_id, resolve_sources
from workbench.analysis.evolution.snapshots import RowCache, Snapshots, Source
from workbench.workspace import Workspace


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

    @cached_property
    def tokens(self) -> np.ndarray:
        """[n_seq, ctx] training text, where rows are computed as they are needed.

        Raises:
            UsageError: ``ctx`` is longer than a source has positions.
        """
        from workbench.corpus import plan_tokens
        from workbench.models.facts import model_config
        from workbench.models.limits import check_context

        for source in self.sources:
            check_context(model_config(source.model, source.revision), self.recipe.ctx, source.name)
        return plan_tokens(self.recipe.corpus, self.tokenizer, n_seq=self.recipe.n_seq, ctx=self.recipe.ctx).tokens

    def trained(self, workspace: Workspace) -> bool:
        """Whether the workspace holds its crosscoder."""
        return workspace.complete("dictionaries", self.id)

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
        }


def make_plan(recipe: EvolveRecipe, *, cache: RowCache | None = None) -> EvolutionPlan:
    """The plan of a recipe and of its further sites.

    Raises:
        UsageError, MissingError: see :func:`workbench.analysis.evolution.recipe.resolve_sources`.
    """
    sources = tuple(resolve_sources(recipe))
    beside = tuple(make_plan(other, cache=cache) for other in companions(recipe))
    return EvolutionPlan(recipe, sources, evolution_id(recipe, list(sources)), cache, beside)
