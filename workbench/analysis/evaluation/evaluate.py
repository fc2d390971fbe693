"""Measuring a dictionary inside its language model, each number with its n and a bootstrap interval over sequences.

Sums are kept per sequence and position band in float64, so every ratio, its interval and its course over the context
come from one table. Position 0, and BOS and pads wherever they stand, are neither spliced nor scored.

Definitions (x activation, y reconstruction, CE cross-entropy in nats of the next token):

- ``fvu`` = sum |x - y|^2 / sum |x - mean|^2, mean over the evaluated tokens; ``ev`` = 1 - fvu
- ``ev_inliers``, ``fvu_inliers``: the same without massive activations, which training leaves out too: tokens longer
  than ten median norms; ``massive_share`` of the tokens and ``massive_square_share`` of all squared norm are theirs
- ``ev_uncentred`` = 1 - sum |x - y|^2 / sum |x|^2 (Llama Scope, section 3.3.2; inflated where the mean is large)
- ``delta_ce`` = CE(spliced) - CE(original)
- ``ce_recovered_zero`` / ``_mean`` = (CE(ablated) - CE(spliced)) / (CE(ablated) - CE(original)), ablating to zero or to
  the mean
- ``kl`` = mean KL(original || spliced) of next-token distributions; ``kl_recovered_zero`` the same ratio in KL
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sae.errors import UsageError
from sae.populations import norms, populations_of
from workbench.activations.harvesting.forward import capture
from workbench.analysis.splice import Constant, splice
from workbench.models.reading import token_contract
from workbench.run import QUIET, Run
from workbench.stats import Estimate, ratio_estimates, wilson

N_BANDS = 8
LOGIT_BYTES = 1 << 30  # of logits held at a time: those of the untouched model and of one other pass
SLICE_BYTES = 1 << 26  # of log-probabilities made from them at a time
ULTRA_DENSE = 0.1
METRICS: tuple[str, ...] = (
    *("l0", "ev", "fvu", "ev_uncentred", "norm_ratio", "ce_original", "ce_spliced", "delta_ce"),
    *("ev_inliers", "fvu_inliers", "massive_share", "massive_square_share"),
    *("ce_zero", "ce_mean", "ce_recovered_zero", "ce_recovered_mean", "kl", "kl_recovered_zero"),
)


@dataclass(frozen=True)
class Evaluation:
    """Everything measured on one set of sequences."""

    estimates: dict[str, Estimate]
    bands: pd.DataFrame  # position band x metric: value, low, high, n
    sums: pd.DataFrame  # one row per (sequence, band): the raw sums
    n_fired: np.ndarray  # [F]
    n_tokens: int


def evaluate_in_model(
    model: Any,
    dictionary: Any,
    hook: str,
    tokens: np.ndarray | Tensor,
    *,
    hook_out: str | None = None,
    view: Callable[[int], Any] | None = None,
    is_row: np.ndarray | None = None,
    batch: int = 16,
    n_bands: int = N_BANDS,
    seed: int = 0,
    run: Run = QUIET,
) -> Evaluation:
    """Splice a dictionary into the model on ``tokens`` [n_seq, ctx] (position 0 = BOS) and measure.

    Args:
        view: what stands in for ``dictionary`` on the batch of sequences starting at a number, for codes that the
            hook's own activations do not determine (crosscoders).
        is_row: which tokens are data, bool [n_seq, ctx]; default: by the model's contract.
        batch: sequences at a time; fewer where their logits would take more than ``LOGIT_BYTES`` (with ``view``, whose
            batches these are, always as many).

    Raises:
        UsageError: sequences shorter than 3 tokens (nothing to score after BOS), or none.
    """
    tokens = torch.as_tensor(np.asarray(tokens), dtype=torch.int64)
    if tokens.ndim != 2 or len(tokens) == 0 or tokens.shape[1] < 3:
        raise UsageError(f"evaluation needs token sequences [n, ctx] with ctx >= 3, not {list(tokens.shape)}.")
    n_bands = min(n_bands, tokens.shape[1] - 2)
    rows = torch.from_numpy(token_contract(model).is_row(tokens.numpy()) if is_row is None else is_row.copy())
    rows[:, 0] = False
    if not rows[:, 1:-1].any():
        raise UsageError(
            "no token of these sequences counts: all are BOS, padding or words of other roles. Give a text, or other"
            " roles."
        )
    hook_out = hook_out or hook
    batch = batch if view else sequences_at_once(model, tokens.shape[1], batch)
    with torch.inference_mode():
        means = _mean_activation(model, hook_out, tokens, rows, batch)
        at = view or (lambda start: dictionary)
        parts, fired = [], torch.zeros(int(at(0).W_dec.shape[0]), dtype=torch.int64)
        for start in run.each(range(0, len(tokens), batch), "evaluating", unit="batch"):
            chosen = slice(start, start + batch)
            part, hits = _batch_sums(model, at(start), hook, hook_out, tokens[chosen], rows[chosen], means, n_bands)
            part["sequence"] += start
            parts.append(part)
            fired += hits
    sums = pd.concat(parts, ignore_index=True)
    n = int(sums["n"].sum())
    per_sequence = sums.groupby("sequence").sum()
    estimates = _estimates(per_sequence, seed)
    estimates |= latent_shares(fired.numpy(), n)
    bands = []
    for band, rows in sums.groupby("band"):
        first, last = _band_edges(tokens.shape[1], n_bands)[int(band)]
        for name, e in _estimates(rows.set_index("sequence"), seed).items():
            bands.append(
                {"band": int(band), "first_position": first, "last_position": last, "metric": name, **e.as_dict()}
            )
    return Evaluation(estimates, pd.DataFrame(bands), sums, fired.numpy(), n)


@dataclass(frozen=True)
class _Means:
    """What is measured around: [D] float64 means over all scored positions and over those that are not massive, longer
    than ``limit`` (see :mod:`sae.populations`; the median is that of the first batch, as in training).
    """

    all: Tensor
    inliers: Tensor
    limit: float


def _mean_activation(model: Any, hook: str, tokens: Tensor, rows: Tensor, batch: int) -> _Means:
    """One pass over the tokens, as far as the hook."""
    total: Tensor | float = 0.0
    massive: Tensor | float = 0.0
    n = n_massive = 0
    limit: float | None = None
    for start in range(0, len(tokens), batch):
        x = capture(model, tokens[start : start + batch], [hook])[hook][:, 1:-1]
        x = x[rows[start : start + batch, 1:-1]].double()
        if not len(x):
            continue
        lengths = norms(x)
        limit = populations_of(lengths).limit if limit is None else limit
        long = lengths > limit
        total, massive = total + x.sum(0), massive + x[long].sum(0)
        n, n_massive = n + len(x), n_massive + int(long.sum())
    mean, kept = torch.as_tensor(total) / n, n - n_massive
    return _Means(mean, (torch.as_tensor(total) - massive) / kept if n_massive else mean, limit or 0.0)


def _band_edges(ctx: int, n_bands: int) -> list[tuple[int, int]]:
    """Inclusive (first, last) positions of each band; positions 1 … ctx - 2 predict a token."""
    edges = np.linspace(1, ctx - 1, n_bands + 1).astype(int)
    return [(int(a), int(b) - 1) for a, b in pairwise(edges)]


def _batch_sums(
    model: Any, dictionary: Any, hook: str, hook_out: str, tokens: Tensor, rows: Tensor, means: _Means, n_bands: int
) -> tuple[pd.DataFrame, Tensor]:
    """Sums per (sequence, band) of one batch, and how often each latent fired."""
    original = model(tokens, return_type="logits")
    with splice(model, {hook: dictionary}, keep_error=False, rows=rows, record=True) as spliced:
        scores = {"ce_spliced": "nll", "kl": "kl"}
        per_token = _named(token_scores(model(tokens, return_type="logits"), tokens, original), scores)
    seen = spliced.seen[hook]
    x, y = seen.target[:, 1:-1].double(), seen.y[:, 1:-1].double()
    kept = rows[:, 1:-1].to(x.device)
    on = (seen.values[:, 1:-1] > 0) & kept[..., None]
    usual = (norms(x) <= means.limit).double()
    per_token |= {
        "n": kept.double(),
        "error": (x - y).square().sum(-1),
        "centred": (x - means.all).square().sum(-1),
        "square": x.square().sum(-1),
        "norm_x": x.norm(dim=-1),
        "norm_y": y.norm(dim=-1),
        "active": on.sum(-1),
        "n_inliers": usual,
        "error_inliers": usual * (x - y).square().sum(-1),
        "centred_inliers": usual * (x - means.inliers).square().sum(-1),
        "square_massive": (1 - usual) * x.square().sum(-1),
        "ce": token_scores(original, tokens)["nll"],
    }
    for name, vector in (("zero", torch.zeros_like(means.all)), ("mean", means.all)):
        with splice(model, {hook_out: Constant(vector)}, keep_error=False, rows=rows):
            scores = {f"ce_{name}": "nll", f"kl_{name}": "kl"}
            per_token |= _named(token_scores(model(tokens, return_type="logits"), tokens, original), scores)
    frames = []
    for band, (first, last) in enumerate(_band_edges(tokens.shape[1], n_bands)):
        part = {k: (v.double() * kept)[:, first - 1 : last].sum(1).cpu().numpy() for k, v in per_token.items()}
        frames.append(pd.DataFrame({"sequence": np.arange(len(tokens)), "band": band, **part}))
    hits = torch.bincount(seen.indices[:, 1:-1][on], minlength=int(dictionary.W_dec.shape[0])).cpu()
    return pd.concat(frames, ignore_index=True), hits


def sequences_at_once(model: Any, ctx: int, batch: int) -> int:
    """How many sequences, at most ``batch`` and at least one, have their logits twice within ``LOGIT_BYTES``."""
    vocab = int(getattr(getattr(model, "cfg", None), "d_vocab", 0) or 1)
    return max(1, min(batch, LOGIT_BYTES // (2 * 4 * ctx * vocab)))


def token_scores(
    logits: Tensor, tokens: Tensor, original: Tensor | None = None, *, slice_bytes: int = SLICE_BYTES
) -> dict[str, Tensor]:
    """Scores [B, S-2] of logits [B, S, vocab] at positions 1 … S-2: ``nll`` of the next token, and with ``original``
    ``kl``, that of the original to these distributions.

    Log-probabilities exist for a slice of positions at a time, so their size does not depend on the context.
    """
    b, s, vocab = logits.shape
    width = max(1, slice_bytes // (4 * b * vocab))
    found: dict[str, list[Tensor]] = {"nll": []}
    if original is not None:
        found["kl"] = []
    for start in range(1, s - 1, width):
        at = slice(start, min(start + width, s - 1))
        log_q = logits[:, at].float().log_softmax(-1)
        following = tokens[:, at.start + 1 : at.stop + 1, None].to(log_q.device)
        found["nll"].append(-log_q.gather(-1, following)[..., 0])
        if original is not None:
            log_p = original[:, at].float().log_softmax(-1)
            found["kl"].append((log_p.exp() * (log_p - log_q)).sum(-1))
    return {name: torch.cat(parts, 1) for name, parts in found.items()}


def _named(scores: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    return {new: scores[old] for new, old in names.items()}


def _estimates(per_sequence: pd.DataFrame, seed: int) -> dict[str, Estimate]:
    """Every metric of the module docstring from sums per sequence."""
    s = {name: per_sequence[name].to_numpy() for name in per_sequence.columns if name not in ("band", "sequence")}
    formulas: dict[str, Callable[[dict[str, np.ndarray]], np.ndarray]] = {
        "l0": lambda t: t["active"] / t["n"],
        "fvu": lambda t: t["error"] / t["centred"],
        "ev": lambda t: 1 - t["error"] / t["centred"],
        "ev_uncentred": lambda t: 1 - t["error"] / t["square"],
        "ev_inliers": lambda t: 1 - t["error_inliers"] / t["centred_inliers"],
        "fvu_inliers": lambda t: t["error_inliers"] / t["centred_inliers"],
        "massive_share": lambda t: 1 - t["n_inliers"] / t["n"],
        "massive_square_share": lambda t: t["square_massive"] / t["square"],
        "norm_ratio": lambda t: t["norm_y"] / t["norm_x"],
        "ce_original": lambda t: t["ce"] / t["n"],
        "ce_spliced": lambda t: t["ce_spliced"] / t["n"],
        "ce_zero": lambda t: t["ce_zero"] / t["n"],
        "ce_mean": lambda t: t["ce_mean"] / t["n"],
        "delta_ce": lambda t: (t["ce_spliced"] - t["ce"]) / t["n"],
        "ce_recovered_zero": lambda t: (t["ce_zero"] - t["ce_spliced"]) / (t["ce_zero"] - t["ce"]),
        "ce_recovered_mean": lambda t: (t["ce_mean"] - t["ce_spliced"]) / (t["ce_mean"] - t["ce"]),
        "kl": lambda t: t["kl"] / t["n"],
        "kl_recovered_zero": lambda t: (t["kl_zero"] - t["kl"]) / t["kl_zero"],
    }
    n = {m: (int(s["n"].sum()), "tokens") for m in METRICS}
    usual = (int(s["n_inliers"].sum()), "tokens without massive activation")
    n |= {"ev_inliers": usual, "fvu_inliers": usual}
    return ratio_estimates(s, {m: formulas[m] for m in METRICS}, n, seed=seed)


def latent_shares(n_fired: np.ndarray, n_tokens: int) -> dict[str, Estimate]:
    """Shares of latents that never fired, and that fire on more than a tenth of the tokens, with Wilson intervals over
    latents.
    """
    f = len(n_fired)
    return {
        "dead_share": wilson(int((n_fired == 0).sum()), f, f"latents (never fired in {n_tokens:,} tokens)"),
        "ultra_dense_share": wilson(
            int((n_fired > ULTRA_DENSE * n_tokens).sum()), f, f"latents (fire on more than {ULTRA_DENSE:.0%} of tokens)"
        ),
    }


def density_quantiles(n_fired: np.ndarray, n_tokens: int) -> dict[str, Any]:
    """Quantiles of firing density over the latents that fired."""
    alive = n_fired[n_fired > 0] / n_tokens
    quantiles = (
        {f"q{int(100 * q):02d}": float(np.quantile(alive, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
        if len(alive)
        else {}
    )
    return {**quantiles, "n_latents": len(alive), "n_tokens": n_tokens}


def decoder_statistics(dictionary: Any) -> dict[str, Any]:
    """Norms of decoder rows and the cosine between each latent's encoder and decoder direction."""
    W_dec, W_enc = dictionary.W_dec.detach().double(), dictionary.W_enc.detach().double()
    norm = W_dec.norm(dim=1)
    out = {
        "n_latents": len(norm),
        "norm_min": norm.min(),
        "norm_median": norm.median(),
        "norm_mean": norm.mean(),
        "norm_max": norm.max(),
    }
    if W_enc.shape == W_dec.T.shape and getattr(dictionary, "kind", "sae") != "transcoder":
        cosine = torch.nn.functional.cosine_similarity(W_enc.T, W_dec, dim=1)
        out |= {"encoder_decoder_cosine_median": cosine.median(), "encoder_decoder_cosine_min": cosine.min()}
    return {k: v if isinstance(v, int) else float(v) for k, v in out.items()}
