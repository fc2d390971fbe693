"""``workbench trust`` as a function: find or make what a card is held against, compute every field, write
``trust/<id>/`` once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from pydantic import Field

from sae.errors import UsageError, UserError
from sae.strict import StrictConfig
from workbench.analysis.comparison.aligned import Activations, TokenSet, choose_tokens
from workbench.analysis.explain.run import explain_by_rule
from workbench.analysis.latents.encoded import Codes, encode_store, store_rows
from workbench.analysis.trust.needs import Needs, find_or_make
from workbench.analysis.trust.parts import Parts
from workbench.corpus.shown import displayed_vocab
from workbench.dictionaries.reference import DictionaryRef
from workbench.models.weights import model_inputs
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run, command_of
from workbench.workspace import Item, Workspace, check_id

CARD_PARTS = 5  # codes, found again, directions, effects, rules and contexts


class TrustRecipe(StrictConfig):
    """On how much text cards are made, and from how many firings on a latent gets one."""

    tokens: int = Field(100_000, ge=1000)  # at most; all of it is held out
    min_firings: int = Field(20, ge=2)
    ablations: int = Field(32, ge=0)  # tokens on which each latent is ablated; 0 = none
    seed: int = 0


@dataclass(frozen=True)
class _Subject:
    """What all fields are computed on."""

    workspace: Workspace
    reference: DictionaryRef
    dictionary: Any
    tokens: TokenSet
    activations: Activations
    codes: Codes
    matrix: sp.csr_array
    recipe: TrustRecipe
    run: Run


def make_trust(
    workspace: Workspace, reference: DictionaryRef, recipe: TrustRecipe, *, train: bool = True, run: Run = QUIET
) -> Item:
    """Cards of all latents of a dictionary in ``trust/<id>/``; complete ones of the same inputs are reused.

    Args:
        train: make the dictionaries and rules that are missing; without it what needs them is not computed.

    Raises:
        UsageError: a dictionary over several sources, or a store that holds nothing out. MissingError: its store is
            not in the workspace. MismatchError: cards of other inputs are there.
    """
    if not isinstance(reference.hook, str) or isinstance(reference.source, list):
        raise UsageError(
            f"{reference.id} is a crosscoder (it reads several sources); a card is about a dictionary of one."
            " `workbench evolve` follows latents of crosscoders."
        )
    store = reference.store(workspace)
    tokens = held_out(store, recipe.tokens)
    parts = Parts(run)
    parts.total = 1 + CARD_PARTS - (not train or workspace.complete("explanations", f"{reference.id}.rules"))
    needs = find_or_make(workspace, reference, make=train, run=run, parts=parts)
    rules = _rules(workspace, reference, needs, make=train, run=run, parts=parts)
    inputs = [reference.input, *reference.store_inputs(workspace), *(s.input for s in needs.found.values())]
    inputs += [rules.as_input()] if rules else []
    inputs += model_inputs([(reference.model_name, reference.revision)])
    id, wanted = check_id(reference.id), recipe.model_dump(mode="json")
    if (have := reusable(workspace, "trust", id, recipe=wanted, inputs=inputs, run=run)) is not None:
        return have
    with parts.part("its codes on held-out text"):
        subject = _subject(workspace, reference, tokens, recipe, run)
    table, about = _cards(subject, needs, rules, parts)
    parts.sum_up()
    with workspace.create(
        "trust",
        id,
        replace=True,
        command=run.command,
        recipe=wanted,
        inputs=inputs,
        numbers=_numbers(table, recipe, len(tokens), about),
        metadata=_about(reference, needs, recipe, len(tokens)) | about,
    ) as folder:
        table.to_parquet(folder / "cards.parquet", index=False)
    return workspace.get("trust", id)


def held_out(store: Any, limit: int) -> TokenSet:
    """Rows of held-out sequences, whole ones, at most about ``limit``.

    Raises:
        UsageError: fewer than three sequences are held out.
    """
    there = np.setdiff1d(np.array(store.heldout, np.int64), np.array(store.skipped, np.int64))
    if len(there) < 3:
        raise UsageError(
            f"store {store.spec.id} holds {len(there)} sequences out; cards rest on text that no training saw, three"
            " sequences at least. Harvest more sequences."
        )
    return choose_tokens(store, min(limit, len(there) * store.spec.rows_per_seq))


def _rules(
    workspace: Workspace, reference: DictionaryRef, needs: Needs, *, make: bool, run: Run, parts: Parts
) -> Item | None:
    id = f"{reference.id}.rules"
    if not workspace.complete("explanations", id):
        if not make:
            needs.missing["label"] = "its latents have no rules yet (`workbench explain`)"
            return None
        command = command_of("explain", [reference.id], {}, {})
        with parts.part("labels by rule"):
            explain_by_rule(workspace, reference, run=Run(command=command, say=run.say, bar=run.bar))
    item = workspace.get("explanations", id)
    if item.manifest.recipe.get("corpus"):
        needs.missing["label"] = "its rules were made on another text than its store"
        return None
    return item


def _subject(
    workspace: Workspace, reference: DictionaryRef, tokens: TokenSet, recipe: TrustRecipe, run: Run
) -> _Subject:
    dictionary, activations = reference.load(), Activations(workspace, tokens)
    codes = _encoded(activations, reference, run, dictionary)
    matrix = sp.csr_array(codes.matrix().tocsr())
    return _Subject(workspace, reference, dictionary, tokens, activations, codes, matrix, recipe, run)


def _encoded(activations: Activations, reference: DictionaryRef, run: Run, dictionary: Any = None) -> Codes:
    rows, hook, source = activations.rows(reference)
    return encode_store(dictionary or reference.load(), rows, hook, source=source, run=run)


def _cards(s: _Subject, needs: Needs, rules: Item | None, steps: Parts) -> tuple[pd.DataFrame, dict[str, Any]]:
    """(the table, what goes into the metadata)."""
    from workbench.analysis.trust.score import scored

    parts: dict[str, Any] = {
        "latent": np.arange(s.codes.n_latents, dtype=np.int32),
        "n_fired": s.codes.n_fired.astype(np.int64),
    }
    with steps.part("found again elsewhere"):
        for role in ("seed", "model_seed", "untrained"):
            parts |= _found(s, role, needs.found.get(role))
    with steps.part("directions and absorption"):
        parts |= _directions(s, needs)
    with steps.part("effects on the loss"):
        effects, agreement = _effects(s, needs)
    with steps.part("rules and contexts"):
        parts |= effects | _labels(s, rules) | _stability(s)
    table = pd.DataFrame(parts)
    score, word = scored(table)
    table["score"], table["word"] = score, pd.array(word, dtype="string")
    return table, {"agreement": agreement, "missing": needs.missing}


def _found(s: _Subject, role: str, other: DictionaryRef | None) -> dict[str, Any]:
    from workbench.analysis.trust.found import found_again

    f = s.codes.n_latents
    if other is None:
        empty = np.full(f, np.nan)
        columns: dict[str, Any] = dict.fromkeys((f"{role}_r", f"{role}_chance"), empty)
        whole = pd.array([pd.NA] * f, dtype="Int64")
        return columns | {f"{role}_partner": whole, f"{role}_cofire": whole} | {f"{role}_found": [None] * f}
    theirs = sp.csr_array(_encoded(s.activations, other, s.run).matrix().tocsr())
    m = found_again(s.matrix, theirs, s.tokens.seq, min_firings=s.recipe.min_firings, seed=s.recipe.seed)
    known = np.isfinite(m.r)
    return {
        f"{role}_r": m.r,
        f"{role}_chance": np.where(known, m.chance, np.nan),
        f"{role}_partner": _whole(m.partner, known),
        f"{role}_cofire": _whole(m.n_cofire, known),
        f"{role}_found": pd.array([bool(x) if k else None for x, k in zip(m.found, known, strict=True)], "boolean"),
    }


def _whole(values: np.ndarray, known: np.ndarray) -> Any:
    """Whole numbers that may be missing."""
    return pd.array([int(v) if k else pd.NA for v, k in zip(values, known, strict=True)], dtype="Int64")


def _directions(s: _Subject, needs: Needs) -> dict[str, Any]:
    from workbench.analysis.trust.directions import absorption, agreement, siblings

    f = s.codes.n_latents
    out: dict[str, Any] = {}
    out["agreement"], out["agreement_chance"] = np.full(f, np.nan), np.full(f, np.nan)
    same_space = s.reference.hook == s.reference.hook_out
    if same_space:
        out["agreement"], out["agreement_chance"] = agreement(s.dictionary)
    else:
        needs.missing["agreement"] = "a transcoder reads one space and writes another"
        needs.missing["absorbed"] = needs.missing["agreement"]
    near, count, _ = siblings(s.dictionary, seed=s.recipe.seed)
    out |= {"siblings": count, "sibling_ids": [[j for j, _ in x] for x in near]}
    out["sibling_cosines"] = [[c for _, c in x] for x in near]
    if not same_space:
        empty = np.full(f, np.nan)
        whole = pd.array([pd.NA] * f, dtype="Int64")
        nothing: list[list[int]] = [[] for _ in range(f)]
        return (
            out
            | dict.fromkeys(("should", "missed", "absorbed"), whole)
            | dict.fromkeys(("absorbed_share", "absorbed_chance"), empty)
            | dict.fromkeys(("takers", "taker_tokens"), nothing)
        )
    rows, hook, source = s.activations.rows(s.reference)
    a = absorption(s.dictionary, s.matrix, lambda at: rows.read(hook, at, source), seed=s.recipe.seed, run=s.run)
    with np.errstate(invalid="ignore", divide="ignore"):
        out["absorbed_share"], out["absorbed_chance"] = a.absorbed / a.should, a.chance / a.should
    out |= {"should": a.should, "missed": a.missed, "absorbed": a.absorbed}
    out["takers"] = [[j for j, _ in x] for x in a.takers]
    out["taker_tokens"] = [[n for _, n in x] for x in a.takers]
    return out


def _effects(s: _Subject, needs: Needs) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(columns, how well ablations many at a time agree with those one at a time)."""
    from workbench.analysis.trust.effects import ablation_effects, against_peers

    names = ("effect", "effect_low", "effect_high", "effect_peers", "effect_rank", "effect_alone")
    f = s.codes.n_latents
    try:
        if not s.recipe.ablations:
            raise UsageError("--ablations 0 leaves it out")
        model = s.activations.model(s.reference.model_name, s.reference.revision)
    except UserError as e:
        needs.missing["effect"] = str(e)
        whole = pd.array([pd.NA] * f, dtype="Int64")
        return dict.fromkeys(names, np.full(f, np.nan)) | dict.fromkeys(("effect_n", "effect_alone_n"), whole), None
    ids, rows = s.tokens.sequences_with_rows(s.tokens.sequences)
    found = ablation_effects(
        model,
        s.dictionary,
        str(s.reference.hook),
        ids,
        rows,
        latents=np.flatnonzero(s.codes.n_fired >= s.recipe.min_firings),
        ablations=s.recipe.ablations,
        seed=s.recipe.seed,
        run=s.run,
    )
    median, rank, _ = against_peers(found)
    columns: dict[str, Any] = dict(
        zip(names, (found.mean, found.low, found.high, median, rank, found.alone), strict=True)
    )
    columns |= {"effect_n": found.n, "effect_alone_n": found.alone_n}
    return columns, found.agreement.as_dict()


