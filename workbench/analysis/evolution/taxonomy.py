"""What kind of latent it is, by rules on held-out tokens: token, previous-token, bigram, induction, context-sensitive.

Every rule has a number behind it, and the table keeps the numbers beside the class. ``v`` is the share of a latent's
variance that a lookup table explains: means per key are taken on one half of the sequences, the variance explained on
the other, so a rare latent does not look token-determined for having been seen once. v_token keys on x_t, v_previous on
x_{t-1}, v_bigram on both (backing off to x_t where the pair was seen less than twice). Complexity is 1 - max v.

- token            v_token >= 0.7
- previous-token   v_previous >= 0.7 and above v_token by 0.2
- bigram           v_bigram >= 0.7 while neither alone reaches it
- induction        on random tokens repeated twice: mean activation in the second copy >= 5x the first; gone (<= half)
                   when
                   the first copy is replaced by other tokens; not explained by x_t or x_{t-1}
- context          fires on few tokens (perplexity of x_t <= 4) yet on < 50 % of their occurrences, and the bag of the
                   preceding 24 tokens tells which (AUROC > 0.8 on sequences the probe has not seen)
- other            none of these; latents with fewer than ``min_fired`` firings are *rare* and not judged

The rules are tried in this order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

CLASSES = ("token", "previous-token", "bigram", "induction", "context", "other", "rare")


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rules above."""

    explained: float = 0.7
    margin: float = 0.2
    repeat_ratio: float = 5.0
    repeat_rate: float = 0.01  # least share of second-copy positions an induction latent fires on
    replaced: float = 0.5
    token_perplexity: float = 4.0
    fires_on: float = 0.5
    auroc: float = 0.8
    window: int = 24
    min_fired: int = 30


@dataclass(frozen=True)
class RepeatMeans:
    """Mean activation of each latent [F] on [A A] (first, second copy), in the second half of [B A], and the second
    copy's firing rate.
    """

    first: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    replaced: npt.NDArray[np.float32]
    rate: npt.NDArray[np.float32]


