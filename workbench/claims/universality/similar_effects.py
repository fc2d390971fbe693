"""Do similar latents do the same? A latent is taken out of the Transformer where it fires, its partner out of the Mamba
at the same tokens, and the two changes of the next token's log-probabilities are compared.

The trap is the shared token: whatever fires on one word changes what follows that word. So partners are held against
another latent of the Mamba that fires at the very same places and as often, and stand beside the partner in another
dictionary of the Transformer itself, which is the most to be expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab

if TYPE_CHECKING:
    from workbench.analysis.comparison.aligned import TokenSet
    from workbench.analysis.comparison.sides import Group

MODELS = ("mini-pythia", "mini-mamba")
FIRINGS = 30  # for a latent to have a partner
AS_OFTEN = 2.0  # a control partner fires as often within this factor
BATCH = 32  # rows of one forward pass
LEAST = 8  # pairs a unit needs


@dataclass(frozen=True)
class Latent:
    """A latent of one side: the number of its dictionary within the side, and its own."""

    dictionary: int
    index: int


@dataclass(frozen=True)
class Pair:
    """One latent of the Transformer with its partner in the Mamba, a control there, and its partner in another
    dictionary of the Transformer; at ``rows``, where the first three fire. Correlations are of activity elsewhere.
    """

    own: int
    partner: Latent
    control: Latent
    ceiling: int
    rows: np.ndarray
    raw: float
    given_token: float


class Codes:
    """Codes of one side on the same rows: [N, F] per dictionary, and all side by side."""

    def __init__(self, per_dictionary: Sequence[sp.csr_array]):
        self.each = [sp.csc_array(c) for c in per_dictionary]
        self.starts = np.cumsum([0, *(c.shape[1] for c in self.each)])
        self.all = sp.csc_array(sp.hstack(self.each, format="csc"))

    def latent(self, column: int) -> Latent:
        """Which latent a column of ``all`` is."""
        d = int(np.searchsorted(self.starts, column, side="right")) - 1
        return Latent(d, int(column - self.starts[d]))

    def column(self, latent: Latent) -> int:
        """Its column in ``all``."""
        return int(self.starts[latent.dictionary]) + latent.index


def control_for(fires_RF: sp.csr_array, n_fired: np.ndarray, partner: int) -> tuple[int, np.ndarray]:
    """The latent that fires most often where a pair does, among those as frequent as the partner, and at which rows.

    Args:
        fires_RF: whether each latent fires, on the rows where the pair fires.
        n_fired: [F] firings on all rows.

    Returns:
        Its column and the rows (numbers within R); no row where there is no such latent.
    """
    counts = np.asarray(fires_RF.sum(axis=0)).ravel().astype(float)
    near = (n_fired * AS_OFTEN >= n_fired[partner]) & (n_fired <= AS_OFTEN * n_fired[partner])
    near[partner] = False
    best = int(np.where(near, counts, -1).argmax())
    if not near[best]:
        return -1, np.empty(0, np.int64)
    return best, np.flatnonzero(fires_RF[:, [best]].toarray().ravel())


def alike(x_RV: np.ndarray, y_RV: np.ndarray) -> float:
    """Correlation of two changes of log-probabilities over the vocabulary, all rows together; a constant over the
    vocabulary, which changes no probability, counts for nothing. NaN where one of them changes nothing.
    """
    x, y = (v - v.mean(1, keepdims=True) for v in (x_RV.astype(np.float64), y_RV.astype(np.float64)))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size > 0 else float("nan")


@dataclass(frozen=True)
class Place:
    """One ablation: a latent of the dictionary at ``hook``, at one position of one sequence."""

    hook: str
    dictionary: Any
    latent: int
    sequence: int
    position: int


@torch.inference_mode()
def ablation_effects(model: Any, tokens: np.ndarray, places: Sequence[Place]) -> np.ndarray:
    """[len(places), V] change of the next token's log-probabilities when one latent is taken out at one position.

    Args:
        tokens: int [n_seq, ctx]; ``Place.sequence`` numbers its rows.
    """
    from workbench.analysis.splice import splice

    order = sorted(range(len(places)), key=lambda i: (places[i].hook, places[i].position))
    out: np.ndarray | None = None
    while order:
        hook = places[order[0]].hook
        chosen = [i for i in order[:BATCH] if places[i].hook == hook]
        order = order[len(chosen) :]
        part = [places[i] for i in chosen]
        at = torch.tensor([p.position for p in part])
        ids = torch.from_numpy(tokens[[p.sequence for p in part], : int(at.max()) + 1].astype(np.int64))
        which, row = torch.tensor([p.latent for p in part]), torch.arange(len(part))
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[row, at] = True

        def without(
            codes: torch.Tensor, _: str, row: torch.Tensor = row, at: torch.Tensor = at, which: torch.Tensor = which
        ) -> torch.Tensor:
            changed = codes.clone()
            changed[row, at, which] = 0
            return changed

        before = model(ids, return_type="logits")[row, at].float().log_softmax(-1)
        with splice(model, {hook: part[0].dictionary}, without, keep_error=True, rows=mask):
            after = model(ids, return_type="logits")[row, at].float().log_softmax(-1)
        if out is None:
            out = np.zeros((len(places), before.shape[-1]), np.float32)
        out[chosen] = (after - before).numpy()
    return np.zeros((0, 0), np.float32) if out is None else out


def _codes(lab: Lab, group: Group, tokens: TokenSet, rows: Any) -> Codes:
    from workbench.analysis.latents.encoded import encode_store

    def make() -> Codes:
        each = []
        for s in group.references:
            read, hook, source = rows.rows(s)
            each.append(sp.csr_array(encode_store(s.load(), read, hook, source=source).matrix().tocsr()))
        return Codes(each)

    made: Codes = lab.once(("codes for effects", tuple(s.id for s in group.references), len(tokens)), make)
    return made


class _Bench:
    """Dictionaries of both models and both seeds with their codes: matched on ``train`` rows, tried on ``test`` rows
    of held-out documents.
    """

    def __init__(self, lab: Lab):
        from workbench.analysis.comparison.aligned import Activations, choose_tokens
        from workbench.analysis.comparison.given_token import TokenCells
        from workbench.analysis.comparison.sides import find_group, sae_seed_of

        self.lab, store = lab, lab.demo()
        lab.make("seed dictionaries")
        self.tokens = choose_tokens(store, 60_000 if lab.quick else 120_000)
        rows = Activations(lab.workspace, self.tokens)
        first = [find_group(lab.workspace, m) for m in MODELS]
        other = [sae_seed_of(lab.workspace, g) for g in first]
        assert all(g is not None for g in other)  # just made
        self.groups = [first, [g for g in other if g is not None]]  # [seed][model]
        self.codes = [[_codes(lab, g, self.tokens, rows) for g in groups] for groups in self.groups]
        held = np.isin(self.tokens.seq, list(store.heldout))
        self.train, self.test = np.flatnonzero(~held), np.flatnonzero(held)
        cells = TokenCells.of(self.tokens.ids[self.train], self.tokens.seq[self.train])
        self.cells, self.cell_rows = cells, self.train[cells.rows]

    def best(self, a: sp.csc_array, b: sp.csc_array) -> Any:
        """Each latent's best partner given the token, on the training rows."""
        from workbench.analysis.comparison.given_token import TokenConditionalSide
        from workbench.analysis.correlation import correlate

        sides = [TokenConditionalSide(sp.csr_array(x)[self.cell_rows], self.cells, "codes", FIRINGS) for x in (a, b)]
        return correlate(*sides)

    def pairs(self, seed: int, layer: int, n: int, n_rows: int, rng: np.random.Generator) -> list[Pair]:
        """``n`` latents of one layer of the Transformer at random, of those with enough rows to be tried on."""
        own, theirs, again = self.codes[seed][0].each[layer], self.codes[seed][1], self.codes[1 - seed][0].each[layer]
        match, ceiling = self.best(own, theirs.all), self.best(own, again)
        fires = sp.csr_array(theirs.all[self.test] > 0)
        own_fires = sp.csc_array(own[self.test] > 0)
        n_fired = np.asarray((theirs.all > 0).sum(axis=0)).ravel()
        out: list[Pair] = []
        for i in rng.permutation(np.flatnonzero((match.partner >= 0) & (ceiling.partner >= 0))):
            partner = int(match.partner[i])
            both = np.flatnonzero(own_fires[:, [int(i)]].toarray().ravel() & fires[:, [partner]].toarray().ravel())
            if len(both) < n_rows:
                continue
            control, at = control_for(fires[both], n_fired, partner)
            if len(at) < n_rows:
                continue
            rows = self.test[both[rng.choice(at, n_rows, replace=False)]]
            x, y = (c[:, [k]].toarray().ravel()[self.train] for c, k in ((own, int(i)), (theirs.all, partner)))
            raw = float(np.corrcoef(x, y)[0, 1])
            out.append(
                Pair(
                    int(i), theirs.latent(partner), theirs.latent(control), int(ceiling.partner[i]), rows, raw,
                    float(match.r[i]),
                )
            )  # fmt: skip
            if len(out) == n:
                break
        return out

    def effects(self, model: Any, group: Group, chosen: Sequence[tuple[Latent, np.ndarray]]) -> list[np.ndarray]:
        """[rows, V] of each latent at its rows."""
        sequences = self.tokens.sequences
        ids = np.stack([self.tokens.store.sequence_tokens(int(s)) for s in sequences])
        places = []
        loaded = {k: group.references[k].load() for k in {latent.dictionary for latent, _ in chosen}}
        for latent, rows in chosen:
            s = group.references[latent.dictionary]
            for r in rows:
                at = int(np.searchsorted(sequences, self.tokens.seq[r]))
                places.append(Place(str(s.hook), loaded[latent.dictionary], latent.index, at, int(self.tokens.pos[r])))
        found = ablation_effects(model, ids, places)
        return np.split(found, np.cumsum([len(rows) for _, rows in chosen])[:-1])


