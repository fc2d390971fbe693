"""k-sparse probing and absorption on labels read off the tokens.

*k-sparse probing* (Gurnee et al. 2305.01610): how well do the k best latents alone tell a label? Latents are chosen by
the difference of class means on the training half, a logistic probe is fitted on them, and its balanced accuracy is
measured on the other half, beside a probe on all activations and on the k best neurons (coordinates) of the activation.

*Absorption* (Chanin et al. 2409.14507, in miniature): labels are first letters of tokens. The main latents of a letter
are those of its k-sparse probe, for k as long as a larger one gains more than ``SPLIT_GAIN`` (more main latents are
splitting, not absorption). A token is absorbed where the dense probe is right, the main latents are silent, and another
active latent with decoder cosine to the probe direction above ``MIN_COSINE`` carries at least ``MIN_SHARE`` of the
activation's projection on the probe.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from sae.errors import UsageError
from workbench.analysis.explain.surface import SURFACE, surface
from workbench.corpus.shown import displayed_vocab
from workbench.models.reading import token_contract

KS = (1, 2, 5, 10)
MIN_EXAMPLES = 60  # of either class in either half
MAX_ROWS = 6000
MIN_COSINE, MIN_SHARE, SPLIT_GAIN = 0.025, 0.4, 0.03
NOT_PROBED = ("early", "new_token")  # the first says little, the second is the complement of repeat_token


@dataclass(frozen=True)
class Probing:
    """Tidy results: one row per (label, probe, k), and absorption per letter."""

    table: pd.DataFrame
    absorption: pd.DataFrame

    def summary(self) -> dict[str, Any]:
        """Means over labels with their n, for the metrics document."""
        out: dict[str, Any] = {"n_labels": int(self.table["label"].nunique()) if len(self.table) else 0}
        for (probe, k), rows in self.table.groupby(["probe", "k"]) if len(self.table) else []:
            out[f"{probe}_k{k}" if k else str(probe)] = {
                "balanced_accuracy": float(rows["balanced_accuracy"].mean()),
                "n_labels": len(rows),
            }
        if len(self.absorption):
            total = self.absorption[["n_absorbed", "n_tokens"]].sum()
            out["absorption"] = {
                "share": float(total["n_absorbed"] / total["n_tokens"]),
                "n_tokens": int(total["n_tokens"]),
                "n_letters": len(self.absorption),
            }
        return out


def probe_dictionary(
    model: Any,
    dictionary: Any,
    hook: str,
    tokens: np.ndarray,
    *,
    is_row: np.ndarray | None = None,
    seed: int = 0,
    batch: int = 16,
) -> Probing:
    """Probe a dictionary on labels read off ``tokens`` [n_seq, ctx] (position 0 = BOS, left out).

    Args:
        is_row: which tokens are data, bool likewise; default: by the model's contract.

    Raises:
        UsageError: the model has no tokenizer, so tokens cannot be read.
    """
    if getattr(model, "tokenizer", None) is None:
        raise UsageError(
            "probing asks what each token is (a digit, a space, …), and this model has no tokenizer. Use a model"
            " folder with tokenizer.json."
        )
    caught: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(tokens), batch):
            with model.hooks(fwd_hooks=[(hook, lambda x, hook: caught.append(x.flatten(2)[:, 1:].flatten(0, 1)))]):
                model(torch.as_tensor(tokens[start : start + batch], dtype=torch.int64))
    rows = token_contract(model).is_row(tokens) if is_row is None else is_row
    seq, pos = np.nonzero(rows[:, 1:])
    x = torch.cat(caught).float()[torch.from_numpy(seq * (tokens.shape[1] - 1) + pos)]
    pos = pos + 1
    vocab = displayed_vocab(model.tokenizer, int(model.cfg.d_vocab))
    return probe_rows(dictionary, x, tokens[seq, pos], seq, pos, vocab, seed=seed)


def probe_rows(
    dictionary: Any,
    x: torch.Tensor,
    ids: np.ndarray,
    seq: np.ndarray,
    pos: np.ndarray,
    vocab: list[str],
    *,
    seed: int = 0,
) -> Probing:
    """The same on rows ``x`` [N, D] with their token ids, sequences and positions."""
    labels = {k: v for k, v in surface(ids, seq, pos, vocab).items() if k in SURFACE and k not in NOT_PROBED}
    letters = first_letters(ids, vocab)
    train = seq % 2 == 0
    results: list[dict[str, Any]] = []
    absorbed = []
    for name, y in (labels | letters).items():
        rows = _balanced_rows(y, train, np.random.default_rng([seed, len(results)]))
        if rows is None:
            continue
        xs, ys, fit = x[torch.from_numpy(rows)], y[rows], train[rows]
        with torch.inference_mode():
            codes = dictionary.encode(xs).numpy()
        dense = _probe(xs.numpy(), ys, fit)
        results.append(
            {
                "label": name,
                "probe": "dense",
                "k": 0,
                "balanced_accuracy": dense.score,
                "n_train": int(fit.sum()),
                "n_test": int((~fit).sum()),
            }
        )
        main: np.ndarray = np.zeros(0, int)
        reached, growing = 0.5, True
        for k in KS:
            for probe, values in (("latents", codes), ("neurons", xs.numpy())):
                chosen = _best_columns(values, ys, fit, k)
                fitted = _probe(values[:, chosen], ys, fit)
                results.append({**results[-1], "probe": probe, "k": k, "balanced_accuracy": fitted.score})
                if probe == "latents" and growing:
                    growing = fitted.score > reached + SPLIT_GAIN
                    main, reached = (chosen, fitted.score) if growing else (main, reached)
        if name in letters:
            absorbed.append({"letter": name[-1], **absorption(dictionary, xs, codes, ys & ~fit, dense, main)})
    columns = ["label", "probe", "k", "balanced_accuracy", "n_train", "n_test"]
    return Probing(
        pd.DataFrame(results, columns=columns), pd.DataFrame(absorbed, columns=["letter", "n_absorbed", "n_tokens"])
    )


def first_letters(ids: np.ndarray, vocab: list[str]) -> dict[str, np.ndarray]:
    """Boolean labels ``letter_a`` … for tokens that start a word (a space, then a letter), or that start with a
    capital.
    """
    first = np.array([t[1].lower() if len(t) > 2 and t[0] == " " and t[1].isalpha() else "" for t in vocab])
    return {f"letter_{c}": first[ids] == c for c in string.ascii_lowercase}


def _balanced_rows(y: np.ndarray, train: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Rows with as many positives as negatives in either half, in order; None where there are too few."""
    parts = []
    for half in (train, ~train):
        positive, negative = np.flatnonzero(y & half), np.flatnonzero(~y & half)
        n = min(len(positive), len(negative), MAX_ROWS // 4)
        if n < MIN_EXAMPLES:
            return None
        parts += [rng.permutation(positive)[:n], rng.permutation(negative)[:n]]
    return np.sort(np.concatenate(parts))


@dataclass(frozen=True)
class _Fitted:
    score: float
    weight: np.ndarray  # [D] in the units of the input
    bias: float


def _probe(values: np.ndarray, y: np.ndarray, fit: np.ndarray) -> _Fitted:
    """Logistic regression on standardised columns; balanced accuracy on the rows outside ``fit``."""
    from sklearn.linear_model import LogisticRegression

    mean, std = values[fit].mean(0), values[fit].std(0)
    std = np.where(std > 1e-8, std, 1.0)
    model = LogisticRegression(C=1.0, max_iter=300).fit((values[fit] - mean) / std, y[fit])
    weight = model.coef_[0] / std
    bias = float(model.intercept_[0] - weight @ mean)
    said = values[~fit] @ weight + bias > 0
    truth = y[~fit]
    return _Fitted(float((said[truth].mean() + (~said)[~truth].mean()) / 2), weight, bias)


def _best_columns(values: np.ndarray, y: np.ndarray, fit: np.ndarray, k: int) -> np.ndarray:
    """The k columns with the largest |difference of class means|, in units of the pooled standard deviation, on ``fit``
    rows.
    """
    positive, negative = values[fit & y], values[fit & ~y]
    scale = np.sqrt((positive.var(0) + negative.var(0)) / 2) + 1e-3 * values[fit].std() + 1e-8
    return np.argsort(-np.abs(positive.mean(0) - negative.mean(0)) / scale, kind="stable")[:k]


def absorption(
    dictionary: Any, x: torch.Tensor, codes: np.ndarray, test: np.ndarray, dense: _Fitted, main: np.ndarray
) -> dict[str, int]:
    """How many of the test positives the dense probe gets right are absorbed by a latent outside ``main``."""
    direction = dense.weight / max(float(np.linalg.norm(dense.weight)), 1e-12)
    right = test & (x.numpy() @ dense.weight + dense.bias > 0)
    W_dec = dictionary.W_dec.detach().float().numpy()
    cosine = W_dec @ direction / np.maximum(np.linalg.norm(W_dec, axis=1), 1e-12)
    silent = right & ~(codes[:, main] > 0).any(1)
    carried = codes[silent] * (W_dec @ direction)
    carried[:, cosine < MIN_COSINE] = 0
    whole = (x.numpy()[silent] - dictionary.b_dec.detach().float().numpy()) @ direction
    n = int((carried.max(1) >= MIN_SHARE * np.maximum(whole, 1e-8)).sum()) if len(carried) else 0
    return {"n_absorbed": n, "n_tokens": int(right.sum())}
