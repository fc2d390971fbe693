"""The usual mistakes of reading a dictionary, each tried: what would undo it, and the numbers with and without.

Rows in other units (both ways, the encoder's alone, the output's alone), a bias that belongs before the encoder or does
not, neighbouring hooks, other snapshots of the model: all on the same tokens, so what each leaves unexplained can be
compared. What a BOS token changes wears off within some tokens, so it is looked for where it is: in the first tokens of
many short pieces of the same text, with and without one before them, under a bootstrap over sequences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import MissingError, UsageError
from sae.populations import norms, populations_of
from workbench.activations.harvesting.forward import capture
from workbench.models.reading import token_contract
from workbench.run import Run
from workbench.stats import resample_weights

TRIAL_ROWS = 1024  # per trial, spread evenly
NEIGHBOURS = 2  # layers on either side
SNAPSHOTS = 12  # of the model, spread evenly; then those beside the best of them
EARLY = 4  # tokens of each piece that the trial of the BOS token looks at
PIECES = 2048  # at most
# unexplained variance of another setting over that of the configuration, at and below which it is the better one
BETTER = {"scale": 0.85, "factor": 0.75, "bias": 0.85, "hook": 0.75, "revision": 0.75, "BOS": 0.9}
# the same for the BOS token, by the first token and by those after it: behind a BOS or not, a first token is another
# kind of row, harder or easier by itself
TOLD = (0.65, BETTER["BOS"])
FACTORS = [2 ** (i / 2) for i in range(-14, 15) if i]  # of rows, without a rule
NOT_FOLDED = "a scale of its input was not folded"


@dataclass(frozen=True)
class ConfiguredDictionary:
    """What is verified: a dictionary, where it reads and writes, and what its folder claims.

    ``claimed``: numbers of its manifest (``l0``, ``explained_variance``) or configuration (``claimed_l0``).
    ``bos``: whether sequences begin with a BOS token; None: as the model's tokenizer does. ``first``: whether it was
    trained on the first token of the text, too; some libraries leave it out. ``is_row``: bool [n, ctx], which tokens of
    the sequences are data by the text's own rules (the words of some roles); None: by the model's alone.
    """

    id: str
    dictionary: Any
    hook: str
    hook_out: str
    model: str
    revision: str | None
    claimed: dict[str, Any]
    bos: bool | None = None
    first: bool = True
    is_row: np.ndarray | None = None

    @property
    def ends(self) -> tuple[str, str]:
        """Hook names of what is read and written."""
        return self.hook, self.hook_out

    def rows(self, model: Any, given: np.ndarray) -> Rows:
        """Rows of sequences, with or without their first token, where it reads and writes."""
        return rows_at(model, given, [self.ends], self.data_of(given))[self.ends]

    def data_of(self, given: np.ndarray) -> np.ndarray | None:
        """``is_row`` of sequences that may have lost their first token."""
        return None if self.is_row is None else self.is_row[:, -given.shape[1] :]

    def place(self, bos: bool, ends: tuple[str, str] | None = None) -> str:
        """Hooks, model, revision and start of the sequences, in words."""
        at = f" at {self.revision}" if self.revision else ""
        return f"{said(*(ends or self.ends))} of {self.model}{at}, {'with' if bos else 'without'} a BOS token"


@dataclass(frozen=True)
class Trial:
    """The numbers under one setting. ``kind``: ``configuration``, or what is changed (a key of :data:`BETTER`);
    ``cause``: the mistake that this setting undoes; ``setting``: what was tried. ``ev`` leaves massive rows out,
    ``ev_all`` does not; ``before`` is the EV of the configuration on the same ``n`` tokens, ``unexplained`` what this
    setting leaves unexplained over what the configuration does. For the BOS token that is the upper end of a bootstrap
    interval and ``least`` the lower, and ``ev_rows`` and ``l0_rows`` are those of all rows with the other start.
    """

    kind: str
    cause: str
    setting: str
    ev: float
    ev_all: float
    l0: float
    n: int
    before: float = float("nan")
    unexplained: float = 1.0
    least: float | None = None
    ev_rows: float | None = None
    l0_rows: float | None = None


@dataclass(frozen=True)
class Rows:
    """What is read [n, d_in], what it stands for [n, d_out], and which of them are not massive [n]."""

    x: Tensor
    y: Tensor
    usual: Tensor


def said(hook: str, hook_out: str) -> str:
    """One hook, or ``one -> other``."""
    return hook if hook == hook_out else f"{hook} -> {hook_out}"


# --- rows and codes ----------------------------------------------------------------------------------------------


def rows_at(
    model: Any, tokens: np.ndarray, pairs: list[tuple[str, str]], is_row: np.ndarray | None = None
) -> dict[tuple[str, str], Rows]:
    """The same tokens' rows at pairs of hooks; the first position, BOS and pads are none, nor what is not ``is_row``.

    Raises:
        UsageError: fewer than two tokens can be scored.
    """
    kept = token_contract(model).is_row(tokens)
    kept[:, 0] = False
    if is_row is not None:
        kept &= is_row
    where = np.flatnonzero(kept)
    if len(where) < 2:
        raise UsageError(
            f"{len(where)} tokens of these sequences can be scored, two at least are needed. Give longer sequences, or"
            " more of them."
        )
    where = where[np.linspace(0, len(where) - 1, min(TRIAL_ROWS, len(where))).astype(int)]
    given = torch.as_tensor(tokens, dtype=torch.int64)
    names = sorted({h for pair in pairs for h in pair})
    seen: dict[str, list[Tensor]] = {n: [] for n in names}
    for start in range(0, len(given), 8):
        block = given[start : start + 8]
        here = where[(where >= start * given.shape[1]) & (where < (start + len(block)) * given.shape[1])]
        found = capture(model, block, names)
        index = torch.from_numpy(here - start * given.shape[1])
        for n in names:
            seen[n].append(found[n].flatten(0, 1)[index].float().cpu())
    at = {n: torch.cat(v) for n, v in seen.items()}
    out = {}
    for a, b in pairs:
        lengths = norms(at[b])
        out[a, b] = Rows(at[a], at[b], lengths <= populations_of(lengths).limit)
    return out


def coded(dictionary: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """(latents that are on [n], reconstruction with the skip [n, d_out]) of rows, some at a time. Behind thresholds a
    wrong scale turns on nearly all latents, so those are decoded as a matrix.
    """
    on, out = [], []
    for block in x.split(256):
        if dictionary.thresholds() is None:
            values, indices = dictionary.encode_sparse(block)
            y = dictionary.decode_sparse(values, indices)
        else:
            values = dictionary.encode(block)
            y = dictionary.decode(values)
        skip = dictionary.skip(block)
        on.append((values > 0).sum(-1))
        out.append((y if skip is None else y + skip).float())
    return torch.cat(on), torch.cat(out)


def measured(rows: Rows, y: Tensor, on: Tensor, kind: str, cause: str, setting: str) -> Trial:
    """EV and L0 of the reconstruction ``y`` [n, d_out] of rows, with ``on`` [n] latents each."""
    error = (rows.y - y).double().square().sum(-1)
    ev, ev_all = (
        float(1 - error[k].sum() / (rows.y[k] - rows.y[k].mean(0)).double().square().sum())
        for k in (rows.usual, torch.ones_like(rows.usual))
    )
    return Trial(kind, cause, setting, ev, ev_all, float(on.double().mean()), int(rows.usual.sum()))


def as_configured(subject: ConfiguredDictionary, rows: Rows, bos: bool) -> Trial:
    """The numbers of the dictionary as it is."""
    on, y = coded(subject.dictionary, rows.x)
    return measured(rows, y, on, "configuration", "", subject.place(bos))


def all_trials(
    subject: ConfiguredDictionary,
    model: Any,
    tokens: np.ndarray,
    bos: bool,
    rows: Rows,
    base: Trial,
    *,
    load: Callable[[str], Any] | None,
    run: Run,
) -> list[Trial]:
    """Every other setting. ``tokens`` [n, ctx] as the model's tokenizer begins them; ``rows`` and ``base`` are those of
    the configuration. ``load`` makes the model at another snapshot; None tries none.
    """
    starts = token_contract(model).first is not None
    given = tokens if bos or not starts else tokens[:, 1:]
    found = [*units(subject.dictionary, rows), *biases(subject.dictionary, rows), *hooks(subject, model, given, bos)]
    if load is not None:
        found += revisions(subject, given, bos, load, run)
    out = [replace(t, before=base.ev, unexplained=(1 - t.ev) / (1 - base.ev)) for t in found]
    return out + ([start(subject, model, tokens, bos)] if starts else [])


# --- units and biases --------------------------------------------------------------------------------------------


def units(dictionary: Any, rows: Rows) -> Iterator[Trial]:
    """Rows and outputs in other units: the rules that libraries have, then factors without one."""
    d, d_out = rows.x.shape[-1], rows.y.shape[-1]
    length, length_out = float(norms(rows.x).mean()), float(norms(rows.y).mean())
    square, square_out = float(norms(rows.x).square().mean()), float(norms(rows.y).square().mean())
    rules = {
        "to a mean length of sqrt(d), as SAELens and OpenMOSS do": (d**0.5 / length, d_out**0.5 / length_out),
        "to a mean square length of 1, as dictionary_learning does": (square**-0.5, square_out**-0.5),
        "to a mean length of 1": (1 / length, 1 / length_out),
    }
    for name, (a, b) in rules.items():
        on, y = coded(dictionary, rows.x * a)
        yield measured(rows, y / b, on, "scale", NOT_FOLDED, f"rows multiplied by {a:.3g}, {name}")
    if d == d_out:
        shift, size = rows.x.mean(-1, keepdim=True), rows.x.std(-1, unbiased=False, keepdim=True).clamp_min(1e-6)
        on, y = coded(dictionary, (rows.x - shift) / size)
        setting = "rows normalised each by itself, as a layer norm does"
        yield measured(rows, y * size + shift, on, "scale", "its input was normalised in training", setting)
    yield from _outputs(dictionary, rows)
    found = [t for a in FACTORS for t in _factors(dictionary, rows, a)]
    best = {
        max((f for f in found if f[1].cause == way), key=lambda f: f[1].ev)[0] for way in {t.cause for _, t in found}
    }
    between = {round(b * 2 ** (i / 8), 6) for b in best for i in (-3, -2, -1, 1, 2, 3)}  # and its neighbours
    found += [t for a in sorted(between) for t in _factors(dictionary, rows, a)]
    yield from (t for _, t in found)


def _fitted(y: Tensor, want: Tensor) -> float:
    """The factor c that brings c * y closest to what is wanted."""
    y, want = y.double(), want.double()
    return float((y * want).sum() / (y * y).sum().clamp_min(torch.finfo(torch.float64).tiny))


def _outputs(dictionary: Any, rows: Rows) -> Iterator[Trial]:
    """The output in other units: all of it, or what latents write without the bias."""
    on, y = coded(dictionary, rows.x)
    bias = dictionary.b_dec.float()
    for of, cause, shift in (
        ("outputs", "a scale of its output was not folded", torch.zeros_like(bias)),
        ("what latents write", "its decoder is in other units than its output", bias),
    ):
        c = _fitted((y - shift)[rows.usual], (rows.y - shift)[rows.usual])
        yield measured(rows, (y - shift) * c + shift, on, "factor", cause, f"{of} multiplied by about {c:.3g}")


def _factors(dictionary: Any, rows: Rows, a: float) -> Iterator[tuple[float, Trial]]:
    """Rows multiplied by ``a``: with their outputs divided by it, with outputs as they are, and of a transcoder, whose
    two ends have units of their own, with the factor that fits them.
    """
    on, y = coded(dictionary, rows.x * a)
    setting = f"rows multiplied by about {a:.3g}"
    ways = [
        (NOT_FOLDED, setting, y / a),
        ("its encoder is in other units than its input", f"{setting}, outputs as they are", y),
    ]
    if dictionary.kind == "transcoder":
        c = _fitted(y[rows.usual], rows.y[rows.usual])
        cause = "scales of its input and its output were not folded"
        ways.append((cause, f"{setting}, outputs by about {c:.3g}", y * c))
    for cause, said_, out in ways:
        yield a, measured(rows, out, on, "factor", cause, said_)


def biases(dictionary: Any, rows: Rows) -> Iterator[Trial]:
    """The decoder's bias subtracted from the input where it is not, and kept where it is."""
    if dictionary.kind == "transcoder" or rows.x.shape[-1] != len(dictionary.b_dec):
        return
    for sign, cause, setting in (
        (-1, "the decoder's bias belongs before its encoder", "the decoder's bias subtracted from its input"),
        (
            1,
            "the decoder's bias does not belong before its encoder",
            "the decoder's bias not subtracted from its input",
        ),
    ):
        on, y = coded(dictionary, rows.x + sign * dictionary.b_dec.float())
        yield measured(rows, y, on, "bias", cause, setting)


