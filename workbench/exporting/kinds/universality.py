"""Figures of a comparison (``matches/``): distributions beside their baselines, chance by frequency,
alignment in time.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig, nearest
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.references import of_models
from workbench.results.matches import RAW, READINGS, TRAP, MatchRecords
from workbench.workspace import Item, Workspace

Direction = Literal["ab", "ba"]
REFERENCES = (  # drawn dashed: what chance, or the token alone, gives
    "random",
    "random partner",
    "shuffle",
    "shift",
    "untrained",
    "same-token",
    "token-conditional null",
    "neurons shift",
)
SHOWN = {
    "cross": "other dictionary",
    "even": "as many candidates",
    "sae seed": "same model, other SAE",
    "model seed": "other model seed",
}
_SUMMARY = ["series", "n", "mean", "low", "high", "median", "share_50", "share_null"]
HEADINGS = {
    "series": "series",
    "low": "95 % from",
    "high": "to",
    "share_50": "r ≥ 0.5",
    "share_null": "above chance",
    "n": "n",
}


class DirectionOptions(StrictConfig):
    """Options of figures that look one way: ``ab`` from the latents of A, ``ba`` from those of B."""

    direction: Direction = Field("ab", description="ab: latents of A and their best partners in B; ba: the other way")


class DistributionOptions(DirectionOptions):
    """Options of ``mppc_distribution``; no series means all that were computed."""

    series: tuple[str, ...] = Field((), description="series drawn; none = all that were computed")
    view: Literal["histogram", "above"] = Field(
        "above", description="above: share of latents with at least r; histogram: counts"
    )
    bins: int = Field(default=50, ge=5, le=400, description="bars of the histogram")
    min_firings: int = Field(default=0, ge=0, description="leave out latents that fired less")


class NoOptions(StrictConfig):
    """A figure without options."""


def about(records: MatchRecords, item: Item, direction: str, page: str = "mppc", **extra: Any) -> dict[str, Any]:
    """What every figure of a comparison shares."""
    m = records.metadata
    query = "".join(f"&{k}={v}" for k, v in extra.items())
    return {
        "inputs": [item],
        "references": ("universality", "topk", *of_models([str(m["a"]["model"]), str(m["b"]["model"])])),
        "permalink": f"{page}?m={item.id}&way={direction}{query}&mv={item.version}",
    }


def _count(frame: pd.DataFrame) -> int:
    return int(frame["r"].notna().sum())


@figure("mppc_distribution", source="matches", options=DistributionOptions)
def mppc_distribution(workspace: Workspace, item: Item, options: DistributionOptions) -> FigureData:
    """Maximal correlations of latents, beside every baseline."""
    records = MatchRecords.open(item.path)
    have = list(records.metadata["series"])
    wanted = list(options.series) or [s for s in have if s != "even" and (s in READINGS or not s.endswith(READINGS))]
    for s in wanted:
        if s not in have:
            why = next((v for k, v in records.metadata["missing"].items() if k.startswith(s)), "")
            raise UsageError(f"series {s!r} is not in {item.id} ({why or nearest(s, have)})")
    table = records.table("baselines")
    table = table[
        (table["direction"] == options.direction) & table["r"].notna() & (table["n_fired"] >= options.min_firings)
    ]
    edges = np.linspace(min(-0.05, float(table["r"].min()) if len(table) else 0), 1, options.bins + 1)
    frames = []
    for s in wanted:
        r = table[table["series"] == s]["r"].to_numpy(float)
        if not len(r):
            continue
        share = (
            np.append(np.histogram(r, edges)[0] / len(r), 0)
            if options.view == "histogram"
            else np.array([(r >= e).mean() for e in edges])
        )
        frames.append(pd.DataFrame({"r": edges, "share": share, "series": SHOWN.get(s, s), "n": len(r)}))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["r", "share", "series", "n"])
    mine, other = records.names(options.direction)
    summary = records.table("summary")
    summary = summary[(summary["direction"] == options.direction) & summary["series"].isin(wanted)]
    cross = summary[summary["series"] == "cross"]
    return FigureData(
        panels=[
            Panel(
                "step" if options.view == "histogram" else "line",
                frame,
                x="r",
                y="share",
                series="series",
                x_label="maximal Pearson correlation r",
                y_label="share of latents" if options.view == "histogram" else "share of latents with at least r",
                dashed=REFERENCES,
            )
        ],
        caption=(
            f"Maximal Pearson correlation of each latent of {mine} with the latents of {other}, over all layers, beside"
            " its baselines"
        )
        + (f" (latents with at least {options.min_firings} firings)." if options.min_firings else ".")
        + (f" {TRAP}" if "token-conditional" in have else ""),
        table=summary[_SUMMARY].reset_index(drop=True),
        n={
            "latents": int(cross["n"].iloc[0]) if len(cross) else 0,
            "tokens": int(records.metadata["n_tokens"]),
            "firings at the least": int(records.metadata["min_firings"]),
        },
        columns=HEADINGS,
        alt=f"Distributions of maximal correlation for {', '.join(wanted)}.",
        **about(records, item, options.direction, base=",".join(wanted).replace(" ", "+")),
    )


@figure("mppc_order", source="matches", options=NoOptions)
def mppc_order(workspace: Workspace, item: Item, options: NoOptions) -> FigureData:
    """Mean maximal correlation of every series, with bootstrap intervals."""
    records = MatchRecords.open(item.path)
    summary = records.table("summary")
    summary = summary[~summary["series"].str.endswith(READINGS)].reset_index(drop=True)
    summary["direction"] = [f"{a} → {b}" for a, b in (records.names(d) for d in summary["direction"])]
    summary["series"] = [SHOWN.get(s, s) for s in summary["series"]]
    order = records.table("order")
    order = order[order["reading"] == RAW]
    broken = [
        f"{o['lower']} < {o['higher']} ({' → '.join(records.names(o['direction']))})"
        for o in order.to_dict("records")
        if not o["holds"]
    ]
    said = f"The order {' < '.join(dict.fromkeys([*order['lower'], *order['higher']]))} " if len(order) else ""
    said += ("holds in both directions." if not broken else f"does not hold at {'; '.join(broken)}.") if said else ""
    return FigureData(
        panels=[
            Panel(
                "points",
                summary,
                x="series",
                y="mean",
                low="low",
                high="high",
                series="direction",
                y_label="mean maximal correlation r",
            )
        ],
        caption=f"Mean maximal correlation with 95 % bootstrap intervals over latents. {said}",
        table=summary[["direction", *_SUMMARY]],
        n={"tokens": int(records.metadata["n_tokens"]), "firings at the least": int(records.metadata["min_firings"])},
        columns=HEADINGS,
        alt="Mean maximal correlation per series with intervals, one marker per direction.",
        **about(records, item, "ab"),
    )


@figure("mppc_given_token", source="matches", options=DirectionOptions)
def mppc_given_token(workspace: Workspace, item: Item, options: DirectionOptions) -> FigureData:
    """Mean maximal correlation as it is, with tokens exchanged among their like, and given the token."""
    records = MatchRecords.open(item.path)
    table = records.readings(options.direction)
    if table.empty:
        why = records.metadata["missing"].get("token-conditional", "the comparison was made without token-conditional")
        raise MissingError(f"{item.id} has no correlation given the token: {why}. Run: {item.manifest.command}")
    frame = table.assign(sides=[SHOWN.get(s, s) for s in table["sides"]])
    mine, other = records.names(options.direction)
    given = records.metadata.get("given_token", {})
    return FigureData(
        panels=[
            Panel(
                "points",
                frame,
                x="sides",
                y="mean",
                low="low",
                high="high",
                series="reading",
                y_label="mean maximal correlation r",
            )
        ],
        caption=(
            f"Mean maximal correlation of the latents of {mine} with those of {other} and of their baselines, with 95 %"
            f" bootstrap intervals over latents. {TRAP}"
        ),
        table=frame,
        n={"tokens with a mean": int(given.get("tokens", 0)), "different tokens": int(given.get("types", 0))},
        columns=HEADINGS | {"share_70": "r ≥ 0.7"},
        alt="Mean maximal correlation per pair of sides: raw, same-token, and given the token.",
        **about(records, item, options.direction),
    )


@figure("mppc_chance", source="matches", options=DirectionOptions)
def mppc_chance(workspace: Workspace, item: Item, options: DirectionOptions) -> FigureData:
    """Maximal correlation and chance by how often a latent fires."""
    records = MatchRecords.open(item.path)
    nulls = records.table("nulls")
    nulls = nulls[nulls["direction"] == options.direction].reset_index(drop=True)
    names = {"cross_q50": "latents, median", "q50": "chance, median", "q95": "chance, 95 %", "q99": "chance, 99 %"}
    middle = np.sqrt(nulls["fired_from"] * nulls["fired_to"].astype(float))
    frame = pd.concat(
        [
            pd.DataFrame({"firings": middle, "r": nulls[c], "series": label, "n": nulls["n"]})
            for c, label in names.items()
        ],
        ignore_index=True,
    )
    mine, other = records.names(options.direction)
    return FigureData(
        panels=[
            Panel(
                "line",
                frame,
                x="firings",
                y="r",
                series="series",
                log_x=True,
                x_label="tokens on which the latent fires",
                y_label="maximal correlation r",
                dashed=tuple(names.values())[1:],
            )
        ],
        caption=(
            f"Median maximal correlation of the latents of {mine} with {other}, and chance (the larger of permuted and"
            " circularly shifted tokens), by firing count."
        ),
        table=nulls.drop(columns="direction"),
        n={"latents": int(nulls["n"].sum()), "tokens": int(records.metadata["n_tokens"])},
        columns={
            "fired_from": "firings from",
            "fired_to": "below",
            "q50": "chance, 50 %",
            "q95": "95 %",
            "q99": "99 %",
            "cross_q50": "latents, 50 %",
        },
        alt="Median maximal correlation of latents far above or near the chance quantiles, by firing count.",
        **about(records, item, options.direction),
    )


@figure("mppc_shift", source="matches", options=NoOptions)
def mppc_shift(workspace: Workspace, item: Item, options: NoOptions) -> FigureData:
    """Maximal correlation when one model is read a few tokens earlier or later."""
    records = MatchRecords.open(item.path)
    frame = records.table("shifts").copy()
    frame["direction"] = [f"{a} → {b}" for a, b in (records.names(d) for d in frame["direction"])]
    a, b = records.names("ab")
    return FigureData(
        panels=[
            Panel(
                "line",
                frame,
                x="shift",
                y="mean",
                low="low",
                high="high",
                series="direction",
                x_label=f"tokens by which {b} is read later",
                y_label="mean maximal correlation r",
            )
        ],
        caption=(
            f"Mean maximal correlation when {a} at token t is compared with {b} at token t + s; bands are 95 %"
            " bootstrap intervals over latents."
        ),
        table=frame[["direction", "shift", "n", "mean", "low", "high", "median"]],
        n={"tokens": int(records.metadata["n_tokens"])},
        columns=HEADINGS,
        alt="Mean maximal correlation by token shift from two earlier to two later.",
        **about(records, item, "ab"),
    )
