"""What a foreign configuration may hold: one table per library and age, one function that holds a file against it.

A key that nobody here knows may be the one that scales the input, so every key is in its table or the file is refused
by the key's name: **used** keys decide numbers, each with a rule for its value; **kept** keys say where the dictionary
belongs and travel with it; **harmless** keys are known to change no number. Tensors are held to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sae.errors import CorruptError
from sae.strict import nearest


@dataclass(frozen=True)
class Rule:
    """What the value of a used key may be: a test, its description, and why other values are refused."""

    what: str
    holds: Callable[[Any], bool]
    why: str = ""
    optional: bool = False

    def or_absent(self) -> Rule:
        """The same rule for a key that its library did not always write."""
        return Rule(self.what, self.holds, self.why, optional=True)


def only(*values: Any, why: str = "") -> Rule:
    """One of a few values, compared with their type (``True`` is not 1)."""
    what = " or ".join(repr(v) for v in values)
    return Rule(what, lambda v: any(type(v) is type(w) and v == w for w in values), why)


FLAG = Rule("true or false", lambda v: isinstance(v, bool))
WHOLE = Rule("a whole number above zero", lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0)
COUNT = Rule("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 0)
NUMBER = Rule("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool))
POSITIVE = Rule("a number above zero", lambda v: NUMBER.holds(v) and v > 0)
TEXT = Rule("text", lambda v: isinstance(v, str) and v != "")
TEXT_OR_NULL = Rule("text or null", lambda v: v is None or isinstance(v, str))
OBJECT = Rule("an object", lambda v: isinstance(v, dict))
OBJECT_OR_NULL = Rule("an object or null", lambda v: v is None or isinstance(v, dict))


@dataclass(frozen=True)
class Layout:
    """One age of a library's format.

    Attributes:
        library, versions, dates: whose, and from which releases it is known. file: where the keys stand. kinds: the
            library's names of what is read. used, kept, harmless: see the module. refused: what is known and refused,
            for the documentation.
    """

    library: str
    versions: str
    dates: str
    file: str
    kinds: tuple[str, ...]
    used: Mapping[str, Rule]
    kept: frozenset[str] = frozenset()
    harmless: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()
    sections: Mapping[str, Layout] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.library} {self.versions}"


def names(text: str) -> frozenset[str]:
    """The words of a table row."""
    return frozenset(text.split())


def check_keys(cfg: Mapping[str, Any], layout: Layout, where: str) -> None:
    """Raise :class:`CorruptError` unless every key is in the layout, no used one is missing, and each holds a value its
    rule allows. The message names the key, quotes the value and says what to do.
    """
    at = f"{where}/{layout.file}"
    known = {*layout.used, *layout.kept, *layout.harmless}
    for key in sorted(set(cfg) - known):
        raise CorruptError(
            f"{at}: the key {key!r} = {cfg[key]!r:.60} is in no known configuration of {layout.name}"
            f" ({nearest(key, sorted(known))}), so what it does to the numbers is not known. If it does nothing,"
            " delete it."
        )
    for key, rule in layout.used.items():
        if key not in cfg:
            if not rule.optional:
                raise CorruptError(f"{at}: {layout.name} writes {key!r} ({rule.what}), which is missing here.")
        elif not rule.holds(cfg[key]):
            raise CorruptError(
                f"{at}: {key} = {cfg[key]!r:.60} is not read here: it must be {rule.what}"
                f"{f' ({rule.why})' if rule.why else ''}."
            )
    for key, section in layout.sections.items():
        if isinstance(cfg.get(key), dict):
            check_keys(cfg[key], section, where)


def check_tensors(
    tensors: Mapping[str, Tensor],
    required: Mapping[str, tuple[int, ...] | None],
    where: str,
    library: str,
    *,
    optional: Mapping[str, tuple[int, ...] | None] | None = None,
    harmless: Iterable[str] = (),
) -> None:
    """Raise :class:`CorruptError` unless exactly the required tensors are there, and no others but optional and
    harmless ones, each of its shape (None: any).
    """
    optional, harmless = optional or {}, set(harmless)
    missing = [n for n in required if n not in tensors]
    if missing:
        raise CorruptError(
            f"{where} is not a {library} dictionary: {', '.join(missing)} missing, found"
            f" {', '.join(sorted(tensors)) or 'nothing'}."
        )
    for name, tensor in tensors.items():
        if name not in required and name not in optional and name not in harmless:
            raise CorruptError(
                f"{where}: the tensor {name!r} {tuple(tensor.shape)} belongs to no known {library} dictionary of this"
                " kind, so what it does to the numbers is not known."
            )
        shape = required.get(name, optional.get(name))
        if shape is not None and tuple(tensor.shape) != shape:
            raise CorruptError(
                f"{where}: the tensor {name!r} has shape {tuple(tensor.shape)}; the configuration promises {shape}."
            )
