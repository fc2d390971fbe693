"""What counts as a label: one short line. Raw trains of thought, lists and essays are refused, not shortened."""

from __future__ import annotations

from sae.errors import UserError

MAX_WORDS = 25
MAX_CHARACTERS = 300


class NotALabel(UserError):
    """An answer that cannot serve as a label; the message says why."""


def check_label(text: str) -> str:
    """The label in an answer, outer spaces and quotes removed.

    Raises:
        NotALabel: empty, several lines, more than 25 words or 300 characters, or control characters.
    """
    label = text.strip()
    if len(label) > 1 and label[0] == label[-1] and label[0] in "\"'“”`":
        label = label[1:-1].strip()
    if not label:
        raise NotALabel("the answer is empty.")
    if len(label.splitlines()) > 1:
        raise NotALabel(f"the answer has {len(label.splitlines())} lines; a label is one line.")
    words = len(label.split())
    if words > MAX_WORDS or len(label) > MAX_CHARACTERS:
        raise NotALabel(
            f"the answer has {words} words; a label has at most {MAX_WORDS} (and {MAX_CHARACTERS} characters)."
        )
    if any(ord(c) < 32 or ord(c) == 127 for c in label):
        raise NotALabel("the answer holds control characters.")
    return label