def compared(lab: Lab) -> pd.DataFrame:
    """One row per pair: where it is from, how alike the two latents' activity is (``raw``, ``given_token``), and how
    alike their effects are to those of the partner, the control, the partner at exchanged rows, and the ceiling.
    """

    def make() -> pd.DataFrame:
        from workbench.models import load_model

        bench, rng = _Bench(lab), np.random.default_rng(0)
        n, n_rows = (20, 8) if lab.quick else (40, 16)
        models = [load_model(m) for m in MODELS]
        rows: list[dict[str, Any]] = []
        for seed in (0, 1):
            ours, theirs = bench.groups[seed]
            again = bench.groups[1 - seed][0]
            for layer in range(len(ours.references)):
                pairs = bench.pairs(seed, layer, n, n_rows, rng)
                if not pairs:
                    continue
                own = bench.effects(models[0], ours, [(Latent(layer, p.own), p.rows) for p in pairs])
                top = bench.effects(models[0], again, [(Latent(layer, p.ceiling), p.rows) for p in pairs])
                partner = bench.effects(models[1], theirs, [(p.partner, p.rows) for p in pairs])
                control = bench.effects(models[1], theirs, [(p.control, p.rows) for p in pairs])
                for p, a, b, c, d in zip(pairs, own, partner, control, top, strict=True):
                    order = np.roll(np.arange(len(a)), 1)
                    rows.append(
                        {
                            "seed": seed,
                            "layer": layer,
                            "latent": p.own,
                            "partner": f"L{p.partner.dictionary}:{p.partner.index}",
                            "raw": p.raw,
                            "given_token": p.given_token,
                            "effects": alike(a, b),
                            "control": alike(a, c),
                            "exchanged": alike(a, b[order]),
                            "ceiling": alike(a, d),
                        }
                    )
        return pd.DataFrame(rows)

    table: pd.DataFrame = lab.once("effects of pairs", make)
    return table


