"""Figures of single pairs of a comparison: the strongest matches, and two latents on the same text."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from sae.errors import UsageError
from workbench.exporting.axes import linear_ticks
from workbench.exporting.figures import FigureData, Panel, figure
from workbench.exporting.kinds.universality import DirectionOptions, about
from workbench.markup.names import latent_words
from workbench.markup.text import valid
from workbench.results.matches import JOINT_BINS, STRIP, MatchRecords, cropped
from workbench.workspace import Item, Workspace


class PairOptions(DirectionOptions):
    """Options of ``pair``. Without ``partner`` the best one is shown; without ``dictionary`` the first of the side."""

    dictionary: str = Field("", description="dictionary of the first latent; default: the first of the side")
    latent: int = Field(default=0, ge=0, description="which latent")
    partner_dictionary: str = Field("", description="dictionary of the second; default: the best partner's")
    partner: int | None = Field(default=None, ge=0, description="which second latent; default: the best partner")
    n: int = Field(default=12, ge=1, le=30, description="texts shown")
    by: Literal["a", "b", "both"] = Field("both", description="texts on which a, b, or both are strongest")
    shift: int = Field(
        default=0, ge=-2, le=2, description="tokens by which the second latent is read later"
    )  # tokens by which the second latent is read later


class TopOptions(DirectionOptions):
    """Options of ``matched_latents``."""

    n: int = Field(default=20, ge=1, le=500, description="pairs shown")
    one_to_one: bool = Field(
        True,
        description="no latent in two pairs (the assignment of greatest total r); false: each latent's best partner",
    )
    spread: bool = Field(
        False, description="evenly over the sorted matches instead of the strongest"
    )  # evenly over the sorted matches instead of the strongest


@figure("matched_latents", source="matches", options=TopOptions)
def matched_latents(workspace: Workspace, item: Item, options: TopOptions) -> FigureData:
    """The strongest matches, with the tokens the latents fire on most."""
    records = MatchRecords.open(item.path)
    best = records.best[records.best["direction"] == options.direction]
    kind = (
        ("one_to_one_dictionary", "one_to_one", "one_to_one_r")
        if options.one_to_one
        else ("partner_dictionary", "partner", "r")
    )
    chosen = best[best[kind[2]].notna()].sort_values(
        [kind[2], "dictionary", "latent"], ascending=[False, True, True], kind="stable"
    )
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
    columns = [
        "pair",
        "dictionary",
        "latent",
        "token",
        "partner_dictionary",
        "partner",
        "partner_token",
        "r",
        "null_q99",
        "n_fired",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    drawn = frame.assign(
        label=[
            f"{i}  “{t}” · “{u}”" for i, t, u in zip(frame["pair"], frame["token"], frame["partner_token"], strict=True)
        ]
    )
    mine, other = records.names(options.direction)
    return FigureData(
        panels=[Panel("points", drawn, x="label", y="r", y_label=f"r (left: {mine}, right: {other})", y_range=(0, 1))],
        caption=(
            f"{'One-to-one matches' if options.one_to_one else 'Best partners'} of latents of {mine} in {other} with"
            " the token each fires on most strongly."
        ),
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
        **about(records, item, options.direction),
    )


def _peak(records: MatchRecords, dictionary: str, latent: int) -> str | None:
    """The token a latent fires on most strongly among the compared ones; None where codes were not kept or it never
    fires.
    """
    if not records.has_codes:
        return None
    row, value = records.of(dictionary, latent)
    if not len(value):
        return None
    return valid(records.token_of(int(row[int(np.argmax(value))])))


def joint_frame(counts: np.ndarray) -> pd.DataFrame:
    """``bin, partner_bin, tokens, log10_tokens`` of a joint histogram; the logarithm is missing where there are no
    tokens, and of "both silent", which nearly all tokens are and which would hide the rest.
    """
    i, j = np.indices(counts.shape).reshape(2, -1)
    tokens = counts[i, j]
    drawn = (tokens > 0) & ((i > 0) | (j > 0))
    logs = np.full(len(tokens), np.nan)
    logs[drawn] = np.log10(tokens[drawn])
    return pd.DataFrame({"bin": i, "partner_bin": j, "tokens": tokens, "log10_tokens": logs})


def joint_panel(frame: pd.DataFrame, maxima: tuple[float, float], names: tuple[str, str]) -> Panel:
    """A joint histogram: the first latent across, the second up, marks in units of activation; at the edges one of both
    is silent.
    """
    return Panel(
        "heat",
        frame,
        x="bin",
        y="partner_bin",
        value="log10_tokens",
        x_label=f"activation of {names[0]}",
        y_label=f"activation of {names[1]}",
        value_label="log10 tokens",
        title="joint",
        ramp=True,
        square=True,
        x_ticks=_bin_ticks(maxima[0]),
        y_ticks=_bin_ticks(maxima[1]),
    )


def _bin_ticks(top: float) -> tuple[tuple[float, str], ...]:
    """Activations as places among the bins: bin 0 is "silent", the others share (0, top]."""
    if not top > 0:
        return ((0.0, "silent"),)
    marks = [(v, text) for v, text in linear_ticks(0.0, top) if v > 0.12 * top]
    return ((0.0, "silent"), *((v / top * (JOINT_BINS - 1) + 0.5, text) for v, text in marks))


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
                f"latent {options.latent} of {mine} has no partner in {item.id} (it fires less than"
                f" {records.metadata['min_firings']} times). Name one: --set partner=NUMBER."
            )
        other, partner = str(row["partner_dictionary"].iloc[0]), int(row["partner"].iloc[0])
    elif not other:
        raise UsageError("a named partner needs its dictionary, too: --set partner_dictionary=ID.")
    found = records.pair(mine, options.latent, other, partner, shift=options.shift)
    length = records.tokens.shape[1]
    strips = [
        cropped(s, length, options.shift)
        for s in records.strips(mine, options.latent, other, partner, by=options.by, n=options.n, width=STRIP)
    ]
    text = pd.DataFrame(
        [
            {
                "context": i + 1,
                "sequence": s.seq,
                "position": s.start + k,
                "token": valid(t),
                "activation": x,
                "partner_activation": y,
                "peak": k == s.peak,
            }
            for i, s in enumerate(strips)
            for k, (t, x, y) in enumerate(zip(s.tokens, s.acts_a, s.acts_b, strict=True))
        ],
        columns=["context", "sequence", "position", "token", "activation", "partner_activation", "peak"],
    )
    tops = [float(text[c].max()) if len(text) else 1.0 for c in ("activation", "partner_activation")]
    joint = joint_frame(found.joint)
    names = f"{mine} #{options.latent}", f"{other} #{partner}"
    words = latent_words(options.latent, mine), latent_words(partner, other)
    later = f", {other} read {abs(options.shift)} tokens {'later' if options.shift > 0 else 'earlier'}"
    null = "not computed" if found.null_q99 is None else f"{found.null_q99:.3f}"
    return FigureData(
        panels=[
            Panel(
                "strips",
                text,
                x="token",
                y="context",
                value="activation",
                centre="peak",
                title=f"shade: {names[0]} · underline: {names[1]}",
                top=tops[0] or None,
                under="partner_activation",
                under_top=tops[1] or None,
            ),
            joint_panel(joint, found.maxima, names),
        ],
        caption=(
            f"{words[0].capitalize()}, and {words[1]}, on the same text{later if options.shift else ''}: r ="
            f" {found.r:.3f} (99 % of chance: {null}); they fire on {found.n_fired[0]:,} and {found.n_fired[1]:,}"
            " tokens, together on"
            f" {found.n_cofire:,}."
        ),
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
        alt=f"{len(strips)} excerpts shaded by {names[0]} and underlined by {names[1]}, and their joint histogram.",
        **about(records, item, options.direction, page="pair", d=mine, i=options.latent, d2=other, i2=partner),
    )
