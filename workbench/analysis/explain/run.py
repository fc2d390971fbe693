"""``workbench explain`` as a function: codes of the store's rows, labels by rule or by a language model, written once.

By rule: ``explanations/<dictionary>.rules/``. By a language model: ``explanations/<dictionary>.<model>/``, where
``answers.jsonl`` grows while it works and the manifest comes last, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sae.errors import UsageError
from sae.files import write_bytes
from workbench.analysis.explain.endpoint import Completer, Cost, EndpointConfig, estimate
from workbench.analysis.explain.language_model import Material, Notebook, gather, label_by_model, questions
from workbench.analysis.explain.prompts import MAX_TOKENS, VERSION
from workbench.analysis.explain.rules import label_by_rule
from workbench.analysis.latents.encoded import Codes, encode_store, store_rows
from workbench.analysis.latents.live import live_rows
from workbench.config import corpus_name
from workbench.corpus.documents import text_inputs
from workbench.corpus.shown import displayed_vocab
from workbench.dictionaries.reference import DictionaryRef
from workbench.models.weights import model_inputs
from workbench.provenance import Input, write_manifest
from workbench.results.reuse import reusable
from workbench.run import QUIET, Run
from workbench.workspace import Item, Workspace, check_id

ANSWERS = "answers.jsonl"  # every question to a language model, and its answer


@dataclass(frozen=True)
class Encoded:
    """Codes of a dictionary on its store with the displayed vocabulary."""

    codes: Codes
    vocab: list[str]


def encode_subject(
    workspace: Workspace,
    reference: DictionaryRef,
    *,
    n_tokens: int | None = 100_000,
    corpus: str | None = None,
    ctx: int = 128,
    run: Run = QUIET,
) -> Encoded:
    """Encode about ``n_tokens`` rows of the dictionary's store, or of text named by ``corpus``."""
    from workbench.models import load_model, load_tokenizer

    store: Any
    if corpus:
        model = load_model(reference.model_name, reference.revision)
        store, source = live_rows(model, str(reference.hook), corpus, n_tokens=n_tokens or 100_000, ctx=ctx), None
    else:
        store = reference.store(workspace)
        source = reference.source_in(store)
    rows = store_rows(store, n_tokens)
    codes = encode_store(reference.load(latents_only=True), store, reference.hook, source=source, rows=rows, run=run)
    tokenizer = load_tokenizer(reference.model_name)
    return Encoded(codes, displayed_vocab(tokenizer, max(len(tokenizer), int(codes.ids.max()) + 1)))


def explain_by_rule(
    workspace: Workspace,
    reference: DictionaryRef,
    *,
    n_tokens: int | None = 100_000,
    min_f1: float = 0.5,
    corpus: str | None = None,
    ctx: int = 128,
    run: Run = QUIET,
) -> Item:
    """Rule-based labels with complexity and monosemanticity proxies; complete equal ones are reused."""
    id = check_id(f"{reference.id}.rules")
    recipe: dict[str, Any] = {"n_tokens": n_tokens, "min_f1": min_f1}
    recipe |= {"corpus": corpus_name(corpus), "ctx": ctx} if corpus else {}
    inputs = inputs_of(workspace, reference, corpus)
    words = {"n_tokens": "tokens"}
    old = reusable(workspace, "explanations", id, recipe=recipe, inputs=inputs, run=run, words=words)
    if old is not None:
        return old
    from workbench.analysis.comparison.complexity import complexity_table

    have = encode_subject(workspace, reference, n_tokens=n_tokens, corpus=corpus, ctx=ctx)
    table = label_by_rule(have.codes, have.vocab, min_f1=min_f1)
    proxies = complexity_table(have.codes, len(have.vocab)).drop(columns=["n_fired"])
    table = table.merge(proxies, on="latent", validate="one_to_one")
    judged = table["f1"].notna()
    numbers = {
        "n_latents": len(table),
        "n_judged": int(judged.sum()),
        "n_labelled": int(table["label"].notna().sum()),
        "median_f1": float(table.loc[judged, "f1"].median()) if judged.any() else None,
        "n_tokens": have.codes.n_tokens,
    }
    about = {
        "dictionary": reference.id,
        "explainer": "rules",
        "score": "F1 on the half of the sequences the rule was not chosen on",
    }
    with workspace.create(
        "explanations",
        id,
        replace=True,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=numbers,
        metadata=about,
    ) as folder:
        table.to_parquet(folder / "labels.parquet", index=False)
    return workspace.get("explanations", id)


def explanation_id(reference: DictionaryRef, explainer: str) -> str:
    """Id of a language model's explanations of a dictionary."""
    short = re.sub(r"[^A-Za-z0-9._-]+", "-", explainer.rstrip("/").split("/")[-1]).strip(".-")[:40] or "model"
    return check_id(f"{reference.id}.{short if short != 'rules' else 'rules-model'}")


