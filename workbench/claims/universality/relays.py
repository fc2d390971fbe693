"""Is off-by-one a law, or one relay of several? Where every Mamba at hand that copies writes the value token, layer by
layer; and whether the offset is in the convolution's tap: taps are exchanged within a layer and between snapshots, and
the write must follow.

At hand are the snapshots of one training run and the end of a second initialisation. Other widths of the convolution,
other depths and states need trainings of their own (``--retrain``) and are left out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.claims.base import Claim, Finding, Measured, Rule, untestable
from workbench.claims.lab import Lab
from workbench.claims.universality.mamba_state import CARRIER, Write, profile_of, words, writes

RUNS = ("mini-mamba", "mini-mamba-s1")
SOLVED = 0.8  # share of prompts on which the answer is preferred to the corrupted one, from which a Mamba copies
FROM = 1024  # steps before which no snapshot of the first run is tried: losses on copies are those of chance there
AT_MOST = 4  # copying snapshots of one run in a quick run
LEFT_OUT = "other widths of the convolution, depths and states need --retrain and are left out"


class Profile:
    """A write profile [P, L, O] in the form :func:`writes` reads."""

    def __init__(self, values: np.ndarray, offsets: Sequence[int]):
        self.values, self.offsets = values, list(offsets)

    def array(self, name: str) -> np.ndarray:
        """The profile."""
        return self.values

    def select(self, **equal: Any) -> pd.DataFrame:
        """The offsets, as the column of that name."""
        return pd.DataFrame({"offset": self.offsets})

    def shares(self, layer: int) -> np.ndarray:
        """[O] share of a layer's own profile at every offset."""
        size = np.abs(np.nanmean(self.values[:, layer].astype(np.float64), axis=0))
        out: np.ndarray = size / size.sum() if size.sum() else size
        return out

    def share(self, layer: int, offset: int) -> float:
        """Share of a layer's own profile at one offset."""
        return float(self.shares(layer)[self.offsets.index(offset)])

    def size(self, layer: int, offset: int) -> float:
        """Mean effect of a layer's write at one offset, in logits, without its sign."""
        return float(abs(np.nanmean(self.values[:, layer, self.offsets.index(offset)])))


@torch.inference_mode()
def preference(model: Any, prompts: Any) -> float:
    """Share of prompts on which a Mamba prefers the answer to the corrupted one."""
    logits, rows = model(torch.as_tensor(prompts.clean), return_type="logits")[:, -1], np.arange(len(prompts))
    return float((logits[rows, prompts.answer] > logits[rows, prompts.wrong]).float().mean())


def profile(model: Any, prompts: Any) -> Profile:
    """Write profile of every layer of a Mamba."""
    from workbench.analysis.circuits.off_by_one import write_profile
    from workbench.analysis.circuits.paths import FrozenPaths
    from workbench.analysis.circuits.table import OFFSETS, label_of
    from workbench.analysis.circuits.tail import Tail

    paths = FrozenPaths(model, Tail(model, prompts.clean))
    found = write_profile(model, prompts, paths, [label_of(prompts.focus, o) for o in OFFSETS], metrics=("logit_diff",))
    return Profile(found["logit_diff"], OFFSETS)


def taps(model: Any, layer: int) -> Tensor:
    """[D, K] weights of a layer's convolution; tap k, which reads k positions back, is column K - 1 - k."""
    from workbench.analysis.circuits.states import mixer_of

    weights: Tensor = mixer_of(model, layer).conv1d.weight[:, 0]
    return weights


@contextmanager
def changed_taps(model: Any, layer: int, new: dict[int, Tensor]) -> Iterator[None]:
    """Taps of one layer's convolution replaced (tap -> [D]) while the context is open."""
    with torch.no_grad():
        weights = taps(model, layer)
        before = weights.clone()
        for tap, values in new.items():
            weights[:, weights.shape[1] - 1 - tap] = values
        try:
            yield
        finally:
            weights.copy_(before)


def tap_of(model: Any, layer: int, tap: int) -> Tensor:
    """[D] a copy of one tap's weights."""
    weights = taps(model, layer).detach()
    return weights[:, weights.shape[1] - 1 - tap].clone()


def exchanged(model: Any, prompts: Any, layer: int, a: int, b: int) -> Profile:
    """The write profile with two taps of one layer exchanged."""
    with changed_taps(model, layer, {a: tap_of(model, layer, b), b: tap_of(model, layer, a)}):
        return profile(model, prompts)


@dataclass(frozen=True)
class Mamba:
    """One Mamba that copies: what it is called, its weights, where its layers write."""

    run: str
    step: int
    model: Any
    prefers: float
    profile: Profile
    writes: list[Write]

    @property
    def late(self) -> Write | None:
        """The layer that writes one position late, the strongest of them."""
        return next((w for w in self.writes if w.offset == 1), None)

    @property
    def early(self) -> Write | None:
        """The layer that writes at the token itself."""
        return next((w for w in self.writes if w.offset == 0), None)


