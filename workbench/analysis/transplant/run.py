"""``workbench transplant`` as a function: match, map, operate, write ``transplants/<a>__<b>/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig
from workbench.analysis.comparison.aligned import Activations, choose_tokens
from workbench.analysis.comparison.compare import CompareRecipe
from workbench.analysis.comparison.run import compare_and_write
from workbench.analysis.comparison.sides import Group, layer_of, sae_seed_of
from workbench.analysis.correlation import max_pairwise_correlation
from workbench.analysis.latents.encoded import encode_store
from workbench.analysis.transplant.maps import DecoderMap, fit_map, same_space, unit
from workbench.analysis.transplant.measure import Replacement, Surgery, column, fitted, operate
from workbench.analysis.transplant.pairs import Pairs, SharedCodes, pairs_of
from workbench.analysis.transplant.tables import tables_of
from workbench.dictionaries.reference import DictionaryRef, find_dictionary
from workbench.models.weights import model_inputs
from workbench.results.matches import MatchRecords
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id


class TransplantRecipe(StrictConfig):
    """How latents are transplanted."""

    sequences: int = Field(8, ge=4, le=512)  # per latent, of the measured half
    pool: int = Field(256, ge=8)  # sequences of the measured half that are drawn from
    level: float = Field(0.5, gt=-1, lt=1)  # correlation from which a pair counts as matched
    below: int = Field(96, ge=0)  # pairs under the level that are measured too, evenly over r
    latents: int | None = Field(None, ge=1)  # at most so many matched pairs, evenly over r; None: all
    seed: int = 0


def transplant_and_write(workspace: Workspace, a: str, b: str, recipe: TransplantRecipe, *, run: Run = QUIET) -> Item:
    """Transplant latents of A into B and write ``transplants/<a>__<b>/``; a complete one is reused.

    A comparison that holds both dictionaries is used, the one of just these two before others; where there is none, it
    is made.

    Raises:
        UsageError: a dictionary over several sources, models with different tokenizers, or too few matched pairs.
        MissingError: a dictionary is not there. MismatchError: one made otherwise is there.
    """
    refs = find_dictionary(workspace, a), find_dictionary(workspace, b)
    _check(*refs)
    id = check_id(f"{refs[0].id}__{refs[1].id}")
    matches = comparison_of(workspace, refs[0].id, refs[1].id, run=run)
    ceiling = sae_seed_of(workspace, Group(refs[1].id, (refs[1],)))
    inputs = [refs[0].input, refs[1].input, matches.as_input()]
    inputs += [s.input for s in (ceiling.references if ceiling else ())]
    inputs += model_inputs([(refs[1].model_name, refs[1].revision)])
    wanted = recipe.model_dump(mode="json")
    if (have := reusable(workspace, "transplants", id, recipe=wanted, inputs=inputs, run=run)) is not None:
        return have
    found = _Transplant(workspace, refs, MatchRecords.open(matches.path), ceiling, recipe, run).all()
    about = {
        "a": _side(refs[0]),
        "b": _side(refs[1]),
        "matches": matches.id,
        "ceiling": f"partner in {ceiling.references[0].id}" if ceiling else "own contribution, to A's space and back",
        "level": recipe.level,
        "map": found.map,
        "n_sequences": found.n_sequences,
    }
    made, numbers = tables_of(found.frame, recipe.level, seed=recipe.seed)
    with workspace.create(
        "transplants",
        id,
        replace=True,
        command=run.command,
        recipe=wanted,
        inputs=inputs,
        numbers=numbers,
        metadata=about,
    ) as folder:
        for name, frame in made.items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    return workspace.get("transplants", id)


def _check(*refs: DictionaryRef) -> None:
    for ref in refs:
        if isinstance(ref.hook, list) or isinstance(ref.source, list):
            raise UsageError(
                f"{ref.id} is a crosscoder (it reads several sources), so a latent of it has no one place to be"
                " replaced in. Give a dictionary of one source."
            )
    if refs[0].id == refs[1].id:
        raise UsageError(f"{refs[0].id!r} and {refs[1].id!r} are the same dictionary. Name two.")


def _side(ref: DictionaryRef) -> dict[str, Any]:
    return {"dictionary": ref.id, "model": ref.model_name, "revision": ref.revision, "layer": layer_of(ref)}


def comparison_of(workspace: Workspace, a: str, b: str, *, run: Run = QUIET) -> Item:
    """A comparison with codes that has one dictionary on either side; made where there is none.

    Raises:
        MissingError: the one there is was made without codes.
    """
    without = ""
    for item in sorted(workspace.items("matches"), key=lambda i: (i.id not in (f"{a}__{b}", f"{b}__{a}"), i.id)):
        sides = [item.manifest.metadata[side]["dictionaries"] for side in ("a", "b")]
        if (a in sides[0] and b in sides[1]) or (b in sides[0] and a in sides[1]):
            if (item.path / "codes").is_dir():
                return item
            without = item.id
    if without:
        raise MissingError(
            f"{without} was made with --no-codes, and a transplant reads the codes (which latent was how strong"
            f" where). Make it again: `workbench compare {a} {b} --replace`."
        )
    run.say(f"no comparison holds {a} and {b}: comparing them first")
    made = Run(command=f"workbench compare {a} {b}", say=run.say, bar=run.bar, replace=run.replace)
    return compare_and_write(workspace, a, b, CompareRecipe(), run=made)


@dataclass(frozen=True)
class Found:
    """What was measured: one row per pair, and what the map was."""

    frame: pd.DataFrame
    map: dict[str, Any]
    n_sequences: int


@dataclass(frozen=True)
class OtherSeed:
    """Another seed of B's dictionary: codes [N, F], unit decoder rows, and the best partner there of each latent of
    B (-1: none).
    """

    codes: sp.csc_array
    directions: NDArray[np.float64]
    partner: NDArray[np.int64]


class _Transplant:
    def __init__(
        self,
        workspace: Workspace,
        refs: tuple[DictionaryRef, DictionaryRef],
        records: MatchRecords,
        ceiling: Group | None,
        recipe: TransplantRecipe,
        run: Run,
    ):
        self.workspace, self.records, self.recipe, self.run = workspace, records, recipe, run
        self.a, self.b = refs
        self.ceiling = None if ceiling is None else ceiling.references[0]

    def all(self) -> Found:
        from workbench.models import load_model

        codes = SharedCodes.read(self.records, (self.a.id, self.b.id))
        pairs = pairs_of(
            codes, self.a.id, self.b.id, min_firings=int(self.records.metadata["min_firings"]), seed=self.recipe.seed
        )
        dictionaries = self.a.load(), self.b.load()
        rows = [np.asarray(d.W_dec.detach().double()) for d in dictionaries]
        mapped = self._map(rows, pairs)
        pool = self._pool(codes)
        chosen = chosen_pairs(pairs, self.recipe)
        seed = self._other_seed(codes)
        surgeries = [
            surgery_of(codes, (self.a.id, self.b.id), pairs, k, rows[1], mapped, seed, pool, self.recipe)
            for k in self.run.each(chosen.tolist(), "fitting scales", unit="latent")
        ]
        model = load_model(self.b.model_name, revision=self.b.revision)
        sums = operate(
            model,
            dictionaries[1],
            (str(self.b.hook), self.b.hook_out),
            codes.tokens,
            codes.is_row,
            row_of(codes),
            surgeries,
            run=self.run,
        )
        frame = frame_of(pairs, chosen, surgeries, mapped, rows[1], sums)
        how = {"n_pairs": mapped.n_pairs, "ridge": mapped.ridge, "cosine": _number(mapped.cosine)}
        return Found(frame, how, len(pool))

    def _map(self, rows: list[NDArray[np.float64]], pairs: Pairs) -> DecoderMap:
        place = [(r.model_name, r.revision, r.hook_out) for r in (self.a, self.b)]
        if place[0] == place[1]:
            return same_space(*rows)
        matched = pairs.r >= self.recipe.level
        return fit_map(rows[0], rows[1], pairs.partner, pairs.latent, matched, seed=self.recipe.seed)

    def _pool(self, codes: SharedCodes) -> NDArray[np.int64]:
        """Sequences that are measured on: of the half that no scale was fitted on, evenly."""
        measured = np.flatnonzero(codes.halves == 1)
        if not len(measured):
            raise UsageError(
                f"{self.records.id} has one sequence only; a transplant fits on one half of the sequences and measures"
                " on the other. Compare on more tokens."
            )
        at = np.unique(np.linspace(0, len(measured) - 1, min(self.recipe.pool, len(measured))).round().astype(int))
        return measured[at]

    def _other_seed(self, codes: SharedCodes) -> OtherSeed | None:
        """Another seed of B's dictionary on the same rows, where the workspace has one."""
        if self.ceiling is None:
            return None
        from workbench.activations import ActivationStore

        store = ActivationStore.open(self.workspace.get("stores", self.records.metadata["store"]).path)
        tokens = choose_tokens(store, int(self.records.manifest.recipe["tokens"]))
        if len(tokens) != len(codes.ids) or not np.array_equal(tokens.ids, codes.ids):
            raise MissingError(
                f"store {store.path.name} no longer holds the tokens of {self.records.id}. Make it again:"
                f" {self.records.manifest.command} --replace"
            )
        rows, hook, source = Activations(self.workspace, tokens).rows(self.ceiling)
        dictionary = self.ceiling.load()
        matrix = sp.csc_array(encode_store(dictionary, rows, hook, source=source).matrix())
        own = sp.csr_array(codes.of[self.b.id].tocsr())
        found = max_pairwise_correlation(own, sp.csr_array(matrix.tocsr()))
        return OtherSeed(matrix, unit(np.asarray(dictionary.W_dec.detach().double())), found.partner)


