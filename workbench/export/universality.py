"""Figures of a comparison (``matches/``): distributions with baselines, layers, depth, chance by frequency, alignment, pairs."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import UsageError
from sae.strict import StrictConfig, nearest
from workbench.export.figures import FigureData, Panel, figure
from workbench.export.references import of_models
from workbench.export.text import valid
from workbench.matches import MatchRecords
from workbench.workspace import Item, Workspace

Direction = Literal["ab", "ba"]
REFERENCES = ("random", "random partner", "shuffle", "shift", "untrained")  # drawn dashed: what chance gives
SHOWN = {"cross": "other architecture", "even": "as many candidates", "sae seed": "same model, other SAE", "model seed": "other model seed"}
_SUMMARY = ["series", "n", "mean", "low", "high", "median", "share_50", "share_null"]
_HEADINGS = {"series": "series", "low": "95 % from", "high": "to", "share_50": "r ≥ 0.5", "share_null": "above chance", "n": "n"}


class DirectionOptions(StrictConfig):
    """Options of figures that look one way: ``ab`` from the latents of A, ``ba`` from those of B."""

    direction: Direction = "ab"


class DistributionOptions(DirectionOptions):
    """Options of ``mppc_distribution``; no series means all that were computed."""

    series: tuple[str, ...] = ()
    view: Literal["histogram", "above"] = "above"
    bins: int = Field(default=50, ge=5, le=400)
    min_firings: int = Field(default=0, ge=0)


class LayerOptions(DirectionOptions):
    """Options of ``mppc_layers``."""

    statistic: Literal["mean", "median", "q90", "share_50"] = "mean"


class NoOptions(StrictConfig):
    """A figure without options."""


class PairOptions(DirectionOptions):
    """Options of ``pair``. Without ``partner`` the best one is shown; without ``dictionary`` the first of the side."""

    dictionary: str = ""
    latent: int = Field(default=0, ge=0)
    partner_dictionary: str = ""
    partner: int | None = Field(default=None, ge=0)
    n: int = Field(default=6, ge=1, le=30)
    by: Literal["a", "b", "both"] = "both"


class TopOptions(DirectionOptions):
    """Options of ``matched_latents``."""

    n: int = Field(default=20, ge=1, le=500)
    one_to_one: bool = True
    spread: bool = False  # evenly over the sorted matches instead of the strongest


def _about(records: MatchRecords, item: Item, direction: str, page: str = "mppc", **extra: Any) -> dict[str, Any]:
    """What every figure of a comparison shares."""
    m = records.metadata
    query = "".join(f"&{k}={v}" for k, v in extra.items())
    return {
        "inputs": [item],
        "references": ("universality", "topk", *of_models([str(m["a"]["model"]), str(m["b"]["model"])])),
        "permalink": f"{page}?m={item.id}&dir={direction}{query}&v={item.version}",
    }


def _count(frame: pd.DataFrame) -> int:
    return int(frame["r"].notna().sum())


@figure("mppc_distribution", source="matches", options=DistributionOptions)
def mppc_distribution(workspace: Workspace, item: Item, options: DistributionOptions) -> FigureData:
    """Maximal correlations of latents, beside every baseline."""
    records = MatchRecords.open(item.path)
    have = list(records.metadata["series"])
    wanted = list(options.series) or [s for s in have if s != "even"]
    for s in wanted:
        if s not in have:
            why = next((v for k, v in records.metadata["missing"].items() if k.startswith(s)), "")
            raise UsageError(f"series {s!r} is not in {item.id} ({why or nearest(s, have)})")
    table = records.table("baselines")
    table = table[(table["direction"] == options.direction) & table["r"].notna() & (table["n_fired"] >= options.min_firings)]
    edges = np.linspace(min(-0.05, float(table["r"].min()) if len(table) else 0), 1, options.bins + 1)
    frames = []
    for s in wanted:
        r = table[table["series"] == s]["r"].to_numpy(float)
        if not len(r):
            continue
        share = (
            np.append(np.histogram(r, edges)[0] / len(r), 0) if options.view == "histogram" else np.array([(r >= e).mean() for e in edges])
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
        caption=f"Maximal Pearson correlation of each latent of {mine} with the latents of {other}, over all layers, beside its baselines"
        + (f" (latents with at least {options.min_firings} firings)." if options.min_firings else "."),
        table=summary[_SUMMARY].reset_index(drop=True),
        n={
            "latents": int(cross["n"].iloc[0]) if len(cross) else 0,
            "tokens": int(records.metadata["n_tokens"]),
            "minimum firings": int(records.metadata["min_firings"]),
        },
        columns=_HEADINGS,
        alt=f"Distributions of maximal correlation for {', '.join(wanted)}.",
        **_about(records, item, options.direction, base=",".join(wanted).replace(" ", "+")),
    )


@figure("mppc_order", source="matches", options=NoOptions)
def mppc_order(workspace: Workspace, item: Item, options: NoOptions) -> FigureData:
    """Mean maximal correlation of every series, with bootstrap intervals."""
    records = MatchRecords.open(item.path)
    summary = records.table("summary").copy()
    summary["direction"] = [f"{a} → {b}" for a, b in (records.names(d) for d in summary["direction"])]
    summary["series"] = [SHOWN.get(s, s) for s in summary["series"]]
    order = records.table("order")
    broken = [
        f"{o['lower']} < {o['higher']} ({' → '.join(records.names(o['direction']))})" for o in order.to_dict("records") if not o["holds"]
    ]
    said = f"The order {' < '.join(dict.fromkeys([*order['lower'], *order['higher']]))} " if len(order) else ""
    said += ("holds in both directions." if not broken else f"does not hold at {'; '.join(broken)}.") if said else ""
    return FigureData(
        panels=[
            Panel("points", summary, x="series", y="mean", low="low", high="high", series="direction", y_label="mean maximal correlation r")
        ],
        caption=f"Mean maximal correlation with 95 % bootstrap intervals over latents. {said}",
        table=summary[["direction", *_SUMMARY]],
        n={"tokens": int(records.metadata["n_tokens"]), "minimum firings": int(records.metadata["min_firings"])},
        columns=_HEADINGS,
        alt="Mean maximal correlation per series with intervals, one marker per direction.",
        **_about(records, item, "ab"),
    )


@figure("mppc_layers", source="matches", options=LayerOptions)
def mppc_layers(workspace: Workspace, item: Item, options: LayerOptions) -> FigureData:
    """Maximal correlation for every pair of layers."""
    records = MatchRecords.open(item.path)
    frame = records.table("layers")
    frame = frame[frame["direction"] == options.direction].reset_index(drop=True)
    mine, other = records.names(options.direction)
    what = {"mean": "mean maximal r", "median": "median maximal r", "q90": "90 % quantile of maximal r", "share_50": "share with r ≥ 0.5"}[
        options.statistic
    ]
    wide = frame.pivot(index="layer", columns="partner_layer", values=options.statistic)
    wide.columns = [f"layer {c}" for c in wide.columns]
    return FigureData(
        panels=[
            Panel(
                "heat",
                frame,
                x="partner_layer",
                y="layer",
                value=options.statistic,
                x_label=f"layer of {other}",
                y_label=f"layer of {mine}",
                value_label=what,
            )
        ],
        caption=f"{what[0].upper()}{what[1:]} of the latents of {mine} (rows) with those of one layer of {other} (columns).",
        table=wide.reset_index(),
        n={"layer pairs": len(frame), "tokens": int(records.metadata["n_tokens"])},
        alt=f"Heat map of {what} by layer of {mine} and layer of {other}.",
        **_about(records, item, options.direction),
    )


@figure("mppc_depth", source="matches", options=DirectionOptions)
def mppc_depth(workspace: Workspace, item: Item, options: DirectionOptions) -> FigureData:
    """In which layers the best partners of matched latents lie."""
    records = MatchRecords.open(item.path)
    frame = records.table("depth")
    frame = frame[frame["direction"] == options.direction].reset_index(drop=True)
    total = frame.groupby("layer")["count"].transform("sum")
    frame["share"] = np.where(total > 0, frame["count"] / total.clip(lower=1), np.nan)
    mine, other = records.names(options.direction)
    rho = records.manifest.numbers[options.direction]["depth_rank_correlation"]
    said = "" if rho["value"] is None else f" Rank correlation of relative depths {rho['value']:.3f} [{rho['low']:.3f}, {rho['high']:.3f}]."
    wide = frame.pivot(index="layer", columns="partner_layer", values="count")
    wide.columns = [f"layer {c}" for c in wide.columns]
    return FigureData(
        panels=[
            Panel(
                "heat",
                frame,
                x="partner_layer",
                y="layer",
                value="share",
                x_label=f"layer of the partner in {other}",
                y_label=f"layer of {mine}",
                value_label="share of matched latents",
            )
        ],
        caption=f"Where the best partners of matched latents of {mine} (r ≥ {records.metadata['level']}) lie in {other}; rows sum to one.{said}",
        table=wide.reset_index(),
        n={"matched latents": int(frame["count"].sum()), "tokens": int(records.metadata["n_tokens"])},
        alt=f"Heat map of partner layers in {other} by layer of {mine}.{said}",
        **_about(records, item, options.direction),
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
        [pd.DataFrame({"firings": middle, "r": nulls[c], "series": label, "n": nulls["n"]}) for c, label in names.items()],
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
        caption=f"Median maximal correlation of the latents of {mine} with {other}, and chance (the larger of permuted and circularly shifted tokens), by firing count.",
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
        **_about(records, item, options.direction),
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
        caption=f"Mean maximal correlation when {a} at token t is compared with {b} at token t + s; bands are 95 % bootstrap intervals over latents.",
        table=frame[["direction", "shift", "n", "mean", "low", "high", "median"]],
        n={"tokens": int(records.metadata["n_tokens"])},
        columns=_HEADINGS,
        alt="Mean maximal correlation by token shift from two earlier to two later.",
        **_about(records, item, "ab"),
    )


@figure("matched_latents", source="matches", options=TopOptions)
def matched_latents(workspace: Workspace, item: Item, options: TopOptions) -> FigureData:
    """The strongest matches, with the tokens the latents fire on most."""
    records = MatchRecords.open(item.path)
    best = records.best[records.best["direction"] == options.direction]
    kind = ("one_to_one_dictionary", "one_to_one", "one_to_one_r") if options.one_to_one else ("partner_dictionary", "partner", "r")
    chosen = best[best[kind[2]].notna()].sort_values([kind[2], "dictionary", "latent"], ascending=[False, True, True], kind="stable")
    if options.spread and len(chosen) > options.n:
        chosen = chosen.iloc[np.linspace(0, len(chosen) - 1, options.n).round().astype(int)]
    chosen = chosen.head(options.n)
    rows = [
        {
            "pair": i + 1,
            "dictionary": row["dictionary"],
            "latent": int(row["latent"]),
            "token": _peak(records, row["dictionary"], int(row["latent"])),
            "partner_dictionary": row[kind[0]],
            "partner": int(row[kind[1]]),
            "partner_token": _peak(records, row[kind[0]], int(row[kind[1]])),
            "r": float(row[kind[2]]),
            "null_q99": float(row["null_q99"]),
            "n_fired": int(row["n_fired"]),
        }
        for i, row in enumerate(chosen.to_dict("records"))
    ]
    columns = ["pair", "dictionary", "latent", "token", "partner_dictionary", "partner", "partner_token", "r", "null_q99", "n_fired"]
    frame = pd.DataFrame(rows, columns=columns)
    drawn = frame.assign(
        label=[f"{i}  “{t}” · “{u}”" for i, t, u in zip(frame["pair"], frame["token"], frame["partner_token"], strict=True)]
    )
    mine, other = records.names(options.direction)
    return FigureData(
        panels=[Panel("points", drawn, x="label", y="r", y_label=f"r (left: {mine}, right: {other})", y_range=(0, 1))],
        caption=f"{'One-to-one matches' if options.one_to_one else 'Best partners'} of latents of {mine} in {other} with the token each fires on most strongly.",
        table=frame,
        n={"pairs": len(frame), "tokens": int(records.metadata["n_tokens"])},
        tokens=("token", "partner_token", "label"),
        columns={
            "partner_dictionary": "partner's dictionary",
            "partner_token": "partner's token",
            "null_q99": "chance 99 %",
            "n_fired": "firings",
        },
        alt=f"The correlations of {len(frame)} matched pairs in falling order.",
        **_about(records, item, options.direction),
    )


def _peak(records: MatchRecords, dictionary: str, latent: int) -> str | None:
    """The token a latent fires on most strongly among the compared ones; None where codes were not kept or it never fires."""
    if not records.has_codes:
        return None
    row, value = records.of(dictionary, latent)
    if not len(value):
        return None
    return valid(records.token_of(int(row[int(np.argmax(value))])))


@figure("pair", source="matches", options=PairOptions)
def pair(workspace: Workspace, item: Item, options: PairOptions) -> FigureData:
    """Two latents on the same text: joint histogram and shaded contexts."""
    records = MatchRecords.open(item.path)
    side = "a" if options.direction == "ab" else "b"
    mine = options.dictionary or records.metadata[side]["dictionaries"][0]
    other, partner = options.partner_dictionary, options.partner
    if partner is None:
        row = records.best[
            (records.best["dictionary"] == mine)
            & (records.best["latent"] == options.latent)
            & (records.best["direction"] == options.direction)
        ]
        if not len(row) or pd.isna(row["partner"].iloc[0]):
            raise UsageError(
                f"latent {options.latent} of {mine} has no partner in {item.id} (it fires less than {records.metadata['min_firings']} times). Name one with partner."
            )
        other, partner = str(row["partner_dictionary"].iloc[0]), int(row["partner"].iloc[0])
    elif not other:
        raise UsageError("a pair with a named partner needs partner_dictionary, too.")
    found = records.pair(mine, options.latent, other, partner)
    strips = records.strips(mine, options.latent, other, partner, by=options.by, n=options.n)
    text = [
        pd.DataFrame(
            [
                {"context": i + 1, "sequence": s.seq, "position": s.start + k, "token": valid(t), "activation": v, "peak": k == s.peak}
                for i, s in enumerate(strips)
                for k, (t, v) in enumerate(zip(s.tokens, acts(s), strict=True))
            ],
            columns=["context", "sequence", "position", "token", "activation", "peak"],
        )
        for acts in (lambda s: s.acts_a, lambda s: s.acts_b)
    ]
    i, j = np.nonzero(found.joint)
    joint = pd.DataFrame(
        {"bin": i, "partner_bin": j, "tokens": found.joint[i, j], "log10_tokens": np.log10(found.joint[i, j].astype(float))}
    )
    names = f"{mine} #{options.latent}", f"{other} #{partner}"
    null = "not computed" if found.null_q99 is None else f"{found.null_q99:.3f}"
    return FigureData(
        panels=[
            Panel("strips", text[0], x="token", y="context", value="activation", centre="peak", title=names[0]),
            Panel("strips", text[1], x="token", y="context", value="activation", centre="peak", title=names[1]),
            Panel(
                "heat",
                joint,
                x="partner_bin",
                y="bin",
                value="log10_tokens",
                x_label=f"{names[1]} (0 = silent)",
                y_label=f"{names[0]} (0 = silent)",
                value_label="log10 tokens",
                title="joint",
            ),
        ],
        caption=f"Latent {options.latent} of {mine} and latent {partner} of {other} on the same text: r = {found.r:.3f} (99 % of chance: {null}); they fire on {found.n_fired[0]:,} and {found.n_fired[1]:,} tokens, together on {found.n_cofire:,}.",
        table=pd.DataFrame(
            {
                "quantity": ["r", "null_q99", "fired", "partner fired", "together", "tokens"],
                "value": [
                    found.r,
                    np.nan if found.null_q99 is None else found.null_q99,
                    *map(float, found.n_fired),
                    float(found.n_cofire),
                    float(found.n_tokens),
                ],
            }
        ),
        n={"tokens": found.n_tokens, "together": found.n_cofire, "contexts": len(strips)},
        tokens=("token",),
        alt=f"{len(strips)} excerpts shaded by {names[0]} and again by {names[1]}, and their joint histogram.",
        **_about(records, item, options.direction, page="pair", d=mine, i=options.latent, d2=other, i2=partner),
    )
