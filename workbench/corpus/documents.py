"""Where text comes from: what is installed, local text, JSONL or Parquet, and the split of documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from sae.errors import CorruptError, MissingError, UsageError
from workbench.corpus.config import CorpusConfig, Split
from workbench.corpus.installed import installed_documents, stdlib_documents

_HELDOUT_SHARE = 0.05
_TEXT_SUFFIXES = {".txt", ".md", ".py", ".rst", ".text"}


def local_documents(config: CorpusConfig) -> Iterator[tuple[str, str]]:
    """(name, text) of local files: whole text files, the lines of JSONL files, or the rows of Parquet files.

    Raises:
        MissingError: a path does not exist, or nothing readable is below it. CorruptError: a broken line, or no such
        field.
    """
    suffixes = {"text": _TEXT_SUFFIXES, "jsonl": {".jsonl", ".json"}, "parquet": {".parquet"}}[config.kind]
    for given in config.paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise MissingError(f"corpus path {given!r} does not exist.")
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())
        if not files:
            raise MissingError(f"corpus path {given!r} holds no {config.kind} files ({', '.join(sorted(suffixes))}).")
        for file in files:
            name = file.name if path.is_file() else file.relative_to(path).as_posix()
            yield from _records(file, name, config)


def _records(file: Path, name: str, config: CorpusConfig) -> Iterator[tuple[str, str]]:
    if config.kind == "text":
        yield name, file.read_text(encoding="utf-8", errors="replace")
    elif config.kind == "jsonl":
        with open(file, encoding="utf-8", errors="replace") as lines:
            for i, line in enumerate(lines):
                if line.strip():
                    try:
                        yield f"{name}#{i}", str(json.loads(line)[config.text_field])
                    except (ValueError, KeyError, TypeError) as e:
                        raise CorruptError(
                            f"{file}, line {i + 1}: not a JSON object with the field {config.text_field!r}."
                        ) from e
    else:
        import pandas as pd

        try:
            column = pd.read_parquet(file, columns=[config.text_field])[config.text_field]
        except Exception as e:
            raise CorruptError(f"{file}: cannot read column {config.text_field!r}: {e}") from e
        for i, text in enumerate(column):
            yield f"{name}#{i}", str(text)


def in_split(name: str, split: Split) -> bool:
    """Whether a document belongs to a split: 5 % are held out, by a hash of the name; ``all`` has every one."""
    if split == "all":
        return True
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return (share < _HELDOUT_SHARE) == (split == "heldout")


def documents(config: CorpusConfig) -> list[tuple[str, str]]:
    """The (name, text) pairs of one split of a corpus.

    Raises:
        UsageError: an empty split, or a hub corpus, which is never held whole.
    """
    if config.kind == "hub":
        raise UsageError(
            f"dataset {config.dataset!r} is streamed, not held whole; this needs kind = 'text', 'jsonl' or 'parquet'."
        )
    found = [(n, t) for n, t in all_documents(config) if in_split(n, config.split)]
    if not found:
        raise UsageError(f"the {config.split} split of this {config.kind!r} corpus is empty: it has too few documents.")
    return found


def all_documents(config: CorpusConfig) -> Iterator[tuple[str, str]]:
    """The (name, text) pairs of a corpus of any kind, both splits."""
    if config.kind == "hub":
        from workbench.corpus.hub import hub_documents

        return hub_documents(config)
    if config.kind == "docs":
        return installed_documents()
    return (
        stdlib_documents(prose=config.kind == "prose") if config.kind in ("mini", "prose") else local_documents(config)
    )