def _prompts(lab: Lab) -> Any:
    from workbench.analysis.circuits.tasks import make_prompts, read_task
    from workbench.models.load import load_model

    model = load_model(RUNS[0])
    n = 24 if lab.quick else 48
    return make_prompts(read_task("induction"), n, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer, seed=1)


def snapshots(lab: Lab) -> list[tuple[str, int, Any]]:
    """(run, step, model) of every Mamba at hand, in training order."""
    from workbench.models.load import bundled, load_model, revisions

    out = []
    for run in RUNS:
        for revision in revisions(run) if run in bundled() else []:
            if (step := int(revision.removeprefix("step"))) >= FROM:
                out.append((run, step, load_model(run, revision=revision)))
    return out


def mambas(lab: Lab, prompts: Any) -> tuple[list[Mamba], list[tuple[str, Any]]]:
    """(Mambas from where their run copies to its end; run and model of the last snapshot that does not copy yet)."""
    from workbench.analysis.evolution.phases import first_solved

    copying: list[Mamba] = []
    before: list[tuple[str, Any]] = []
    every = snapshots(lab)
    for run in dict.fromkeys(r for r, _, _ in every):
        found = [(step, model, preference(model, prompts)) for r, step, model in every if r == run]
        solved = first_solved([prefers for _, _, prefers in found], level=SOLVED)
        if solved < 0:
            continue
        mine = found[solved:]
        if lab.quick and len(mine) > AT_MOST:
            mine = [mine[i] for i in np.linspace(0, len(mine) - 1, AT_MOST).round().astype(int)]
        for step, model, prefers in mine:
            measured = profile(model, prompts)
            copying.append(Mamba(run, step, model, prefers, measured, writes(measured)))  # type: ignore[arg-type]
        before += [(run, model) for _, model, _ in found[solved - 1 : solved]] if solved else []
    return copying, before


def transplants(
    mamba: Mamba, others: Sequence[Mamba], before: Sequence[tuple[str, Any]], prompts: Any
) -> dict[str, float]:
    """What exchanging taps does to the layer that writes late, as numbers of the table.

    ``moved``: share of its profile at +2 once taps 1 and 2 are exchanged; ``idle``: the same once taps 2 and 3 are,
    which carry nothing there; ``early``: share at +1 of the layer that writes at the token once its taps 1 and 2 are
    exchanged. ``from_before`` and ``from_other``: size of the write at +1, relative to what it was, with tap 1 of the
    last snapshot that does not copy, and of another Mamba of the run that does; ``to_before``: size of the write at +1
    in the snapshot that does not copy once it has this one's tap 1, relative to this one's.
    """
    late, early = mamba.late, mamba.early
    assert late is not None
    own = mamba.profile.size(late.layer, 1)
    out = {
        "moved": exchanged(mamba.model, prompts, late.layer, 1, 2).share(late.layer, 2),
        "idle": exchanged(mamba.model, prompts, late.layer, 2, 3).share(late.layer, 2),
        "early": float("nan"),
    }
    if early is not None:
        out["early"] = exchanged(mamba.model, prompts, early.layer, 1, 2).share(early.layer, 1)

    def received(donor: Any) -> float:
        with changed_taps(mamba.model, late.layer, {CARRIER: tap_of(donor, late.layer, CARRIER)}):
            return profile(mamba.model, prompts).size(late.layer, 1) / own

    donors = [o for o in others if o.run == mamba.run and o.step != mamba.step]
    nearest = min(donors, key=lambda o: abs(o.step - mamba.step), default=None)
    out["from_other"] = received(nearest.model) if nearest is not None else float("nan")
    unsolved = next((model for run, model in before if run == mamba.run), None)
    out["from_before"] = received(unsolved) if unsolved is not None else float("nan")
    out["to_before"] = float("nan")
    if unsolved is not None:
        with changed_taps(unsolved, late.layer, {CARRIER: tap_of(mamba.model, late.layer, CARRIER)}):
            out["to_before"] = profile(unsolved, prompts).size(late.layer, 1) / own
    return out


def relays(lab: Lab) -> pd.DataFrame:
    """One row per Mamba that copies: where its layers write, and what transplants do to the late one."""

    def make() -> pd.DataFrame:
        prompts = _prompts(lab)
        copying, before = mambas(lab, prompts)
        rows: list[dict[str, Any]] = []
        for m in copying:
            best = max(m.writes, key=lambda w: w.at_plus_one.value)
            row: dict[str, Any] = {
                "run": m.run,
                "step": m.step,
                "prefers": m.prefers,
                "writes": words(m.writes),
                "layer": best.layer,
                "at_plus_one": best.at_plus_one.value,
                "low": best.at_plus_one.low,
                "high": best.at_plus_one.high,
                "n": len(prompts),
                "of_all": sum(w.weight for w in m.writes if w.offset == 1),
            }
            if m.late is not None:
                row |= transplants(m, copying, before, prompts)
            rows.append(row)
        return pd.DataFrame(rows)

    table: pd.DataFrame = lab.once("relays of every Mamba", make)
    return table