# --- places and snapshots ----------------------------------------------------------------------------------------


def hooks(subject: ConfiguredDictionary, model: Any, given: np.ndarray, bos: bool) -> list[Trial]:
    """Neighbouring hooks of the same widths, read alone or as a transcoder's pair."""
    d_in, d_out = subject.dictionary.d_in, subject.dictionary.d_out
    pairs = [p for p in _neighbours(model, *subject.ends) if p != subject.ends]
    found = rows_at(model, given, pairs, subject.data_of(given)) if pairs else {}
    out = []
    for pair, rows in found.items():
        if (rows.x.shape[-1], rows.y.shape[-1]) == (d_in, d_out):
            on, y = coded(subject.dictionary, rows.x)
            cause = f"it does not belong at {said(*subject.ends)}"
            out.append(measured(rows, y, on, "hook", cause, subject.place(bos, pair)))
    return out


def _neighbours(model: Any, hook: str, hook_out: str) -> list[tuple[str, str]]:
    from workbench.models.sites import site_hooks, sites

    match = re.match(r"blocks\.(\d+)\.", hook)
    layer = int(match[1]) if match else 0
    pairs: list[tuple[str, str]] = []
    for site in sites(model):
        if abs(int(re.findall(r"\d+", site)[0]) - layer) <= NEIGHBOURS:
            pairs.append(site_hooks(model, site))
    ends = {h for pair in pairs for h in pair}
    ends |= {
        name
        for h in ("hook_resid_pre", "hook_resid_mid", "ln2.hook_in", "ln2.hook_out", "ln2.hook_normalized")
        if (name := f"blocks.{layer}.{h}") in model.hook_dict
    }
    alone = [(h, h) for h in sorted(ends)]
    across = [(h, hook_out) for h in sorted(ends) if h.startswith(f"blocks.{layer}.")] if hook != hook_out else []
    return [p for p in dict.fromkeys([*pairs, *alone, *across]) if all(_fires(model, h) for h in p)]


