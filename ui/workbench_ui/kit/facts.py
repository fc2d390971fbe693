"""What other results know of a dictionary's latents, one value per latent: its twin in another model, when it is born
in training, how complex it is, and how interesting that makes it.

Everything is read once per data version and kept. A number that no result holds is absent, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from sae.errors import UserError
from workbench_ui.kit import data
from workbench_ui.kit.index import Dictionary, Entry
from workbench_ui.kit.matching import between_architectures, open_matches

ENOUGH = 50  # firings a latent must have before it is shown first: a rule that fits a few tokens fits them by chance
ENOUGH_STRONG = 25  # strong ones among the tokens on which its rule is scored
SAME = 0.5  # decoder cosine from which a crosscoder's latent is called the same direction


@dataclass(frozen=True)
class Twin:
    """The best partner of a latent in another model; ``chance`` is the 99 % of chance, where it was measured."""

    dictionary: Dictionary
    latent: int
    r: float
    chance: float | None
    mutual: bool
    matched: bool
    comparison: Entry


@dataclass(frozen=True)
class Birth:
    """The crosscoder latent whose last decoder direction is nearest, and the step at which it emerges (None: never)."""

    evolution: Entry
    latent: int
    cosine: float
    step: int | None
    norms: tuple[float, ...]  # decoder norm at every snapshot
    steps: tuple[int, ...]


def comparisons_of(d: Dictionary) -> list[tuple[Entry, str]]:
    """Comparisons that hold a dictionary, each with the direction (``ab`` or ``ba``) in which its latents are looked
    for.
    """
    found = []
    for e in data.index().of("matches"):
        for side, direction in (("a", "ab"), ("b", "ba")):
            if d.id in ((e.metadata.get(side) or {}).get("dictionaries") or ()):
                found.append((e, direction))
                break
    return found


def twin_of(d: Dictionary, latent: int) -> Twin | None:
    """The partner with the highest correlation over all comparisons with another architecture, or where there is none
    over all; None where no comparison knows one.
    """
    root, sources = _matches_key(d)
    best = _twins(root, sources, d.id)
    row = best.get(latent)
    if row is None:
        return None
    entry = data.index().find("matches", str(row["comparison"]))
    other = data.index().dictionaries.get(str(row["partner_dictionary"]))
    if entry is None or other is None:
        return None
    null = row["null_q99"]
    return Twin(
        other,
        int(row["partner"]),
        float(row["r"]),
        float(null) if null == null else None,
        bool(row["mutual"]),
        bool(row["matched"]),
        entry,
    )


def _matches_key(d: Dictionary) -> tuple[str, tuple[tuple[str, str, str], ...]]:
    found = comparisons_of(d)
    # a second seed or a fine-tuned model is nearer than any other architecture, and says less
    found = [(e, way) for e, way in found if between_architectures(e)] or found
    return str(data.workspace_folder()), tuple((e.id, e.version, way) for e, way in found)


_COLUMNS = ["latent", "r", "partner_dictionary", "partner", "null_q99", "mutual", "matched"]
_GIVEN = "token-conditional"  # the series of a comparison that says what is left of r once both know the token


@st.cache_resource(show_spinner=False, max_entries=24)
def _twin_table(root: str, sources: tuple[tuple[str, str, str], ...], dictionary: str) -> pd.DataFrame:
    """One row per latent with a partner, the best over all comparisons; index = latent."""
    parts = []
    for id, version, way in sources:
        entry = data.index().find("matches", id)
        if entry is None:
            continue
        try:
            found = open_matches(str(entry.path), version)
            best, base = found.best, found.table("baselines")
        except (UserError, OSError, ValueError, KeyError):
            continue  # the page of comparisons says what is wrong with it
        mine = best[(best["direction"] == way) & (best["dictionary"] == dictionary) & best["partner"].notna()]
        part = mine[[*_COLUMNS, "layer"]].assign(comparison=id)
        given = base[(base["direction"] == way) & (base["series"] == _GIVEN)]
        if len(given):
            own = given[["layer", "latent", "r"]].rename(columns={"r": "given"}).drop_duplicates(["layer", "latent"])
            part = part.merge(own, on=["layer", "latent"], how="left")
        parts.append(part)
    if not parts:
        return pd.DataFrame(columns=[*_COLUMNS, "comparison"])
    table = pd.concat(parts).sort_values("r", ascending=False, kind="stable")
    return table.drop_duplicates("latent").set_index("latent", drop=False)


@st.cache_resource(show_spinner=False, max_entries=24)
def _twins(root: str, sources: tuple[tuple[str, str, str], ...], dictionary: str) -> dict[int, dict[str, Any]]:
    return {int(x["latent"]): x for x in _twin_table(root, sources, dictionary).to_dict("records")}


def births(d: Dictionary) -> tuple[Entry, np.ndarray, np.ndarray, np.ndarray] | None:
    """An evolution of the same model and site with, per latent, the nearest crosscoder latent, its cosine, and the
    step at which that one emerges (NaN: at none); None where there is no such evolution or no weights.
    """
    if d.entry is None or d.revision != "final":
        return None
    for e in data.index().of("evolution"):
        cross = data.index().find("dictionaries", str(e.metadata.get("dictionary") or ""))
        if cross is None or e.metadata.get("model") != d.model or e.metadata.get("site") != d.site:
            continue
        try:
            found = _births(str(d.entry.path), d.entry.version, str(cross.path), str(e.path), e.version)
        except (UserError, OSError, ValueError, KeyError):
            continue  # the page of training says what is wrong with it
        if found is not None:
            return (e, *found)
    return None


def _directions(folder: str) -> np.ndarray:
    """Decoder rows of a saved dictionary: float32 [F, D]."""
    from safetensors import safe_open

    with safe_open(str(Path(folder) / "sae_weights.safetensors"), framework="numpy") as f:
        return np.asarray(f.get_tensor("W_dec"), dtype=np.float32)


@st.cache_resource(show_spinner="comparing with the crosscoder …", max_entries=6)
def _births(
    dictionary: str, version: str, crosscoder: str, evolution: str, evolved: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    from workbench_ui.views.evolving import open_evolution

    e = open_evolution(evolution, evolved)
    own, cross = _directions(dictionary), _directions(crosscoder)
    width = own.shape[1]
    if cross.shape[1] < width or len(e) != len(cross):
        return None
    last = cross[:, -width:]  # the last snapshot's decoder is the last block of the concatenation
    own = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-12)
    last = last / np.maximum(np.linalg.norm(last, axis=1, keepdims=True), 1e-12)
    nearest, cosine = np.empty(len(own), np.int32), np.empty(len(own), np.float32)
    for lo in range(0, len(own), 4096):
        c = own[lo : lo + 4096] @ last.T
        nearest[lo : lo + 4096], cosine[lo : lo + 4096] = c.argmax(1), c.max(1)
    step = e.table.set_index("latent")["emergence_0.5_step"].astype(float)
    return nearest, cosine, step.reindex(nearest).to_numpy()


def birth_of(d: Dictionary, latent: int) -> Birth | None:
    """When a latent appears in training, by the nearest crosscoder latent; None where nothing knows or none is near."""
    from workbench_ui.views.evolving import open_evolution

    found = births(d)
    if found is None or not 0 <= latent < len(found[1]):
        return None
    entry, nearest, cosine, step = found
    if cosine[latent] < SAME:
        return None
    e = open_evolution(str(entry.path), entry.version)
    norms = e.norms([int(nearest[latent])])
    return Birth(
        entry,
        int(nearest[latent]),
        float(cosine[latent]),
        int(step[latent]) if np.isfinite(step[latent]) else None,
        tuple(float(v) for v in norms[0]) if norms is not None else (),
        tuple(int(s) for s in e.steps),
    )


def columns(d: Dictionary) -> dict[str, np.ndarray]:
    """Per row of the records, float64: ``twin_r``, ``complexity``, ``born``, ``given`` and those of
    :data:`EVIDENCE` and ``score_<scorer>`` where some result holds them, and ``interest`` always.
    """
    scores = tuple((str(e.path), e.version) for e in data.index().of("scores") if e.metadata.get("dictionary") == d.id)
    trust = data.index().find("trust", d.id)
    trust_key = None if trust is None else (str(trust.path), trust.version)
    births_key = tuple((e.id, e.version) for e in data.index().of("evolution"))
    assert d.records is not None
    return _columns(str(d.records.path), d.key, _matches_key(d), births_key, trust_key, scores, d.id)


@st.cache_resource(show_spinner=False, max_entries=12)
def _columns(
    folder: str,
    key: str,
    matches: Any,
    evolutions: tuple[tuple[str, str], ...],
    trust: tuple[str, str] | None,
    scores: tuple[tuple[str, str], ...],
    id: str,
) -> dict[str, np.ndarray]:
    d = data.index().dictionaries[id]
    records = data.open_records(folder, key)
    latents = records.table["latent"].to_numpy()
    found: dict[str, np.ndarray] = {}
    root, sources = matches
    twins = _twin_table(root, sources, id)
    if len(twins):
        aligned = twins.reindex(latents)
        found["twin_r"] = aligned["r"].to_numpy(dtype=np.float64)
        if "given" in aligned:
            found["given"] = aligned["given"].to_numpy(dtype=np.float64)
    rules = _rules(id)
    if rules is not None:
        found |= {name: rules[name].reindex(latents).to_numpy(dtype=np.float64) for name in rules}
    born = births(d)
    if born is not None:
        near = born[2] >= SAME
        step = np.where(near, born[3], np.nan)
        found["born"] = pd.Series(step).reindex(latents).to_numpy(dtype=np.float64)
    found |= {} if trust is None else _evidence(trust[0], latents)
    found |= _scores([folder for folder, _ in scores], latents)
    made = data.synthetic_share(d, records)
    found["interest"] = _interest(records.table, found) - (0.0 if made is None else made)
    return found


EVIDENCE = {  # what a column is called here -> on the cards
    "support": "score",
    "seed_r": "seed_r",
    "model_seed_r": "model_seed_r",
    "untrained_r": "untrained_r",
    "effect": "effect",
    "agreement": "agreement",
    "absorbed_share": "absorbed_share",
    "label_hard_accuracy": "label_hard_accuracy",
    "stability": "stability",
}


def _evidence(folder: str, latents: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of the cards of evidence, per row of the records; those without any number are left out."""
    from workbench.results.trust import Trust

    try:
        cards = Trust.open(folder).cards.set_index("latent").reindex(latents)
    except (UserError, OSError, ValueError, KeyError):
        return {}  # the latent's page says what is wrong with them
    found = {name: cards[column].to_numpy(dtype=np.float64) for name, column in EVIDENCE.items()}
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _scores(folders: list[str], latents: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of labels per row of the records; of several explanations or judges the last one that scored a latent."""
    from workbench.results.scores import ScoreRecords

    found: dict[str, np.ndarray] = {}
    for folder in folders:
        try:
            table = ScoreRecords.open(folder).table
        except (UserError, OSError, ValueError, KeyError):
            continue  # the latent's page says what is wrong with them
        for name, part in table.groupby("scorer"):
            values = part.set_index("latent")["value"].reindex(latents).to_numpy(dtype=np.float64)
            before = found.get(f"score_{name}", np.full(len(latents), np.nan))
            found[f"score_{name}"] = np.where(np.isfinite(values), values, before)
    return {name: values for name, values in found.items() if np.isfinite(values).any()}


def _rules(id: str) -> pd.DataFrame | None:
    """By latent, of the rules' labels: ``complexity``, the share of its variance that the token and the one before
    leave unexplained, and ``n_strong``, strong firings on the tokens its rule is scored on.
    """
    for e in data.index().of("explanations"):
        if e.metadata.get("dictionary") == id and e.metadata.get("explainer") == "rules":
            try:
                table = pd.read_parquet(e.path / "labels.parquet").set_index("latent")
            except (OSError, ValueError, KeyError):
                return None
            return table[[c for c in ("complexity", "n_strong") if c in table]]
    return None


def _interest(table: pd.DataFrame, facts: dict[str, np.ndarray]) -> np.ndarray:
    """How worth looking at a latent is: well labelled, not explained by single tokens, found in another model too.

    Latents of special tokens and of massive rows come last, before them those that fire on fewer than ``ENOUGH``
    tokens of the records or whose rule is scored on fewer than ``ENOUGH_STRONG`` strong firings; what fires almost
    nowhere or everywhere loses something.
    (What fires most on text made by a program loses as much as its share of that.)
    """
    n = len(table)

    def number(values: np.ndarray | None) -> np.ndarray:
        return np.zeros(n) if values is None else np.nan_to_num(np.asarray(values, dtype=np.float64), nan=0.0)

    label = table["label"].notna().to_numpy() if "label" in table else np.zeros(n, bool)
    score = number(table["label_score"].to_numpy() if "label_score" in table else label.astype(float))
    value = np.where(label, 0.4 + score, 0.0) * (0.3 + number(facts.get("complexity")).clip(0, 1))
    value += 0.5 * number(facts.get("twin_r")).clip(0, 1)
    if "density" in table:
        density = number(table["density"].to_numpy())
        value -= np.where((density < 1e-4) | (density > 0.05), 0.5, 0.0)
    few = np.zeros(n, bool)
    if "n_fired" in table:
        few |= number(table["n_fired"].to_numpy()) < ENOUGH
    if "n_strong" in facts:
        few |= number(facts["n_strong"]) < ENOUGH_STRONG
    value -= np.where(few, 5.0, 0.0)
    return value - 10.0 * odd(table)


def odd(table: pd.DataFrame) -> np.ndarray:
    """Latents of special tokens (``<|bos|>``), of massive rows, and those that never fired: bool [L]."""
    out = np.zeros(len(table), bool)
    if "peak_text" in table:
        peak = table["peak_text"].fillna("").astype(str).str.strip()
        out |= peak.str.fullmatch(r"<\|?[A-Za-z_/|]+\|?>|\[[A-Z]+\]").to_numpy(dtype=bool)
    if "n_fired" in table:
        out |= (table["n_fired"] == 0).to_numpy()
    if "max" in table and len(table) > 20:
        top = np.nan_to_num(table["max"].to_numpy(dtype=np.float64), nan=0.0)
        ordinary = np.median(top[top > 0]) if (top > 0).any() else 0.0
        out |= top > 5 * ordinary if ordinary else False
    return out