def chosen_pairs(pairs: Pairs, recipe: TransplantRecipe) -> NDArray[np.int64]:
    """Places of the pairs that are measured: matched ones, and some below the level, evenly over the ranks of r."""
    matched = np.flatnonzero(pairs.r >= recipe.level)
    below = np.flatnonzero(pairs.r < recipe.level)
    return np.concatenate([_evenly(matched, recipe.latents), _evenly(below, recipe.below)])


def _evenly(places: NDArray[np.int64], n: int | None) -> NDArray[np.int64]:
    if n is None or n >= len(places):
        return places
    return places[np.unique(np.linspace(0, len(places) - 1, n).round().astype(int))] if n else places[:0]


def row_of(codes: SharedCodes) -> NDArray[np.int64]:
    """[S, ctx] which row of the codes a token is; -1 for those that are none."""
    out = np.full(codes.tokens.shape, -1, np.int64)
    out[codes.seq, codes.pos] = np.arange(len(codes.seq))
    return out


def surgery_of(
    codes: SharedCodes,
    names: tuple[str, str],
    pairs: Pairs,
    k: int,
    rows_b: NDArray[np.float64],
    mapped: DecoderMap,
    seed: OtherSeed | None,
    pool: NDArray[np.int64],
    recipe: TransplantRecipe,
) -> Surgery:
    """Pair ``k`` with everything that takes its latent's place, scales fitted on the training half."""
    a, b = codes.of[names[0]], codes.of[names[1]]
    latent, partner, other = int(pairs.latent[k]), int(pairs.partner[k]), int(pairs.other[k])
    own, row = (b, latent), rows_b[latent]
    images = unit(mapped.images)

    def replacement(theirs: tuple[sp.csc_array, int], direction: NDArray[np.float64]) -> Replacement:
        return fitted(own, theirs, row, direction, codes.training)

    arms: dict[str, Replacement | None] = {
        "transplant": replacement((a, partner), images[partner]),
        "activation": replacement((a, partner), unit(row[None])[0]),
        "other": None,
    }
    if other >= 0:
        arms["other"] = replacement((a, int(pairs.partner[other])), images[pairs.partner[other]])
    if seed is None:
        arms["ceiling"] = replacement(own, unit(mapped.returned[latent][None])[0])
    else:
        twin = int(seed.partner[latent])
        arms["ceiling"] = replacement((seed.codes, twin), seed.directions[twin]) if twin >= 0 else None
    rng = np.random.default_rng([recipe.seed, 3, latent])
    random = unit(rng.standard_normal((1, len(row))))[0]
    fires = np.union1d(codes.seq[column(*own)[0]], codes.seq[column(a, partner)[0]])
    sequences = np.intersect1d(fires, pool)
    if len(sequences) > recipe.sequences:
        sequences = np.sort(rng.choice(sequences, recipe.sequences, replace=False))
    return Surgery(latent, arms, random, sequences)


