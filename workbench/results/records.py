"""Reading latent records: what a browser page, a notebook or an export needs about every latent of a dictionary.

A records folder (``latents/<dictionary id>/``, made by ``workbench features``) is columnar: one row per latent in
``latents.parquet`` and memory-mapped arrays for everything that is larger. Opening reads the manifest and the table;
one latent's contexts then cost tens of microseconds. Neither torch nor h5py is needed. A part that was not computed is
absent, and its method returns ``None``: never a zero.

Axis letters: L latents, G groups, K slots per group, C context windows, T tokens of a window.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import read_json
from sae.strict import nearest
from workbench.provenance import MANIFEST, Manifest, read_manifest
from workbench.results.characters import joined, whole_characters
from workbench.results.result import Result

GROUPS = ("top", "q1", "q2", "q3", "q4", "random", "near_miss")
HIST_BINS = 64
N_LOGITS = 20
N_NEIGHBOURS = 20

# file -> (dtype, shape with letters; a letter must mean the same length everywhere)
ARRAYS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "contexts_tok": ("int32", ("C", "T")),
    "contexts_seq": ("int32", ("C", 2)),
    "group_ctx": ("int32", ("L", "G", "K", 2)),
    "group_n": ("int64", ("L", "G")),
    "act_indptr": ("int64", ("P",)),
    "act_pos": ("uint16", ("N",)),
    "act_val": ("float32", ("N",)),
    "top_copies": ("int32", ("L", "K")),
    "hist": ("uint32", ("L", HIST_BINS)),
    "edges": ("float32", (HIST_BINS + 1,)),
    "logits_id": ("int32", ("L", 2, N_LOGITS)),
    "logits_val": ("float32", ("L", 2, N_LOGITS)),
    "nbr_cos_id": ("int32", ("L", N_NEIGHBOURS)),
    "nbr_cos_val": ("float32", ("L", N_NEIGHBOURS)),
}
OPTIONAL = frozenset({"top_copies", "logits_id", "logits_val", "nbr_cos_id", "nbr_cos_val"})


@dataclass(frozen=True)
class Context:
    """One window of text around a token, with the latent's activation on every token of it."""

    tokens: list[str]
    acts: list[float]
    peak: int  # index into tokens: the token this context was chosen for
    seq: int  # sequence of the store
    start: int  # position in the sequence of tokens[0]
    value: float  # activation at the peak (0 for near misses)
    ids: list[int] = field(default_factory=list)
    copies: int = 1  # sequences with this very text around the peak, of which this is the strongest


@dataclass(frozen=True)
class Histogram:
    """Counts of positive activations on the dictionary's log grid; the first bin also holds what lies below it."""

    counts: np.ndarray  # [64]
    edges: np.ndarray  # [65]
    n: int  # tokens on which the latent fired
    n_tokens: int


@dataclass(frozen=True)
class LogitEffects:
    """Direct logit effects as (token id, displayed token, logit per unit of activation), strongest first."""

    promoted: list[tuple[int, str, float]]
    suppressed: list[tuple[int, str, float]]
    note: str  # how the final norm was handled
    layers_after: int | None = None  # layers between the latent and the unembedding; None where nothing says


