"""A :class:`~workbench.analysis.comparison.compare.Comparison` as tables, and the folder they are written to.

The columns are described in :mod:`workbench.results.matches`, which reads them.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.files import write_json
from workbench.analysis.comparison.baselines import difference, firing_bins, interval, null_by_bin, per_latent
from workbench.analysis.comparison.compare import (
    ALL_SERIES,
    CHAIN,
    CHAIN_GIVEN_TOKEN,
    Comparison,
    reading,
)
from workbench.analysis.comparison.depth import DepthMap, LayerBest, depth_map
from workbench.analysis.comparison.sides import Group
from workbench.analysis.comparison.spans import SpanTokens
from workbench.provenance import Input
from workbench.results.matches import RAW, READINGS
from workbench.workspace import Item, Workspace

DIRECTIONS = ("ab", "ba")
SHARES = {"share_50": 0.5, "share_70": 0.7, "share_90": 0.9}
PAIRED = {
    "cross",
    "model seed",
    "sae seed",
    "even",
    "shuffle",
    "shift",
    "random partner",
}  # series over the same latents
PAIRED |= {reading(s, how) for s in ("cross", "model seed", "sae seed", "random partner") for how in READINGS}


def tables(c: Comparison) -> dict[str, pd.DataFrame]:
    """All tables of a comparison, by name."""
    nulls, q99 = _nulls(c)
    best = _best(c, q99)
    return {
        "best": best,
        "baselines": _baselines(c),
        "summary": _summary(c, q99),
        "order": _order(c),
        "nulls": nulls,
        "layers": _layers(c),
        "depth": pd.concat([_depth_frame(c, d) for d in DIRECTIONS], ignore_index=True),
        "shifts": _shifts(c),
    }


def _flat(best: list[LayerBest], name: str) -> Any:
    return np.concatenate([getattr(b, name) for b in best])


def _rng(c: Comparison) -> np.random.Generator:
    return np.random.default_rng([c.recipe.seed, 1])


def _nulls(c: Comparison) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Null quantiles per bin of firing counts, the larger of permutation's and circular shift's; and q99 per latent."""
    rows, per = [], {}
    for d in DIRECTIONS:
        cross = c.series[d, "cross"]
        fired, r = _flat(cross, "n_fired"), _flat(cross, "r")
        known = [c.series[d, s] for s in ("shuffle", "shift") if (d, s) in c.series]
        edges = firing_bins(fired[np.isfinite(r)])
        if not known:
            per[d] = np.full(len(r), np.nan)
            continue
        q = np.fmax.reduce([null_by_bin(_flat(k, "r"), fired, edges) for k in known])
        per[d] = np.where(np.isfinite(r), per_latent(q[:, 2], fired, edges), np.nan)
        middle = null_by_bin(r, fired, edges, (0.5,))[:, 0]
        for i, (low, high) in enumerate(pairwise(edges)):
            n = int(((fired >= low) & (fired < high) & np.isfinite(r)).sum())
            rows.append((d, int(low), int(high), n, *q[i], middle[i]))
    return pd.DataFrame(
        rows, columns=["direction", "fired_from", "fired_to", "n", "q50", "q95", "q99", "cross_q50"]
    ), per