def _units(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Pairs of each (layer, seed) with enough of them."""
    if not len(table):
        return []
    whole = table.dropna(subset=["effects", "control"])
    return [part for _, part in whole.groupby(["layer", "seed"]) if len(part) >= LEAST]


def _said(units: Sequence[pd.DataFrame]) -> dict[str, Measured]:
    names = {"control": "same places and frequency", "exchanged": "other rows", "ceiling": "another SAE seed"}
    return {to: Measured.of([u[c].mean() for u in units], unit="correlation") for c, to in names.items()}


ONE_PAIR = "one trained Transformer and one trained Mamba: other trainings may pair their latents otherwise"


def same_effects(lab: Lab) -> Finding:
    """Likeness of the effects of matched latents per unit; control: of latents that fire at the same places."""
    table = compared(lab)
    units = _units(table)
    if len(units) < 2:
        return untestable(f"fewer than two layers have {LEAST} pairs that fire together often enough")
    more = _said(units)
    note = f"{sum(map(len, units))} pairs; {', '.join(f'{k} {m.value:.2f}' for k, m in more.items())}; {ONE_PAIR}"
    effect = Measured.of([u["effects"].mean() for u in units], unit="correlation of effects")
    return Finding(effect, more["same places and frequency"], table, note, more=more)


def similarity_tells(lab: Lab) -> Finding:
    """Rank correlation over pairs between likeness of activity given the token and of effects; control: the same with
    the effects of the control latent, which share the place and not the partner.
    """
    from scipy.stats import spearmanr

    table = compared(lab)
    units = _units(table)
    if len(units) < 2:
        return untestable(f"fewer than two layers have {LEAST} pairs that fire together often enough")

    def rank(x: str, y: str) -> Measured:
        return Measured.of([float(spearmanr(u[x], u[y])[0]) for u in units], unit="rank correlation")

    raw = rank("raw", "effects")
    note = f"raw correlation of activity tells {raw.value:.2f}; {sum(map(len, units))} pairs; {ONE_PAIR}"
    return Finding(rank("given_token", "effects"), rank("given_token", "control"), table, note, more={"raw": raw})


_COMMON: dict[str, Any] = {
    "paper": "universality",
    "section": "open: do similar latents do the same?",
    "paper_number": "not reported",
    "unit": "layer of the Transformer and seed of the dictionaries; one pair of trained models",
    "needs": ("demo dictionaries", "seed dictionaries"),
}
CLAIMS = [
    Claim(
        id="universality.similar-latents-same-effects",
        statement=(
            "Latents that match across architectures do the same: taken out where both fire, they change the next"
            " token's probabilities alike, and more so than another latent that fires at the same places."
        ),
        experiment=(
            "A latent of the Transformer and its best partner given the token in the Mamba (matched on other"
            " text), each"
            " ablated at one token of held-out text where both fire; correlation of the two changes of"
            " log-probabilities"
            " over the vocabulary, all tokens of a pair together, mean over pairs."
        ),
        control=(
            "The same with another latent of the Mamba: of those that fire as often as the partner within a factor of"
            " two, the one that fires most often where the pair does, at the same tokens."
        ),
        rule=Rule("above", 0.3, "beaten"),
        would_change="Another latent at the same places whose effects are as alike, or a correlation below .3.",
        measure=same_effects,
        cost=30,
        **_COMMON,
    ),
    Claim(
        id="universality.similarity-tells-effects",
        statement=(
            "How similar two latents are given the token tells how alike their effects are: the more similar, the more"
            " alike."
        ),
        experiment=(
            "Spearman over pairs, within a layer and seed, of the token-conditional correlation of activity with the"
            " correlation of effects; the raw correlation beside it."
        ),
        control="The same correlation of activity with the effects of the control latent at the same places.",
        rule=Rule("above", 0.1, "beaten"),
        would_change="Effects of the control latent that follow the partner's similarity as well.",
        measure=similarity_tells,
        cost=1,
        **_COMMON,
    ),
]
