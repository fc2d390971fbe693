"""A look at the text of a store, corpus by corpus: what its tokens come from, which of them are data, and a few windows
as they stand.

Only the store's document and its token plan are read; no activations, and no model runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.activations.format.shard import no_data, open_plan, read_blocks
from workbench.activations.format.spec import StoreSpec, read_spec
from workbench.corpus.contract import TokenContract
from workbench.corpus.lengths import QUANTILES
from workbench.corpus.look import KINDS, corpora_of, corpus_of_windows, corpus_title, drawn, said_of

_BLOCKS = 256  # of 64 sequences, read at once


@dataclass(frozen=True)
class Window:
    """One sequence: its number, that of its corpus (None: not known), what it is, the document it begins in, whether it
    is held out from training, its token ids [ctx], and which of them are data, bool [ctx].
    """

    number: int
    corpus: int | None
    kind: str
    document: int
    heldout: bool
    ids: np.ndarray
    is_row: np.ndarray


@dataclass(frozen=True)
class StoreLook:
    """What :func:`look_at_store` found.

    Attributes:
        contract: None for stores that were made before there was one: then ``spec.exclude`` alone has no rows.
        tokens, rows: how many, and how many of them are data. distinct: different ids. repeated: windows whose tokens
            are those of an earlier one. kinds: share of the windows by kind. windows_of_document: 5 %, median, 95 %.
        corpora: one for each corpus of a mix, else one: its title (``corpus``), what the plan says of it, and where it
            is known which windows are its own also ``windows``, ``rows`` and ``excluded_share``.
    """

    spec: StoreSpec
    contract: TokenContract | None
    tokens: int
    rows: int
    distinct: int
    repeated: int
    kinds: dict[str, float]
    windows_of_document: tuple[float, ...]
    corpora: tuple[dict[str, Any], ...]
    windows: tuple[Window, ...]

    @property
    def documents(self) -> int | None:
        """Documents of the text; None where the plan does not say."""
        said = [c.get("documents") for c in self.corpora]
        return None if None in said or not said else sum(int(n) for n in said if n is not None)


def look_at_store(folder: Path, *, shown: int = 5, seed: int = 0) -> StoreLook:
    """Count the tokens of a store and draw ``shown`` windows of each of its corpora at random.

    Raises:
        MissingError, CorruptError, ShardCorrupt: the store's document or its plan cannot be read.
    """
    spec = read_spec(folder)
    found = spec.plan.get("contract")
    contract = None if found is None else TokenContract.model_validate(found)
    plan = open_plan(folder, spec)
    kinds, documents = plan.small("plan/kinds"), plan.small("plan/doc_ids")
    about = spec.plan.get("about") or {}
    corpora = corpora_of(about) if about.get("parts") or about.get("config") or "documents" in about else [{}]
    of = corpus_of_windows(corpora, documents)
    chosen = drawn(of, spec.n_seq, shown, seed)
    ids, seen, windows, rows_of = np.zeros(0, np.int32), set(), [], np.zeros(spec.n_seq, np.int64)
    blocks = -(-spec.n_seq // 64)
    for first in range(0, blocks, _BLOCKS):
        tokens = read_blocks(plan, "plan/tokens", first, min(blocks, first + _BLOCKS))
        mask = read_blocks(plan, "plan/rows", first, min(blocks, first + _BLOCKS)) if spec.row_mask else None
        data = np.zeros(tokens.shape, bool)
        data[:, spec.positions] = ~no_data(spec, tokens, mask).reshape(len(tokens), -1)
        rows_of[first * 64 : first * 64 + len(tokens)] = data.sum(1)
        ids = np.union1d(ids, tokens)
        seen |= {row.tobytes() for row in np.ascontiguousarray(tokens)}
        for i in chosen[(chosen >= first * 64) & (chosen < first * 64 + len(tokens))].tolist():
            at = i - first * 64
            kind, held = KINDS.get(int(kinds[i]), "text"), i >= spec.n_seq - spec.heldout_seqs
            corpus = None if of is None else int(of[i])
            windows.append(Window(i, corpus, kind, int(documents[i]), held, tokens[at], data[at]))
    plan.close()
    text = documents[kinds == 0]
    each = np.unique(text, return_counts=True)[1]
    return StoreLook(
        spec=spec,
        contract=contract,
        tokens=spec.n_seq * spec.ctx,
        rows=int(rows_of.sum()),
        distinct=len(ids),
        repeated=spec.n_seq - len(seen),
        kinds={name: float((kinds == k).mean()) for k, name in KINDS.items() if (kinds == k).any()},
        windows_of_document=tuple(float(q) for q in np.quantile(each, QUANTILES)) if len(each) else (),
        corpora=tuple(
            {"corpus": corpus_title(c), **said_of(c), **_counted(c, None if of is None else of == k, rows_of, spec.ctx)}
            for k, c in enumerate(corpora)
        ),
        windows=tuple(windows),
    )


def _counted(about: dict[str, Any], mine: np.ndarray | None, rows: np.ndarray, ctx: int) -> dict[str, Any]:
    """How many windows and rows a corpus has; of an older mix only the windows it says itself."""
    if mine is None or not mine.any():
        return {"windows": about["windows"]} if "windows" in about else {}
    n = int(mine.sum())
    return {
        "windows": n,
        "rows": int(rows[mine].sum()),
        "excluded_share": float(1 - rows[mine].sum() / (n * ctx)),
    }