def choose_latents(codes: Codes, wanted: Sequence[int] | None, sample: int, seed: int) -> list[int]:
    """The latents asked for, or a random sample of those that fire at least 30 times.

    Raises:
        UsageError: a latent the dictionary does not have.
    """
    if wanted:
        if bad := [i for i in wanted if not 0 <= i < codes.n_latents]:
            raise UsageError(f"latent {bad[0]} is not in the dictionary, whose latents are 0–{codes.n_latents - 1}.")
        return sorted(set(wanted))
    alive = np.flatnonzero(codes.n_fired >= 30)
    return sorted(np.random.default_rng(seed).permutation(alive)[:sample].tolist())


def cost_of(materials: Sequence[Material], config: EndpointConfig, notebook: Notebook | None = None) -> Cost:
    """What the questions not yet answered would use at most."""
    todo = [
        (k, q)
        for m in materials
        for k, q in questions(m)
        if notebook is None or k == "detect" or not notebook.knows(config.model, k, q)
    ]
    return estimate([q for _, q in todo], [MAX_TOKENS[k] for k, _ in todo], config)


def explain_by_model(
    workspace: Workspace,
    reference: DictionaryRef,
    codes: Codes,
    materials: Sequence[Material],
    completer: Completer,
    *,
    recipe: dict[str, Any],
    corpus: str | None = None,
    seed: int = 0,
    run: Run = QUIET,
) -> Item:
    """Ask the language model about every latent and keep labels, scores, questions and answers; complete equal ones are
    reused.
    """
    id = explanation_id(reference, completer.name)
    inputs = inputs_of(workspace, reference, corpus)
    old = reusable(
        workspace,
        "explanations",
        id,
        recipe={**recipe, "prompts": VERSION},
        inputs=inputs,
        run=run,
        recorded=lambda m: {**m.recipe, "prompts": m.metadata.get("prompt_version")},
        before={k: recipe.get(k) for k in ("ctx", "endpoint")},
        words={"n_tokens": "tokens"},
    )
    if old is not None:
        return old
    folder = growing_folder(workspace, "explanations", id)
    notebook = Notebook(folder / ANSWERS)
    table = label_by_model(materials, completer, notebook, seed=seed, run=run)
    write_bytes(folder / "labels.parquet", parquet_bytes(table))
    scored = table["label_score"].dropna()
    numbers = {
        "n_latents": len(table),
        "n_labelled": int(table["label"].notna().sum()),
        "n_refused": int(table["refused"].notna().sum()),
        "n_unreadable": int(table["unreadable"].notna().sum()),
        "n_scored": len(scored),
        "mean_score": float(scored.mean()) if len(scored) else None,
        "n_tokens": codes.n_tokens,
    }
    about = {
        "dictionary": reference.id,
        "explainer": completer.name,
        "prompt_version": VERSION,
        "score": "balanced accuracy of detection on held-out excerpts, true zeros as negatives (0.5 = chance)",
    }
    write_manifest(
        folder,
        "explanations",
        id,
        command=run.command,
        recipe=recipe,
        inputs=inputs,
        numbers=numbers,
        metadata=about,
    )
    if folder != workspace.path("explanations", id):
        workspace.take_place("explanations", id)
    return workspace.get("explanations", id)


def growing_folder(workspace: Workspace, kind: str, id: str) -> Path:
    """The folder of a result whose answers are kept as they come, so that an interrupted run goes on: its manifest is
    written last. A complete one stays until the new one is whole (:meth:`Workspace.take_place`); its answers stay
    useful.
    """
    folder = workspace.path(kind, id)
    if workspace.complete(kind, id):
        before, folder = folder, workspace.next_path(kind, id)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / ANSWERS).exists() and (before / ANSWERS).exists():
            shutil.copyfile(before / ANSWERS, folder / ANSWERS)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def materials_of(have: Encoded, latents: Sequence[int], *, seed: int = 0) -> list[Material]:
    """Excerpts for the latents that have enough firings."""
    return gather(have.codes, have.vocab, latents, seed=seed)


def inputs_of(workspace: Workspace, reference: DictionaryRef, corpus: str | None) -> list[Input]:
    """What labels are made from: the dictionary with its store, or with the model that is run on a text."""
    if corpus:
        return [reference.input, *model_inputs([(reference.model_name, reference.revision)]), *text_inputs(corpus)]
    return [reference.input, *reference.store_inputs(workspace)]


def parquet_bytes(table: pd.DataFrame) -> bytes:
    """A table as a Parquet file."""
    import io

    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()
