"""Reading comparisons: ``matches/<a>__<b>/``, made by ``workbench compare A B``. Neither torch nor h5py is needed.

Direction ``ab`` is about the latents of A and their partners in B, ``ba`` the other way; a correlation is NaN (null)
where the latent fired less than ``min_firings`` times. Tables (Parquet):

``best``       one row per latent: direction, dictionary, layer, latent, n_fired, density, r, partner_dictionary,
               partner_layer,
               partner, partner_fired, n_cofire, second_r, second_dictionary, second, null_q99 (99 % of chance for
               latents that fire as often), matched (r >= level and > null_q99), mutual (each other's best),
               one_to_one_dictionary, one_to_one, one_to_one_r (assignment of greatest total r), even_r
               (candidate-count-matched)
``baselines``  one row per latent (or neuron) and series: direction, series, layer, latent, n_fired, r; series as in
               :mod:`workbench.analysis.comparison.compare`, among them ``cross``
``summary``    per direction and series: n, mean, low, high (95 % bootstrap over latents), median, q05, q95, share_50,
               share_70,
               share_90 (r of at least .5, .7, .9), share_null (above the null's 99 %)
``order``      per reading (raw, token-conditional), direction and neighbouring series of random < neurons < cross <
               model seed <= sae seed, or of untrained < cross < model seed <= sae seed given the token: lower, higher,
               difference, low, high, holds, paired (comparisons made before there were readings have raw ones only,
               without that column)
``nulls``      per direction and bin of firing counts: fired_from, fired_to, n, q50, q95, q99, and the same of the
               latents: cross_q50
``layers``     per direction and pair of layers: layer, partner_layer, dictionary, partner_dictionary, n, mean, median,
               q90, share_50
               (best partner within that layer alone)
``depth``      per direction: layer, partner_layer, count of matched latents whose best partner over all layers lies
               there
``shifts``     per direction and shift s (a at token t against b at t + s): shift, n_tokens, n, mean, low, high, median

Arrays: ``tokens.npy`` int32 [S, ctx] (the sequences compared on), ``sequences.npy`` int64 [S] (their numbers in the
store), ``positions.npy`` int64 [R] (positions that may be rows; row = sequence index * R + place), and where some are
not, ``is_row.npy`` bool [S, R] (BOS and pads inside sequences, and what two tokenizers do not end together).
``codes/<dictionary>/`` holds the codes in latent-major order: ``indptr.npy`` int64 [F+1], ``row.npy`` int32,
``value.npy`` float32. ``vocab.json``: displayed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import read_json
from sae.strict import nearest
from workbench.provenance import Manifest
from workbench.results.characters import whole_characters
from workbench.results.result import TabledResult

TABLES = ("best", "baselines", "summary", "order", "nulls", "layers", "depth", "shifts")
RAW = "raw"  # reading of a correlation of codes as they are
READINGS = ("same-token", "token-conditional", "token-conditional null")  # and with the current token taken out
TRAP = (
    "A raw correlation measures shared input as well as shared computation: what stays when tokens are exchanged among"
    " occurrences of the same token (same-token) is the token's part, and what is left given the token"
    " (token-conditional) is the latents' own."
)
JOINT_BINS = 32
SHIFTS = (-2, -1, 0, 1, 2)  # tokens by which B may be read later
STRIP = 52  # tokens of a window that is shown, with a margin for shifts at both ends


@dataclass(frozen=True)
class Pair:
    """Two latents on the same tokens."""

    r: float  # NaN where either never fires or is constant
    n_tokens: int
    n_fired: tuple[int, int]
    n_cofire: int
    joint: NDArray[np.int64]  # [32, 32] tokens by (bin of a, bin of b); bin 0 is "not active", 1..31 share (0, max]
    maxima: tuple[float, float]
    null_q99: float | None  # 99 % of chance for a latent that fires as often as a; None where not computed


@dataclass(frozen=True)
class Strip:
    """One window of text with both latents' activations on every token."""

    tokens: list[str]
    ids: list[int]
    acts_a: list[float]
    acts_b: list[float]
    peak: int  # index into tokens: the token the window was chosen for
    seq: int  # sequence of the store
    start: int  # position in the sequence of tokens[0]


def cropped(s: Strip, length: int, shift: int = 0) -> Strip:
    """A window without the margin it has for shifts where its sequence of ``length`` tokens goes on, and B on each
    token as it is ``shift`` tokens later.
    """
    margin = max(SHIFTS)
    lo = margin if s.start > 0 else 0
    hi = len(s.tokens) - (margin if s.start + len(s.tokens) < length else 0)
    later = [s.acts_b[j + shift] if 0 <= j + shift < len(s.acts_b) else 0.0 for j in range(lo, hi)]
    return Strip(s.tokens[lo:hi], s.ids[lo:hi], s.acts_a[lo:hi], later, s.peak - lo, s.seq, s.start + lo)


