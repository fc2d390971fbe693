"""From sums per sequence to what a transplant repaired: per pair, per arm, and along the correlation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.analysis.transplant.measure import ARMS, Sums
from workbench.results.transplants import PREDICTORS, REPAIRS
from workbench.stats import interval95, ratio_estimates

LEAST_DAMAGE = 1e-6  # nats per token: below it, differences of float32 logits are noise
LEAST_SEQUENCES = 4
BINS = 6
RESAMPLES = 500

Floats = NDArray[np.float64]


def arm_numbers(sums: Sums, at: NDArray[np.bool_], *, without: Sequence[str] = ()) -> dict[str, Any]:
    """Numbers of one pair from its trials: the ablation's damage, and the share of it each arm repairs.

    ``repaired`` = 1 - KL(arm) / KL(ablated), over the same tokens; ``loss_repaired`` the same in loss, where the
    ablation's added loss is above zero by its interval. Both have bootstrap intervals over sequences. NaN: not measured
    (fewer than four sequences, no damage beyond rounding, or nothing to put in).
    """
    n, tokens = int(at.sum()), int(sums.n_tokens[at].sum())
    out: dict[str, Any] = {"n_sequences": n, "n_tokens": tokens}
    nan = float("nan")
    kl = {arm: sums.kl[arm][at] for arm in ARMS}
    nll = {arm: sums.nll[arm][at] for arm in ARMS}
    for arm in ARMS:
        known = tokens > 0 and arm not in without
        out[f"kl_{arm}"] = float(kl[arm].sum() / tokens) if known else nan
        out[f"loss_{arm}"] = float(nll[arm].sum() / tokens) if known else nan
    measured = n >= LEAST_SEQUENCES and out["kl_ablated"] > LEAST_DAMAGE
    found = _shares(kl, n) if measured else {}
    added = _shares(nll, n, loss=True) if measured else {}
    for arm in REPAIRS:
        share = None if arm in without else found.get(arm)
        out[arm] = share.value if share else nan
        out[f"{arm}_low"] = nan if share is None or share.low is None else share.low
        out[f"{arm}_high"] = nan if share is None or share.high is None else share.high
    damage, repaired = added.get("damage"), added.get("transplant")
    told = damage is not None and damage.low is not None and damage.low > 0
    for end in ("value", "low", "high"):
        got = getattr(repaired, end) if told and repaired is not None else None
        out["loss_repaired" if end == "value" else f"loss_repaired_{end}"] = nan if got is None else got
    return out


def _shares(per_sequence: dict[str, Floats], n: int, *, loss: bool = False) -> dict[str, Any]:
    formulas: dict[str, Any] = {arm: (lambda t, arm=arm: 1 - t[arm] / t["ablated"]) for arm in REPAIRS}
    if loss:
        formulas = {"transplant": formulas["transplant"], "damage": lambda t: t["ablated"]}
    return ratio_estimates(per_sequence, formulas, dict.fromkeys(formulas, (n, "sequences")), resamples=RESAMPLES)


def tables_of(frame: pd.DataFrame, level: float, *, seed: int = 0) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """(the tables of a transplant, its headline numbers)."""
    matched = frame[frame["r"] >= level]
    summary = pd.DataFrame([_summary(matched, arm, seed) for arm in REPAIRS])
    curve = pd.concat(
        [_curve(frame, x, arm, seed) for x in PREDICTORS for arm in ("transplant", "other")], ignore_index=True
    )
    order = pd.DataFrame([_rank(frame, x, arm, seed) for x in PREDICTORS for arm in ("transplant", "other")])
    by_arm = summary.set_index("arm")
    ceiling = by_arm.loc["ceiling", "median"]
    numbers = {
        "pairs": len(frame),
        "matched": len(matched),
        "measured": int(matched["transplant"].notna().sum()),
        "repaired": _plain(by_arm.loc["transplant"]),
        "nulls": {arm: _plain(by_arm.loc[arm]) for arm in ("other", "random")},
        "ceiling": _plain(by_arm.loc["ceiling"]),
        "activation": _plain(by_arm.loc["activation"]),
        "share_of_ceiling": _number(by_arm.loc["transplant", "median"] / ceiling) if ceiling > 0 else None,
        "rank_correlation": {
            x: _plain(order[(order["predictor"] == x) & (order["arm"] == "transplant")].iloc[0]) for x in PREDICTORS
        },
    }
    return {"pairs": frame, "summary": summary, "curve": curve, "order": order}, numbers


def median_over(values: Floats, *, seed: int = 0) -> tuple[float, float, float, int]:
    """(median, 95 % bootstrap interval over latents, n) of what was measured; NaN where nothing was."""
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    if not len(x):
        return float("nan"), float("nan"), float("nan"), 0
    if len(x) == 1:
        return float(x[0]), float("nan"), float("nan"), 1
    draws = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    low, high = interval95(np.median(x[draws], axis=1))
    return float(np.median(x)), low, high, len(x)


def _summary(matched: pd.DataFrame, arm: str, seed: int) -> dict[str, Any]:
    """Over matched latents: the median of what an arm repairs, and of all their damage together (pooled)."""
    median, low, high, n = median_over(matched[arm].to_numpy(), seed=seed)
    both = matched[matched[arm].notna()]
    damage, left = (both[c] * both["n_tokens"] for c in ("kl_ablated", f"kl_{arm}"))
    pooled = float(1 - left.sum() / damage.sum()) if damage.sum() > 0 else float("nan")
    return {"arm": arm, "n": n, "median": median, "low": low, "high": high, "pooled": pooled}


def _curve(frame: pd.DataFrame, x: str, arm: str, seed: int) -> pd.DataFrame:
    """Median share repaired in bins of a predictor with equally many latents each, with its interval over latents."""
    known = frame[frame[x].notna() & frame[arm].notna()]
    rows = []
    bins = min(BINS, max(1, len(known) // 5))
    order = np.argsort(known[x].to_numpy(), kind="stable")
    for part in (known.iloc[at] for at in np.array_split(order, bins) if len(at)):
        median, low, high, n = median_over(part[arm].to_numpy(), seed=seed)
        rows.append(
            {
                "predictor": x,
                "arm": arm,
                "x_low": float(part[x].min()),
                "x": float(part[x].median()),
                "x_high": float(part[x].max()),
                "n": n,
                "median": median,
                "low": low,
                "high": high,
            }
        )
    columns = ["predictor", "arm", "x_low", "x", "x_high", "n", "median", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _rank(frame: pd.DataFrame, x: str, arm: str, seed: int) -> dict[str, Any]:
    """Spearman's rank correlation of a predictor with what an arm repairs, bootstrap over latents."""
    known = frame[frame[x].notna() & frame[arm].notna()]
    value, low, high = spearman(known[x].to_numpy(), known[arm].to_numpy(), seed=seed)
    return {"predictor": x, "arm": arm, "n": len(known), "value": value, "low": low, "high": high}


def spearman(x: Floats, y: Floats, *, seed: int = 0) -> tuple[float, float, float]:
    """(rank correlation, 95 % bootstrap interval); NaN below four points or where one side is constant."""
    from scipy.stats import rankdata

    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(seed).integers(0, len(x), (RESAMPLES, len(x)))
    ranks = [rankdata(np.vstack([v, v[draws]]), axis=1) for v in (x, y)]
    centred = [r - r.mean(1, keepdims=True) for r in ranks]
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (centred[0] * centred[1]).sum(1) / np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))
    low, high = interval95(r[1:])
    return float(r[0]), low, high


def _plain(row: pd.Series) -> dict[str, Any]:
    """A row of a table as JSON values."""
    return {k: int(v) if k == "n" else _number(float(v)) for k, v in row.items() if k not in ("arm", "predictor")}


def _number(value: float) -> float | None:
    return None if not np.isfinite(value) else round(float(value), 5)