def frame_of(
    pairs: Pairs,
    chosen: NDArray[np.int64],
    surgeries: list[Surgery],
    mapped: DecoderMap,
    rows_b: NDArray[np.float64],
    sums: Any,
) -> pd.DataFrame:
    """One row per pair: what it is, and what each arm did (see :mod:`workbench.results.transplants`)."""
    from workbench.analysis.transplant.tables import arm_numbers

    rows = []
    own, images = unit(rows_b), unit(mapped.images)
    for n, (k, surgery) in enumerate(zip(chosen, surgeries, strict=True)):
        at = sums.surgery == n
        transplanted = surgery.arms["transplant"]
        rows.append(
            {
                "latent": surgery.latent,
                "partner": int(pairs.partner[k]),
                "r": float(pairs.r[k]),
                "r_given_token": float(pairs.r_given_token[k]),
                "n_fired": int(pairs.n_fired[k]),
                "cosine": float(own[surgery.latent] @ images[pairs.partner[k]]),
                "scale": float(transplanted.scale) if transplanted else float("nan"),
                **arm_numbers(sums, at, without=[arm for arm, new in surgery.arms.items() if new is None]),
            }
        )
    return pd.DataFrame(rows)


def _number(value: float) -> float | None:
    return None if not np.isfinite(value) else round(value, 4)
