"""Where text comes from: what is installed, local text, JSONL, Parquet or CSV, and the split of documents."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sae.errors import CorruptError, MissingError, UsageError
from sae.files import sha256_file, sha256_json
from sae.strict import nearest
from workbench.config import corpus_name, remember_text
from workbench.corpus.config import SUFFIXES, CorpusConfig, Split, corpus_config
from workbench.corpus.duplicates import first_copies
from workbench.corpus.installed import installed_documents, stdlib_documents
from workbench.corpus.records import Tally, as_document, decoded, mended
from workbench.corpus.sections import sections, text_digest
from workbench.provenance import Input
from workbench.run import long_step

_HELDOUT_SHARE = 0.05
_ROWS = 4096  # rows of a table held at once


def local_documents(config: CorpusConfig, tally: Tally | None = None) -> Iterator[tuple[str, str]]:
    """(name, text) of local files: whole text files, the lines of JSONL files, or the rows of Parquet and CSV files.

    Args:
        tally: counts what is left out or mended.

    Raises:
        MissingError: a path does not exist, or nothing readable is below it. CorruptError: a broken line, no such
        field, or (``on_bad = "refuse"``) a record without a text.
    """
    tally = Tally(config.on_bad) if tally is None else tally
    for file, name in local_files(config):
        if config.kind == "text":
            text = as_document(decoded(file.read_bytes(), str(file), tally), str(file), tally)
            if text is not None:
                yield name, text
        else:
            yield from _table(file, name, config, tally)


def local_files(config: CorpusConfig) -> Iterator[tuple[Path, str]]:
    """(file, its name below the path it was found by) of all files of a corpus of local paths, in order.

    Raises:
        MissingError: a path does not exist, or nothing readable is below it.
    """
    suffixes = SUFFIXES[config.kind]
    for given in config.paths:
        path = Path(given).expanduser()
        if not path.exists():
            raise MissingError(f"corpus path {given!r} does not exist.")
        if path.is_file():
            yield path, path.name
            continue
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        if not files:
            raise MissingError(f"corpus path {given!r} holds no {config.kind} files ({', '.join(sorted(suffixes))}).")
        yield from ((file, file.relative_to(path).as_posix()) for file in files)


class _NoField:
    """Stands for a field that a record does not have."""


def _table(file: Path, name: str, config: CorpusConfig, tally: Tally) -> Iterator[tuple[str, str]]:
    """Documents of a file with one record per line or row.

    Raises:
        CorruptError: none of its records has the text field, or see :func:`local_documents`.
    """
    as_lines = config.kind == "jsonl" or (config.kind == "chat" and file.suffix.lower() != ".parquet")
    rows = _json_rows if as_lines else _csv_rows if config.kind == "csv" else _parquet_rows
    without = records = 0
    for number, value in rows(file, config.text_field, tally):
        records += 1
        where = f"{file}, {'line' if as_lines else 'row'} {number + 1}"
        if value is _NoField:
            without += 1
            tally.read += 1
            if without < records:  # else the whole file may lack it, which is said below
                tally.note("no such field", where)
        elif (text := as_document(value, where, tally)) is not None:
            yield f"{name}#{number}", text
    if records and without == records:
        raise CorruptError(f"{file}: none of its {records:,} records has the field {config.text_field!r}.")


def _json_rows(file: Path, field: str, tally: Tally) -> Iterator[tuple[int, Any]]:
    """(line, value) of JSON lines, or (place, value) of a file that is one JSON list."""
    with open(file, "rb") as lines:
        first = lines.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
        lines.seek(0)
        if first.startswith(b"["):
            yield from enumerate(
                _field(r, field, f"{file}, record {i + 1}") for i, r in enumerate(_json_list(file, tally))
            )
            return
        for i, raw in enumerate(lines):
            where = f"{file}, line {i + 1}"
            if not (line := decoded(raw, where, tally)).strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as e:
                raise CorruptError(f"{where}: not JSON ({e}).") from e
            yield i, _field(record, field, where)


def _json_list(file: Path, tally: Tally) -> list[Any]:
    try:
        return list(json.loads(decoded(file.read_bytes(), str(file), tally)))
    except ValueError as e:
        raise CorruptError(f"{file}: neither JSON lines nor one JSON list ({e}).") from e


def _field(record: Any, field: str, where: str) -> Any:
    if not isinstance(record, dict):
        raise CorruptError(f"{where}: not a JSON object with the field {field!r}.")
    return record.get(field, _NoField)


def _parquet_rows(file: Path, field: str, tally: Tally) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        if field not in table.schema_arrow.names:
            raise CorruptError(f"{file} has no column {field!r} ({nearest(field, table.schema_arrow.names)}).")
        batches = table.iter_batches(_ROWS, columns=[field])
        yield from enumerate(value for batch in batches for value in batch.column(0).to_pylist())
    except (OSError, ValueError) as e:  # pyarrow's own errors are of these kinds
        raise CorruptError(f"{file}: cannot read column {field!r}: {e}") from e


def _csv_rows(file: Path, field: str, tally: Tally) -> Iterator[tuple[int, Any]]:
    """Rows of a CSV file with a header (TSV by its name). Words like NA and null are words; only nothing is missing."""
    csv.field_size_limit(
        1 << 31 - 1
    )  # a field is a document here, and documents are longer than the default of 128 KiB
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(reader, [])
            if field not in header:
                raise CorruptError(f"{file} has no column {field!r} ({nearest(field, header)}).")
            column = header.index(field)
            for number, row in enumerate(r for r in reader if r):
                value = row[column] if column < len(row) else None
                if value is not None and (mended_value := mended(value)) != value:
                    tally.note("bad UTF-8", f"{file}, row {number + 1}")
                    value = mended_value
                yield number, value
        except csv.Error as e:
            raise CorruptError(f"{file}, line {reader.line_num}: not CSV ({e}).") from e


def in_split(name: str, split: Split) -> bool:
    """Whether a document belongs to a split: 5 % are held out, by a hash of the name; ``all`` has every one.

    Local text and datasets of the hub are known by the digest of the text, so that copies lie on one side.
    """
    if split == "all":
        return True
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return (share < _HELDOUT_SHARE) == (split == "heldout")


def documents(config: CorpusConfig, tally: Tally | None = None) -> list[tuple[str, str]]:
    """The (name, text) pairs of one split of a corpus; ``tally`` counts what was left out or mended.

    Raises:
        UsageError: an empty split, or a hub corpus, which is never held whole.
    """
    if config.kind == "mix":
        raise UsageError("a corpus of kind 'mix' has no documents of its own; name one of its parts.")
    if config.kind == "hub":
        raise UsageError(
            f"dataset {config.dataset!r} is read piece by piece from the hub, and this needs the whole text: kind ="
            " 'text', 'jsonl' or 'parquet'."
        )
    if config.kind in SUFFIXES:
        found = _own_documents(config, tally)
    else:
        found = [(n, t) for n, t in all_documents(config, tally) if in_split(n, config.split)]
    if not found:
        lines = f" Of its {tally.read:,} records {tally.left_out:,} have no text." if tally and tally.left_out else ""
        raise UsageError(
            f"the {config.split} split of this {config.kind!r} corpus is empty: it has too few documents.{lines}"
        )
    return found


def _own_documents(config: CorpusConfig, tally: Tally | None) -> list[tuple[str, str]]:
    """Local text of one split: large documents cut into sections, copies on one side, by digest of the text.

    With ``dedupe`` near-copies of an earlier document are left out.
    """
    found = sections(_read_whole(config, tally))
    first = first_copies([t for _, t in found]) if config.dedupe or config.split != "all" else range(len(found))
    side = [i for i in range(len(found)) if in_split(text_digest(found[int(first[i])][1]), config.split)]
    kept = [i for i in side if not (config.dedupe and first[i] != i)]
    if tally is not None:
        tally.near_copies = len(side) - len(kept)
    return [found[i] for i in kept]


def _read_whole(config: CorpusConfig, tally: Tally | None) -> list[tuple[str, str]]:
    """All of :func:`local_documents`, with a bar that goes by characters read, of the bytes that the files have."""
    total, done, found = sum(file.stat().st_size for file, _ in local_files(config)), 0, []
    with long_step("reading text", total, " characters") as shown:
        for document in local_documents(config, tally):
            found.append(document)
            done += len(document[1])
            shown.reach(min(done, total), total)
        shown.reach(total, total)
    return found


def all_documents(config: CorpusConfig, tally: Tally | None = None) -> Iterator[tuple[str, str]]:
    """The (name, text) pairs of a corpus of any kind, both splits."""
    if config.kind == "hub":
        from workbench.corpus.hub import hub_documents

        return hub_documents(config, tally)
    if config.kind == "docs":
        return installed_documents()
    return (
        stdlib_documents(prose=config.kind == "prose")
        if config.kind in ("mini", "prose")
        else local_documents(config, tally)
    )


def digest_of(docs: Iterable[tuple[str, str]]) -> str:
    """Digest of the names and texts of documents, in order."""
    return sha256_json([[n, hashlib.sha256(t.encode("utf-8", "replace")).hexdigest()] for n, t in docs])


def text_inputs(corpus: str | None) -> list[Input]:
    """A corpus of the command line as an input of what is made from it: a file or folder by its name and the digest of
    its text. What is installed with Python (``mini``, ``prose``) counts as part of the program.
    """
    return corpus_inputs(corpus_config(corpus, 0)) if corpus and corpus not in ("mini", "prose") else []


def corpus_inputs(config: CorpusConfig) -> list[Input]:
    """:func:`text_inputs` of a corpus in a recipe, one for each of a mix; none where its files are not at hand."""
    if config.parts:
        shared = {"seed": config.seed, "split": config.split}
        return [i for part in config.parts for i in corpus_inputs(part.model_copy(update=shared))]
    if not config.paths or config.kind == "hub" or not all(Path(p).expanduser().exists() for p in config.paths):
        return []
    name = ", ".join(corpus_name(p) for p in config.paths)
    digest = _digest_of_files(config) if known_by_files(config) else digest_of(documents(config))
    return [Input(kind="texts", id=name, digest=digest)]


def known_by_files(config: CorpusConfig) -> bool:
    """Whether local text is known by the bytes of its files: what is read of them depends on a tokenizer, or on how
    many windows are wanted.
    """
    return config.kind == "chat" or (config.streamed and config.kind != "hub")


def _digest_of_files(config: CorpusConfig) -> str:
    return sha256_json([[name, sha256_file(file)] for file, name in local_files(config)])


def plan_digests(about: dict[str, Any]) -> set[str]:
    """What :func:`corpus_inputs` gave for the texts that a token plan was cut from, by what the plan says of itself."""
    if "parts" in about:
        return set().union(*(plan_digests(part) for part in about["parts"]))
    digest = about.get("files_digest") or about.get("corpus_digest")
    return {str(digest)} if digest else set()


def remember_corpus(config: CorpusConfig, about: dict[str, Any]) -> None:
    """Note where the texts of a corpus lie, for the user's own next commands (see :mod:`workbench.config`).

    Args:
        about: what its token plan says of itself.
    """
    for part in about.get("parts", ()):
        for given in config.parts:
            if _names(given.model_dump(mode="json")) == _names(part.get("config", {})):
                remember_corpus(given, part)
    folder = config.dataset if Path(config.dataset).expanduser().is_dir() else ""
    paths = [folder] if config.kind == "hub" and folder else list(config.paths if config.kind != "hub" else ())
    for digest in {about.get("corpus_digest"), about.get("files_digest")} - {None}:
        remember_text(str(digest), paths)


def remember_inputs(config: CorpusConfig, inputs: Iterable[Input]) -> None:
    """:func:`remember_corpus` by what :func:`corpus_inputs` gave for a corpus."""
    local = [part for part in (config.parts or (config,)) if part.paths and part.kind != "hub"]
    for part, i in zip(local, (i for i in inputs if i.kind == "texts"), strict=False):
        remember_text(i.digest, part.paths)


def _names(config: dict[str, Any]) -> tuple[Any, ...]:
    return config.get("kind"), config.get("dataset"), tuple(config.get("paths", ()))