class MatchRecords(TabledResult):
    """One comparison; open with :meth:`open`. Tables are read when first used.

    ``metadata``: a, b (each: name, model, revision, dictionaries, layers), n_tokens, min_firings, level, series,
    missing, store, …
    """

    kind, noun, verb = "matches", "a comparison", "compare A B"

    tables = TABLES

    def __init__(self, folder: Path, manifest: Manifest):
        super().__init__(folder, manifest)
        self._codes: dict[str, tuple[NDArray, NDArray, NDArray]] = {}

    def table(self, name: str) -> pd.DataFrame:
        """One of :data:`TABLES`."""
        if name not in TABLES:
            raise UsageError(f"{name!r} is not a table of a comparison ({nearest(name, list(TABLES))})")
        frame = super().table(name)
        if name == "order" and "reading" not in frame:  # made before there were readings
            frame.insert(0, "reading", RAW)
        return frame

    @property
    def best(self) -> pd.DataFrame:
        """Best partners, both directions."""
        return self.table("best")

    def names(self, direction: str) -> tuple[str, str]:
        """(name of the side a direction starts from, name of the other)."""
        a, b = self.metadata["a"]["name"], self.metadata["b"]["name"]
        return (a, b) if direction == "ab" else (b, a)

    def readings(self, direction: str) -> pd.DataFrame:
        """Mean maximal correlation of every pair of sides in each of its readings.

        Columns: sides (``cross``, ``untrained``, …), reading (``raw`` and :data:`READINGS`), and n, mean, low, high,
        share_70 of the summary. Empty where the comparison was not read given the token.
        """
        summary = self.table("summary")
        summary = summary[summary["direction"] == direction].set_index("series")
        rows = []
        for name in [s for s in summary.index if s.endswith("token-conditional")]:
            sides = name.removesuffix("token-conditional").strip() or "cross"
            for how in (RAW, *READINGS):
                series = sides if how == RAW else how if sides == "cross" else f"{sides} {how}"
                if series in summary.index:
                    own = summary.loc[series, ["n", "mean", "low", "high", "share_70"]].to_dict()
                    rows.append({"sides": sides, "reading": how} | own)
        return pd.DataFrame(rows, columns=["sides", "reading", "n", "mean", "low", "high", "share_70"])

    @cached_property
    def vocab(self) -> list[str]:
        """Displayed token strings, index = token id."""
        return read_json(self.folder / "vocab.json")

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """[S, ctx] token ids."""
        return self._array("tokens")

    @property
    def has_codes(self) -> bool:
        """Whether pairs can be looked at on the compared tokens (``--no-codes`` leaves them out)."""
        return (self.folder / "codes").is_dir()

    def of(self, dictionary: str, latent: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(rows, values) on which a latent is active.

        Raises:
            MissingError: codes were not kept. UsageError: no such dictionary or latent in this comparison.
        """
        indptr, row, value = self._code_arrays(dictionary)
        if not 0 <= latent < len(indptr) - 1:
            raise UsageError(f"latent {latent} is not in {dictionary}, whose latents are 0–{len(indptr) - 2}.")
        s = slice(int(indptr[latent]), int(indptr[latent + 1]))
        return row[s], value[s]

    def entries(self, dictionary: str) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """(indptr [F + 1], rows, values) of all latents of a dictionary; latent i owns ``indptr[i]:indptr[i + 1]``."""
        return self._code_arrays(dictionary)

    def places(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
        """(sequence index, position, token id) of every compared row."""
        n, positions = len(self.tokens), self._positions
        return np.repeat(np.arange(n), len(positions)), np.tile(positions, n), self.tokens[:, positions].ravel()

    @property
    def compared_rows(self) -> NDArray[np.int64]:
        """Numbers of the rows of :meth:`places` that were compared, ascending."""
        return np.flatnonzero(self._is_row)

    def token_of(self, row: int) -> str:
        """The displayed token of a compared row."""
        sequence, place = divmod(row, len(self._positions))
        id = int(self.tokens[sequence, self._positions[place]])
        return self.vocab[id] if id < len(self.vocab) else f"⟨{id}⟩"

    def pair(self, dictionary_a: str, a: int, dictionary_b: str, b: int, *, shift: int = 0) -> Pair:
        """Correlation and joint histogram of any two latents; with ``shift`` s, a at token t meets b at token t + s."""
        dense_a, dense_b = self._dense(*self.of(dictionary_a, a)), self._dense(*self.of(dictionary_b, b))
        n = dense_a.shape[1]
        in_a, in_b = slice(max(0, -shift), n - max(0, shift)), slice(max(0, shift), n - max(0, -shift))
        kept = self._is_row[:, in_a] & self._is_row[:, in_b]
        x, y = dense_a[:, in_a][kept], dense_b[:, in_b][kept]
        r = float("nan")
        if len(x) and np.ptp(x) > 0 and np.ptp(y) > 0:
            r = float(np.corrcoef(x, y)[0, 1])
        top = float(x.max(initial=0.0)), float(y.max(initial=0.0))
        bins = [
            np.ceil(v / (m or 1.0) * (JOINT_BINS - 1)).astype(np.int64).clip(0, JOINT_BINS - 1)
            for v, m in zip((x, y), top, strict=True)
        ]
        joint = np.bincount(bins[0] * JOINT_BINS + bins[1], minlength=JOINT_BINS**2).reshape(JOINT_BINS, JOINT_BINS)
        fired = int((x > 0).sum()), int((y > 0).sum())
        return Pair(r, len(x), fired, int(((x > 0) & (y > 0)).sum()), joint, top, self._null(dictionary_a, a))

    def strips(
        self,
        dictionary_a: str,
        a: int,
        dictionary_b: str,
        b: int,
        *,
        by: str = "both",
        n: int = 8,
        width: int = 48,
        shift: int = 0,
    ) -> list[Strip]:
        """Windows around the strongest tokens of A, of B, or of both together (``both``: geometric mean), one per
        sequence.

        With ``shift`` s, the activation of B shown on a token is the one it has s tokens later.
        """
        if by not in ("a", "b", "both"):
            raise UsageError(f"by {by!r} is not one of 'a', 'b', 'both'.")
        x, y = (self._dense(*self.of(d, i)) for d, i in ((dictionary_a, a), (dictionary_b, b)))
        if shift:
            moved = np.zeros_like(y)
            if abs(shift) < y.shape[1]:
                moved[:, max(0, -shift) : y.shape[1] - max(0, shift)] = y[
                    :, max(0, shift) : y.shape[1] - max(0, -shift)
                ]
            y = moved
        score = {"a": x, "b": y}.get(by)
        if score is None:
            score = np.sqrt((x / (x.max() or 1)) * (y / (y.max() or 1)))
        peak = score.argmax(axis=1)
        strength = score[np.arange(len(score)), peak]
        found = np.argsort(-strength, kind="stable")[:n]
        return [self._strip(int(s), int(peak[s]), x[s], y[s], width) for s in found if strength[s] > 0]

    def _strip(self, s: int, at: int, x: NDArray, y: NDArray, width: int) -> Strip:
        centre = int(self._positions[at])
        lo = max(0, min(centre - width // 2, self.tokens.shape[1] - width))
        ids = self.tokens[s, lo : lo + width].tolist()
        acts = np.zeros((2, self.tokens.shape[1]))
        acts[:, self._positions] = x, y
        return Strip(
            tokens=whole_characters([self.vocab[t] if t < len(self.vocab) else f"⟨{t}⟩" for t in ids]),
            ids=ids,
            acts_a=acts[0, lo : lo + width].tolist(),
            acts_b=acts[1, lo : lo + width].tolist(),
            peak=centre - lo,
            seq=int(self._array("sequences")[s]),
            start=lo,
        )

    def _dense(self, rows: NDArray, values: NDArray) -> NDArray[np.float64]:
        out = np.zeros((len(self.tokens), len(self._positions)))
        out.ravel()[rows] = values
        return out

    def _null(self, dictionary: str, latent: int) -> float | None:
        found = self.best[(self.best["dictionary"] == dictionary) & (self.best["latent"] == latent)]["null_q99"]
        return float(found.iloc[0]) if len(found) and np.isfinite(found.iloc[0]) else None

    @cached_property
    def _is_row(self) -> NDArray[np.bool_]:
        """[S, R] which tokens were compared: all at these positions but those left out wherever they stand."""
        if (self.folder / "is_row.npy").is_file():
            return self._array("is_row")
        return np.ones((len(self.tokens), len(self._positions)), bool)

    @cached_property
    def _positions(self) -> NDArray[np.int64]:
        return self._array("positions")

    def _code_arrays(self, dictionary: str) -> tuple[NDArray, NDArray, NDArray]:
        if dictionary not in self._codes:
            known = [*self.metadata["a"]["dictionaries"], *self.metadata["b"]["dictionaries"]]
            if dictionary not in known:
                raise UsageError(f"dictionary {dictionary!r} is not part of {self.id} ({nearest(dictionary, known)})")
            if not self.has_codes:
                raise MissingError(
                    f"{self.id} was made without codes. Make it again with them: `workbench compare` without"
                    " --no-codes."
                )
            self._codes[dictionary] = tuple(
                self._array(f"codes/{dictionary}/{part}") for part in ("indptr", "row", "value")
            )  # type: ignore[assignment]
        return self._codes[dictionary]

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as e:
            raise CorruptError(
                f"{self.folder}/{name}.npy cannot be read ({e}). Remove the folder and run: {self.manifest.command}"
            ) from e
