"""The rule-based labeller: for every latent the simple rule that best says when it fires, with precision and recall.

A rule is a set of up to five tokens (or previous tokens, next tokens, or pairs of tokens), or none, combined with at
most one property of the surface (:mod:`.surface`). "Fires" means above a quarter of the latent's maximum: Top-K
dictionaries have long tails of weak firings. Rules are chosen by F1 on even-numbered sequences; every number in the
table is measured on odd-numbered ones.

For one family of keys the best set of a given size is a prefix of the keys ordered by precision, so all sets of all
latents are scored by one sort and cumulative sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from workbench.analysis.explain.surface import SURFACE, next_ids, previous_ids, surface
from workbench.analysis.latents.encoded import Codes

STRONG = 0.25  # of the latent's maximum
SIZES = {"token": 5, "previous": 5, "next": 5, "pair": 4, "any": 1}
PREVIOUS_WITH = ("word_inside", "word_start", "in_string", "in_bracket", "whitespace", "punctuation")
COST_KEY, COST_WHERE = 0.01, 0.02  # F1 a further key, or a condition, must be worth
MIN_FIRED = 10


@dataclass(frozen=True)
class Family:
    """Rows as keys of one kind: ``key`` [N] in ``range(n_keys)``."""

    name: str
    key: np.ndarray
    n_keys: int


@dataclass
class _Best:
    """The best rule so far of every latent, with its counts on the test half."""

    score: np.ndarray
    family: np.ndarray
    where: np.ndarray
    keys: list[tuple[int, ...]]
    holds: np.ndarray  # test rows on which the rule holds
    hits: np.ndarray  # … and the latent fires strongly
    hits_any: np.ndarray  # … and the latent fires at all


def label_by_rule(codes: Codes, vocab: list[str], *, min_f1: float = 0.5, min_fired: int = MIN_FIRED) -> pd.DataFrame:
    """One row per latent: label (null where no rule is good enough), best_rule, precision, recall, f1 and what they
    rest on.

    Columns: ``precision`` = P(fires strongly | rule), ``precision_any`` = P(fires | rule), ``recall`` = P(rule | fires
    strongly); ``n_rule``, ``n_strong``, ``n_fired``, ``n_tokens`` are the test counts. ``family``, ``keys`` and
    ``where`` state the rule.
    """
    f = codes.n_latents
    test_row = np.unique(codes.seq, return_inverse=True)[1] % 2 == 1
    peak = np.zeros(f, np.float32)
    np.maximum.at(peak, codes.latent, codes.value)
    strong = codes.value >= STRONG * peak[codes.latent]
    test_entry = test_row[codes.row]
    entries = {
        "fit": np.flatnonzero(strong & ~test_entry),
        "test": np.flatnonzero(strong & test_entry),
        "test_any": np.flatnonzero(test_entry),
    }
    n = {k: np.bincount(codes.latent[e], minlength=f) for k, e in entries.items()}
    best = _Best(
        np.full(f, -1.0), np.zeros(f, object), np.zeros(f, object), [()] * f, np.zeros(f), np.zeros(f), np.zeros(f)
    )
    properties = {"": np.ones(codes.n_tokens, bool), **surface(codes.ids, codes.seq, codes.pos, vocab)}
    for family in _families(codes, len(vocab)):
        for where, mask in properties.items():
            if _tried(family.name, where):
                _try(codes, family, where, mask, test_row, entries, n["fit"], best)
    return _table(codes, vocab, best, n, int(test_row.sum()), min_f1, min_fired)


def _families(codes: Codes, v: int) -> list[Family]:
    before = previous_ids(codes.ids, codes.seq, codes.pos, v)
    pairs, pair = np.unique(before * (v + 1) + codes.ids, return_inverse=True)
    return [
        Family("token", codes.ids.astype(np.int64), v),
        Family("previous", before, v + 1),
        Family("next", next_ids(codes.ids, codes.seq, codes.pos, v), v + 1),
        Family("pair", pair, len(pairs)),
        Family("any", np.zeros(codes.n_tokens, np.int64), 1),
    ]


def _tried(family: str, where: str) -> bool:
    if family == "any":
        return where != ""
    return family == "token" or where == "" or (family == "previous" and where in PREVIOUS_WITH)


def _counts(codes: Codes, family: Family, mask: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(latent * n_keys + key, how often) of the entries whose row satisfies ``mask``, ascending."""
    entries = entries[mask[codes.row[entries]]]
    cell = codes.latent[entries].astype(np.int64) * family.n_keys + family.key[codes.row[entries]]
    size = codes.n_latents * family.n_keys
    if size <= 1 << 24:
        counts = np.bincount(cell, minlength=size)
        found = np.flatnonzero(counts)
        return found, counts[found]
    return np.unique(cell, return_counts=True)


def _look_up(cells: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if len(cells) == 0:
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(cells, wanted), len(cells) - 1)
    return np.where(cells[at] == wanted, counts[at], 0)