def _best(c: Comparison, q99: dict[str, np.ndarray]) -> pd.DataFrame:
    frames = []
    for d in DIRECTIONS:
        mine, other = (c.a, c.b) if d == "ab" else (c.b, c.a)
        cross, back = c.series[d, "cross"], c.series[d[::-1], "cross"]
        f = {
            n: _flat(cross, n)
            for n in ("r", "layer", "partner", "n_cofire", "second_r", "second_layer", "second", "n_fired")
        }
        widths, widths_other = [len(b.r) for b in cross], [len(b.r) for b in back]
        offsets, offsets_other = _offsets(widths), _offsets(widths_other)
        which = np.repeat(np.arange(len(widths)), widths)
        have = f["layer"] >= 0
        partner = np.where(have, offsets_other[f["layer"]] + f["partner"], -1)
        partner_back = np.where(_flat(back, "layer") >= 0, offsets[_flat(back, "layer")] + _flat(back, "partner"), -1)
        single = c.assigned[d]
        single_layer = np.searchsorted(offsets_other, single.partner, side="right") - 1
        even = _flat(c.series[d, "even"], "r") if (d, "even") in c.series else np.full(len(which), np.nan)
        frame = pd.DataFrame(
            {
                "direction": d,
                "dictionary": _names(mine, which),
                "layer": np.array(mine.layers)[which],
                "latent": np.concatenate([np.arange(w) for w in widths]),
                "n_fired": f["n_fired"],
                "density": f["n_fired"] / len(c.tokens),
                "r": f["r"],
                "partner_dictionary": _names(other, f["layer"]),
                "partner_layer": _integers(np.where(have, np.array(other.layers)[f["layer"]], -1)),
                "partner": _integers(f["partner"]),
                "partner_fired": _integers(np.where(have, _flat(back, "n_fired")[partner], -1)),
                "n_cofire": _integers(np.where(have, f["n_cofire"], -1)),
                "second_r": f["second_r"],
                "second_dictionary": _names(other, f["second_layer"]),
                "second": _integers(f["second"]),
                "null_q99": q99[d],
                "matched": have & (np.nan_to_num(f["r"], nan=-1) >= c.recipe.level) & ~(f["r"] <= q99[d]),
                "mutual": have & (partner_back[partner] == np.arange(len(which))),
                "one_to_one_dictionary": _names(other, np.where(single.partner >= 0, single_layer, -1)),
                "one_to_one": _integers(
                    np.where(single.partner >= 0, single.partner - offsets_other[single_layer], -1)
                ),
                "one_to_one_r": single.r,
                "even_r": even,
            }
        )
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _offsets(widths: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(widths)])


def _names(group: Group, which: np.ndarray) -> pd.Series:
    ids = np.array([s.id for s in group.references] + [None], dtype=object)
    return pd.Series(ids[which], dtype="string")  # -1 picks the last entry: none


def _integers(values: np.ndarray) -> pd.Series:
    return pd.Series(values).astype("Int64").where(pd.Series(values) >= 0)