def _few(table: pd.DataFrame) -> Finding | None:
    if len(table) >= 2:
        return None
    return untestable(f"{len(table)} Mamba at hand prefers the answer on {SOLVED:.0%} of the prompts; 2 are needed")


def _about(table: pd.DataFrame) -> str:
    runs = table.groupby("run", sort=False)["step"].agg(["min", "max", "size"])
    said = "; ".join(f"{run} steps {r['min']:,}–{r['max']:,} ({r['size']})" for run, r in runs.iterrows())
    second = "" if len(runs) > 1 else "; a second initialisation is not among them"
    return f"{said}{second}. Snapshots of one run are no independent trainings; {LEFT_OUT}"


def law(lab: Lab) -> Finding:
    """Share at +1 of the layer where it is largest, in the Mamba where that is least; control: the untrained model."""
    table = relays(lab)
    if (why := _few(table)) is not None:
        return why
    worst = table.loc[table["at_plus_one"].idxmin()]
    start = writes(profile_of(lab, RUNS[0], "step0"))
    control = max((w.at_plus_one for w in start), key=lambda m: m.value, default=None)
    unit = "share of the layer's profile"
    effect = Measured(float(worst["at_plus_one"]), worst["low"], worst["high"], int(worst["n"]), unit)
    where = "; ".join(f"{r.run} step {r.step:,}: {r.writes}" for r in table.itertuples())
    more = {
        "writes": [f"{r.run} step {r.step:,}: {r.writes}" for r in table.itertuples()],
        "every Mamba": Measured.of(table["at_plus_one"], unit=unit),
        "share of all writes that are at +1": Measured.of(table["of_all"], unit="share of the profile"),
    }
    note = (
        f"least in {worst['run']} at step {int(worst['step']):,}; of all writes"
        f" {table['of_all'].min():.2f}–{table['of_all'].max():.2f} are at +1, the rest is other relays: {where}."
        f" {_about(table)}"
    )
    return Finding(effect, control, table, note, more=more)


def follows(lab: Lab) -> Finding:
    """Share of the late layer's profile that is at +2 once taps 1 and 2 are exchanged, per Mamba; control: the larger
    of what exchanging idle taps there, and taps 1 and 2 in the layer that writes at the token, moves by one.
    """
    table = relays(lab)
    if (why := _few(table)) is not None:
        return why
    if "moved" not in table or table["moved"].notna().sum() < 2:
        return untestable("fewer than two of the Mambas that copy have a layer that writes at +1")
    late = table.dropna(subset=["moved"])
    unit = "share of the layer's profile"
    names = {
        "from_before": "tap 1 of a snapshot that does not copy",
        "from_other": "tap 1 of another that copies",
        "to_before": "tap 1 given to a snapshot that does not copy",
    }
    more = {to: Measured.of(late[c], unit="of the write at +1") for c, to in names.items()}
    note = (
        "size of the write at +1, as a share of what it was, with "
        + ", ".join(f"{k} {m.value:.2f}" for k, m in more.items() if m.known)
        + f". {_about(late)}"
    )
    control = Measured.of(late[["idle", "early"]].max(axis=1), unit=unit)
    return Finding(Measured.of(late["moved"], unit=unit), control, late, note, more=more)


_COMMON: dict[str, Any] = {
    "paper": "universality",
    "section": "5.2; open: is off by one a law?",
    "paper_number": "one model only: +1",
    "needs": ("circuits mini-mamba@step0",),
}
CLAIMS = [
    Claim(
        id="universality.off-by-one-law",
        statement="In every Mamba at hand that copies, some layer writes the value token at the position after it.",
        experiment=(
            "Write profile of every snapshot of the bundled Mamba from where it prefers the answer on 0.8 of the"
            " prompts, and of a second initialisation if it does; share of a writing layer's own profile at +1 where it"
            " is largest, in the Mamba where that is least. Other writes and their layers are reported."
        ),
        control="The same in the untrained model.",
        rule=Rule("above", 0.5, "beaten"),
        unit="prompt; snapshots of one training run and a second initialisation",
        would_change="A Mamba that copies without a layer whose write at +1 is most of its profile.",
        measure=law,
        cost=30,
        **_COMMON,
    ),
    Claim(
        id="universality.offset-follows-the-tap",
        statement=(
            "The offset is in the convolution's tap: with taps 1 and 2 of the late layer exchanged, its write"
            " moves from"
            " +1 to +2."
        ),
        experiment=(
            "Weights of taps 1 and 2 of the layer that writes at +1 exchanged, nothing retrained; share of its own"
            " profile that is then at +2. Tap 1 exchanged between snapshots beside it."
        ),
        control=(
            "The larger of two: share at +2 once taps 2 and 3 of that layer are exchanged; share at +1 of the"
            " layer that"
            " writes at the token, once its taps 1 and 2 are."
        ),
        rule=Rule("above", 0.5, "beaten"),
        unit="Mamba: snapshots of one training run and a second initialisation",
        would_change="A write that stays at +1 or dissolves when its tap is moved.",
        measure=follows,
        cost=1,
        **_COMMON,
    ),
]
