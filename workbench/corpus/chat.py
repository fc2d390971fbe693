"""Conversations as a model was trained to read them: through its tokenizer's chat template; and whose words are rows.

Where the words of a message stand in the rendered text is established and not guessed. The template is rendered a
second time with a mark in place of every message's words; what stands between the marks is the template's own, and the
conversation must be exactly these pieces with the words between them. A template that does more than put words between
its pieces (drops the reasoning of earlier turns, escapes or rewrites them) is refused where roles are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from sae.errors import UsageError
from workbench.corpus.config import CorpusConfig
from workbench.corpus.records import Tally

Span = tuple[str, int, int]


class Conversation(str):
    """The text of a conversation, and whose words stand where in it: ``spans`` (role, first character, one past the
    last), in order; what lies between is the template's. Slices know their spans too.
    """

    spans: tuple[Span, ...]

    def __new__(cls, text: str, spans: Iterable[Span] = ()) -> Conversation:
        """The text with its spans."""
        out = super().__new__(cls, text)
        out.spans = tuple(spans)
        return out

    def __getitem__(self, key: Any) -> str:
        text = super().__getitem__(key)
        if not isinstance(key, slice):
            return text
        lo, hi, step = key.indices(len(self))
        if step != 1:
            raise ValueError("a conversation is cut in order")
        cut = [(role, max(a, lo) - lo, min(b, hi) - lo) for role, a, b in self.spans if max(a, lo) < min(b, hi)]
        return Conversation(text, cut)


def tally_for(config: CorpusConfig, tokenizer: Any) -> Tally:
    """What counts a corpus' records; of a chat it renders them by the tokenizer's template.

    Raises:
        UsageError: the tokenizer has no chat template, or roles are asked for and it does not say where tokens lie.
    """
    if config.roles and not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"{type(tokenizer).__name__} does not say where its tokens lie in a text, so the rows of a role cannot be"
            " told apart. Leave roles out: all tokens of the conversations are rows then."
        )
    return Tally(config.on_bad, render=_template(tokenizer, config.roles) if config.kind == "chat" else None)


def check_roles(config: CorpusConfig, tally: Tally) -> None:
    """Refuse a role that no message has.

    Raises:
        UsageError: quoting the roles there are.
    """
    for role in config.roles:
        if role not in tally.roles:
            raise UsageError(
                f"no message of the corpus has the role {role!r}; it has"
                f" {', '.join(f'{r!r} ({n:,} messages)' for r, n in sorted(tally.roles.items())) or 'none'}."
            )


def roles_of_tokens(offsets: Sequence[tuple[int, int]], text: str, roles: Sequence[str]) -> np.ndarray:
    """Which tokens are the words of some roles: bool [tokens]; a token is whose its last character is.

    Args:
        offsets: (first character, one past the last) of every token. text: a :class:`Conversation`.
    """
    mine = np.zeros(len(text) + 1, bool)
    for role, a, b in text.spans if isinstance(text, Conversation) else ():
        mine[a:b] = role in roles
    ends = np.asarray(offsets, np.int64).reshape(-1, 2)
    return mine[ends[:, 1] - 1] & (ends[:, 1] > ends[:, 0])


def encoded(tokenizer: Any, texts: Sequence[str], roles: Sequence[str]) -> tuple[list[list[int]], list[np.ndarray]]:
    """(ids, which of them are the words of ``roles``) of some texts; without roles the latter is empty."""
    if not roles:
        return tokenizer(list(texts), add_special_tokens=False)["input_ids"], []
    found = tokenizer([str(t) for t in texts], add_special_tokens=False, return_offsets_mapping=True)
    marks = zip(found["offset_mapping"], texts, strict=True)
    return found["input_ids"], [roles_of_tokens(offsets, text, roles) for offsets, text in marks]


def _template(tokenizer: Any, roles: tuple[str, ...]) -> Callable[[list[dict[str, Any]]], str]:
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "the tokenizer has no chat template, so a corpus of kind 'chat' cannot be read as the model was trained to."
            " Choose a chat model, or read the messages as plain text: kind = 'jsonl', text_field = 'messages'."
        )
    bos = getattr(tokenizer, "bos_token", None) or ""

    def render(messages: list[dict[str, Any]]) -> str:
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as e:  # templates raise what they like where roles do not alternate
            raise UsageError(f"the tokenizer's chat template refuses a conversation: {str(e).splitlines()[0]}") from e

    def rendered(messages: list[dict[str, Any]]) -> str:
        whole = render(messages)
        text = Conversation(whole, spans_of(messages, whole, render)) if roles else whole
        return text[len(bos) :] if bos and text.startswith(bos) else text  # every sequence begins with it anyway

    return rendered


def spans_of(messages: list[dict[str, Any]], whole: str, render: Callable[[list[dict[str, Any]]], str]) -> list[Span]:
    """Where the words of every message stand in ``whole``, which ``render`` made of them.

    Raises:
        UsageError: the template does more than put the words between pieces of its own.
    """
    said = [(str(m["role"]), str(m["content"])) for m in messages if str(m["content"] or "").strip()]
    marks = iter([_mark(i) for i in range(len(said))])
    skeleton = render([m if not str(m["content"] or "").strip() else {**m, "content": next(marks)} for m in messages])
    pieces: list[str] = []
    for i in range(len(said)):
        before, mark, skeleton = skeleton.partition(_mark(i))
        if not mark or _mark(i) in skeleton:
            raise _not_told_apart(i, *said[i], "does not keep its words once and in order")
        pieces.append(before)
    pieces.append(skeleton)
    if not whole.startswith(pieces[0]):
        raise _not_told_apart(0, *said[0], "puts other words around it than around others")
    spans, at = [], len(pieces[0])
    for i, (role, words) in enumerate(said):
        kept = next((w for w in _as_templates_trim(words) if whole.startswith(w + pieces[i + 1], at)), None)
        if kept is None:
            raise _not_told_apart(i, role, words, "changes its words, or what it puts around them")
        spans.append((role, at, at + len(kept)))
        at += len(kept) + len(pieces[i + 1])
    if at != len(whole):
        raise _not_told_apart(len(said) - 1, *said[-1], "adds words after it")
    return spans


def _mark(i: int) -> str:
    """What stands for the words of message ``i``: letters and digits that no template escapes and no text has."""
    return "zq" + hashlib.sha256(f"message {i}".encode()).hexdigest()[:20] + "qz"


def _as_templates_trim(words: str) -> tuple[str, ...]:
    """The words as a template may give them: as they are, or without white space around, before or after them."""
    return words, words.strip(), words.rstrip(), words.lstrip()


def _not_told_apart(i: int, role: str, words: str, why: str) -> UsageError:
    shown = words if len(words) <= 40 else words[:39] + "…"
    return UsageError(
        f"the tokenizer's chat template {why}: message {i + 1} ({role!r}: {shown!r}). So the rows of a role cannot be"
        " told apart. Leave roles out: all tokens of the conversations are rows then."
    )
