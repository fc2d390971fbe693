"""Prose that is on every machine this program is installed on: Python's own help and docstrings, and what the installed
packages say about themselves.

Both are written for readers and need no download. They vary with what is installed, so a store records the digest of
what it read. Paragraphs that were seen before (licences, sections that documentation systems repeat) are left out.
"""

from __future__ import annotations

import ast
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from email.message import Message
from importlib.metadata import distributions
from pathlib import Path
from typing import cast

_LONGEST = 24_000  # characters of one document: some packages' descriptions hold the change log of ten years
_MARKUP = re.compile(r"\s*(\[!\[|!\[|<|\.\. \||\.\. image|\.\. _|\[[^\]]+\]:|[-=~^*#|+: ]*$)")
_REPEATED = 40  # characters from which on a paragraph that was seen before is left out


_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "__phello__",
    "pydoc_data",
}


def installed_documents() -> Iterator[tuple[str, str]]:
    """(name, text): documentation of the standard library, then the description of every installed distribution,
    without paragraphs that came before. Names do not depend on where things lie.
    """
    yield from without_repeats([*stdlib_documents(prose=True), *descriptions()])


def stdlib_documents(*, prose: bool = False) -> Iterator[tuple[str, str]]:
    """(name, text) of the running Python's standard library: its sources, and the topics of its built-in help.

    With ``prose`` only what was written for readers: help topics and long docstrings. Tests, codec tables and installed
    packages are left out. Names are relative POSIX paths, in sorted order.
    """
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_path("stdlib"))
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("config-"))
        for name in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder, name)
            try:
                text = path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if prose:
                text = "\n\n".join(_docstrings(text))
            if len(text) > 200:
                yield path.relative_to(root).as_posix(), text
    for name in sorted(topics):
        yield f"pydoc_data/topics.py#{name}", topics[name]


def _docstrings(source: str) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and len(text) > 120:
                yield text


def descriptions() -> Iterator[tuple[str, str]]:
    """(name, text) of every installed distribution's long description, by name, without badges and rules."""
    found: dict[str, str] = {}
    for distribution in distributions():
        about = cast(Message, distribution.metadata)  # a message; the protocol it is typed by lacks its body
        name = re.sub(r"[-_.]+", "-", about["Name"] or "").lower()
        text = about.get_payload() or about.get("Description") or ""
        if name and isinstance(text, str) and text.strip():
            found.setdefault(name, text)
    for name in sorted(found):
        text = "\n".join(line.rstrip() for line in found[name].splitlines() if not _markup(line))
        text = re.sub(r"\n{3,}", "\n\n", text).strip()[:_LONGEST]
        if len(text) > 200:
            yield f"{name}/README", text


def _markup(line: str) -> bool:
    return bool(line.strip()) and _MARKUP.match(line) is not None


def without_repeats(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Documents without paragraphs that came before in them or in others, case and white space apart."""
    seen: set[str] = set()
    for name, text in documents:
        kept = []
        for paragraph in re.split(r"\n[ \t]*\n", text):
            key = " ".join(paragraph.lower().split())
            if len(key) >= _REPEATED and key in seen:
                continue
            seen.add(key)
            kept.append(paragraph)
        if len(text := "\n\n".join(kept).strip()) > 200:
            yield name, text
