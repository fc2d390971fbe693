"""Synthetic windows: repeated chunks, copied snippets, and subject–verb agreement in templated sentences.

Tokens of the first two are drawn from the corpus' own token frequencies, so they differ from text in order alone and
only the context tells what comes next. Tiled chunks teach continuing what already repeats; snippets copied at random
distances teach that one earlier occurrence is enough.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

TEXT, REPEATS, AGREEMENT = 0, 1, 2
CHUNK = (6, 24)
SNIPPET = (2, 8)
FRESH = (1, 6)

NOUNS = (
    ("key", "keys"),
    ("name", "names"),
    ("value", "values"),
    ("class", "classes"),
    ("method", "methods"),
    ("file", "files"),
    ("module", "modules"),
    ("line", "lines"),
    ("object", "objects"),
    ("type", "types"),
    ("message", "messages"),
    ("test", "tests"),
    ("list", "lists"),
    ("string", "strings"),
    ("path", "paths"),
    ("error", "errors"),
    ("thread", "threads"),
    ("server", "servers"),
    ("option", "options"),
    ("window", "windows"),
    ("field", "fields"),
    ("node", "nodes"),
    ("token", "tokens"),
    ("user", "users"),
)
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
LINKS = ("near", "of", "in", "with", "for", "from", "by", "behind")
TAILS = {
    "is": ("old", "new", "not valid", "empty", "closed", "ready"),
    "was": ("lost", "found", "not used", "changed", "read", "empty"),
    "has": ("no name", "a default", "been changed", "two parts"),
}


def _draw(probabilities: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.searchsorted(_cumulative(probabilities.tobytes()), rng.random(n), side="right").astype(np.int32)


@lru_cache(maxsize=4)
def _cumulative(probabilities: bytes) -> np.ndarray:
    c = np.cumsum(np.frombuffer(probabilities, np.float64))
    return c / c[-1]


def tiled_window(
    probabilities: np.ndarray, length: int, rng: np.random.Generator, chunk: int | None = None
) -> np.ndarray:
    """A chunk of 6–24 tokens (or exactly ``chunk``) drawn by frequency and repeated to the end of the window: int32
    [length].
    """
    size = int(rng.integers(CHUNK[0], CHUNK[1] + 1)) if chunk is None else chunk
    return np.resize(_draw(probabilities, size, rng), length)


def snippet_window(probabilities: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens drawn by frequency, with snippets of 2–8 tokens copied from a random earlier place: int32 [length].

    More than half of the tokens are copies, so a token seen once before is usually followed by its earlier successor.
    How far back a copy may reach is drawn per window (32, 64, 128 or everything).
    """
    out = _draw(probabilities, length, rng)
    reach = int(rng.choice((32, 64, 128, length)))
    at = int(rng.integers(8, 17))
    while at < length - 2:
        size = min(int(rng.integers(SNIPPET[0], SNIPPET[1] + 1)), length - at)
        source = (
            int(rng.integers(max(0, at - reach), at - size + 1))
            if at - size + 1 > max(0, at - reach)
            else max(0, at - size)
        )
        out[at : at + size] = out[source : source + size].copy()
        at += size + int(rng.integers(FRESH[0], FRESH[1] + 1))
    return out


def sentence(rng: np.random.Generator, split: str) -> tuple[str, str, str, str]:
    """One sentence as (prefix up to the verb, right verb, wrong verb, rest). Verbs start with a space.

    Subject, link and attractor decide by a hash whether the sentence belongs to the ``heldout`` fifth, so no held-out
    combination is ever trained on. The attractor's number is drawn independently of the subject's. Subjects that
    contain a link's letters ("string" and "in") can have a second phrase without the first, which no hash sees: they
    are never held out.
    """
    while True:
        planned, attractor = (NOUNS[i] for i in rng.choice(len(NOUNS), 2, replace=False))
        number, other, deep = (int(x) for x in rng.integers(0, 2, 3))
        link = LINKS[int(rng.integers(len(LINKS)))]
        heldout = hashlib.sha256(f"{planned[0]} {link} {attractor[0]}".encode()).digest()[0] < 51
        free = any(word in form for word in LINKS for form in planned)
        if heldout == (split == "heldout") and not (free and split == "heldout"):
            break
    pair = VERBS[int(rng.integers(len(VERBS)))]
    attracted = rng.random() < 0.8
    prefix = f"The {planned[number]}" + (f" {link} the {attractor[other]}" if attracted else "")
    if deep and (attracted or link in planned[number]):
        third = NOUNS[int(rng.integers(len(NOUNS)))][int(rng.integers(2))]
        prefix += f" {LINKS[int(rng.integers(len(LINKS)))]} the {third}"
    tails = TAILS[pair[0]]
    return prefix, f" {pair[number]}", f" {pair[1 - number]}", f" {tails[int(rng.integers(len(tails)))]}."


def agreement_window(tokenizer: Any, length: int, rng: np.random.Generator, split: str) -> np.ndarray:
    """Templated sentences one after another, cut to the window: int32 [length]."""
    ids: list[int] = []
    while len(ids) < length:
        sentences = (sentence(rng, split) for _ in range(12))
        text = " ".join(prefix + right + rest for prefix, right, _, rest in sentences)
        ids += tokenizer((" " if ids else "") + text, add_special_tokens=False)["input_ids"]
    return np.asarray(ids[:length], np.int32)
