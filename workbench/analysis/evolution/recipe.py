"""The recipe of an evolution: which sources a crosscoder reads, how it is trained, what is computed from it.

The same recipe serves snapshots of one model, layers, and two models: quantities that suppose training steps are then
read along the order of the sources.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from sae.config import MeshConfig
from sae.errors import ConfigError, UsageError
from sae.strict import StrictConfig, parse_config
from workbench.corpus import CorpusConfig
from workbench.workspace import check_id, dictionary_id, new_id

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workbench.analysis.evolution.snapshots import Source
    from workbench.provenance import Manifest

_DERIVED = ("widths", "sources", "d_sae", "k", "seed")


class SourceRecipe(StrictConfig):
    """A source written out: a model, its revision, and the site it is read at (default: the recipe's); or several
    snapshots of one model, each a source.
    """

    model: str = Field(description="a bundled model, a name in the local Hugging Face cache, or a folder")
    revision: str | None = Field(None, description="snapshot of the model; the last one by default")
    revisions: tuple[str, ...] = Field((), description="instead of revision: several, in training order")
    site: str = Field("", description="where it is read, such as L2R; default: the recipe's site")

    @model_validator(mode="after")
    def _once(self) -> SourceRecipe:
        if self.revision is not None and self.revisions:
            raise ValueError(f"revision = {self.revision!r} and revisions of {self.model} say the same thing twice")
        return self

    @property
    def snapshots(self) -> tuple[str | None, ...]:
        """Its revisions in order; None stands for the last one."""
        return self.revisions or (self.revision,)


class EvolveRecipe(StrictConfig):
    """A crosscoder over snapshots and what is computed from it."""

    id: str = Field("", description="id of both results; empty = from model, sources, site, expansion and seed")
    model: str = Field("mini-pythia", description="model whose snapshots are read")
    revisions: tuple[str, ...] = Field((), description="snapshots in training order; empty = all")
    snapshots: int = Field(
        0, ge=0, description="at most so many of them, evenly spread, first and last included; 0 = all"
    )
    site: str = Field("L1R", description="where every source is read, such as L1R (residual stream after layer 1)")
    also: tuple[str, ...] = Field(
        (),
        description=(
            "further sites, each with a crosscoder of its own over the same snapshots; the order of kinds of latents"
            " counts theirs too"
        ),
    )
    sources: tuple[SourceRecipe, ...] = Field((), description="instead of model and revisions: any models and sites")
    store: str = Field(
        "",
        description=(
            "id of an aligned store to train from, harvested where the workspace lacks it; empty = run all snapshots on"
            " each batch"
        ),
    )

    common_basis: bool = Field(
        True,
        description=(
            "directions mean the same at all sources of one width (false for unrelated models, such as a Transformer"
            " and a Mamba)"
        ),
    )

    preset: str = Field(
        "",
        description=(
            "a published setting (evolution-paper, evolution-code, anthropic-l1, batchtopk), or few-steps; empty ="
            " Top-K"
        ),
    )
    expansion: int = Field(8, ge=1, description="latents per dimension of one source")
    k: int = Field(16, ge=1, description="latents kept per row")
    seed: int = Field(0, description="of the crosscoder's initial directions and of its order of rows")
    crosscoder: dict[str, Any] = Field(default_factory=dict, description="further fields of CrosscoderConfig")
    tokens: int = Field(500_000, ge=1, description="rows trained on")
    refit: int = Field(
        0,
        ge=0,
        description=(
            "of these the last rows, to which the finished codes' decoder is fitted in closed form (sae.refit); 0: none"
        ),
    )
    n_seq: int = Field(
        3968,
        ge=2,
        description="sequences of unique training text (a store that is harvested holds out a tenth of them)",
    )
    ctx: int = Field(128, ge=8, description="tokens of a sequence")
    batch_size: int = Field(1024, ge=1, description="rows of a training step")
    corpus: CorpusConfig = Field(CorpusConfig(), description="the text, as a table of its own")

    heldout_seqs: int = Field(256, ge=8, description="held-out sequences every analysis runs on")
    loss_seqs: int = Field(
        64, ge=0, description="of those, how many the reconstruction is spliced into each source for; 0 = none"
    )
    ngram_seqs: int = Field(8000, ge=8, description="sequences the n-gram tables are counted on")
    contexts: int = Field(4, ge=0, description="contexts per latent for the scrubber")
    tasks: tuple[str, ...] = Field(
        ("induction", "agreement"),
        description="tasks whose latents are attributed: bundled names (induction, agreement, ioi) or TOML files",
    )
    prompts: int = Field(64, ge=0, description="prompts per task; half rank, half test")
    prompt_length: int = Field(33, ge=8, description="tokens of an induction prompt")
    attribution: Literal["solved", "all", "none"] = Field(
        "solved", description="snapshots whose curves are drawn: accuracy >= 0.8, all, none"
    )
    draws: int = Field(3, ge=1, description="draws of each random control")
    permutations: int = Field(500, ge=0, description="permutations of each null")
    baseline: bool = Field(
        False, description="also one SAE per snapshot, alone and warm-started, and the gaps of explained variance"
    )
    threads: int = Field(0, ge=0, description="torch threads; 0 = leave as is")
    parallel: MeshConfig = Field(
        default_factory=MeshConfig, description="how the processes torchrun started share the training"
    )

    @model_validator(mode="after")
    def _known(self) -> EvolveRecipe:
        if taken := [k for k in self.crosscoder if k in _DERIVED]:
            raise ValueError(f"{', '.join(taken)}: the recipe sets this itself; leave it out under [crosscoder]")
        if self.sources and self.revisions:
            raise ValueError("sources and revisions say the same thing twice; give one of them")
        if self.also and (self.sources or self.store):
            raise ValueError(
                "also = … follows more sites while the model runs, for the snapshots of one model: it goes with"
                " neither sources nor store"
            )
        if len({self.site, *self.also}) != 1 + len(self.also):
            raise ValueError(f"also = {list(self.also)} names a site twice, or the recipe's own site {self.site!r}")
        return self

    @property
    def steps(self) -> int:
        """Training steps: rows over batch, rounded up."""
        return -(-self.tokens // self.batch_size)

    @property
    def group(self) -> int:
        """Sequences whose rows are shuffled together where models run as rows are needed."""
        return max(64, self.batch_size // 32)


def resolve_sources(recipe: EvolveRecipe) -> list[Source]:
    """The sources of a recipe in order.

    Raises:
        UsageError: fewer than two sources, a model without snapshots, a bad site, or models with different tokenizers.
        MissingError: no such snapshot.
    """
    from workbench.analysis.evolution.snapshots import Source
    from workbench.models.load import resolve_revision, revisions
    from workbench.models.same_tokens import check_same_tokens
    from workbench.models.sites import hooks_of

    if recipe.sources:
        named = [
            (s.model, resolve_revision(s.model, revision), s.site or recipe.site)
            for s in recipe.sources
            for revision in s.snapshots
        ]
    else:
        known = recipe.revisions or _spread(tuple(revisions(recipe.model)), recipe.snapshots)
        named = [(recipe.model, resolve_revision(recipe.model, r), recipe.site) for r in known]
    if len(named) < 2:
        raise UsageError(
            f"a crosscoder needs at least two sources; {recipe.model!r} offers {len(named)}. Name sources, or a model"
            " with snapshots."
        )
    models, sites = len({n[0] for n in named}), len({n[2] for n in named})
    check_same_tokens([n[:2] for n in named], "the rows of a crosscoder's sources must be of the same tokens")
    out = []
    for model, revision, site in named:
        parts = (
            [model] * (models > 1)
            + [str(revision)] * (revision is not None and (models == 1 or len(named) > models))
            + [site] * (sites > 1)
        )
        match = re.fullmatch(r"(?:stage1-)?step(\d+)", revision or "")
        out.append(
            Source("/".join(parts) or model, model, revision, hooks_of(site)[1], int(match[1]) if match else None)
        )
    if len({s.name for s in out}) != len(out):
        raise UsageError(f"two sources are the same: {', '.join(s.name for s in out)}")
    return out


def _spread(names: tuple[str, ...], n: int) -> tuple[str, ...]:
    """``n`` of the names at even distances, first and last included; all where n is 0 or too large."""
    if n < 2 or n >= len(names):
        return names
    return tuple(names[round(i * (len(names) - 1) / (n - 1))] for i in range(n))


def evolution_id(recipe: EvolveRecipe, sources: list[Source]) -> str:
    """``<model>@<S>-snapshots.<site>-<n>x[.s<seed>]``, or the recipe's own."""
    from workbench.models.load import model_id

    if recipe.id:
        return new_id(recipe.id)
    models = list(dict.fromkeys(model_id(s.model) for s in sources))
    what = "snapshots" if len(models) == 1 and all(s.step is not None for s in sources) else "sources"
    name = dictionary_id(
        "+".join(models), recipe.site, recipe.expansion, revision=f"{len(sources)}-{what}", seed=recipe.seed
    )
    return check_id(f"{name}.{recipe.preset}") if recipe.preset else name


_TRAINING = ("store", "common_basis", "preset", "expansion", "k", "seed", "crosscoder", "refit", "n_seq", "ctx")
_TRAINING += ("batch_size", "corpus")  # type: ignore[assignment]


def training_content(recipe: EvolveRecipe, sources: Sequence[str]) -> dict[str, Any]:
    """What decides a crosscoder beside the weights of its models or its store; the rest of a recipe is about analysis.

    Args:
        sources: names of what it reads, in order.
    """
    values = recipe.model_dump(mode="json", include=set(_TRAINING))
    return values | {"site": recipe.site, "sources": list(sources), "tokens": recipe.steps * recipe.batch_size}


def analysis_content(recipe: EvolveRecipe, sources: Sequence[str]) -> dict[str, Any]:
    """What decides an evolution beside what it is made from: all of its recipe but how the work is shared."""
    return recipe.model_dump(mode="json", exclude={"id", "parallel", "threads", "revisions", "snapshots"}) | {
        "sources": list(sources)
    }


def recorded_recipe(have: Manifest) -> EvolveRecipe | None:
    """The recipe of a result that ``workbench evolve`` made; None where something else did."""
    try:
        return parse_config(EvolveRecipe, have.recipe, where=have.id)
    except ConfigError:
        return None


def companions(recipe: EvolveRecipe) -> list[EvolveRecipe]:
    """A recipe for each further site: the same crosscoder there, and of the analyses those that describe latents."""
    alone = {"also": (), "prompts": 0, "loss_seqs": 0, "baseline": False}
    return [
        recipe.model_copy(update=alone | {"site": site, "id": f"{recipe.id}.{site}" if recipe.id else ""})
        for site in recipe.also
    ]