def _baselines(c: Comparison) -> pd.DataFrame:
    frames = []
    for (d, name), best in c.series.items():
        layers = c.group(d).layers
        for i, b in enumerate(best):
            frames.append(
                pd.DataFrame(
                    {
                        "direction": d,
                        "series": name,
                        "layer": layers[i],
                        "latent": np.arange(len(b.r)),
                        "n_fired": b.n_fired,
                        "r": b.r.astype(np.float32),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def _summary(c: Comparison, q99: dict[str, np.ndarray]) -> pd.DataFrame:
    rows = []
    for d in DIRECTIONS:
        for name in ALL_SERIES:
            if (d, name) not in c.series:
                continue
            all_r = _flat(c.series[d, name], "r")
            r = all_r[np.isfinite(all_r)]
            low, high = interval(r, rng=_rng(c))
            row: dict[str, Any] = {
                "direction": d,
                "series": name,
                "n": len(r),
                "mean": _mean(r),
                "low": low,
                "high": high,
            }
            row |= {
                q: float(np.quantile(r, p)) if len(r) else np.nan
                for q, p in (("median", 0.5), ("q05", 0.05), ("q95", 0.95))
            }
            row |= {s: _mean(r >= level) for s, level in SHARES.items()}
            row["share_null"] = (
                _mean(r > q99[d][np.isfinite(all_r)])
                if name in PAIRED and not name.endswith(READINGS) and np.isfinite(q99[d]).any()
                else np.nan  # the nulls by frequency are those of the raw correlation
            )
            rows.append(row)
    return pd.DataFrame(rows)


def _mean(x: np.ndarray) -> float:
    return float(np.mean(x)) if len(x) else float("nan")


def _order(c: Comparison) -> pd.DataFrame:
    """Neighbours of the claimed order, each with the difference of means, its interval, and whether the order holds.

    A strict step holds where the whole interval is above zero; the last step (<=) where it is not wholly below.
    ``reading`` is ``raw`` or ``token-conditional``: each has a chain of its own.
    """
    rows = []
    for how, d in ((how, d) for how in (RAW, "token-conditional") for d in DIRECTIONS):
        present = [s for s in (CHAIN if how == RAW else CHAIN_GIVEN_TOKEN) if (d, s) in c.series]
        for lower, higher in pairwise(present):
            paired = {lower, higher} <= PAIRED
            mean, low, high = difference(
                _flat(c.series[d, lower], "r"), _flat(c.series[d, higher], "r"), paired=paired, rng=_rng(c)
            )
            strict = not higher.startswith("sae seed")
            holds = bool(low > 0 if strict else high >= 0)
            rows.append((how, d, lower, higher, mean, low, high, holds, strict, paired))
    columns = ["reading", "direction", "lower", "higher", "difference", "low", "high", "holds", "strict", "paired"]
    return pd.DataFrame(rows, columns=columns)


def _layers(c: Comparison) -> pd.DataFrame:
    rows = []
    for d in DIRECTIONS:
        for (i, j), m in c.cross.pairs.items():
            match = m if d == "ab" else m.reverse
            assert match is not None
            mine, other = (c.a, c.b) if d == "ab" else (c.b, c.a)
            s, t = (i, j) if d == "ab" else (j, i)
            r = match.r[np.isfinite(match.r)]
            quantiles = np.quantile(r, [0.5, 0.9]) if len(r) else [np.nan, np.nan]
            rows.append(
                (
                    d,
                    mine.layers[s],
                    other.layers[t],
                    mine.references[s].id,
                    other.references[t].id,
                    len(r),
                    _mean(r),
                    *quantiles,
                    _mean(r >= 0.5),
                )
            )
    columns = [
        "direction",
        "layer",
        "partner_layer",
        "dictionary",
        "partner_dictionary",
        "n",
        "mean",
        "median",
        "q90",
        "share_50",
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(["direction", "layer", "partner_layer"], ignore_index=True)


def depth_of(c: Comparison, direction: str) -> DepthMap:
    """Depth map of matched latents (r of at least the recipe's level)."""
    other = c.b if direction == "ab" else c.a
    return depth_map(c.series[direction, "cross"], len(other.references), level=c.recipe.level, seed=c.recipe.seed)


def _depth_numbers(depth: DepthMap) -> dict[str, Any]:
    low, high = depth.interval
    return {"value": _plain(depth.rank_correlation), "low": _plain(low), "high": _plain(high), "n": depth.n}


def _depth_frame(c: Comparison, direction: str) -> pd.DataFrame:
    mine, other = (c.a, c.b) if direction == "ab" else (c.b, c.a)
    counts = depth_of(c, direction).counts
    i, j = np.indices(counts.shape)
    layers, partners = np.array(mine.layers)[i.ravel()], np.array(other.layers)[j.ravel()]
    return pd.DataFrame({"direction": direction, "layer": layers, "partner_layer": partners, "count": counts.ravel()})


def _shifts(c: Comparison) -> pd.DataFrame:
    rows = []
    for s, (forward, backward, n_tokens) in sorted(c.shifts.items()):
        for d, best in (("ab", forward), ("ba", backward)):
            r = _flat(best, "r")
            r = r[np.isfinite(r)]
            rows.append(
                (d, s, n_tokens, len(r), _mean(r), *interval(r, rng=_rng(c)), float(np.median(r)) if len(r) else np.nan)
            )
    return pd.DataFrame(rows, columns=["direction", "shift", "n_tokens", "n", "mean", "low", "high", "median"])


def headline(c: Comparison, made: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The numbers of the manifest; NaN becomes null."""
    out: dict[str, Any] = {"n_tokens": len(c.tokens), "min_firings": c.recipe.min_firings, "level": c.recipe.level}
    for d in DIRECTIONS:
        best = made["best"][made["best"]["direction"] == d]
        depth = depth_of(c, d)
        out[d] = {
            "series": {
                r["series"]: {k: _plain(r[k]) for k in ("n", "mean", "low", "high", "median", "share_50", "share_null")}
                for r in made["summary"][made["summary"]["direction"] == d].to_dict("records")
            },
            "n": int(best["r"].notna().sum()),
            "matched": int(best["matched"].sum()),
            "mutual": int((best["mutual"] & best["matched"]).sum()),
            "one_to_one": int((best["one_to_one_r"] >= c.recipe.level).sum()),
            "depth_rank_correlation": _depth_numbers(depth),
            "order": [
                {k: _plain(v) for k, v in r.items() if k != "direction"}
                for r in made["order"][made["order"]["direction"] == d].to_dict("records")
            ],
        }
        if (d, "untrained") in c.series:
            others = len((c.b if d == "ab" else c.a).references)
            untrained = depth_map(c.series[d, "untrained"], others, level=c.recipe.level, seed=c.recipe.seed)
            out[d]["depth_untrained"] = _depth_numbers(untrained)
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return (
        None
        if isinstance(value, float) and not np.isfinite(value)
        else round(value, 6)
        if isinstance(value, float)
        else value
    )


def write_comparison(workspace: Workspace, c: Comparison, vocab: list[str], *, command: str) -> Item:
    """Write ``matches/<a>__<b>/`` whole; an older comparison of the same two is replaced."""
    id = f"{c.a.name}__{c.b.name}"
    made = tables(c)
    store = c.tokens.store
    grid, is_row = c.tokens.sequences_with_rows(c.tokens.sequences)
    is_row = is_row[:, c.tokens.positions]
    inputs = {s.input.id: s.input for g in (c.a, c.b, *c.groups.values()) for s in g.references}
    about = {
        "a": _side(c.a),
        "b": _side(c.b),
        "n_tokens": len(c.tokens),
        "ctx": grid.shape[1],
        "store": store.spec.id,
        "min_firings": c.recipe.min_firings,
        "level": c.recipe.level,
        "given_token": c.given_token,
        "population": "all rows that are data, massive ones included; series inliers are without them",
        "massive": c.massive,
        "series": [s for s in ALL_SERIES if any((d, s) in c.series for d in DIRECTIONS)],
        "missing": c.missing,
        "skylines": {k: [s.id for s in g.references] for k, g in c.groups.items()},
        "vocab": "vocab.json",
    }
    if isinstance(c.tokens, SpanTokens):
        about["spans"] = {"matched": len(c.tokens), "of_a": c.tokens.of, "of_b": getattr(c.tokens.other, "of", 0)}
    with workspace.create(
        "matches",
        id,
        replace=True,
        command=command,
        recipe=c.recipe.model_dump(mode="json"),
        inputs=[*inputs.values(), Input(kind="stores", id=store.spec.id, digest=store.digest)],
        numbers=headline(c, made),
        metadata=about,
    ) as folder:
        for name, frame in made.items():
            frame.to_parquet(folder / f"{name}.parquet", index=False)
        np.save(folder / "tokens.npy", grid.astype(np.int32))
        np.save(folder / "sequences.npy", c.tokens.sequences.astype(np.int64))
        np.save(folder / "positions.npy", c.tokens.positions.astype(np.int64))
        if not is_row.all():
            np.save(folder / "is_row.npy", is_row)
        write_json(folder / "vocab.json", vocab)
        if c.recipe.codes:
            _write_codes(folder / "codes", c)
    return workspace.get("matches", id)


def _side(group: Group) -> dict[str, Any]:
    model, revision = group.model
    return {
        "name": group.name,
        "model": model,
        "revision": revision,
        "dictionaries": [s.id for s in group.references],
        "layers": group.layers,
    }


def _write_codes(folder: Path, c: Comparison) -> None:
    places = c.tokens.places()
    for id, codes in c.codes.items():
        (folder / id).mkdir(parents=True, exist_ok=True)
        np.save(folder / id / "indptr.npy", codes.indptr.astype(np.int64))
        np.save(folder / id / "row.npy", places[codes.row].astype(np.int32))
        np.save(folder / id / "value.npy", codes.value.astype(np.float32))