def _labels(s: _Subject, rules: Item | None) -> dict[str, Any]:
    from workbench.analysis.explain.holds import pair_keys
    from workbench.analysis.trust.labels import RATIOS, label_scores

    f = s.codes.n_latents
    if rules is None:
        whole = pd.array([pd.NA] * f, dtype="Int64")
        empty = {f"label_{n}": np.full(f, np.nan) for n in RATIOS}
        counts = dict.fromkeys(("label_n", "label_n_rule", "label_n_hard"), whole)
        return {"rule": pd.array([None] * f, dtype="string")} | empty | counts
    from workbench.models import load_tokenizer

    table = pd.read_parquet(rules.path / "labels.parquet")
    made_on = _rule_rows(s, rules.manifest.recipe.get("n_tokens"))
    tokenizer = load_tokenizer(s.reference.model_name)
    vocab = displayed_vocab(tokenizer, max(len(tokenizer), int(made_on.ids.max()) + 1, int(s.codes.ids.max()) + 1))
    theirs = max(len(tokenizer), int(made_on.ids.max()) + 1)  # the size the rules' own numbers were made with
    table["keys"] = _own_keys(table, pair_keys(made_on, theirs), theirs, len(vocab))
    chosen_on = np.unique(made_on.seq)[::2]
    scores = label_scores(s.codes, table, vocab, ~np.isin(s.codes.seq, chosen_on))
    rule = table.set_index("latent")["best_rule"].reindex(range(f))
    out: dict[str, Any] = {"rule": pd.array(rule.where(rule.notna(), None).tolist(), dtype="string")}
    out |= {f"label_{n}": getattr(scores, n) for n in RATIOS}
    return out | {"label_n": scores.n_strong, "label_n_rule": scores.n_rule, "label_n_hard": scores.n_hard}


