"""The fixed tokens of a harvest."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.corpus.chat import check_roles, tally_for
from workbench.corpus.config import CorpusConfig
from workbench.corpus.contract import TokenContract, contract_of
from workbench.corpus.documents import all_documents, corpus_inputs, in_split, known_by_files
from workbench.corpus.heldout import AlsoHeld, nowhere, partition, windows_in
from workbench.corpus.lengths import lengths_of
from workbench.corpus.mixture import mixed_windows, text_windows
from workbench.corpus.sections import held_by_digest
from workbench.corpus.stream import TextStream, text_stream
from workbench.corpus.synthetic import TEXT

HELDOUT_SHARE = 10  # the last tenth of a store's sequences is held out from training


@dataclass(frozen=True)
class TokenPlan:
    """The exact tokens of a harvest: a pure function of configuration, tokenizer, ``n_seq`` and ``ctx``.

    ``tokens`` int32 [n_seq, ctx], position 0 as ``contract`` says (BOS, mostly); ``doc_ids`` int32 [n_seq] (synthetic
    windows each have an id of their own above the documents'); ``kinds`` uint8 [n_seq]: 0 text, 1 repeats and snippets,
    2 agreement. ``rows`` bool [n_seq, ctx]: which tokens may be rows, where the corpus asks for the words of some roles
    only; None: all that the contract allows.
    """

    tokens: np.ndarray
    doc_ids: np.ndarray
    kinds: np.ndarray
    about: dict[str, Any] = field(default_factory=dict)
    contract: TokenContract | None = None
    rows: np.ndarray | None = None

    def is_row(self) -> np.ndarray:
        """Which tokens are data: bool [n_seq, ctx], by the contract and by whose words they are."""
        assert self.contract is not None
        kept = self.contract.is_row(self.tokens)
        return kept if self.rows is None else kept & self.rows

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the arrays with their shapes."""
        h = hashlib.sha256()
        rows = () if self.rows is None else (self.rows.astype(np.uint8),)
        for a in (self.tokens, self.doc_ids, self.kinds, *rows):
            h.update(f"{a.dtype}{a.shape}".encode() + np.ascontiguousarray(a).tobytes())
        return h.hexdigest()


def plan_tokens(config: CorpusConfig, tokenizer: Any, *, n_seq: int, ctx: int, heldout: int | None = None) -> TokenPlan:
    """The fixed tokens of a harvest (see :class:`TokenPlan`).

    Args:
        heldout: so many windows at the end come from documents that none of the others come from; default: a tenth
            where the corpus says ``heldout = "documents"``, else none.

    Raises:
        UsageError: ``n_seq`` or ``ctx`` too small, an empty split, or a text that is too short for so many windows: it
        begins again only as often as ``epochs`` allows.
    """
    if heldout is None:
        heldout = n_seq // HELDOUT_SHARE if config.heldout == "documents" else 0
    if n_seq < 1 or ctx < 2 or not 0 <= heldout < n_seq:
        raise UsageError(
            f"cutting text needs n_seq >= 1 and ctx >= 2, not n_seq = {n_seq}, ctx = {ctx}. n_seq is the number of"
            " windows, ctx their length in tokens."
        )
    contract = contract_of(tokenizer)
    if config.kind == "mix":
        return _mixed_plan(config, tokenizer, contract, n_seq, ctx, heldout)
    return _plan_of_one(config, tokenizer, contract, n_seq, ctx, heldout)


def _plan_of_one(
    config: CorpusConfig,
    tokenizer: Any,
    contract: TokenContract,
    n_seq: int,
    ctx: int,
    heldout: int,
    also: AlsoHeld = nowhere,
) -> TokenPlan:
    """The plan of a corpus that is no mix; ``also`` says which texts another corpus of a mix holds out."""
    if config.streamed:
        return _streamed_plan(config, tokenizer, contract, n_seq, ctx, heldout, also)
    stream = text_stream(config, tokenizer)
    begin = 0 if contract.first is None else 1
    length, trained = ctx - begin, n_seq - heldout
    about = {
        "interpreter": platform.python_version(),
        "corpus_digest": stream.digest,
        "documents": len(stream.names),
        "config": config.model_dump(mode="json"),
        **stream.records,
        **_files(config),
    }
    ours = config.kind == "mini"  # an endless mixture, of which every window is known by its number
    train, held, held_config = stream, None, config
    if heldout and ours and config.split == "train":
        held_config = config.model_copy(update={"split": "heldout"})
        other = text_stream(held_config, tokenizer)
        held = replace(other, numbers=len(stream.names) + n_seq + np.arange(len(other.names)))
    elif heldout:
        train, held = partition(stream, heldout, length, also=also)
    elif also is not nowhere:
        train, _ = partition(stream, 0, length, also=also)
    if not ours:
        about["passes"] = _passes(config, train, trained, heldout, length)
    if held is not None:
        about |= {"heldout_windows": heldout, "heldout_documents": len(held.names)}
    if stream.copies:
        about["near_duplicates"] = stream.copies
    about |= lengths_of(np.diff(np.append(stream.starts, len(stream.tokens))))
    parts = [mixed_windows(config, tokenizer, first=0, n=trained, length=length, stream=train)]
    if held is not None:
        more = mixed_windows(
            held_config, tokenizer, first=trained, n=heldout, length=length, stream=held, text_from=trained
        )
        parts.append(
            (more[0], np.where(more[2] == TEXT, more[1], len(stream.names) + np.arange(trained, n_seq)), more[2])
        )
    tokens, docs, kinds = (np.concatenate([p[i] for p in parts]) for i in range(3))
    tokens = np.concatenate([np.full((n_seq, begin), contract.first or 0, np.int32), tokens], axis=1)
    rows = _rows_of_roles(config, [(train, trained), (held, heldout)], begin, length)
    return _checked(TokenPlan(tokens, docs.astype(np.int32), kinds, about, contract, rows), config, heldout)


def _rows_of_roles(
    config: CorpusConfig, sides: list[tuple[TextStream | None, int]], begin: int, length: int
) -> np.ndarray | None:
    """Which tokens of the windows are the words of the roles asked for: the same windows, cut from the marks."""
    if not config.roles:
        return None
    marks = []
    for stream, n in sides:
        if stream is not None and n:
            assert stream.is_row is not None
            of = replace(stream, tokens=stream.is_row.astype(np.int32))
            marks.append(text_windows(of, np.arange(n), length, config.seed)[0] > 0)
    rows = np.concatenate(marks)
    return np.concatenate([np.zeros((len(rows), begin), bool), rows], axis=1)


def _checked(plan: TokenPlan, config: CorpusConfig, heldout: int) -> TokenPlan:
    """A plan whose sides have rows.

    Raises:
        UsageError: none of the words of the roles asked for lie in the windows of a side.
    """
    if plan.rows is None:
        return plan
    data = plan.is_row()
    cut = len(data) - heldout
    for what, side in (("for training", data[:cut]), ("held out", data[cut:])):
        if len(side) and not side.any():
            raise UsageError(
                f"the {len(side):,} windows {what} hold no word of {' or '.join(map(repr, config.roles))}. Give more"
                " text, or other roles."
            )
    contract = plan.contract.model_copy(update={"roles": config.roles}) if plan.contract else None
    return replace(plan, contract=contract)


def _mixed_plan(
    config: CorpusConfig, tokenizer: Any, contract: TokenContract, n_seq: int, ctx: int, heldout: int
) -> TokenPlan:
    """Windows of several corpora by weight: those for training in a seeded order, then the held-out ones of each."""
    weights = np.asarray(config.weights or [1.0] * len(config.parts))
    wanted = _shares(n_seq - heldout, weights), _shares(heldout, weights)
    shared = {"seed": config.seed, "split": config.split, "epochs": config.epochs, "heldout": "windows"}
    train: list[tuple[np.ndarray, ...]] = []
    held: list[tuple[np.ndarray, ...]] = []
    about, before, roles = [], 0, set[str]()
    parts = [
        (part.model_copy(update=shared), n, h)
        for part, n, h in zip(config.parts, *(w.tolist() for w in wanted), strict=True)
        if n + h
    ]
    also = _held_out_of_any(parts, tokenizer, ctx - (contract.first is not None))
    for part, n, h in parts:
        plan = _plan_of_one(part, tokenizer, contract, n + h, ctx, h, also)
        arrays = plan.tokens, plan.doc_ids + before, plan.kinds, _marks(plan)
        roles |= set(part.roles)
        train.append(tuple(a[:n] for a in arrays))
        held.append(tuple(a[n:] for a in arrays))
        first, before = before, before + int(plan.doc_ids.max()) + 1
        about.append({**plan.about, "windows": n + h, "first_document": first})
    order = np.random.default_rng([config.seed, 103]).permutation(n_seq - heldout)
    tokens, docs, kinds, rows = (
        np.concatenate([np.concatenate([t[i] for t in train])[order], *(h[i] for h in held)]) for i in range(4)
    )
    whole = {"parts": about, "documents": sum(p["documents"] for p in about), "config": config.model_dump(mode="json")}
    if not roles:
        return TokenPlan(tokens, docs, kinds, whole, contract)
    return TokenPlan(tokens, docs, kinds, whole, contract.model_copy(update={"roles": tuple(sorted(roles))}), rows)


def _held_out_of_any(parts: list[tuple[CorpusConfig, int, int]], tokenizer: Any, length: int) -> AlsoHeld:
    """Which texts some corpus of a mix holds out, so that none of them trains on the copy that another one has."""
    found: set[str] = set()
    for part, _, h in parts:
        if h and not part.streamed and part.kind != "mini":
            found |= set(partition(text_stream(part, tokenizer), h, length)[1].digests)
    streamed = any(h and part.streamed for part, _, h in parts)
    return lambda digest: digest in found or (streamed and held_by_digest(digest))


def _marks(plan: TokenPlan) -> np.ndarray:
    """Which tokens of a plan may be rows, whether it tells roles apart or not."""
    return np.ones(plan.tokens.shape, bool) if plan.rows is None else plan.rows


def _shares(n: int, weights: np.ndarray) -> np.ndarray:
    """``n`` dealt by weight, to the last one."""
    edges = np.round(np.concatenate([[0.0], np.cumsum(weights / weights.sum())]) * n).astype(np.int64)
    return np.diff(edges)


def _passes(config: CorpusConfig, train: TextStream, trained: int, heldout: int, length: int) -> int:
    """How often the training part of a text is gone through.

    Raises:
        UsageError: more often than ``epochs`` allows.
    """
    there = windows_in(len(train.tokens), length)
    if there < 1:
        raise UsageError(
            f"the corpus has {len(train.tokens):,} tokens, fewer than one window of {length:,}. Give more text, or a"
            " smaller ctx; short text is not padded."
        )
    needed = -(-trained // there)
    if needed > config.epochs:
        once = int(there / 0.9) if heldout else there
        raise UsageError(
            f"the corpus gives {there:,} windows for training, not the {trained:,} asked for; it would be gone through"
            f" {needed} times. Give more text, set n_seq to at most {once:,}, or allow it in the corpus:"
            f" epochs = {needed}."
        )
    return needed


def _files(config: CorpusConfig) -> dict[str, str]:
    """The digest of a corpus' files, where it is known by them."""
    return {"files_digest": corpus_inputs(config)[0].digest} if known_by_files(config) else {}


def _streamed_plan(
    config: CorpusConfig,
    tokenizer: Any,
    contract: TokenContract,
    n_seq: int,
    ctx: int,
    heldout: int,
    also: AlsoHeld,
) -> TokenPlan:
    """A token plan of text that is read only as far as needed; the dataset's commit goes into ``about``."""
    from workbench.corpus.hub import hub_dataset, packed

    tally = tally_for(config, tokenizer)
    documents = ((n, t) for n, t in all_documents(config, tally) if in_split(n, config.split))
    tokens, docs, about, rows = packed(
        documents,
        tokenizer,
        contract.first,
        n_seq=n_seq,
        ctx=ctx,
        whole_documents=config.packing == "documents",
        heldout=heldout,
        roles=config.roles,
        also=also,
    )
    check_roles(config, tally)
    if config.kind == "hub":
        about["dataset_commit"] = hub_dataset(config)[1]
    about |= {"config": config.model_dump(mode="json"), **tally.about(), **_files(config)}
    return _checked(TokenPlan(tokens, docs, np.zeros(n_seq, np.uint8), about, contract, rows), config, heldout)
