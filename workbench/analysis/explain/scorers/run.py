"""``workbench score`` as a function: every label of an explanation by every scorer, written once as
``scores/<explanation>.<judge>/``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import UsageError
from sae.files import write_bytes
from sae.strict import nearest
from workbench.analysis.explain.endpoint import Completer
from workbench.analysis.explain.language_model import Notebook
from workbench.analysis.explain.run import ANSWERS, encode_subject, growing_folder, inputs_of, parquet_bytes
from workbench.analysis.explain.scorers import measures
from workbench.analysis.explain.scorers.judges import Judge, ModelJudge, RuleJudge
from workbench.analysis.explain.scorers.measures import Score
from workbench.analysis.explain.scorers.samples import LEVELS, Exam, Sample, gather_exams
from workbench.analysis.explain.scorers.similarity import likeness
from workbench.dictionaries.reference import DictionaryRef
from workbench.provenance import write_manifest
from workbench.results.reuse import reusable
from workbench.results.scores import SCORERS
from workbench.run import Run
from workbench.stats import interval95, resample_weights
from workbench.workspace import Item, Workspace, check_id


def score_exam(exam: Exam, label: str, judge: Judge, scorers: Sequence[str]) -> list[dict[str, Any]]:
    """One row per scorer: the score, and how many excerpts had no readable answer (they are left out, as in delphi)."""
    asked: dict[str, Callable[[], tuple[Score, int]]] = {
        "detection": lambda: _answers(exam, label, judge, exam.detection()),
        "hard_detection": lambda: _answers(exam, label, judge, exam.hard_detection()),
        "fuzzing": lambda: _answers(exam, label, judge, exam.fuzzing()),
        "fuzzing_active": lambda: _answers(exam, label, judge, exam.fuzzing_active()),
        "similarity": lambda: _similarity(label, exam.detection()),
        "simulation": lambda: _simulation(exam, label, judge, exam.detection()),
    }
    rows = []
    for name in scorers:
        found, unread = asked[name]()
        who = "nobody" if name == "similarity" else judge.name
        rows.append({"latent": exam.latent, "scorer": name, "judge": who} | asdict(found) | {"unreadable": unread})
    return rows


def _answers(exam: Exam, label: str, judge: Judge, samples: list[Sample]) -> tuple[Score, int]:
    mixed = [samples[i] for i in np.random.default_rng([exam.seed, 5, exam.latent]).permutation(len(samples))]
    said = judge.fits(exam.latent, label, mixed)
    read = [(a, s.truth) for a, s in zip(said, mixed, strict=True) if a is not None]
    return measures.balanced_accuracy([a for a, _ in read], [t for _, t in read]), len(said) - len(read)


def _similarity(label: str, samples: list[Sample]) -> tuple[Score, int]:
    return measures.roc_area(likeness(label, [s.text for s in samples]), [s.truth for s in samples]), 0


def _simulation(exam: Exam, label: str, judge: Judge, samples: list[Sample]) -> tuple[Score, int]:
    found = [(judge.simulate(exam.latent, label, s), s) for s in samples]
    read = [(x, s) for x, s in found if x is not None]
    actual = [exam.levels(s) for _, s in read]
    score = measures.correlation([x for x, _ in read], actual, [s.truth for _, s in read], seed=exam.seed)
    return score, len(found) - len(read)


def score_explanations(
    workspace: Workspace,
    reference: DictionaryRef,
    explainer: str,
    completer: Completer | None,
    *,
    scorers: Sequence[str] = (),
    latents: Sequence[int] = (),
    sample: int = 100,
    examples: int = 20,
    seed: int = 0,
    run: Run,
) -> Item:
    """Score the labels of ``explanations/<dictionary>.<explainer>`` on the half of its text that they were not made
    from; a complete equal result is reused.

    Args:
        completer: who judges; None: the rule itself, for labels that are rules. scorers: of
            :data:`workbench.results.scores.SCORERS`; empty = all. latents: empty = a random ``sample`` of the labelled.

    Raises:
        MissingError: no such explanation. UsageError: an unknown scorer or latent, labels that are no rules and nobody
            to ask, or no label whose latent fires often enough.
    """
    scorers = list(scorers) or list(SCORERS)
    if wrong := [s for s in scorers if s not in SCORERS]:
        raise UsageError(f"scorer {wrong[0]!r} does not exist ({nearest(wrong[0], list(SCORERS))}).")
    source = workspace.get("explanations", f"{reference.id}.{explainer}")
    labels = pd.read_parquet(source.path / "labels.parquet")
    named = labels[labels["label"].notna()]
    if completer is None and "family" not in labels:
        raise UsageError(
            f"the labels of {source.id} are words, not rules: say with --llm which model judges them (with --endpoint,"
            " or one on this machine)."
        )
    if missing := sorted(set(latents) - set(named["latent"].tolist())):
        raise UsageError(f"latent {missing[0]} has no label in {source.id}.")
    about = source.manifest.recipe or {}
    text = {"n_tokens": about.get("n_tokens"), "corpus": about.get("corpus"), "ctx": about.get("ctx")}
    judged_by = "rule" if completer is None else completer.name
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", judged_by.rstrip("/").split("/")[-1]).strip(".-")[:40] or "judge"
    id = check_id(f"{source.id}.by-{short}")
    recipe = {
        "explainer": explainer,
        "judge": judged_by,
        "scorers": scorers,
        "latents": sorted(latents) or None,
        "sample": None if latents else sample,
        "examples": examples,
        "seed": seed,
    }
    inputs = [source.as_input(), *inputs_of(workspace, reference, text["corpus"])]
    if (old := reusable(workspace, "scores", id, recipe=recipe, inputs=inputs, run=run)) is not None:
        return old
    have = encode_subject(
        workspace, reference, n_tokens=text["n_tokens"], corpus=text["corpus"], ctx=text["ctx"] or 128, run=run
    )
    order = sorted(latents) or np.random.default_rng(seed).permutation(named["latent"].to_numpy()).tolist()
    exams: list[Exam] = []
    for one in order:  # the latents at random until the sample is full: those that fire seldom have no exam
        if latents or len(exams) < sample:
            exams += gather_exams(have.codes, have.vocab, [int(one)], examples=examples, seed=seed)
    if not exams:
        raise UsageError(
            f"no labelled latent of {source.id} fires {examples // 2} times on the half of the text that its label was"
            " not made from and is silent elsewhere; use fewer --examples, or labels of more text."
        )
    word = named.set_index("latent")["label"]
    folder = growing_folder(workspace, "scores", id)
    judge: Judge = (
        RuleJudge(have.codes, have.vocab, labels)
        if completer is None
        else ModelJudge(completer, Notebook(folder / ANSWERS))
    )
    rows = []
    for exam in run.each(exams, "scoring", unit="latent"):
        rows += score_exam(exam, str(word[exam.latent]), judge, scorers)
    table = pd.DataFrame(rows)
    means = summary(table, seed=seed)
    write_bytes(folder / "scores.parquet", parquet_bytes(table))
    write_bytes(folder / "summary.parquet", parquet_bytes(means))
    numbers = {"n_latents": len(exams), "unreadable": int(table["unreadable"].sum())}
    numbers |= {row["scorer"]: None if np.isnan(row["mean"]) else row["mean"] for row in means.to_dict("records")}
    write_manifest(
        folder,
        "scores",
        id,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=numbers,
        metadata={
            "dictionary": reference.id,
            "explanation": source.id,
            "explainer": str(source.manifest.metadata.get("explainer", explainer)),
            "judge": judge.name,
            "levels": LEVELS,
        },
    )
    if folder != workspace.path("scores", id):
        workspace.take_place("scores", id)
    return workspace.get("scores", id)


def summary(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """Per scorer the mean over latents with its 95 % bootstrap interval over latents; n counts those measured."""
    rows = []
    for name, part in table.groupby("scorer", sort=False):
        values = part["value"].dropna().to_numpy(np.float64)
        low, high = (np.nan, np.nan)
        if len(values) > 1:
            low, high = interval95(resample_weights(len(values), seed=seed) @ values / len(values))
        rows.append(
            {
                "scorer": name,
                "judge": part["judge"].iloc[0],
                "mean": values.mean() if len(values) else np.nan,
                "low": low,
                "high": high,
                "chance": part["chance"].iloc[0],
                "n": len(values),
                "excerpts": int(part["n_positive"].sum() + part["n_negative"].sum()),
                "unreadable": int(part["unreadable"].sum()),
            }
        )
    return pd.DataFrame(rows)
