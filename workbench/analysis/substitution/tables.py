"""From firings to win rates: per arm, per measure, per rank, per atom; and how well the closed form predicts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.results.substitutions import CONTROLS, MEASURES, STAND_INS
from workbench.stats import ratio_estimates

LEAST = 1e-6  # nats (or squared units of y relative to the median): less damage than that is rounding
RANKS = ((0, 0, "1"), (1, 1, "2"), (2, 3, "3-4"), (4, 7, "5-8"), (8, 10**6, "9+"))


def tables_of(frame: pd.DataFrame, *, seed: int = 0) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """(the tables of a substitution, its headline numbers)."""
    leading = frame[frame["rank"] == 0]
    summary = pd.DataFrame(
        [{"arm": arm, "measure": m, **rates(frame, arm, m, seed)} for m in MEASURES for arm in STAND_INS]
    )
    ranks = pd.DataFrame(
        [
            {"arm": arm, "ranks": name, **rates(frame[frame["rank"].between(low, high)], arm, "kl", seed)}
            for low, high, name in RANKS
            for arm in STAND_INS
        ]
    )
    atoms = _atoms(frame)
    whole = frame.groupby(["sequence", "position"])["cosine_whole"].first()
    by_arm = {m: summary[summary["measure"] == m].set_index("arm") for m in MEASURES}
    numbers = {
        "win_rate": _plain(by_arm["kl"].loc["atom"]),
        "matched": _plain(by_arm["kl"].loc["matched"]),
        "whole": _plain(by_arm["kl"].loc["whole"]),
        "controls": {arm: _plain(by_arm["kl"].loc[arm]) for arm in CONTROLS},
        "leading": {arm: _plain(pd.Series(rates(leading, arm, "kl", seed))) for arm in STAND_INS},
        "next_token": {arm: _plain(by_arm["next"].loc[arm]) for arm in STAND_INS},
        "reads": {arm: _plain(by_arm["read"].loc[arm]) for arm in STAND_INS},
        "against_permuted": _plain(pd.Series(rates(frame, "atom", "kl", seed, against="permuted"))),
        "firings": len(frame),
        "atoms": int(frame["atom"].nunique()),
        "mean_over_atoms": _number(float(atoms["win_atom"].mean())) if len(atoms) else None,
        "cosine": _number(float(frame["cosine_atom"].median())),
        "cosine_whole": _number(float(whole.median())),
        "closed_form": closed_form(frame, seed=seed),
    }
    return {"firings": frame, "summary": summary, "ranks": ranks, "atoms": atoms}, numbers


def rates(frame: pd.DataFrame, arm: str, measure: str, seed: int, *, against: str = "ablated") -> dict[str, Any]:
    """How often an arm leaves less of a distance from the clean run than another (ties count half), over firings at
    which writing nothing does damage, with a 95 % bootstrap interval over atoms; and the share of all damage repaired.
    """
    mine, theirs = frame[f"{measure}_{arm}"], frame[f"{measure}_{against}"]
    floor = LEAST if measure != "read" else LEAST * float(frame["read_ablated"].median() if len(frame) else 0)
    told = frame[f"{measure}_ablated"] > floor
    win = (mine < theirs).astype(float) + 0.5 * (mine == theirs)
    of_atom = pd.DataFrame(
        {"atom": frame["atom"], "n": told * 1.0, "win": win * told, "left": mine * told, "damage": theirs * told}
    ).groupby("atom")
    sums = {k: v.to_numpy() for k, v in of_atom.sum().items()}
    n = int(told.sum())
    if not n:
        nan = float("nan")
        return {"n": 0, "atoms": 0, "win_rate": nan, "low": nan, "high": nan, "repaired": nan}
    n_atoms = int((sums["n"] > 0).sum())
    formulas = {"win": lambda t: t["win"] / t["n"], "repaired": lambda t: 1 - t["left"] / t["damage"]}
    found = ratio_estimates(sums, formulas, dict.fromkeys(formulas, (n, "firings")), seed=seed)
    low, high = found["win"].low, found["win"].high
    return {
        "n": n,
        "atoms": n_atoms,
        "win_rate": found["win"].value,
        "low": float("nan") if low is None else low,
        "high": float("nan") if high is None else high,
        "repaired": found["repaired"].value,
    }


def closed_form(frame: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """How much of the measured change of the logits at the write's own position the closed form tells: ``r2`` = 1 -
    squared error over squared change, as it is; ``r2_scaled`` = squared cosine, with the best common factor. Both over
    all firings and tokens, intervals by a bootstrap over atoms.
    """
    sums = {
        k: v.to_numpy() for k, v in frame.groupby("atom")[["shift", "shift_predicted", "shift_product"]].sum().items()
    }
    formulas = {
        "r2": lambda t: 1 - (t["shift"] - 2 * t["shift_product"] + t["shift_predicted"]) / t["shift"],
        "r2_scaled": lambda t: t["shift_product"] ** 2 / (t["shift"] * t["shift_predicted"]),
    }
    found = ratio_estimates(sums, formulas, dict.fromkeys(formulas, (len(frame), "firings")), seed=seed)
    return {
        name: {"value": _number(e.value), "low": _number(e.low), "high": _number(e.high), "n": e.n}
        for name, e in found.items()
    }


def _atoms(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per atom: firings tried, cosine with the writes, their norm, share won by each arm."""
    told = frame[frame["kl_ablated"] > LEAST]
    out = told.groupby("atom").agg(n=("rank", "size"), cosine=("cosine_atom", "mean"), norm=("norm", "mean"))
    for arm in STAND_INS:
        out[f"win_{arm}"] = (told[f"kl_{arm}"] < told["kl_ablated"]).groupby(told["atom"]).mean()
    return out.reset_index()


def _plain(row: pd.Series) -> dict[str, Any]:
    """A row of a table as JSON values."""
    return {k: int(row[k]) if k in ("n", "atoms") else _number(float(row[k])) for k in row.index if k != "measure"}


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 5)
