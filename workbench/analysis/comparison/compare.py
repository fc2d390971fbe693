"""Two models' latents on the same tokens: best partners in both directions, beside everything they should be judged by.

:func:`compare` computes; :mod:`workbench.analysis.comparison.tables` turns the result into the tables of
``matches/<a>__<b>/`` (their format is in :mod:`workbench.results.matches`). A *series* is one distribution of maximal
correlations:

    cross            latents against the other model's latents, over all its layers
    even             the same with as many candidates in both directions
    shuffle, shift   against the other model's codes with tokens permuted, or moved on by whole sequences: chance
    random           random-weight encoders of both models with the dictionaries' densities
    random partner   latents against the other model's random-weight encoder
    neurons          the two models' neurons
    untrained        dictionaries of the two models before training
    model seed, sae seed   latents against the same architecture's from another seed: what is the most to be expected

The raw correlation measures shared input as well as shared computation: most of it is there between untrained models,
and most of it stays when tokens are exchanged among occurrences of the same token. So ``cross``, ``random partner``,
``untrained``, ``model seed`` and ``sae seed`` are read in three more ways (:mod:`.given_token`), and neurons in two:

    same-token               partners' tokens exchanged among occurrences of the same token: what the token explains
    token-conditional        codes minus their mean per token, cross-fitted: what is shared beyond the token
    token-conditional null   the same with tokens exchanged: chance for the maximum over as many candidates

Rows of massive activation (:mod:`sae.populations`) fire the same latents in any model and raise chance with everything
else. Where a side has any, ``inliers`` is ``cross``, and ``inliers shuffle`` its chance, on the rows that are massive
on neither side; every other series counts all rows.

For ``cross`` the series are called just so; for the others ``untrained same-token``, ``sae seed token-conditional``, …
``neurons shift`` is the neurons' own chance level, by whole sequences.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig
from workbench.analysis.comparison.aligned import Activations, TokenSet, choose_tokens, token_batches
from workbench.analysis.comparison.baselines import permuted, random_codes, rotated
from workbench.analysis.comparison.depth import LayerBest, LayerMatches, even_candidates, match_layers, shifted_rows
from workbench.analysis.comparison.given_token import TokenCells, TokenConditionalSide
from workbench.analysis.comparison.matching import OneToOne, assign, pooled_candidates
from workbench.analysis.comparison.neuron_sides import MIN_ROWS, NeuronSides
from workbench.analysis.comparison.neurons import neurons
from workbench.analysis.comparison.sides import Group, model_seed_of, sae_seed_of, untrained_of
from workbench.analysis.comparison.spans import SpanTokens, same_words, spans_of
from workbench.analysis.latents.encoded import encode_store
from workbench.analysis.latents.massive import Massive
from workbench.corpus.contract import words_digest
from workbench.results.matches import READINGS
from workbench.run import NO_BAR, Bar
from workbench.workspace import Workspace

SERIES = (
    "random",
    "random partner",
    "shuffle",
    "shift",
    "neurons",
    "untrained",
    "cross",
    "even",
    "model seed",
    "sae seed",
)
READ = ("cross", "random partner", "untrained", "model seed", "sae seed")  # series with all three readings
BASELINES = (*(s for s in SERIES if s != "cross"), "token-conditional")  # the last one: every reading of what is there


def reading(series: str, how: str) -> str:
    """Name of a series in one of its :data:`READINGS`."""
    return how if series == "cross" else f"{series} {how}"


NEURON_READINGS = ("neurons shift", "neurons token-conditional", "neurons token-conditional null")
INLIERS = ("inliers", "inliers shuffle")  # without rows of massive activation
ALL_SERIES = (*SERIES, *INLIERS, *(reading(s, how) for s in READ for how in READINGS), *NEURON_READINGS)
CHAIN = ("random", "neurons", "cross", "model seed", "sae seed")  # the order the paper's claim implies
CHAIN_GIVEN_TOKEN = (  # what training and kinship should add once the token is known
    "untrained token-conditional",
    "token-conditional",
    "model seed token-conditional",
    "sae seed token-conditional",
)


class CompareRecipe(StrictConfig):
    """How two sides are compared. ``baselines`` are those to compute where the workspace has what they need."""

    tokens: int = Field(100_000, ge=100)
    min_firings: int = Field(30, ge=1)  # latents of either side that fire less take no part
    level: float = Field(0.5, gt=-1, lt=1)  # r from which a pair counts as matched
    baselines: tuple[str, ...] = BASELINES
    shifts: tuple[int, ...] = (-2, -1, 0, 1, 2)
    candidates: int = Field(50, ge=2, le=500)  # per latent, for the one-to-one assignment
    neuron_tokens: int = Field(32_768, ge=100)
    seed: int = 0
    codes: bool = True  # keep the codes, so that any pair can be looked at on the same tokens


@dataclass
class Comparison:
    """What :func:`compare` found.

    ``series[direction, name]`` lists one :class:`LayerBest` per layer of the side it is about.
    """

    a: Group
    b: Group
    recipe: CompareRecipe
    tokens: TokenSet
    cross: LayerMatches
    series: dict[tuple[str, str], list[LayerBest]] = field(default_factory=dict)
    shifts: dict[int, tuple[list[LayerBest], list[LayerBest], int]] = field(default_factory=dict)
    assigned: dict[str, OneToOne] = field(default_factory=dict)
    codes: dict[str, Any] = field(default_factory=dict)  # dictionary id -> encoded.Codes
    missing: dict[str, str] = field(default_factory=dict)  # series -> why it was not computed
    massive: dict[str, Any] = field(default_factory=dict)  # rows of massive activation on either side, and on which
    given_token: dict[str, int] = field(default_factory=dict)  # tokens that can be conditioned on theirs, of how many
    groups: dict[str, Group] = field(default_factory=dict)  # skyline groups that were used, by "<series> <direction>"

    def group(self, direction: str) -> Group:
        """The side a direction starts from."""
        return self.a if direction == "ab" else self.b


Tick = Callable[[str], None]


def check_baselines(recipe: CompareRecipe) -> None:
    """Refuse a baseline that does not exist.

    Raises:
        UsageError: naming it, and those there are.
    """
    if unknown := [s for s in recipe.baselines if s not in BASELINES]:
        raise UsageError(f"baseline {unknown[0]!r} is not one of {', '.join(BASELINES)}.")


def compare(
    workspace: Workspace,
    a: Group,
    b: Group,
    recipe: CompareRecipe,
    *,
    store: str | None = None,
    bar: Bar = NO_BAR,
) -> Comparison:
    """Compare two groups of dictionaries on the same tokens; nothing is written.

    Args:
        store: id of the store whose tokens are used (default: that of A's first dictionary).
        bar: told of each part as it is done.

    Raises:
        UsageError: an unknown baseline, or too few tokens. MissingError: a store or model that is needed is not there.
    """
    check_baselines(recipe)
    from workbench.activations import ActivationStore

    reference = ActivationStore.open(workspace.get("stores", store).path) if store else a.references[0].store(workspace)
    tokens = _same_text(choose_tokens(reference, recipe.tokens), a, b)
    return _Run(workspace, a, b, recipe, tokens, bar).all()


def _same_text(tokens: TokenSet, a: Group, b: Group) -> TokenSet:
    """The tokens as both sides read them: matched by their last character where the tokenizers differ.

    Raises:
        UsageError: the store was cut with neither side's tokenizer.
    """
    from workbench.models import load_tokenizer

    readers: list[Any] = []
    for side in (a, b):
        try:
            readers.append(load_tokenizer(side.model[0], side.model[1]))
        except MissingError:
            readers.append(None)
    if same_words(*readers):
        return tokens
    contract = tokens.store.contract
    if contract is not None and contract.words != words_digest(readers[0], contract.vocabulary):
        if contract.words != words_digest(readers[1], contract.vocabulary):
            raise UsageError(
                f"store {tokens.store.spec.id!r} holds text cut with a tokenizer that neither model has. Compare on a"
                " store of one of the two: --store."
            )
        found = spans_of(tokens, readers[1], readers[0])
        assert found.other is not None
        return replace(found.other, other=replace(found, other=None))
    return spans_of(tokens, *readers)


class _Run:
    def __init__(self, workspace: Workspace, a: Group, b: Group, recipe: CompareRecipe, tokens: TokenSet, bar: Bar):
        self.workspace, self.a, self.b, self.recipe, self.tokens, self.bar = workspace, a, b, recipe, tokens, bar
        self.rows = Activations(workspace, tokens)
        self.codes: dict[str, Any] = {}
        self.densities: dict[str, np.ndarray] = {}
        self.massive: dict[str, np.ndarray] = {}  # dictionary id -> bool [tokens]

    def all(self) -> Comparison:
        own_a, own_b = self._side(self.a), self._side(self.b)
        cross = self._match(own_a, own_b, top=self.recipe.candidates)
        self.bar.part("cross")
        out = self.out = Comparison(self.a, self.b, self.recipe, self.tokens, cross)
        self._both("cross", cross)
        self._assign(cross)
        self._inliers(own_a, own_b)
        for name in BASELINES:
            if name in self.recipe.baselines:
                getattr(self, "_" + name.replace(" ", "_").replace("-", "_"))(own_a, own_b)
                self.bar.part(name)
        self._shifts(own_a, own_b)
        out.codes = {s.id: self.codes[s.id] for g in (self.a, self.b) for s in g.references}
        return out

    def _both(self, name: str, matches: LayerMatches) -> None:
        self.out.series["ab", name], self.out.series["ba", name] = matches.best_a(), matches.best_b()

    def _match(self, a: Mapping[int, Any], b: Mapping[int, Any], **options: Any) -> LayerMatches:
        return match_layers(a, b, min_firings=self.recipe.min_firings, **options)

    def _side(self, group: Group) -> dict[int, sp.csr_array]:
        """Codes per dictionary of the group (encoded once), as CSR [tokens, F]."""
        for s in group.references:
            if s.id not in self.codes:
                rows, hook, source = self.rows.rows(s)
                self.codes[s.id] = encode_store(s.load(latents_only=True), rows, hook, source=source)
                self.massive[s.id] = Massive.of(rows, hook, [slice(0, len(rows))], source=source).rows
                self.bar.part(f"codes of {s.id}")
        return {i: sp.csr_array(self.codes[s.id].matrix().tocsr()) for i, s in enumerate(group.references)}

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, zlib.crc32(what.encode())])

    def _assign(self, cross: LayerMatches) -> None:
        """One-to-one over all layers at once, both directions from the same assignment."""
        ids, r, _, offsets_b = pooled_candidates(cross, top=self.recipe.candidates)
        forward = assign(ids, r, int(offsets_b[-1]))
        back = OneToOne(np.full(int(offsets_b[-1]), -1), np.full(int(offsets_b[-1]), np.nan))
        have = np.flatnonzero(forward.partner >= 0)
        back.partner[forward.partner[have]], back.r[forward.partner[have]] = have, forward.r[have]
        self.out.assigned = {"ab": forward, "ba": back}

    def _inliers(self, a: dict, b: dict) -> None:
        """The match and its chance on the rows that are massive on neither side."""
        on = {s.id: self.massive[s.id] for g in (self.a, self.b) for s in g.references}
        massive = np.any(list(on.values()), axis=0)
        self.out.massive = {
            "n": int(massive.sum()),
            "of": len(massive),
            "dictionaries": {id: int(found.sum()) for id, found in on.items()},
        }
        if not massive.any() or massive.all():
            return
        a, b = ({i: x[~massive] for i, x in side.items()} for side in (a, b))
        self._both("inliers", self._match(a, b))
        if "shuffle" in self.recipe.baselines:
            order = self._rng("inliers shuffle").integers(0, 2**63)
            b = {i: permuted(x, np.random.default_rng(order)) for i, x in b.items()}
            self._both("inliers shuffle", self._match(a, b))

    def _even(self, a: dict, b: dict) -> None:
        only_a, only_b = even_candidates(self.out.cross, seed=self.recipe.seed)
        self._both("even", self._match(a, b, only_a=only_a, only_b=only_b))

    def _shuffle(self, a: dict, b: dict) -> None:
        order = self._rng("shuffle").integers(0, 2**63)
        self._both("shuffle", self._match(a, {i: permuted(x, np.random.default_rng(order)) for i, x in b.items()}))

    def _shift(self, a: dict, b: dict) -> None:
        n = len(self.tokens.sequences)
        if n < 3:
            self.out.missing["shift"] = f"a circular shift needs at least three sequences; there are {n}"
            return
        by = self._rng("shift").integers(0, 2**63)
        self._both(
            "shift",
            self._match(
                a,
                {
                    i: rotated(x, self.tokens.seq, np.random.default_rng(by), at_least=max(1, n // 4))
                    for i, x in b.items()
                },
            ),
        )

    def _random_side(self, group: Group) -> dict[int, sp.csr_array]:
        import torch

        out = {}
        for i, s in enumerate(group.references):
            rows, hook, source = self.rows.rows(s)
            seed = int(self._rng(f"random {s.id}").integers(0, 2**62))
            x = rows.read(hook, slice(0, len(self.tokens)), source)
            out[i] = random_codes(
                x, self.codes[s.id].n_fired / len(self.tokens), generator=torch.Generator().manual_seed(seed)
            )
        return out

    @cached_property
    def random(self) -> tuple[dict[int, sp.csr_array], dict[int, sp.csr_array]]:
        """Codes of random-weight encoders in place of both sides."""
        return self._random_side(self.a), self._random_side(self.b)

    def _random(self, a: dict, b: dict) -> None:
        self._both("random", self._match(*self.random))

    def _random_partner(self, a: dict, b: dict) -> None:
        random_a, random_b = self.random
        self.out.series["ab", "random partner"] = self._match(a, random_b).best_a()
        self.out.series["ba", "random partner"] = self._match(random_a, b).best_b()

    def _neurons(self, a: dict, b: dict) -> None:
        from workbench.models import load_model

        if isinstance(self.tokens, SpanTokens):
            self.out.missing["neurons"] = "the models read the text by different tokenizers"
            return
        batches = token_batches(self.tokens, limit=self.recipe.neuron_tokens)
        models = []
        for g in (self.a, self.b):
            try:
                model = load_model(g.model[0], revision=g.model[1])
                widths = [x.shape[1] for x in neurons(model, batches[0][0][:1], g.layers, batches[0][1][:1])]
            except (UsageError, MissingError) as e:
                self.out.missing["neurons"] = f"{g.name}: {e}"
                return
            models.append((model, g.layers, widths))
        sides = NeuronSides((models[0], models[1]), self.tokens, self.recipe.neuron_tokens)
        self._neuron_series("neurons", sides, shifted=False, given_token=False)
        if "shift" in self.recipe.baselines:
            self._neuron_series("neurons shift", sides, shifted=True, given_token=False)
        if "token-conditional" in self.recipe.baselines:
            self._neuron_series("neurons token-conditional", sides, shifted=False, given_token=True)
            self._neuron_series("neurons token-conditional null", sides, shifted=True, given_token=True)

    def _neuron_series(self, name: str, sides: NeuronSides, *, shifted: bool, given_token: bool) -> None:
        try:
            found = sides.match(shifted=shifted, given_token=given_token)
        except UsageError as e:
            self.out.missing[name] = str(e)
            return
        self.out.series["ab", name], self.out.series["ba", name] = found

    def _untrained(self, a: dict, b: dict) -> None:
        groups = untrained_of(self.workspace, self.a), untrained_of(self.workspace, self.b)
        if groups[0] is None or groups[1] is None:
            self.out.missing["untrained"] = (
                "dictionaries of both models at revision step0, on the same sites with the same sizes, are needed"
            )
            return
        self.out.groups |= {"untrained ab": groups[0], "untrained ba": groups[1]}
        self._both("untrained", self._match(self._side(groups[0]), self._side(groups[1])))

    def _skyline(
        self, name: str, find: Callable[[Workspace, Group], Group | None], own: Sequence[dict], needed: str
    ) -> None:
        for direction, group, codes in (("ab", self.a, own[0]), ("ba", self.b, own[1])):
            other = find(self.workspace, group)
            if other is None:
                self.out.missing[f"{name} {direction}"] = f"{group.name}: {needed}"
                continue
            self.out.groups[f"{name} {direction}"] = other
            self.out.series[direction, name] = self._match(codes, self._side(other)).best_a()

    def _model_seed(self, a: dict, b: dict) -> None:
        self._skyline(
            "model seed",
            model_seed_of,
            (a, b),
            "dictionaries of a model <name>-s<number> on the same sites with the same sizes are needed",
        )

    def _sae_seed(self, a: dict, b: dict) -> None:
        self._skyline(
            "sae seed",
            sae_seed_of,
            (a, b),
            "dictionaries of another seed on the same sites with the same sizes are needed",
        )

    def _token_conditional(self, a: dict, b: dict) -> None:
        """Every series that is there and is read in more ways (:data:`READ`), given the token."""
        self.cells = TokenCells.of(self.tokens.ids, self.tokens.seq)
        self.out.given_token = {
            "tokens": len(self.cells.rows),
            "of": len(self.tokens),
            "types": self.cells.n_cells // 2,
        }
        if len(self.cells.rows) < MIN_ROWS:
            self.out.missing["token-conditional"] = (
                f"{len(self.cells.rows):,} of {len(self.tokens):,} tokens occur in both halves of the sequences;"
                f" {MIN_ROWS} are needed (compare on more tokens)"
            )
            return
        self._given_both("cross", a, b)
        groups = self.out.groups
        if "untrained ab" in groups:
            self._given_both("untrained", *(self._side(groups[f"untrained {d}"]) for d in ("ab", "ba")))
        for direction, own in (("ab", a), ("ba", b)):
            for name in ("model seed", "sae seed"):
                if f"{name} {direction}" in groups:
                    self._given_one(name, direction, own, self._side(groups[f"{name} {direction}"]))
        if "random partner" in self.recipe.baselines:
            self._given_one("random partner", "ab", a, self.random[1])
            self._given_one("random partner", "ba", b, self.random[0])

    def _given_both(self, name: str, a: dict, b: dict) -> None:
        for how, matches in self._readings(name, a, b):
            self._both(reading(name, how), matches)

    def _given_one(self, name: str, direction: str, own: dict, other: dict) -> None:
        for how, matches in self._readings(name, own, other):
            self.out.series[direction, reading(name, how)] = matches.best_a()

    def _readings(self, name: str, a: dict, b: dict) -> Iterator[tuple[str, LayerMatches]]:
        """The :data:`READINGS` of a against b; both are [tokens, F] by layer."""
        rows = self.cells.rows
        order = rows[self.cells.exchanged(self._rng(f"same token {name}"))]
        exchanged = {i: x[order] for i, x in b.items()}
        a = {i: x[rows] for i, x in a.items()}
        yield "same-token", self._match(a, exchanged)
        left = {i: self._conditional(x) for i, x in a.items()}
        yield "token-conditional", self._match(left, {i: self._conditional(x[rows]) for i, x in b.items()})
        yield "token-conditional null", self._match(left, {i: self._conditional(x) for i, x in exchanged.items()})

    def _conditional(self, codes: sp.csr_array) -> TokenConditionalSide:
        return TokenConditionalSide(codes, self.cells, "codes given the token", self.recipe.min_firings)

    def _shifts(self, a: dict, b: dict) -> None:
        """a at token t against b at token t + s."""
        for s in self.recipe.shifts:
            if s == 0:
                self.out.shifts[0] = self.out.series["ab", "cross"], self.out.series["ba", "cross"], len(self.tokens)
            else:
                ta, tb = shifted_rows(self.tokens.seq, self.tokens.pos, s)
                m = self._match({i: x[ta] for i, x in a.items()}, {i: x[tb] for i, x in b.items()})
                self.out.shifts[s] = m.best_a(), m.best_b(), len(ta)
            self.bar.part(f"token shift {s:+d}")
