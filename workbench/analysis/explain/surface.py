"""What can be read off the text itself at every token: the vocabulary of the rule-based labeller and of synthetic
probes.

All properties are causal: they depend on the token and what precedes it in its sequence, never on what follows.
"""

from __future__ import annotations

import string

import numpy as np

OPEN, CLOSE = "([{", ")]}"

# name -> how a label says it
SURFACE: dict[str, str] = {
    "repeat_token": "seen earlier in the context",
    "new_token": "for the first time in the context",
    "repeat_pair": "repeating an earlier pair of tokens",
    "repeat_triple": "repeating an earlier run of three tokens",
    "line_start": "first on its line",
    "indent_4": "on a line indented by 4 or more",
    "indent_8": "on a line indented by 8 or more",
    "in_bracket": "inside brackets",
    "in_deep_bracket": "inside nested brackets",
    "in_string": "inside a string",
    "in_comment": "inside a comment",
    "word_start": "starting a word",
    "word_inside": "continuing a word",
    "capitalised": "starting with a capital",
    "all_capitals": "in capitals",
    "digit": "made of digits",
    "punctuation": "made of punctuation",
    "whitespace": "made of whitespace",
    "early": "at one of the first 8 positions",
}


def previous_ids(ids: np.ndarray, seq: np.ndarray, pos: np.ndarray, missing: int) -> np.ndarray:
    """[N] id of the token before each row, ``missing`` where it is not among the rows (after BOS)."""
    out = np.full(len(ids), missing, np.int64)
    if len(ids) > 1:
        joined = (seq[1:] == seq[:-1]) & (pos[1:] == pos[:-1] + 1)
        out[1:][joined] = ids[:-1][joined]
    return out


def next_ids(ids: np.ndarray, seq: np.ndarray, pos: np.ndarray, missing: int) -> np.ndarray:
    """[N] id of the token after each row, ``missing`` at the end of its sequence: what a late latent often is about."""
    out = np.full(len(ids), missing, np.int64)
    if len(ids) > 1:
        joined = (seq[1:] == seq[:-1]) & (pos[1:] == pos[:-1] + 1)
        out[:-1][joined] = ids[1:][joined]
    return out


def _seen_before(key: np.ndarray, seq: np.ndarray) -> np.ndarray:
    """[N] whether the key occurred at an earlier row of the same sequence (rows are in order)."""
    order = np.lexsort((np.arange(len(key)), key, seq))
    again = np.zeros(len(key), bool)
    k, s = key[order], seq[order]
    again[order[1:]] = (k[1:] == k[:-1]) & (s[1:] == s[:-1])
    return again


def surface(ids: np.ndarray, seq: np.ndarray, pos: np.ndarray, vocab: list[str]) -> dict[str, np.ndarray]:
    """Boolean arrays [N] for every name in :data:`SURFACE`. Rows must be in sequence and position order."""
    v = len(vocab)
    now = ids.astype(np.int64)
    before = previous_ids(ids, seq, pos, v)
    before2 = np.full(len(ids), v, np.int64)
    before2[1:] = np.where(before[1:] == v, v, before[:-1])
    pair = before * (v + 1) + now
    out = {
        "repeat_token": _seen_before(now, seq),
        "repeat_pair": _seen_before(pair, seq) & (before < v),
        "repeat_triple": _seen_before(before2 * (v + 1) ** 2 + pair, seq) & (before2 < v),
        "early": pos <= 8,
    }
    out["new_token"] = ~out["repeat_token"]
    kinds = _token_kinds(vocab)
    out |= {name: flags[ids] for name, flags in kinds.items() if name != "alnum_end"}
    out["word_inside"] = kinds["alnum_start"][ids] & (before < v) & kinds["alnum_end"][np.minimum(before, v - 1)]
    out["word_start"] = (kinds["space_word"][ids] | kinds["alnum_start"][ids]) & ~out["word_inside"]
    out |= _scan(ids, seq, vocab)
    return {name: np.asarray(out[name], bool) for name in SURFACE}


def _token_kinds(vocab: list[str]) -> dict[str, np.ndarray]:
    """Properties of a token by itself, bool [V]."""

    def table(test: object) -> np.ndarray:
        return np.array([bool(test(t)) for t in vocab])  # type: ignore[operator]

    return {
        "capitalised": table(lambda t: t.strip()[:1].isupper()),
        "all_capitals": table(lambda t: len(t.strip()) > 1 and t.strip().isupper()),
        "digit": table(lambda t: t.strip().isdigit()),
        "punctuation": table(lambda t: bool(t.strip()) and all(c in string.punctuation for c in t.strip())),
        "whitespace": table(lambda t: bool(t) and not t.strip()),
        "alnum_start": table(lambda t: t[:1].isalnum() or t[:1] == "_"),
        "alnum_end": table(lambda t: t[-1:].isalnum() or t[-1:] == "_"),
        "space_word": table(lambda t: t[:1].isspace() and (t.strip()[:1].isalnum() or t.strip()[:1] == "_")),
    }


def _scan(ids: np.ndarray, seq: np.ndarray, vocab: list[str]) -> dict[str, np.ndarray]:
    """Bracket depth, strings, comments and indentation as they stand where each token begins (one pass over the
    characters).
    """
    n = len(ids)
    state = np.zeros((4, n), np.int16)  # depth, in string, in comment, indent
    fresh = np.zeros(n, bool)
    depth, quote, comment, indent, at_start, last_seq = 0, "", False, 0, False, -1
    for i, (token, s) in enumerate(zip(ids.tolist(), seq.tolist(), strict=True)):
        if s != last_seq:
            depth, quote, comment, indent, at_start, last_seq = 0, "", False, 0, False, s
        state[:, i] = depth, bool(quote), comment, indent
        text = vocab[token]
        fresh[i] = at_start and bool(text.strip())
        for c in text:
            if c == "\n":
                indent, at_start, comment = 0, True, False
                quote = ""
            elif at_start and c == " ":
                indent += 1
            elif comment:
                continue
            elif quote:
                at_start = False
                if c == quote:
                    quote = ""
            else:
                at_start = False
                if c in "\"'":
                    quote = c
                elif c == "#":
                    comment = True
                elif c in OPEN:
                    depth += 1
                elif c in CLOSE:
                    depth = max(0, depth - 1)
    return {
        "line_start": fresh,
        "in_bracket": state[0] >= 1,
        "in_deep_bracket": state[0] >= 2,
        "in_string": state[1] > 0,
        "in_comment": state[2] > 0,
        "indent_4": state[3] >= 4,
        "indent_8": state[3] >= 8,
    }