def _try(
    codes: Codes,
    family: Family,
    where: str,
    mask: np.ndarray,
    test_row: np.ndarray,
    entries: dict[str, np.ndarray],
    n_fit: np.ndarray,
    best: _Best,
) -> None:
    """Score every prefix of every latent's keys on the fit half; keep what beats the best so far, with
    its test counts.
    """
    f = codes.n_latents
    cell, hits = _counts(codes, family, mask, entries["fit"])
    if len(cell) == 0:
        return
    latent, key = cell // family.n_keys, cell % family.n_keys
    rows_fit = np.bincount(family.key[mask & ~test_row], minlength=family.n_keys)
    order = np.lexsort((-hits, -hits / rows_fit[key], latent))
    latent, key, hits = latent[order], key[order], hits[order]
    first = np.searchsorted(latent, np.arange(f + 1))
    slot = np.arange(len(latent)) - first[latent]
    keep = slot < SIZES[family.name]
    latent, key, hits, slot = latent[keep], key[keep], hits[keep], slot[keep]
    first = np.searchsorted(latent, np.arange(f + 1))
    cum_hits, cum_rows = np.cumsum(hits), np.cumsum(rows_fit[key])
    base = np.where(first[:-1] > 0, first[:-1] - 1, 0)
    start_hits, start_rows = (np.where(first[:-1] > 0, c[base], 0) for c in (cum_hits, cum_rows))
    prefix_hits, prefix_rows = cum_hits - start_hits[latent], cum_rows - start_rows[latent]
    score = 2 * prefix_hits / (prefix_rows + n_fit[latent]) - COST_KEY * slot - COST_WHERE * bool(where)
    top = np.full(f, -1.0)
    np.maximum.at(top, latent, score)
    winners = np.flatnonzero((score == top[latent]) & (score > best.score[latent]))
    winners = winners[np.unique(latent[winners], return_index=True)[1]]
    if len(winners) == 0:
        return
    chosen = np.concatenate([np.arange(first[latent[w]], w + 1) for w in winners])
    owner = latent[chosen]
    wanted = owner * family.n_keys + key[chosen]
    rows_test = np.bincount(family.key[mask & test_row], minlength=family.n_keys)
    holds = np.bincount(owner, rows_test[key[chosen]], minlength=f)
    test, test_any = (
        np.bincount(owner, _look_up(*_counts(codes, family, mask, entries[k]), wanted), minlength=f)
        for k in ("test", "test_any")
    )
    for w in winners:
        i = int(latent[w])
        best.score[i], best.family[i], best.where[i] = score[w], family.name, where
        best.keys[i] = tuple(int(k) for k in key[first[i] : w + 1])
        best.holds[i], best.hits[i], best.hits_any[i] = holds[i], test[i], test_any[i]


def _table(
    codes: Codes, vocab: list[str], best: _Best, n: dict[str, np.ndarray], n_tokens: int, min_f1: float, min_fired: int
) -> pd.DataFrame:
    v = len(vocab)
    pairs = np.unique(previous_ids(codes.ids, codes.seq, codes.pos, v) * (v + 1) + codes.ids)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = best.hits / best.holds, best.hits / n["test"]
        f1 = 2 * best.hits / (best.holds + n["test"])
        precision_any = best.hits_any / best.holds
    judged = (n["test"] >= min_fired) & (n["fit"] >= min_fired) & (best.score > 0)
    texts = [
        say_rule(str(best.family[i]), best.keys[i], str(best.where[i]), vocab, pairs) if judged[i] else None
        for i in range(codes.n_latents)
    ]
    named = judged & (f1 >= min_f1)
    table = pd.DataFrame(
        {
            "latent": np.arange(codes.n_latents, dtype=np.int32),
            "label": pd.array([t if k else None for t, k in zip(texts, named, strict=True)], dtype="string"),
            "label_score": np.where(named, f1, np.nan),
            "best_rule": pd.array(texts, dtype="string"),
            "precision": precision,
            "precision_any": precision_any,
            "recall": recall,
            "f1": f1,
            "n_rule": best.holds.astype(np.int64),
            "n_strong": n["test"],
            "n_fired": n["test_any"],
            "n_tokens": n_tokens,
            "family": pd.array(
                [str(x) if j else None for x, j in zip(best.family, judged, strict=True)], dtype="string"
            ),
            "where": pd.array([str(x) if j else None for x, j in zip(best.where, judged, strict=True)], dtype="string"),
            "keys": [list(k) for k in best.keys],
        }
    )
    table.loc[~judged, ["precision", "precision_any", "recall", "f1"]] = np.nan
    return table


def say_rule(family: str, keys: tuple[int, ...], where: str, vocab: list[str], pairs: np.ndarray) -> str:
    """The rule as a label, at most 25 words."""
    v = len(vocab)

    def show(token: int) -> str:
        if token >= v:
            return "the edge of the text"
        text = vocab[token]
        for raw, seen in ((" ", "␣"), ("\n", "↵"), ("\t", "⇥")):
            text = text.replace(raw, seen)
        return f"“{text}”"

    if family == "token":
        what = _any_of([show(k) for k in keys])
    elif family == "previous":
        what = f"after {_any_of([show(k) for k in keys])}"
    elif family == "next":
        what = f"before {_any_of([show(k) for k in keys])}"
    elif family == "pair":
        what = _any_of([f"{show(int(pairs[k] % (v + 1)))} after {show(int(pairs[k] // (v + 1)))}" for k in keys])
    else:
        return f"any token {SURFACE[where]}"
    return f"{what}, {SURFACE[where]}" if where else what


def _any_of(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} or {items[-1]}"