class LatentRecords(Result):
    """Records of one dictionary; open with :meth:`open`. Latents are addressed by id, never by table position.

    ``metadata``: dictionary, model, revision, hook, site, n_tokens, ctx, groups, vocab, …
    """

    kind, noun, verb = "latents", "latent records", "features DICTIONARY"

    def __init__(self, folder: Path, manifest: Manifest, table: pd.DataFrame, arrays: dict[str, np.ndarray]):
        super().__init__(folder, manifest)
        self.table, self._arrays = table, arrays
        self.groups: list[str] = list(manifest.metadata["groups"])
        self.n_tokens = int(manifest.metadata["n_tokens"])
        self._position = {int(latent): i for i, latent in enumerate(table["latent"].to_numpy())}

    @classmethod
    def open(cls, folder: str | Path, *, verify: bool = False) -> LatentRecords:
        """Open a records folder. Shapes and dtypes are always checked; with ``verify`` the digests of all files too.

        Raises:
            MissingError: the folder or a required file is not there.
            CorruptError: a file contradicts the manifest or the other files.
        """
        folder = Path(folder)
        manifest = cls.read_manifest(folder, verify=verify)
        arrays = _open_arrays(folder)
        table = pd.read_parquet(folder / "latents.parquet") if (folder / "latents.parquet").is_file() else None
        if table is None or len(table) != len(arrays["group_n"]):
            raise CorruptError(
                f"{folder}/latents.parquet is missing or does not have one row per latent. Run `workbench features"
                f" {folder.name}` again."
            )
        return cls(folder, manifest, _with_labels(table, folder), arrays)

    @cached_property
    def vocab(self) -> list[str]:
        """Displayed token strings, index = token id."""
        return read_json(self.folder / str(self.metadata.get("vocab", "vocab.json")))

    def __len__(self) -> int:
        return len(self.table)

    def position(self, latent: int) -> int:
        """Row of a latent id in table and arrays.

        Raises:
            UsageError: the dictionary has no such latent.
        """
        try:
            return self._position[int(latent)]
        except (KeyError, ValueError) as e:
            raise UsageError(
                f"latent {latent!r} is not in {self.id} (latents"
                f" {self.table['latent'].min()}–{self.table['latent'].max()})."
            ) from e

    def row(self, latent: int) -> dict[str, Any]:
        """The latent's table row as plain values; what was not computed is absent."""
        values = self.table.iloc[self.position(latent)].to_dict()
        return {
            k: v.item() if isinstance(v, np.generic) else v
            for k, v in values.items()
            if not (v is None or v is pd.NA or (isinstance(v, float) and np.isnan(v)))
        }

    def available(self, latent: int, group: str) -> int:
        """How many members the group has in the data, of which at most K are stored."""
        return int(self._arrays["group_n"][self.position(latent), self._group(group)])

    def contexts(self, latent: int, group: str = "top", n: int | None = None) -> list[Context]:
        """Up to ``n`` stored contexts of a group, in the group's order."""
        i, g = self.position(latent), self._group(group)
        slots = self._arrays["group_ctx"][i, g]
        k = len(slots)
        first = (i * len(self.groups) + g) * k
        found = []
        for slot in range(k if n is None else min(n, k)):
            window, peak = int(slots[slot, 0]), int(slots[slot, 1])
            if window >= 0:
                copies = (
                    int(self._arrays["top_copies"][i, slot]) if group == "top" and "top_copies" in self._arrays else 1
                )
                found.append(replace(self._context(window, peak, first + slot), copies=copies))
        return found

    def snippets(self, n: int, before: int, after: int, group: str = "top") -> list[str]:
        """Of every latent, in the table's order, the text around the peaks of its first ``n`` contexts of a group:
        tokens joined without a seam, contexts set apart by U+001F. For searching; 100,000 latents take seconds.
        """
        slots = np.asarray(self._arrays["group_ctx"][:, self._group(group), :n])  # [L, n, 2]
        tokens = self._arrays["contexts_tok"]
        words = np.array([*self.vocab, "", "\x1f"], dtype=object)
        end, seam = len(words) - 2, len(words) - 1
        out: list[str] = []
        for lo in range(0, len(slots), 8192):  # in pieces, so that the whole never lies in memory as objects
            part = slots[lo : lo + 8192]
            window, at = part[..., 0], part[..., 1, None] + np.arange(-before, after + 1)
            inside = (at >= 0) & (at < tokens.shape[1]) & (window >= 0)[..., None]
            ids = tokens[window.clip(0)[..., None], at.clip(0, tokens.shape[1] - 1)]
            ids = np.where(inside & (ids >= 0) & (ids < end), ids, end)
            ids = np.concatenate([ids, np.full((*ids.shape[:2], 1), seam)], axis=-1)
            out += [joined(row) for row in words[ids.reshape(len(part), -1)].tolist()]
        return out

    def sequences(self, n: int, group: str = "top") -> np.ndarray:
        """The store's sequences that the first ``n`` contexts of a group come from: int64 [L, n], -1 where there is
        none.
        """
        window = np.asarray(self._arrays["group_ctx"][:, self._group(group), :n, 0])
        found = np.asarray(self._arrays["contexts_seq"][:, 0])[window.clip(0)]
        return np.where(window >= 0, found, -1).astype(np.int64)

    def _context(self, window: int, peak: int, pointer: int) -> Context:
        a, b = self._arrays["act_indptr"][pointer : pointer + 2]
        ids = np.asarray(self._arrays["contexts_tok"][window])
        acts = np.zeros(len(ids), dtype=np.float32)
        acts[self._arrays["act_pos"][a:b]] = self._arrays["act_val"][a:b]
        keep = np.flatnonzero(ids >= 0)
        seq, start = (int(v) for v in self._arrays["contexts_seq"][window])
        shown = ids[keep]
        return Context(
            tokens=whole_characters([self.vocab[t] if t < len(self.vocab) else f"⟨{t}⟩" for t in shown.tolist()]),
            acts=acts[keep].tolist(),
            peak=int(np.searchsorted(keep, peak)),
            seq=seq,
            start=start + int(keep[0]) if len(keep) else start,
            value=float(acts[peak]),
            ids=shown.tolist(),
        )

    def histogram(self, latent: int) -> Histogram:
        """Histogram of the latent's positive activations."""
        counts = np.asarray(self._arrays["hist"][self.position(latent)])
        return Histogram(counts, np.asarray(self._arrays["edges"]), int(counts.sum()), self.n_tokens)

    def logits(self, latent: int) -> LogitEffects | None:
        """Tokens whose logits the latent's decoder direction raises and lowers most; None where not computed."""
        if "logits_id" not in self._arrays:
            return None
        i = self.position(latent)
        ids, values = self._arrays["logits_id"][i], self._arrays["logits_val"][i]
        sides = [
            [(t, self.vocab[t], v) for t, v in zip(ids[s].tolist(), values[s].tolist(), strict=True) if t >= 0]
            for s in (0, 1)
        ]
        note = str(self.metadata.get("logits", {}).get("note", ""))
        return LogitEffects(sides[0], sides[1], note, self._layers_after())

    def _layers_after(self) -> int | None:
        """Layers of the model above the one that the latents are of."""
        layer = re.match(r"L(\d+)", str(self.metadata.get("site") or ""))
        layers = self.metadata.get("model_layers")
        return layers - 1 - int(layer[1]) if layer and isinstance(layers, int) else None

    def neighbours(self, latent: int) -> list[tuple[int, float]] | None:
        """(latent id, decoder cosine) of the nearest latents of the same dictionary; None where not computed."""
        if "nbr_cos_id" not in self._arrays:
            return None
        i = self.position(latent)
        return [
            (int(j), float(c))
            for j, c in zip(self._arrays["nbr_cos_id"][i], self._arrays["nbr_cos_val"][i], strict=True)
            if j >= 0
        ]

    def _group(self, group: str) -> int:
        if group not in self.groups:
            raise UsageError(f"{group!r} is not a group of contexts ({nearest(group, self.groups)})")
        return self.groups.index(group)


