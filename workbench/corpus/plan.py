"""The fixed tokens of a harvest."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.corpus.apart import windows_apart
from workbench.corpus.config import CorpusConfig
from workbench.corpus.documents import all_documents, in_split
from workbench.corpus.mixture import mixed_windows
from workbench.corpus.records import Tally
from workbench.corpus.stream import bos_id, text_stream

HELDOUT_SHARE = 10  # the last tenth of a store's sequences is held out from training


@dataclass(frozen=True)
class TokenPlan:
    """The exact tokens of a harvest: a pure function of configuration, tokenizer, ``n_seq`` and ``ctx``.

    ``tokens`` int32 [n_seq, ctx], position 0 = BOS; ``doc_ids`` int32 [n_seq] (synthetic windows each have an id of
    their own above the documents'); ``kinds`` uint8 [n_seq]: 0 text, 1 repeats and snippets, 2 agreement.
    """

    tokens: np.ndarray
    doc_ids: np.ndarray
    kinds: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the three arrays with their shapes."""
        h = hashlib.sha256()
        for a in (self.tokens, self.doc_ids, self.kinds):
            h.update(f"{a.dtype}{a.shape}".encode() + np.ascontiguousarray(a).tobytes())
        return h.hexdigest()


def plan_tokens(config: CorpusConfig, tokenizer: Any, *, n_seq: int, ctx: int) -> TokenPlan:
    """The fixed tokens of a harvest (see :class:`TokenPlan`).

    Raises:
        UsageError: ``n_seq`` or ``ctx`` too small, or an empty split.
    """
    if n_seq < 1 or ctx < 2:
        raise UsageError(f"a token plan needs n_seq >= 1 and ctx >= 2, not n_seq = {n_seq}, ctx = {ctx}.")
    if config.streamed:
        return _streamed_plan(config, tokenizer, n_seq, ctx)
    if config.heldout == "documents":
        heldout = n_seq // HELDOUT_SHARE
        tokens, docs, kinds = windows_apart(config, tokenizer, n=n_seq, heldout=heldout, length=ctx - 1)
    else:
        tokens, docs, kinds = mixed_windows(config, tokenizer, first=0, n=n_seq, length=ctx - 1)
    tokens = np.concatenate([np.full((n_seq, 1), bos_id(tokenizer), np.int32), tokens], axis=1)
    stream = text_stream(config, tokenizer)
    about = {
        "interpreter": platform.python_version(),
        "corpus_digest": stream.digest,
        "documents": len(stream.names),
        "config": config.model_dump(mode="json"),
        **stream.records,
    }
    return TokenPlan(tokens, docs, kinds, about)


def _streamed_plan(config: CorpusConfig, tokenizer: Any, n_seq: int, ctx: int) -> TokenPlan:
    """A token plan of text that is read only as far as needed; the dataset's commit goes into ``about``."""
    from workbench.corpus.hub import hub_dataset, packed

    tally = Tally(config.on_bad)
    documents = ((n, t) for n, t in all_documents(config, tally) if in_split(n, config.split))
    tokens, docs, about = packed(
        documents, tokenizer, bos_id(tokenizer), n_seq=n_seq, ctx=ctx, whole_documents=config.packing == "documents"
    )
    if config.kind == "hub":
        about["dataset_commit"] = hub_dataset(config)[1]
    about |= {"config": config.model_dump(mode="json"), **tally.about()}
    return TokenPlan(tokens, docs, np.zeros(n_seq, np.uint8), about)
