"""Text of any size, a document at a time: hub datasets, and how documents become windows.

``packing = "documents"`` gives each document one window, cut at the context, and leaves shorter ones out (Llama Scope's
rule); ``"stream"`` lays all documents end to end, each after a BOS. Either way every window starts with BOS and only as
much is read as the windows need. Hub datasets come from the local cache unless ``HF_HUB_OFFLINE=0``, and the commit
read is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.errors import CorruptError, MissingError, UsageError, UserError
from workbench.corpus.chat import encoded
from workbench.corpus.lengths import lengths_of
from workbench.corpus.records import Tally, as_document
from workbench.corpus.sections import held_by_digest, text_digest
from workbench.hub import offline
from workbench.run import long_step

if TYPE_CHECKING:
    from workbench.corpus import CorpusConfig

_BATCH = 64  # documents tokenised together
_CHARACTERS = 24  # per token, at most, that are worth tokenising when a document is cut


def hub_dataset(config: CorpusConfig) -> tuple[Any, str | None]:
    """(streamed dataset, commit) of a hub dataset or of a local folder that holds one; nothing is read yet.

    Raises:
        MissingError: neither a folder nor in the local cache, with the command that fetches it. UserError: a package is
        missing.
    """
    try:
        import datasets
    except ImportError as e:
        raise UserError("reading hub datasets needs the package datasets. Install it: pip install datasets") from e
    source, commit = _locate(config)
    files = [*config.paths] or None
    _check_compression(source, files)
    try:
        found = datasets.load_dataset(
            str(source),
            config.subset or None,
            data_files=files,
            split=config.dataset_split,
            streaming=True,
            revision=commit if source == config.dataset else None,
        )
    except Exception as e:
        raise MissingError(f"dataset {config.dataset!r} cannot be opened: {str(e).splitlines()[0]}") from e
    return (
        found.shuffle(seed=config.seed, buffer_size=config.shuffle_buffer) if config.shuffle_buffer else found
    ), commit


def _locate(config: CorpusConfig) -> tuple[str, str | None]:
    """(what ``datasets`` is to open, commit): a local folder, the cached snapshot, or the hub at a pinned commit."""
    if (folder := Path(config.dataset).expanduser()).is_dir():
        return str(folder), None
    if folder.is_absolute() or config.dataset.startswith(("./", "../", "~")):
        raise MissingError(f"dataset folder {config.dataset!r} does not exist.")
    from huggingface_hub import HfApi, snapshot_download

    from workbench.hub import fetch_command

    revision = config.dataset_revision or None
    if not offline():
        try:
            return config.dataset, HfApi().dataset_info(config.dataset, revision=revision).sha
        except Exception as e:
            raise MissingError(
                f"dataset {config.dataset!r} could not be found on the hub: {str(e).splitlines()[0]}"
            ) from e
    try:
        snapshot = Path(
            snapshot_download(config.dataset, repo_type="dataset", revision=revision, local_files_only=True)
        )
    except Exception as e:
        raise MissingError(
            f"dataset {config.dataset!r} is not in the local Hugging Face cache. Fetch it once:"
            f" {fetch_command(config.dataset, revision, dataset=True)} (add --include 'PATTERN' for a part of it), or"
            " set HF_HUB_OFFLINE=0 to stream it."
        ) from e
    return str(snapshot), snapshot.name


def _check_compression(source: str, files: list[str] | None) -> None:
    """Zstandard files need a package that is not installed by default."""
    import importlib.util

    if importlib.util.find_spec("zstandard") is not None:
        return
    if any(f.endswith(".zst") for f in files or ()) or (
        Path(source).is_dir() and next(Path(source).rglob("*.zst"), None) is not None
    ):
        raise UserError(
            f"{source} holds .zst files. Install what reads them: pip install 'interpretability-workbench[hub]'"
        )


def hub_documents(config: CorpusConfig, tally: Tally | None = None) -> Iterator[tuple[str, str]]:
    """(name, text) of a hub dataset, in its (seeded) order; ``tally`` counts what is left out or mended.

    A document is named by its text's SHA-256, so that the held-out split is the same wherever the dataset lies and
    however it is shuffled, and copies of one text never stand on both sides.

    Raises:
        CorruptError: a record without the text field, or see :func:`workbench.corpus.records.as_document`.
        See :func:`hub_dataset`.
    """
    tally = Tally(config.on_bad) if tally is None else tally
    found, _ = hub_dataset(config)
    for i, record in enumerate(found):
        if config.text_field not in record:
            raise CorruptError(
                f"dataset {config.dataset!r}: record {i} has no field {config.text_field!r} (it has"
                f" {', '.join(record)})."
            )
        text = as_document(record[config.text_field], f"dataset {config.dataset!r}, record {i}", tally)
        if text is not None:
            yield hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16], text


class _Packer:
    """Fills ``n`` windows of ``ctx`` tokens from documents, one after the other."""

    def __init__(self, first: int | None, n: int, ctx: int, whole_documents: bool):
        self.begin: list[int] = [] if first is None else [first]
        self.tokens, self.owners = np.empty((n, ctx), np.int32), np.empty(n, np.int32)
        self.tokens[:, : len(self.begin)] = self.begin
        self.width, self.whole = ctx - len(self.begin), whole_documents
        self.filled = self.short = 0
        self._rest, self._of = np.empty(0, np.int32), np.empty(0, np.int32)  # tokens that fill no window yet

    @property
    def full(self) -> bool:
        return self.filled == len(self.tokens)

    def add(self, ids: list[int], number: int) -> None:
        """One document."""
        at, into = self.filled, self.tokens[:, len(self.begin) :]
        if self.whole:
            if len(ids) >= self.width:
                into[at], self.owners[at] = ids[: self.width], number
                self.filled += 1
            else:
                self.short += 1
            return
        self._rest = np.concatenate([self._rest, np.asarray([*self.begin, *ids], np.int32)])
        self._of = np.concatenate([self._of, np.full(len(self.begin) + len(ids), number, np.int32)])
        n = min(len(self._rest) // self.width, len(into) - at)
        if n:
            used = n * self.width
            into[at : at + n] = self._rest[:used].reshape(n, self.width)
            self.owners[at : at + n] = self._of[: used : self.width]
            self._rest, self._of, self.filled = self._rest[used:], self._of[used:], at + n


def packed(
    documents: Iterator[tuple[str, str]],
    tokenizer: Any,
    first: int | None,
    *,
    n_seq: int,
    ctx: int,
    whole_documents: bool,
    heldout: int = 0,
    roles: Sequence[str] = (),
    also: Callable[[str], bool] = lambda digest: False,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any], np.ndarray | None]:
    """Windows of a stream of documents: (tokens int32 [n_seq, ctx], number of the document each starts in int32
    [n_seq], about, which tokens are the words of ``roles`` bool [n_seq, ctx]; None without roles); ``first`` begins
    every window and every document, where there is one.

    The last ``heldout`` windows come from documents of their own, every tenth by the digest of the text and those of
    which ``also`` says so.

    Raises:
        UsageError: the documents end before ``n_seq`` windows are full.
    """
    train, held = (_Packer(first, n, ctx, whole_documents) for n in (n_seq - heldout, heldout))
    marks = [_Packer(None if first is None else 0, n, ctx, whole_documents) for n in (n_seq - heldout, heldout)]
    digest, seen, sizes = hashlib.sha256(), 0, []
    with long_step("cutting text into tokens", n_seq, "window") as shown:
        while not (train.full and held.full) and (batch := list(islice(documents, _BATCH))):
            texts = [t[: train.width * _CHARACTERS] if whole_documents else t for _, t in batch]
            ids, mine = encoded(tokenizer, texts, roles)
            for i, ((name, text), document) in enumerate(zip(batch, ids, strict=True)):
                if train.full and held.full:
                    break
                of_text = text_digest(text)
                digest.update(f"{name}\0".encode() + bytes.fromhex(of_text))
                side = held if also(of_text) or (heldout and held_by_digest(of_text)) else train
                if not side.full:
                    side.add(document, seen)
                    if roles:  # packed as the tokens are, so they lie where these do
                        marks[side is held].add(mine[i].astype(int).tolist(), seen)
                seen += 1
                sizes.append(len(document))
            shown.reach(train.filled + held.filled, n_seq)
    filled, short = train.filled + held.filled, train.short + held.short
    if filled < n_seq:
        why = f" ({short} were shorter than {train.width} tokens)" if short else ""
        raise UsageError(
            f"the corpus gives {filled:,} windows of {ctx} tokens from {seen:,} documents{why}, not the {n_seq:,} asked"
            " for."
        )
    about = {"corpus_digest": digest.hexdigest(), "documents": seen, "short_documents": short}
    about |= {"heldout_windows": heldout} if heldout else {}
    if not whole_documents:  # else they were cut before they were tokenised
        about |= lengths_of(np.asarray(sizes))
    rows = np.concatenate([m.tokens for m in marks]) > 0 if roles else None
    return np.concatenate([train.tokens, held.tokens]), np.concatenate([train.owners, held.owners]), about, rows