def repeat_tokens(
    unigram: npt.ArrayLike, *, n: int, length: int, bos: int, seed: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Probe sequences: [BOS, A, A] and [BOS, B, A] with A, B drawn from token frequencies.

    Two int32 arrays [n, 1 + 2 length].
    """
    rng = np.random.default_rng(seed)
    p = np.asarray(unigram, dtype=np.float64).copy()
    p[bos] = 0
    a, b = rng.choice(len(p), p=p / p.sum(), size=(2, n, length))
    start = np.full((n, 1), bos)
    return np.hstack([start, a, a]).astype(np.int32), np.hstack([start, b, a]).astype(np.int32)


def _means(
    codes: sparse.csr_array, keys: npt.NDArray[np.int64], n_keys: int
) -> tuple[sparse.csr_array, npt.NDArray[np.float64]]:
    """Sums of codes [N, F] per key (sparse [n_keys, F]) and counts [n_keys]."""
    N = len(keys)
    pick = sparse.csr_array((np.ones(N), (keys, np.arange(N))), shape=(n_keys, N))
    return (pick @ codes).tocsr(), np.bincount(keys, minlength=n_keys).astype(np.float64)


def _explained(
    codes: sparse.csr_array, fit: npt.NDArray[np.bool_], levels: list[npt.NDArray[np.int64]], least: list[int]
) -> npt.NDArray[np.float64]:
    """Variance explained [F] on rows outside ``fit`` by key means taken inside it; later levels are the back-off."""
    test = ~fit
    F = codes.shape[1]
    fit_codes, test_codes = codes[np.flatnonzero(fit)], codes[np.flatnonzero(test)]
    means, keys, offset = [], np.full(int(test.sum()), -1, dtype=np.int64), 0
    for key, need in zip(levels, least, strict=True):
        _, dense = np.unique(key, return_inverse=True)
        n_keys = int(dense.max()) + 1
        sums, n = _means(fit_codes, dense[fit], n_keys)
        means.append(sparse.diags_array(1 / np.maximum(n, 1)) @ sums)
        usable = (keys < 0) & (n[dense[test]] >= need)
        keys[usable] = dense[test][usable] + offset
        offset += n_keys
    means.append(sparse.csr_array(fit_codes.mean(axis=0).reshape(1, F)))  # last resort: the overall mean
    keys[keys < 0] = offset
    M = sparse.vstack(means).tocsr()
    sums, n = _means(test_codes, keys, offset + 1)
    ff = np.asarray(test_codes.multiply(test_codes).sum(axis=0)).ravel()
    N = int(test.sum())
    mean = np.asarray(test_codes.sum(axis=0)).ravel() / N
    left = ff - 2 * np.asarray(sums.multiply(M).sum(axis=0)).ravel() + np.asarray(M.multiply(M).T @ n).ravel()
    variance = ff - N * mean**2
    return np.where(variance > 0, 1 - left / np.where(variance > 0, variance, 1), np.nan)


def lookup_explained(
    codes: sparse.csr_array, tokens: npt.ArrayLike, seq: npt.ArrayLike, pos: npt.ArrayLike, vocab: int
) -> pd.DataFrame:
    """v_token, v_previous and v_bigram of every latent; both halves of the sequences serve once for fitting, once for
    testing.

    Args:
        codes: latent activations [N, F], one row per (sequence, position).
        tokens: ids [n_seq, ctx]. seq, pos: which token each row is, [N].
    """
    ids, s, p = np.asarray(tokens, dtype=np.int64), np.asarray(seq), np.asarray(pos)
    now, before = ids[s, p], np.where(p > 0, ids[s, np.maximum(p - 1, 0)], vocab)
    half = (np.unique(s, return_inverse=True)[1] % 2) == 0
    out = {}
    for name, levels, least in (
        ("token", [now], [1]),
        ("previous", [before], [1]),
        ("bigram", [before * vocab + now, now], [2, 1]),
    ):
        out[f"v_{name}"] = np.mean([_explained(codes, h, levels, least) for h in (half, ~half)], axis=0)
    return pd.DataFrame(out)


def _context_auroc(
    codes_i: npt.NDArray[np.float32],
    candidates: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    s: npt.NDArray[np.int64],
    p: npt.NDArray[np.int64],
    window: int,
    vocab: int,
) -> float:
    """AUROC of a logistic probe on the bag of preceding tokens: does the latent fire on this
    occurrence of its token?
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    fires = codes_i[candidates] > 0
    train = s[candidates] % 2 == 0
    if min(fires[train].sum(), (~fires[train]).sum(), fires[~train].sum(), (~fires[~train]).sum()) < 10:
        return float("nan")
    back = p[candidates][:, None] - np.arange(1, window + 1)[None, :]
    words = np.where(back >= 0, ids[s[candidates][:, None], np.maximum(back, 0)], vocab)
    rows = np.repeat(np.arange(len(candidates)), window)
    bag = sparse.csr_matrix((np.ones(rows.size), (rows, words.ravel())), shape=(len(candidates), vocab + 1))
    probe = LogisticRegression(C=0.3, max_iter=200, class_weight="balanced").fit(bag[train], fires[train])
    return float(roc_auc_score(fires[~train], probe.decision_function(bag[~train])))


def _context_columns(
    codes: sparse.csr_array,
    ids: npt.NDArray[np.int64],
    s: npt.NDArray[np.int64],
    p: npt.NDArray[np.int64],
    vocab: int,
    rules: Rules,
    asked: npt.NDArray[np.bool_],
) -> pd.DataFrame:
    """Perplexity of the tokens a latent fires on, its firing rate on them, and the probe's AUROC where the other two
    allow.
    """
    now = ids[s, p]
    by_token, n_token = _means((codes > 0).astype(np.float64).tocsr(), now, vocab)
    counts = by_token.tocsc()
    F = codes.shape[1]
    perplexity, rate, auroc = np.full(F, np.nan), np.full(F, np.nan), np.full(F, np.nan)
    columns = codes.tocsc()
    for i in range(F):
        n = counts.data[counts.indptr[i] : counts.indptr[i + 1]]
        where = counts.indices[counts.indptr[i] : counts.indptr[i + 1]]
        if not len(n):
            continue
        q = n / n.sum()
        perplexity[i] = np.exp(-(q * np.log(q)).sum())
        main = where[np.argsort(-n)][: max(1, round(perplexity[i]))]
        rate[i] = by_token[main, [i] * len(main)].sum() / n_token[main].sum()
        if asked[i] and perplexity[i] <= rules.token_perplexity and rate[i] < rules.fires_on:
            candidates = np.flatnonzero(np.isin(now, main))[:4000]
            auroc[i] = _context_auroc(columns[:, [i]].toarray().ravel(), candidates, ids, s, p, rules.window, vocab)
    return pd.DataFrame({"token_perplexity": perplexity, "token_rate": rate, "context_auroc": auroc})


def taxonomy(
    codes: sparse.csr_array,
    tokens: npt.ArrayLike,
    seq: npt.ArrayLike,
    pos: npt.ArrayLike,
    vocab: int,
    *,
    repeats: RepeatMeans | None = None,
    rules: Rules | None = None,
) -> pd.DataFrame:
    """The class of every latent with the numbers it rests on; one row per latent (arguments as in
    :func:`lookup_explained`).

    Without ``repeats`` no latent can be *induction*, and its columns are absent.
    """
    rules = rules or Rules()
    codes = sparse.csr_array(codes)
    ids, s, p = np.asarray(tokens, dtype=np.int64), np.asarray(seq, dtype=np.int64), np.asarray(pos, dtype=np.int64)
    table = lookup_explained(codes, ids, s, p, vocab)
    table.insert(0, "latent", np.arange(codes.shape[1]))
    table["n_fired"] = np.bincount(codes.indices[codes.data > 0], minlength=codes.shape[1])
    v1, v0, v2 = (table[c].to_numpy() for c in ("v_token", "v_previous", "v_bigram"))
    table["complexity"] = 1 - np.clip(np.fmax(np.fmax(v1, v0), v2), 0, 1)
    judged = table["n_fired"].to_numpy() >= rules.min_fired
    lookup = (v1 >= rules.explained) | (v0 >= rules.explained)
    induction = np.zeros(len(table), dtype=bool)
    if repeats is not None:
        table["repeat_first"], table["repeat_second"], table["repeat_replaced"] = (
            repeats.first,
            repeats.second,
            repeats.replaced,
        )
        grows = (repeats.second >= rules.repeat_ratio * repeats.first) & (repeats.rate >= rules.repeat_rate)
        induction = grows & (repeats.replaced <= rules.replaced * repeats.second) & ~lookup
    is_previous = (v0 >= rules.explained) & (v0 >= v1 + rules.margin)
    is_bigram = (v2 >= rules.explained) & ~lookup
    context = _context_columns(codes, ids, s, p, vocab, rules, judged & ~lookup & ~is_bigram & ~induction)
    table = pd.concat([table, context], axis=1)
    conditions = [
        ~judged,
        is_previous,
        v1 >= rules.explained,
        is_bigram,
        induction,
        context["context_auroc"].to_numpy() > rules.auroc,
    ]
    table["class"] = np.select(
        conditions, ["rare", "previous-token", "token", "bigram", "induction", "context"], default="other"
    )
    return table