def _rule_rows(s: _Subject, n_tokens: int | None) -> Codes:
    """Tokens on which the rules were made, without codes."""
    store = s.reference.store(s.workspace)
    keys = [store.tokens(part) for part in store_rows(store, n_tokens)]
    ids, seq, pos = (np.concatenate([np.asarray(k[i]) for k in keys]) for i in range(3))
    kept = ~np.isin(seq, np.array(store.skipped, dtype=np.int64))
    nothing = np.zeros(0, np.int64)
    return Codes(0, ids[kept], seq[kept], pos[kept], np.zeros(1, np.int64), nothing, nothing)


def _own_keys(table: pd.DataFrame, pairs: np.ndarray, theirs: int, ours: int) -> list[list[int]]:
    """Keys of rules in the numbers of a vocabulary of ``ours`` tokens: pairs by what they are, and "no token" (the
    number of the vocabulary's size) as it is written here.
    """

    def number(token: int) -> int:
        return ours if token == theirs else token

    out = []
    for family, keys in zip(table["family"].fillna(""), table["keys"], strict=True):
        own = [int(k) for k in keys]
        if family == "pair":
            halves = [divmod(int(pairs[k]), theirs + 1) for k in own]
            own = [number(before) * (ours + 1) + token for before, token in halves]
        elif family in ("previous", "next"):
            own = [number(k) for k in own]
        out.append(own)
    return out


