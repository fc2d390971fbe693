"""What a person sees for token ids: the text they stand for, bytes of unfinished characters as ``<E2>`` and alike.

One rule for the vocabulary of a model and for the tokens of a text: nothing is shown as U+FFFD, because that character
says that something is missing and not what.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_LOST = "\ufffd"


def displayed_vocab(tokenizer: Any, size: int) -> list[str]:
    """What a person sees for every token id below ``size``; ids the tokenizer does not know are shown as ``⟨id⟩``."""
    if tokenizer is None:
        return [f"⟨{i}⟩" for i in range(size)]
    known = len(tokenizer)
    texts = tokenizer.batch_decode([[i] for i in range(min(size, known))], clean_up_tokenization_spaces=False)
    raw = tokenizer.convert_ids_to_tokens(list(range(len(texts))))
    shown = [_alone(tokenizer, text, token) for text, token in zip(texts, raw, strict=True)]
    return shown + [f"⟨{i}⟩" for i in range(known, size)]


def shown_token(tokenizer: Any, id: int) -> str:
    """One id on its own."""
    if not 0 <= id < len(tokenizer):
        return f"⟨{id}⟩"
    text = tokenizer.decode([id], clean_up_tokenization_spaces=False)
    return _alone(tokenizer, str(text), tokenizer.convert_ids_to_tokens(id))


def shown_tokens(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    """Tokens of a text, one string each.

    A character that several tokens make up stands with the token that completes it; those before show their bytes.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    out: list[str] = []
    pending = b""  # bytes of a character that is not complete yet
    for id in map(int, ids):
        alone = shown_token(tokenizer, id)
        known = 0 <= id < len(tokenizer) and id not in added
        data = _bytes_of(tokenizer, tokenizer.convert_ids_to_tokens(id)) if known else None
        if data is None or (not pending and not _unfinished(data)):
            pending = b""
            out.append(alone)
            continue
        text, pending = _complete(pending + data, len(pending))
        out.append(text)
    return out


def _unfinished(data: bytes) -> bool:
    """Whether bytes are not text by themselves."""
    try:
        return _LOST in data.decode()
    except UnicodeDecodeError:
        return True


def _complete(data: bytes, old: int) -> tuple[str, bytes]:
    """(what to show, bytes left over) of bytes of which the first ``old`` were shown before, as bytes."""
    for start in range(old + 1):  # bytes before that belong to no character stay as they were shown
        for end in range(len(data), max(start, old), -1):
            try:
                text = data[start:end].decode()
            except UnicodeDecodeError:
                continue
            if _LOST not in text:
                rest = data[end:]
                return text + _hex(rest), rest if _may_begin(rest) else b""
    return _hex(data[old:]), data if _may_begin(data) else b""


def _may_begin(data: bytes) -> bool:
    """Whether bytes are the beginning of a character."""
    return bool(data) and any(
        low <= data[0] < high and len(data) < n and all(0x80 <= b < 0xC0 for b in data[1:])
        for low, high, n in ((0xC2, 0xE0, 2), (0xE0, 0xF0, 3), (0xF0, 0xF5, 4))
    )


def _hex(data: bytes) -> str:
    return "".join(f"<{b:02X}>" for b in data)


def _alone(tokenizer: Any, text: str, token: str | None) -> str:
    """One id without its neighbours, from its decoded text and its name in the vocabulary."""
    if token and token.startswith("▁"):  # SentencePiece drops the space of a lone word when it decodes
        return token.replace("▁", " ")
    if _LOST in text and (data := _bytes_of(tokenizer, token)) is not None:
        return _hex(data)
    return text


def _bytes_of(tokenizer: Any, token: str | None) -> bytes | None:
    """Bytes a vocabulary entry stands for, in byte-level and byte-fallback vocabularies; None: it is no bytes."""
    if not token:
        return None
    if found := _FALLBACK.fullmatch(token):
        return bytes([int(found[1], 16)])
    if tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids("<0x0A>") or 0) == "<0x0A>":
        return None  # SentencePiece: all other entries are written as they are read
    table = byte_level_alphabet()
    return bytes(table[c] for c in token) if all(c in table for c in token) else None


@cache
def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others are shifted above U+0100."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    others = [b for b in range(256) if b not in plain]
    return table | {chr(256 + i): b for i, b in enumerate(others)}
