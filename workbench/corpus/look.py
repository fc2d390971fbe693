"""A look at what a recipe's text becomes: documents, tokens, passes, special ids, lengths, copies, a few windows.

Nothing is written and no model runs; the tokens are those a harvest of the recipe would store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from workbench.corpus.config import CorpusConfig
from workbench.corpus.contract import TokenContract
from workbench.corpus.plan import HELDOUT_SHARE, TokenPlan, plan_tokens
from workbench.corpus.shown import shown_tokens
from workbench.corpus.stream import text_stream

QUANTILES = (0.05, 0.5, 0.95)
KINDS = {0: "text", 1: "repeated chunks and snippets", 2: "agreement sentences"}


@dataclass(frozen=True)
class TextLook:
    """What :func:`look_at_text` found; every number is of the plan, not an estimate."""

    contract: TokenContract
    plan: TokenPlan
    numbers: dict[str, Any]
    windows: list[dict[str, Any]]  # number, kind, document, heldout, tokens, is_row
    contract_lines: list[str]

    def as_json(self) -> dict[str, Any]:
        """As one document."""
        return {**self.numbers, "contract": self.contract.model_dump(mode="json"), "windows": self.windows}

    def lines(self) -> list[str]:
        """For people at a terminal."""
        n = self.numbers
        out = [
            f"{n['documents']:,} documents, {n['windows_total']:,} windows of {n['ctx']} tokens"
            f" ({n['heldout_windows']:,} held out); {n['rows']:,} rows,"
            f" {n['excluded_share']:.2%} of the tokens are no data",
            "windows by kind: " + ", ".join(f"{k} {v:.1%}" for k, v in n["kinds"].items()),
        ]
        if n.get("passes"):
            out.append(f"passes over the training text: {n['passes']}")
        if n.get("tokens_per_document"):
            low, middle, high = n["tokens_per_document"]
            out.append(f"tokens per document: {low:,.0f} / {middle:,.0f} / {high:,.0f} (5 % / median / 95 %)")
        if n.get("near_duplicates") is not None:
            out.append(f"near-copies of an earlier document: {n['near_duplicates']:,} (dedupe = true leaves them out)")
        out += [f"records: {k}: {v:,}" for k, v in n.get("records", {}).items()]
        if n.get("roles"):
            out.append("messages by role: " + ", ".join(f"{role} {k:,}" for role, k in n["roles"].items()))
        out += self.contract_lines
        for w in self.windows:
            side = ", held out" if w["heldout"] else ""
            out.append(f"window {w['number']:,} ({w['kind']}, document {w['document']:,}{side}):")
            out.append("  " + marked(w["tokens"], w["is_row"]).replace("\n", "⏎"))
        if self.windows:
            out.append("(between ⟦ and ⟧: tokens that are no data)")
        return out


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
    longest: int | None = None,
    shown: int = 5,
    seed: int = 0,
) -> TextLook:
    """What a harvest of ``n_seq`` windows of ``ctx`` tokens would read.

    Args:
        exclude: positions without rows. longest: positions of the model. shown: random windows to show.

    Raises:
        UsageError, CorruptError, MissingError: what the harvest itself would say.
    """
    heldout = n_seq // HELDOUT_SHARE
    plan = plan_tokens(config, tokenizer, n_seq=n_seq, ctx=ctx, heldout=heldout)
    assert plan.contract is not None
    contract = plan.contract.model_copy(update={"excluded_positions": exclude, "longest": longest})
    plan = replace(plan, contract=contract)
    rows = plan.is_row()
    about = plan.about
    numbers: dict[str, Any] = {
        "documents": about["documents"],
        "windows_total": n_seq,
        "heldout_windows": heldout,
        "ctx": ctx,
        "tokens": int(plan.tokens.size),
        "rows": int(rows.sum()),
        "excluded_share": float(1 - rows.mean()),
        "distinct_tokens": len(np.unique(plan.tokens)),
        "kinds": {KINDS[k]: float((plan.kinds == k).mean()) for k in KINDS if (plan.kinds == k).any()},
        **{
            k: about[k]
            for k in ("passes", "heldout_documents", "records", "roles", "short_documents", "parts")
            if k in about
        },
    }
    if not config.streamed and config.kind != "mix":
        stream = text_stream(config, tokenizer)
        sizes = np.diff(np.append(stream.starts, len(stream.tokens)))
        numbers["tokens_there"] = len(stream.tokens)
        numbers["tokens_per_document"] = [float(q) for q in np.quantile(sizes, QUANTILES)]
        if config.paths:
            numbers["near_duplicates"] = stream.copies
    chosen = np.sort(np.random.default_rng(seed).choice(n_seq, min(shown, n_seq), replace=False))
    windows = [
        {
            "number": int(i),
            "kind": KINDS[int(plan.kinds[i])],
            "document": int(plan.doc_ids[i]),
            "heldout": bool(i >= n_seq - heldout),
            "tokens": shown_tokens(tokenizer, plan.tokens[i]),
            "is_row": rows[i].tolist(),
        }
        for i in chosen
    ]
    return TextLook(contract, plan, numbers, windows, contract.lines(tokenizer))