def _stability(s: _Subject) -> dict[str, Any]:
    from workbench.analysis.trust.stability import stability

    found = stability(s.codes)
    return {"stability": found.cosine, "stability_chance": found.chance, "stability_n": found.n}


def _numbers(table: pd.DataFrame, recipe: TrustRecipe, n_tokens: int, about: dict[str, Any]) -> dict[str, Any]:
    judged = table["n_fired"] >= recipe.min_firings
    out: dict[str, Any] = {"n_latents": len(table), "n_judged": int(judged.sum()), "n_tokens": n_tokens}
    for role in ("seed", "model_seed", "untrained"):
        known = table[f"{role}_found"].dropna()
        if len(known):
            out[f"{role}_found_share"] = {"value": float(known.astype(float).mean()), "n": len(known)}
    if about["agreement"] is not None:
        out["ablation_agreement"] = about["agreement"]
    words = table["word"].dropna()
    out["words"] = {str(k): int(v) for k, v in words.value_counts().items()}
    return out


def _about(reference: DictionaryRef, needs: Needs, recipe: TrustRecipe, n_tokens: int) -> dict[str, Any]:
    from workbench.analysis.trust.score import CALIBRATION

    return {
        "dictionary": reference.id,
        "model": reference.model_name,
        "revision": reference.revision,
        "hook": reference.hook,
        "site": reference.metadata.get("site"),
        "text": f"held-out sequences of {reference.metadata.get('store')}",
        "n_tokens": n_tokens,
        "min_firings": recipe.min_firings,
        "others": {role: s.id for role, s in needs.found.items()},
        "calibration": CALIBRATION,
    }
