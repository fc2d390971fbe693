"""A look at what a recipe's text becomes, corpus by corpus: documents, tokens, passes, special ids, lengths, copies,
roles, a few windows.

Nothing is written and no model runs; the tokens are those a harvest of the recipe would store. The page of a store
shows the same (:mod:`workbench.activations.read.look`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from workbench.corpus.config import CorpusConfig
from workbench.corpus.contract import TokenContract
from workbench.corpus.plan import HELDOUT_SHARE, TokenPlan, plan_tokens
from workbench.corpus.shown import shown_tokens

KINDS = {0: "text", 1: "repeated chunks and snippets", 2: "agreement sentences"}
SAID = (
    *("documents", "heldout_documents", "short_documents", "tokens_there", "tokens_per_document", "passes"),
    *("near_duplicates", "near_duplicates_left_out", "records", "roles"),
)
"""What a plan says of a corpus and a look repeats."""


def corpora_of(about: dict[str, Any]) -> list[dict[str, Any]]:
    """What a plan says of each of its corpora: of the parts of a mix, else of the one."""
    return list(about.get("parts") or [about])


def corpus_of_windows(corpora: list[dict[str, Any]], doc_ids: np.ndarray) -> np.ndarray | None:
    """The number of the corpus each window was cut from, by its document; None where an older plan does not say."""
    if len(corpora) == 1:
        return np.zeros(len(doc_ids), np.int64)
    firsts = [c.get("first_document") for c in corpora]
    if None in firsts:
        return None
    return np.searchsorted(np.asarray(firsts, np.int64), doc_ids, side="right") - 1


def corpus_title(about: dict[str, Any]) -> str:
    """What a corpus is called: its kind and what it reads."""
    config = about.get("config") or {}
    named = [*config.get("paths", ()), config.get("dataset", "")]
    return " ".join(filter(None, [str(config.get("kind", "")), ", ".join(filter(None, map(str, named)))])) or "given"


def said_of(about: dict[str, Any]) -> dict[str, Any]:
    """What a plan says of one corpus: :data:`SAID`, and of local text its split, and near-copies as 0 where there are
    none.
    """
    config = about.get("config") or {}
    whole = config.get("kind") != "hub" and config.get("packing") != "documents" and "tokens_there" in about
    local = whole and config.get("paths")
    counted: dict[str, Any] = {"near_duplicates": 0} if local else {}
    if local and "split" in config:
        counted["split"] = config["split"]
    return counted | {k: about[k] for k in SAID if k in about}


def drawn(of: np.ndarray | None, n_seq: int, shown: int, seed: int) -> np.ndarray:
    """Numbers of ``shown`` random windows of every corpus, ascending."""
    rng = np.random.default_rng(seed)
    groups = [np.arange(n_seq)] if of is None else [np.flatnonzero(of == c) for c in np.unique(of)]
    return np.sort(np.concatenate([rng.choice(g, min(shown, len(g)), replace=False) for g in groups]))


@dataclass(frozen=True)
class TextLook:
    """What :func:`look_at_text` found; every number is of the plan, not an estimate.

    ``numbers`` of the whole, with ``corpora`` one by one; ``windows``: number, corpus, kind, document, heldout, tokens,
    is_row.
    """

    contract: TokenContract
    plan: TokenPlan
    numbers: dict[str, Any]
    windows: list[dict[str, Any]]
    contract_lines: list[str]

    def as_json(self) -> dict[str, Any]:
        """As one document."""
        return {**self.numbers, "contract": self.contract.model_dump(mode="json"), "windows": self.windows}

    def lines(self) -> list[str]:
        """For people at a terminal."""
        n = self.numbers
        kinds = ", ".join(f"{k} {v:.1%}" for k, v in n["kinds"].items())
        out = [
            f"{n['documents']:,} documents, {n['windows_total']:,} windows of {n['ctx']} tokens"
            f" ({n['heldout_windows']:,} held out); {n['rows']:,} rows of {n['tokens']:,} tokens,"
            f" {n['excluded_share']:.2%} of the tokens are no data; {n['distinct_tokens']:,} different ids",
            f"windows by kind: {kinds}",
            *self.contract_lines,
        ]
        for c, corpus in enumerate(n["corpora"]):
            out += [*_corpus_lines(corpus), *self._window_lines(c)]
        return [*out, "(between ⟦ and ⟧: tokens that are no data)"] if self.windows else out

    def _window_lines(self, corpus: int) -> Iterator[str]:
        for w in self.windows:
            if w["corpus"] == corpus:
                side = ", held out" if w["heldout"] else ""
                yield f"  window {w['number']:,} ({w['kind']}, document {w['document']:,}{side}):"
                yield "    " + marked(w["tokens"], w["is_row"]).replace("\n", "⏎")


def _corpus_lines(c: dict[str, Any]) -> Iterator[str]:
    """One corpus, one fact a line."""
    yield f"{c['corpus']}: {c['windows']:,} windows, {c['excluded_share']:.2%} of their tokens are no data"
    if "documents" in c:
        only = f", {c['heldout_documents']:,} of them only held out" if "heldout_documents" in c else ""
        short = f", {c['short_documents']:,} shorter than a window left out" if c.get("short_documents") else ""
        yield f"  documents: {c['documents']:,}{only}{short}"
        if c.get("split") == "train":  # else somebody who counts files finds some missing
            yield '    (about 5 % of the documents are kept for split = "heldout"; split = "all" reads every one)'
    if "tokens_per_document" in c:
        low, middle, high = c["tokens_per_document"]
        yield (
            f"  tokens: {c['tokens_there']:,}; per document {low:,.0f} / {middle:,.0f} / {high:,.0f}"
            " (5 % / median / 95 %)"
        )
    if "passes" in c:
        yield f"  passes over the training text: {c['passes']}"
    if "near_duplicates_left_out" in c:
        yield f"  near-copies of an earlier document: {c['near_duplicates_left_out']:,}, left out"
    elif "near_duplicates" in c:
        yield f"  near-copies of an earlier document: {c['near_duplicates']:,} (dedupe = true leaves them out)"
    for kind, count in c.get("records", {}).items():
        yield f"  records: {kind}: {count:,}"
    if "roles" in c:
        yield "  messages by role: " + ", ".join(f"{role} {k:,}" for role, k in c["roles"].items())


def marked(tokens: list[str], is_row: list[bool]) -> str:
    """The tokens of a window as one line, those that are no data between brackets."""
    runs = groupby(zip(tokens, is_row, strict=True), key=lambda t: t[1])
    texts = [(row, "".join(t for t, _ in run)) for row, run in runs]
    return "".join(text if row else f"⟦{text}⟧" for row, text in texts)


def look_at_text(
    config: CorpusConfig,
    tokenizer: Any,
    *,
    n_seq: int,
    ctx: int,
    exclude: tuple[int, ...] = (0,),
    exclude_ids: tuple[int, ...] | None = None,
    longest: int | None = None,
    shown: int = 5,
    seed: int = 0,
) -> TextLook:
    """What a harvest of ``n_seq`` windows of ``ctx`` tokens would read.

    Args:
        exclude: positions without rows. exclude_ids: ids without rows; default: the contract's. longest: positions of
            the model. shown: random windows of every corpus to show.

    Raises:
        UsageError, CorruptError, MissingError: what the harvest itself would say.
    """
    heldout = n_seq // HELDOUT_SHARE
    plan = plan_tokens(config, tokenizer, n_seq=n_seq, ctx=ctx, heldout=heldout)
    assert plan.contract is not None
    changed: dict[str, Any] = {"excluded_positions": exclude, "longest": longest}
    if exclude_ids is not None:
        changed["excluded_ids"] = tuple(sorted(set(exclude_ids)))
    plan = replace(plan, contract=plan.contract.model_copy(update=changed))
    assert plan.contract is not None
    rows = plan.is_row()
    corpora = corpora_of(plan.about)
    of = corpus_of_windows(corpora, plan.doc_ids)
    assert of is not None
    numbers: dict[str, Any] = {
        "windows_total": n_seq,
        "heldout_windows": heldout,
        "ctx": ctx,
        "tokens": int(plan.tokens.size),
        "rows": int(rows.sum()),
        "excluded_share": float(1 - rows.mean()),
        "distinct_tokens": len(np.unique(plan.tokens)),
        "kinds": {KINDS[k]: float((plan.kinds == k).mean()) for k in KINDS if (plan.kinds == k).any()},
        **said_of(plan.about),
        "corpora": [
            {
                "corpus": corpus_title(about),
                "windows": int((of == c).sum()),
                "rows": int(rows[of == c].sum()),
                "excluded_share": float(1 - rows[of == c].mean()),
                **said_of(about),
            }
            for c, about in enumerate(corpora)
        ],
    }
    windows = [
        {
            "number": int(i),
            "corpus": int(of[i]),
            "kind": KINDS[int(plan.kinds[i])],
            "document": int(plan.doc_ids[i]),
            "heldout": bool(i >= n_seq - heldout),
            "tokens": shown_tokens(tokenizer, plan.tokens[i]),
            "is_row": rows[i].tolist(),
        }
        for i in drawn(of, n_seq, shown, seed)
    ]
    return TextLook(plan.contract, plan, numbers, windows, plan.contract.lines(tokenizer))