def _fires(model: Any, hook: str) -> bool:
    """Whether a hook gives one row per token; some of a model's are off or give something else."""
    try:
        capture(model, torch.zeros(1, 3, dtype=torch.int64), [hook])
    except (UsageError, ValueError):
        return False
    return True


def revisions(
    subject: ConfiguredDictionary, given: np.ndarray, bos: bool, load: Callable[[str], Any], run: Run
) -> list[Trial]:
    """Other snapshots of the same model, where they lie on this machine."""
    from workbench.models import resolve_revision
    from workbench.models import revisions as known_revisions

    try:
        known, own = known_revisions(subject.model), resolve_revision(subject.model, subject.revision)
    except (UsageError, MissingError):
        return []
    own = own if own in known else known[-1] if known else None

    def tried(revision: str) -> Trial:
        rows = subject.rows(load(revision), given)
        on, y = coded(subject.dictionary, rows.x)
        cause = f"it belongs to another revision of the model than {subject.revision or 'the last'}"
        return measured(rows, y, on, "revision", cause, replace(subject, revision=revision).place(bos))

    spread = sorted({round(i) for i in np.linspace(0, len(known) - 1, min(SNAPSHOTS, len(known))).tolist()})
    out = {r: tried(r) for r in run.each([known[i] for i in spread if known[i] != own], "snapshots", unit="snapshot")}
    if out:
        best = known.index(max(out, key=lambda r: out[r].ev))
        beside = [known[i] for i in (best - 2, best - 1, best + 1, best + 2) if 0 <= i < len(known)]
        out |= {r: tried(r) for r in beside if r != own and r not in out}
    return list(out.values())


