"""Prompt sets for circuit analyses: clean and corrupted prompts of one length, the answer to each, and marked
positions.

A task is a TOML file, bundled in `data/tasks/` or the user's own. Three kinds:

- `induction`: tokens drawn without replacement, so the last one occurred exactly once before, at `A`; the answer is the
  token `B` after it. The corrupted prompt differs in B alone. `match` > 1 repeats that many tokens up to and including
  A.
- `template`: `clean`, `corrupt`, `answer`, `wrong` and `marks` are Python format strings over `slots` (lists of words,
  or of word forms: `{noun[0]}`); slots named together in `distinct` never take the same value. With `mirror`, half of
  the prompts use all word forms in reverse order and exchange `answer` with `wrong`: a model that prefers one answer
  anyway scores 0.5.
- `pairs`: every prompt written out, under `[[pairs]]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from sae.errors import MissingError, UsageError
from sae.strict import StrictConfig, nearest, read_config
from workbench.config import data_dir
from workbench.corpus.contract import contract_of

Slot = tuple[str | tuple[str, ...], ...]
Encoded = tuple[list[int], list[int], int, int, dict[str, int]]  # clean, corrupt, answer, wrong, marks


class Pair(StrictConfig):
    """One prompt of a task of kind `pairs`."""

    clean: str
    corrupt: str
    answer: str
    wrong: str
    marks: dict[str, str] = Field(default_factory=dict)


class TaskConfig(StrictConfig):
    """A task file. `length` and `match` belong to `induction`; templates and slots to `template`.

    `focus` is the mark that profiles count offsets from (B for induction; a text task without it counts from the last
    token).
    """

    name: str
    about: str
    kind: Literal["induction", "template", "pairs"]
    length: int = Field(64, ge=8)
    match: int = Field(1, ge=1)
    focus: str = "B"
    clean: str = ""
    corrupt: str = ""
    answer: str = ""
    wrong: str = ""
    marks: dict[str, str] = Field(default_factory=dict)
    slots: dict[str, Slot] = Field(default_factory=dict)
    distinct: tuple[tuple[str, ...], ...] = ()
    mirror: bool = False
    pairs: tuple[Pair, ...] = ()

    @model_validator(mode="after")
    def _complete(self) -> TaskConfig:
        if self.kind == "template":
            missing = [k for k in ("clean", "corrupt", "answer", "wrong", "slots") if not getattr(self, k)]
            unknown = [s for group in self.distinct for s in group if s not in self.slots]
            if missing or unknown:
                raise ValueError(
                    f"a template task needs {', '.join(missing)}"
                    if missing
                    else f"distinct names no slot {unknown[0]!r}"
                )
        if self.kind == "pairs" and not self.pairs:
            raise ValueError("a task of kind 'pairs' needs at least one [[pairs]]")
        known = {"A", "B"} if self.kind == "induction" else set(self.marks) or {m for p in self.pairs for m in p.marks}
        if "focus" in self.model_fields_set and self.focus not in known | {"last"}:
            raise ValueError(
                f"focus {self.focus!r} is not a marked position of its prompts (marks:"
                f" {', '.join(sorted(known)) or 'none'})"
            )
        return self


@dataclass(frozen=True)
class PromptSet:
    """P prompts of T tokens each; the answer is due after the last token.

    `clean`, `corrupt`, `control` int64 [P,T] (`control`: unrelated text, for resampling); `answer`, `wrong` int64 [P];
    `marks` name -> position int64 [P]. `rendered` counts prompts tried: more than P where answers or lengths did not
    fit.
    """

    task: str
    clean: np.ndarray
    corrupt: np.ndarray
    control: np.ndarray
    answer: np.ndarray
    wrong: np.ndarray
    marks: dict[str, np.ndarray] = field(default_factory=dict)
    rendered: int = 0
    focus: str = "last"

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def last(self) -> np.ndarray:
        """The position after which the answer is due, per prompt."""
        return np.full(len(self), self.clean.shape[1] - 1)

    def __getitem__(self, rows: slice) -> PromptSet:
        cut = {k: getattr(self, k)[rows] for k in ("clean", "corrupt", "control", "answer", "wrong")}
        return replace(self, **cut, marks={k: v[rows] for k, v in self.marks.items()})

    def position(self, label: str) -> np.ndarray:
        """Positions named by a number, a mark, `last`, or the latter with an offset: `7`, `B`, `B+1`, `last-2`.

        Outside the prompt: -1.
        """
        if label.isdigit():
            return np.where(int(label) < self.clean.shape[1], np.full(len(self), int(label)), -1)
        name, sign, offset = label.partition("+") if "+" in label else label.partition("-")
        base = self.last if name == "last" else self.marks.get(name)
        if base is None or (sign and not offset.isdigit()):
            raise UsageError(
                f"position {label!r} is unknown. Marked positions of task {self.task!r}:"
                f" {', '.join([*self.marks, 'last'])}."
            )
        at = base + int(sign + (offset or "0"))
        return np.where((at >= 0) & (at < self.clean.shape[1]), at, -1)


def bundled_tasks() -> list[str]:
    """Names of the tasks in `data/tasks/`."""
    return sorted(p.stem for p in (data_dir() / "tasks").glob("*.toml"))


def read_task(name: str | Path) -> TaskConfig:
    """A bundled task by name, or a TOML file by path. Raises MissingError, naming the nearest bundled task."""
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return read_config(TaskConfig, path)
    if str(name) in bundled_tasks():
        return read_config(TaskConfig, data_dir() / "tasks" / f"{name}.toml")
    raise MissingError(
        f"task {str(name)!r} is neither bundled nor a TOML file ({nearest(str(name), bundled_tasks())})."
    )


def make_prompts(
    task: TaskConfig, n: int, *, vocab_size: int, tokenizer: Any = None, seed: int = 0, length: int | None = None
) -> PromptSet:
    """`n` prompts of a task (all written-out pairs, at most n, for `pairs`), the same for the same arguments.

    `tokenizer` is needed by text tasks and gives the beginning-of-sequence token; without, induction uses token 0 for
    it.
    Raises UsageError when the tokenizer cannot express the task (fewer than 8 prompts of one length with distinct
    answers).
    """
    rng = np.random.default_rng(seed)
    if task.kind == "induction":
        return _induction(task, n, length or task.length, _plain_tokens(vocab_size, tokenizer), _bos(tokenizer), rng)
    if tokenizer is None:
        raise UsageError(
            f"task {task.name!r} is text, and the model has no tokenizer. Only induction tasks can run on it."
        )
    return _text_prompts(task, n, tokenizer, rng)


def _bos(tokenizer: Any) -> int | None:
    return 0 if tokenizer is None else contract_of(tokenizer).first


def _plain_tokens(vocab_size: int, tokenizer: Any) -> np.ndarray:
    """Tokens that are printable text by themselves; without a tokenizer all but token 0."""
    if tokenizer is None:
        return np.arange(1, vocab_size)
    special = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode(
        [[i] for i in range(min(vocab_size, len(tokenizer)))], clean_up_tokenization_spaces=False
    )
    return np.array(
        [
            i
            for i, text in enumerate(texts)
            if i not in special and text.strip() and text.strip().isprintable() and "\ufffd" not in text
        ]
    )


def _induction(
    task: TaskConfig, n: int, length: int, tokens: np.ndarray, bos: int | None, rng: np.random.Generator
) -> PromptSet:
    """[bos, …, A, B, …, A]; A in the first half, as in Towards Universality's random sequences."""
    start, match = int(bos is not None), task.match
    if len(tokens) < length + 1:
        raise UsageError(
            f"{length} distinct tokens are needed and the vocabulary has {len(tokens)}. Use a smaller length."
        )
    if length < 2 * match + start + 4:
        raise UsageError(
            f"length {length} is too short for match {match} (how many tokens the end repeats). Use a"
            " larger length, or a smaller match."
        )
    clean, wrong, control = np.empty((n, length), np.int64), np.empty(n, np.int64), np.empty((n, length), np.int64)
    A = rng.integers(start + match - 1, max(start + match, length // 2), n)
    for i in range(n):
        drawn = rng.permutation(tokens)
        clean[i], wrong[i] = drawn[:length], drawn[length]
        control[i] = rng.permutation(tokens)[:length]
        clean[i, length - match :] = clean[i, A[i] - match + 1 : A[i] + 1]
    if bos is not None:
        clean[:, 0] = control[:, 0] = bos
    rows, corrupt = np.arange(n), clean.copy()
    answer = clean[rows, A + 1]
    corrupt[rows, A + 1] = wrong
    return PromptSet(task.name, clean, corrupt, control, answer, wrong, {"A": A, "B": A + 1}, n, task.focus)


def _text_prompts(task: TaskConfig, n: int, tokenizer: Any, rng: np.random.Generator) -> PromptSet:
    sides = 1 + task.mirror
    found: dict[int, tuple[list[Encoded], list[Encoded]]] = {}  # prompt length -> as written, mirrored
    seen: set[str] = set()
    rendered = 0
    for turn, pair in enumerate(_render(task, 40 * n, rng)):
        if pair.clean + pair.answer in seen:
            continue
        seen.add(pair.clean + pair.answer)
        rendered += 1
        encoded = _encode(pair, tokenizer)
        if encoded is not None:
            group = found.setdefault(len(encoded[0]), ([], []))
            group[turn % sides].append(encoded)
            if min(len(side) for side in group[:sides]) >= -(-n // sides):
                break
    balanced = {k: _interleave(group[:sides])[:n] for k, group in found.items()}
    best = max(balanced.values(), key=len, default=[])
    if len(best) < min(8, n):
        lengths = {k: len(v) for k, v in sorted(balanced.items())}
        raise UsageError(
            f"task {task.name!r}: of {rendered} prompts that were written, this tokenizer gives only {len(best)} of one"
            " length, with as many tokens in the clean and the corrupted version and answers that begin differently (by"
            f" length: {lengths}). Write more prompts, or use words that are single tokens."
        )
    clean, corrupt, answer, wrong = (np.array([e[k] for e in best], np.int64) for k in range(4))
    marks = {name: np.array([e[4][name] for e in best], np.int64) for name in best[0][4]}
    control = clean[np.roll(rng.permutation(len(clean)), 1)] if len(clean) > 1 else corrupt
    return PromptSet(
        task.name,
        clean,
        corrupt,
        control,
        answer,
        wrong,
        marks,
        rendered,
        task.focus if task.focus in marks else "last",
    )


def _interleave(sides: Sequence[list[Encoded]]) -> list[Encoded]:
    """Prompts of all sides in turn, as many of each."""
    return [prompt for together in zip(*sides, strict=False) for prompt in together]


def _render(task: TaskConfig, tries: int, rng: np.random.Generator) -> Iterator[Pair]:
    if task.kind == "pairs":
        yield from task.pairs
        return
    produced = 0
    for _ in range(tries):
        values = {name: options[int(rng.integers(len(options)))] for name, options in task.slots.items()}
        if any(len({values[s] for s in group}) < len(group) for group in task.distinct):
            continue
        mirrored = task.mirror and produced % 2 == 1
        produced += 1
        if mirrored:
            values = {name: v if isinstance(v, str) else v[::-1] for name, v in values.items()}
        text = {k: getattr(task, k).format_map(values) for k in ("clean", "corrupt", "answer", "wrong")}
        if mirrored:
            text["answer"], text["wrong"] = text["wrong"], text["answer"]
        yield Pair(**text, marks={name: form.format_map(values) for name, form in task.marks.items()})


def _encode(pair: Pair, tokenizer: Any) -> Encoded | None:
    """Token ids, or None where the two prompts do not align.

    Tokens with which both answers begin are appended to the prompts.
    """
    first = _bos(tokenizer)
    bos = [] if first is None else [first]

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    clean, corrupt, answer, wrong = ids(pair.clean), ids(pair.corrupt), ids(pair.answer), ids(pair.wrong)
    shared = next((k for k, (a, b) in enumerate(zip(answer, wrong, strict=False)) if a != b), None)
    if len(clean) != len(corrupt) or shared is None:
        return None
    start = answer[:shared]
    marks = {}
    for name, word in pair.marks.items():
        at = pair.clean.find(word)
        if at < 0:
            raise UsageError(f"mark {name!r} = {word!r} does not occur in the prompt {pair.clean!r}.")
        marks[name] = len(bos) + len(ids(pair.clean[: at + len(word)])) - 1
    return bos + clean + start, bos + corrupt + start, answer[shared], wrong[shared], marks
