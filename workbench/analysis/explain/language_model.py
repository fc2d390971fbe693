"""Labels and scores by a language model: explained on one half of the sequences, scored by detection on the other.

Every question and answer is appended to ``answers.jsonl`` and flushed before the next is asked, keyed by what was
asked, so an interrupted run asks nothing twice. Negatives of the detection task are true zeros: windows on no token of
which the latent fires.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.files import sha256_json
from workbench.analysis.explain import prompts as ask
from workbench.analysis.explain.endpoint import Answer, Completer, Messages
from workbench.analysis.explain.labels import NotALabel, check_label
from workbench.analysis.latents.encoded import Codes
from workbench.results.characters import whole_characters
from workbench.run import QUIET, Run


@dataclass(frozen=True)
class Material:
    """Excerpts of one latent: ``shown`` from the half it is explained on; ``positives`` and ``zeros``
    from the other.
    """

    latent: int
    shown: list[ask.Excerpt]
    positives: list[ask.Excerpt]
    zeros: list[ask.Excerpt]


class Notebook:
    """Questions asked and answers given, one JSON line each; a torn last line is ignored."""

    def __init__(self, path: Path):
        self.path = path
        self._known: dict[str, dict[str, Any]] = {}
        if path.is_file():
            whole = path.read_bytes()
            end = whole.rfind(b"\n") + 1
            for line in whole[:end].splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry
            if end < len(whole):
                with open(path, "r+b") as f:
                    f.truncate(end)

    def __len__(self) -> int:
        return len(self._known)

    def key(self, model: str, kind: str, messages: Messages) -> str:
        """What identifies a question: model, prompt version, kind and every word."""
        return sha256_json([model, ask.VERSION, kind, messages])

    def knows(self, model: str, kind: str, messages: Messages) -> bool:
        """Whether the question has been answered."""
        return self.key(model, kind, messages) in self._known

    def ask(
        self,
        completer: Completer,
        kind: str,
        latent: int,
        messages: Messages,
        how: Callable[[], Answer] | None = None,
    ) -> str:
        """The stored answer, or a new one (by ``how``, where it is not a completion), stored and flushed to disk."""
        key = self.key(completer.name, kind, messages)
        if key not in self._known:
            answer = how() if how else completer.complete(messages, max_tokens=ask.MAX_TOKENS[kind])
            entry = {
                "key": key,
                "kind": kind,
                "latent": latent,
                "prompt_version": ask.VERSION,
                "model": answer.model,
                "messages": messages,
                "answer": answer.text,
                "tokens_in": answer.tokens_in,
                "tokens_out": answer.tokens_out,
            }
            with open(self.path, "ab") as f:
                f.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
                f.flush()
                os.fsync(f.fileno())
            self._known[key] = entry
        return str(self._known[key]["answer"])


def gather(
    codes: Codes,
    vocab: list[str],
    latents: Sequence[int],
    *,
    shown: int = 12,
    held_out: int = 10,
    window: int = 32,
    seed: int = 0,
) -> list[Material]:
    """Excerpts for each latent; latents with too few firings in either half are left out.

    Args:
        shown: excerpts to explain from, half strongest, half random firings. held_out: positives, and as many zeros.
    """
    half = np.unique(codes.seq, return_inverse=True)[1] % 2
    found = []
    for latent in latents:
        rng = np.random.default_rng([seed, latent])
        rows, values = codes.of(latent)
        fit, test = half[rows] == 0, half[rows] == 1
        if fit.sum() < 4 or test.sum() < held_out // 2:
            continue
        active = np.zeros(codes.n_tokens, np.float32)
        active[rows] = values
        strongest = rows[fit][np.argsort(-values[fit], kind="stable")[: shown // 2]]
        others = rng.permutation(np.setdiff1d(rows[fit], strongest))[: shown - len(strongest)]
        top = float(values.max())
        spread = np.sort(
            rows[test][np.argsort(values[test], kind="stable")][
                np.linspace(0, test.sum() - 1, min(held_out, int(test.sum()))).astype(int)
            ]
        )
        zeros = zero_rows(codes, active, half == 1, len(np.unique(spread)), window, rng)
        cut = [
            [_excerpt(codes, active, vocab, int(r), window, top) for r in group]
            for group in ([*strongest, *others], np.unique(spread), zeros)
        ]
        found.append(Material(int(latent), *cut))
    return found


def span(codes: Codes, row: int, window: int) -> slice:
    """Rows of the window around a row, inside its sequence: two thirds before, one third after."""
    low, high = max(0, row - 2 * window // 3), min(codes.n_tokens, row + window // 3 + 1)
    inside = np.flatnonzero(codes.seq[low:high] == codes.seq[row])
    return slice(low + int(inside[0]), low + int(inside[-1]) + 1)


def _excerpt(codes: Codes, active: np.ndarray, vocab: list[str], row: int, window: int, top: float) -> ask.Excerpt:
    s = span(codes, row, window)
    levels = np.where(active[s] > 0, np.maximum(1, np.ceil(10 * active[s] / top)), 0).astype(int)
    return ask.Excerpt(
        tuple(whole_characters([vocab[t] for t in codes.ids[s].tolist()])),
        tuple(np.minimum(levels, 10).tolist()),
        float(active[row]),
    )


def zero_rows(
    codes: Codes, active: np.ndarray, allowed: np.ndarray, n: int, window: int, rng: np.random.Generator
) -> list[int]:
    """Rows whose whole window is without a firing; fewer where a dense latent leaves fewer."""
    found: list[int] = []
    for row in rng.permutation(np.flatnonzero(allowed & (active == 0)))[: 50 * n].tolist():
        if not active[span(codes, row, window)].any():
            found.append(row)
            if len(found) == n:
                break
    return found


def questions(material: Material) -> list[tuple[str, Messages]]:
    """The questions that do not depend on an answer, for the estimate: explanation and ratings, and detection with a
    label of full length.
    """
    longest = " ".join(["internationalisation"] * 25)
    return [
        ("explain", ask.explain_prompt(material.shown)),
        ("rate", ask.rate_prompt(material.shown)),
        ("detect", ask.detect_prompt(longest, material.positives + material.zeros)),
    ]


def label_by_model(
    materials: Sequence[Material],
    completer: Completer,
    notebook: Notebook,
    *,
    seed: int = 0,
    run: Run = QUIET,
) -> pd.DataFrame:
    """One row per latent: label with its detection score, ratings, and why a label was refused.

    ``label_score`` is balanced accuracy on the held-out half (0.5 = chance); ``n_positive`` and ``n_zero`` say on how
    many excerpts. A refused label (``refused`` says why) stays null, and is not scored.
    """
    rows = []
    for m in run.each(materials, "asking", unit="latent"):
        row: dict[str, Any] = {
            "latent": m.latent,
            "label": None,
            "refused": None,
            "explainer": completer.name,
            "prompt_version": ask.VERSION,
        }
        try:
            row["label"] = check_label(notebook.ask(completer, "explain", m.latent, ask.explain_prompt(m.shown)))
        except NotALabel as e:
            row["refused"] = str(e)
        try:
            row["monosemanticity"], row["complexity"] = ask.read_ratings(
                notebook.ask(completer, "rate", m.latent, ask.rate_prompt(m.shown))
            )
        except ask.UnreadableAnswer as e:
            row["unreadable"] = str(e)
        if row["label"] is not None and m.zeros:
            row |= _detection(m, str(row["label"]), completer, notebook, seed)
        rows.append(row)
    columns = ["latent", "label", "label_score", "detection_precision", "detection_recall", "n_positive", "n_zero"]
    columns += ["monosemanticity", "complexity", "refused", "unreadable", "explainer", "prompt_version"]
    table = pd.DataFrame(rows).reindex(columns=columns)
    numbers = [
        "label_score",
        "detection_precision",
        "detection_recall",
        "n_positive",
        "n_zero",
        "monosemanticity",
        "complexity",
    ]
    texts = ["label", "refused", "unreadable", "explainer", "prompt_version"]
    return table.astype({"latent": "int32"} | dict.fromkeys(numbers, "float64") | dict.fromkeys(texts, "string"))


def _detection(m: Material, label: str, completer: Completer, notebook: Notebook, seed: int) -> dict[str, Any]:
    excerpts = [(e, True) for e in m.positives] + [(e, False) for e in m.zeros]
    order = np.random.default_rng([seed, 1, m.latent]).permutation(len(excerpts))
    mixed = [excerpts[i] for i in order]
    try:
        named = ask.read_detection(
            notebook.ask(completer, "detect", m.latent, ask.detect_prompt(label, [e for e, _ in mixed])), len(mixed)
        )
    except ask.UnreadableAnswer as e:
        return {"unreadable": str(e)}
    truth = np.array([t for _, t in mixed])
    said = np.isin(np.arange(len(mixed)), list(named))
    hit = float((said & truth).sum())
    recall, specificity = hit / truth.sum(), float((~said & ~truth).sum()) / (~truth).sum()
    return {
        "label_score": (recall + specificity) / 2,
        "detection_precision": hit / said.sum() if said.any() else np.nan,
        "detection_recall": recall,
        "n_positive": int(truth.sum()),
        "n_zero": int((~truth).sum()),
    }