# --- the start of a text -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Early:
    """Sums over the pieces of each sequence, [n_sequences], of the first token (0) and those after it (1)."""

    error: tuple[Tensor, Tensor]
    of: tuple[Tensor, Tensor]
    l0: float
    n: tuple[int, int]

    def left(self, group: int, weights: Tensor) -> Tensor:
        """Unexplained variance [resamples] under weights [resamples, n_sequences]."""
        return (weights @ self.error[group]) / (weights @ self.of[group])

    def ev(self, groups: tuple[int, ...]) -> float:
        error, of = (sum(float(part[g].sum()) for g in groups) for part in (self.error, self.of))
        return 1 - error / of


def start(subject: ConfiguredDictionary, model: Any, tokens: np.ndarray, bos: bool) -> Trial:
    """The other start of the sequences: with a BOS token, or without.

    The first token tells most: behind a BOS it is a row like others, without one it has nothing to attend to. Where it
    does not tell, or was not trained on, those after it may.
    """
    pieces, sequence = _pieces(model, tokens)
    early = {b: _early(subject, model, pieces, sequence, len(tokens), b) for b in (bos, not bos)}
    weights = torch.from_numpy(resample_weights(len(tokens), resamples=500, seed=0)).double()
    ratios = []
    for group in (0, 1) if subject.first else (1,):
        drawn = early[not bos].left(group, weights) / early[bos].left(group, weights)
        ratios.append((group, float(drawn.nanquantile(0.05)), float(drawn.nanquantile(0.95))))
    ratios = [r for r in ratios if np.isfinite(r[2])] or [(1, float("nan"), float("inf"))]
    told = [r for r in ratios if r[2] <= TOLD[r[0]] or r[1] >= 1 / TOLD[r[0]]]
    group, least, most = (told or ratios[-1:])[0]
    other = _rows_with(subject, model, tokens, not bos)
    which = "the first token" if group == 0 else f"tokens 2 to {EARLY}"
    return Trial(
        "BOS",
        "a BOS token that it was trained without" if bos else "the BOS token is missing",
        f"{subject.place(not bos)}, on {which} of {len(pieces):,} pieces of the text",
        early[not bos].ev((group,)),
        early[not bos].ev((0, 1)),
        early[not bos].l0,
        early[not bos].n[group],
        before=early[bos].ev((group,)),
        unexplained=most,
        least=least,
        ev_rows=other.ev,
        l0_rows=other.l0,
    )