def explanation_folders(folder: Path) -> list[Path]:
    """Complete explanations of the same dictionary in the same workspace: rules first, then language models by name."""
    found = [
        p for p in sorted((folder.parent.parent / "explanations").glob(f"{folder.name}.*")) if (p / MANIFEST).is_file()
    ]
    of_this = [p for p in found if read_manifest(p).metadata.get("dictionary") == folder.name]
    return sorted(of_this, key=lambda p: (read_manifest(p).metadata.get("explainer") != "rules", p.name))


def _with_labels(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The table with label, label_score and label_source, joined on the latent id; later explanations win where they
    have a label.
    """
    for source in explanation_folders(folder):
        labels = pd.read_parquet(source / "labels.parquet", columns=["latent", "label", "label_score"]).dropna(
            subset=["label"]
        )
        labels = labels.assign(label_source=read_manifest(source).metadata["explainer"]).set_index("latent")
        new = labels.reindex(table["latent"]).reset_index(drop=True)
        for column in ("label", "label_score", "label_source"):
            if column not in table:
                table[column] = new[column]
            else:
                table[column] = table[column].where(new["label"].isna(), new[column])
    return table


def _open_arrays(folder: Path) -> dict[str, np.ndarray]:
    """Map every array and check dtypes and shapes against each other."""
    arrays: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for name, (dtype, shape) in ARRAYS.items():
        path = folder / f"{name}.npy"
        if not path.is_file():
            if name in OPTIONAL:
                continue
            raise MissingError(
                f"{path} is missing. Remove {folder.name} and run `workbench features {folder.name}` again."
            )
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as e:
            raise CorruptError(
                f"{path} is not a numpy array ({e}). Remove {folder.name} and run `workbench features {folder.name}`"
                " again."
            ) from e
        want = tuple(
            sizes.setdefault(s, n) if isinstance(s, str) else s for s, n in zip(shape, array.shape, strict=False)
        )
        if array.dtype != np.dtype(dtype) or array.ndim != len(shape) or array.shape != want:
            raise CorruptError(
                f"{path} is {array.dtype}{list(array.shape)}, expected"
                f" {dtype}{list(want) if array.ndim == len(shape) else list(shape)}. Remove {folder.name} and run"
                f" `workbench features {folder.name}` again."
            )
        arrays[name] = np.asarray(array)  # the same mapped pages; numpy's memmap class makes every slice slow
    if sizes["P"] != sizes["L"] * sizes["G"] * sizes["K"] + 1 or int(arrays["act_indptr"][-1]) != sizes["N"]:
        raise CorruptError(
            f"{folder}: act_indptr.npy does not fit the other files. Run `workbench features {folder.name}` again."
        )
    return arrays