def _rows_with(subject: ConfiguredDictionary, model: Any, tokens: np.ndarray, bos: bool) -> Trial:
    """EV and L0 of all rows with a start."""
    rows = subject.rows(model, tokens if bos else tokens[:, 1:])
    on, y = coded(subject.dictionary, rows.x)
    return measured(rows, y, on, "BOS", "", "")


def _pieces(model: Any, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(pieces [n, EARLY] of the text without special tokens, the sequence each is of)."""
    per = (tokens.shape[1] - 1) // EARLY
    cut = tokens[:, 1 : 1 + per * EARLY].reshape(-1, EARLY)
    sequence = np.repeat(np.arange(len(tokens)), per)
    plain = np.flatnonzero(~np.isin(cut, token_contract(model).excluded_ids).any(1))
    plain = plain[np.linspace(0, len(plain) - 1, min(PIECES, len(plain))).astype(int)] if len(plain) else plain
    return cut[plain], sequence[plain]


def _early(
    subject: ConfiguredDictionary, model: Any, pieces: np.ndarray, sequence: np.ndarray, n_sequences: int, bos: bool
) -> _Early:
    if bos:
        first = np.full((len(pieces), 1), token_contract(model).first, dtype=pieces.dtype)
        pieces = np.concatenate([first, pieces], 1)
    parts: dict[str, list[Tensor]] = {h: [] for h in subject.ends}
    for block in torch.as_tensor(pieces, dtype=torch.int64).split(64):
        found = capture(model, block, [*parts])
        for h, rows in parts.items():
            rows.append(found[h][:, -EARLY:].float().cpu())
    x, y = (torch.cat(parts[h]) for h in subject.ends)
    on, z = coded(subject.dictionary, x.flatten(0, 1))
    lengths = norms(y)
    usual = lengths <= populations_of(lengths[:, 1:].flatten()).limit
    error = (y - z.reshape(y.shape)).double().square().sum(-1)
    index = torch.from_numpy(sequence)
    sums: list[list[Tensor]] = [[], []]
    n = []
    for group in (usual[:, :1], usual[:, 1:]):
        at = slice(0, 1) if group.shape[1] == 1 else slice(1, None)
        # a first token that is nearly always massive is no row that a dictionary explains
        kept = group if float(group.double().mean()) >= 0.5 else torch.zeros_like(group)
        n.append(int(kept.sum()))
        of = (y[:, at] - (y[:, at][kept].mean(0) if kept.any() else 0)).double().square().sum(-1)
        for i, part in enumerate((error[:, at], of)):
            each = (part * kept).sum(1)
            sums[i].append(torch.zeros(n_sequences, dtype=torch.float64).index_add(0, index, each))
    l0 = float(on.double().mean())
    return _Early((sums[0][0], sums[0][1]), (sums[1][0], sums[1][1]), l0, (n[0], n[1]))
