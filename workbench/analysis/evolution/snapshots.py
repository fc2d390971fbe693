"""The sources of a crosscoder as running models: snapshots of one model, two models, or several layers.

Several models run on the same tokens and their activations are laid side by side, so nothing needs to be on disk.
Models are loaded when first needed and kept as long as ``keep`` allows (miniatures all stay, large ones one at a time).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sae.errors import UsageError
from sae.rows import LocalRows

AT_ONCE = 32  # sequences a model is run on at once


@dataclass(frozen=True)
class Source:
    """One source: a model at a revision, read at one hook. ``step`` is its training step where it is a snapshot."""

    name: str
    model: str
    revision: str | None
    hook: str
    step: int | None = None


class RowCache:
    """Rows of sequences that models have run on, for several crosscoders over the same text: float16, up to
    ``max_bytes`` in all.

    A model that runs for one hook is read at all of ``hooks``.
    """

    AT_A_TIME = (
        128  # sequences per piece of memory: one large piece each, so that many small ones do not scatter the heap
    )

    def __init__(self, hooks: Sequence[str], *, max_bytes: int = 3 * 2**29):
        self.hooks, self.room = tuple(hooks), max_bytes
        self.kept: dict[tuple[str, str, bytes], Tensor] = {}
        self._free: dict[tuple[Any, ...], list[Tensor]] = {}

    def rows(self, model: Any, weights: str, source: Source, tokens: np.ndarray) -> Tensor:
        """Rows [b, T - 1, D] of one source on tokens [b, T], position 0 left out.

        Args:
            weights: digest of the model's weights, by which its rows are known: names may come to mean others.
        """
        from workbench.activations.harvesting.forward import capture

        digests = [
            hashlib.blake2b(np.ascontiguousarray(t, dtype=np.int64).tobytes(), digest_size=16).digest() for t in tokens
        ]
        key = (weights, source.hook)
        missing = [j for j, d in enumerate(digests) if (*key, d) not in self.kept]
        fresh: dict[int, Tensor] = {}
        if missing:
            hooks = list(dict.fromkeys([source.hook, *self.hooks]))
            caught = capture(model, torch.from_numpy(tokens[missing].astype(np.int64)), hooks)
            fresh = dict(zip(missing, caught[source.hook][:, 1:].half(), strict=True))
            for hook in hooks:
                for row, j in enumerate(missing):
                    self._keep((weights, hook), digests[j], caught[hook][row, 1:])
        return torch.stack([fresh[j] if j in fresh else self.kept[*key, d] for j, d in enumerate(digests)]).float()

    def _keep(self, of: tuple[str, str], digest: bytes, rows: Tensor) -> None:
        """Put the rows [T - 1, D] of one sequence where they stay, while there is room."""
        free = self._free.setdefault((*of, *rows.shape), [])
        if not free:
            piece = self.AT_A_TIME * rows.numel() * 2
            if piece > self.room:
                return
            self.room -= piece
            free += torch.empty(self.AT_A_TIME, *rows.shape, dtype=torch.float16).unbind()
        place = free.pop()
        place.copy_(rows)
        self.kept[*of, digest] = place


class Snapshots:
    """Runs the sources of a crosscoder. ``load`` (name, revision) -> bridge defaults to :func:`workbench.load_model`.

    ``cache``: rows shared with other runs over the same models, known by the digests of their weights.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        load: Callable[[str, str | None], Any] | None = None,
        keep: int = 64,
        cache: RowCache | None = None,
    ):
        self.sources, self.keep, self.cache = tuple(sources), keep, cache
        self._load = load
        self._loaded: dict[tuple[str, str | None], Any] = {}
        self._weights: dict[tuple[str, str | None], str] = {}

    def __len__(self) -> int:
        return len(self.sources)

    def model(self, i: int) -> Any:
        """The model of source ``i``, frozen."""
        s = self.sources[i]
        key = (s.model, s.revision)
        if key not in self._loaded:
            while len(self._loaded) >= self.keep:
                gone = next(iter(self._loaded))
                self._loaded.pop(gone)
                self._weights.pop(gone, None)  # it is read from its files again
            if self._load is not None:
                model = self._load(s.model, s.revision)
            else:
                from workbench.models import load_model

                model = load_model(s.model, s.revision)
            if hasattr(model, "parameters"):
                for p in model.parameters():
                    p.requires_grad_(False)
            self._loaded[key] = model
        return self._loaded[key]

    def weights(self, i: int) -> str:
        """Digest of the weights of source ``i``'s model as it is loaded; taken once."""
        from workbench.models.weights import weights_of_model

        model, key = self.model(i), (self.sources[i].model, self.sources[i].revision)
        if key not in self._weights:
            self._weights[key] = weights_of_model(model)
        return self._weights[key]

    def activations(self, tokens: Tensor) -> Tensor:
        """Activations of all sources on tokens [b, T], side by side: [b, T, sum of widths].

        A model read at several hooks runs once.
        """
        from workbench.activations.harvesting.forward import capture

        hooks: dict[
            tuple[str, str | None], dict[str, int]
        ] = {}  # of every model at a revision, with a source that reads it there
        for i, s in enumerate(self.sources):
            hooks.setdefault((s.model, s.revision), {}).setdefault(s.hook, i)
        found = {key: capture(self.model(next(iter(at.values()))), tokens, list(at)) for key, at in hooks.items()}
        return torch.cat([found[s.model, s.revision][s.hook].float() for s in self.sources], dim=-1)

    def rows(self, tokens: np.ndarray) -> Tensor:
        """Activations without position 0 (BOS): [b, T - 1, sum of widths] of tokens [b, T]."""
        if self.cache is None:
            return self.activations(torch.from_numpy(tokens.astype(np.int64)))[:, 1:]
        rows = [self.cache.rows(self.model(i), self.weights(i), s, tokens) for i, s in enumerate(self.sources)]
        return torch.cat(rows, dim=-1)

    def widths(self) -> list[int]:
        """Width of every source, by running two tokens through each."""
        from workbench.activations.harvesting.forward import widths

        return [widths(self.model(i), 0, [s.hook])[s.hook] for i, s in enumerate(self.sources)]


def in_training_order(snapshots: Snapshots) -> bool:
    """Are the sources snapshots of one training, earlier ones first? Only then has "emerges before" a meaning."""
    steps = [s.step for s in snapshots.sources]
    same = len({(s.model, s.hook) for s in snapshots.sources}) == 1 and None not in steps
    return same and steps == sorted(steps)  # type: ignore[type-var]


class OnlineBatches:
    """Rows [batch_size, sum(D)] of all sources, computed as they are needed from tokens [n_seq, ctx] and never stored.

    Sequences are visited in a seeded order, a group at a time; the rows of a group are shuffled together. Position 0 is
    left out, and so are tokens of ``excluded`` wherever they stand (see :mod:`workbench.corpus.contract`) and those
    that ``marked`` [n_seq, ctx] leaves out; a remainder of fewer rows than a batch is left out of that group. The batch
    at a step is a function of the arguments and the step, so training can go on anywhere. With ``cache`` rows are
    rounded to float16 and kept, for several epochs over a small corpus. Several processes deal the sequences of a group
    among themselves, :data:`AT_ONCE` at a time: each runs the models on its own.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        tokens: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        group: int = 128,
        start: int = 0,
        cache: bool = False,
        excluded: Sequence[int] = (),
        marked: np.ndarray | None = None,
    ):
        if len(tokens) < 1 or tokens.shape[1] < 2:
            raise UsageError(
                f"tokens of shape {tokens.shape}: at least one sequence of two tokens is needed. Give more text, or a"
                " smaller ctx."
            )
        self.snapshots, self.tokens, self.batch_size, self.seed, self.start = snapshots, tokens, batch_size, seed, start
        self.group = min(group, len(tokens))
        self.cached: dict[int, Tensor] | None = {} if cache else None
        self.part, self.parts = 0, 1
        inside = tokens[:, 1:]
        self.excluded = tuple(sorted(int(i) for i in set(excluded) if (inside == i).any()))
        self.marked = marked
        self.is_row = ~np.isin(inside, self.excluded)  # [n_seq, ctx - 1]
        if marked is not None:
            self.is_row &= marked[:, 1:]

    def share(self, part: int, parts: int) -> Self:
        """The same batches as :class:`sae.rows.Share`, for the ``part``-th of ``parts`` processes."""
        out = self.starting_at(self.start)
        out.part, out.parts = part, parts
        return out

    def starting_at(self, step: int) -> Self:
        """The same batches from ``step`` on."""
        out = type(self)(self.snapshots, self.tokens, self.batch_size, seed=self.seed, group=self.group, start=step)
        out.excluded, out.is_row, out.marked = self.excluded, self.is_row, self.marked
        out.cached, out.part, out.parts = self.cached, self.part, self.parts
        return out

    def contract(self) -> dict[str, Any]:
        """All that decides the rows at a step: models by their weights, text by its tokens, order by seed and sizes."""
        from workbench.models.weights import model_inputs

        models = model_inputs((s.model, s.revision) for s in self.snapshots.sources)
        more: dict[str, Any] = {"excluded": list(self.excluded)} if self.excluded else {}
        if self.marked is not None:
            more["marked"] = hashlib.sha256(np.ascontiguousarray(self.marked, np.uint8).tobytes()).hexdigest()
        return {
            "sources": [[s.name, s.revision, s.hook] for s in self.snapshots.sources],
            "models": {i.id: i.digest for i in models},
            "text": hashlib.sha256(np.ascontiguousarray(self.tokens, np.int64).tobytes()).hexdigest(),
            "ctx": self.tokens.shape[1],
            "batch_size": self.batch_size,
            "seed": self.seed,
            "group": self.group,
            "rounded": self.cached is not None or self.snapshots.cache is not None,
        } | more

    @property
    def groups(self) -> int:
        """Groups per epoch; a remainder of fewer sequences than a group is left out of that epoch."""
        return len(self.tokens) // self.group

    def rows_of(self, sequences: np.ndarray) -> Tensor:
        """Rows [n * (ctx - 1), sum(D)] of some sequences, in order."""
        return torch.cat([self._run(chosen) for chosen in _pieces(sequences)])

    def _run(self, chosen: np.ndarray) -> Tensor:
        """Rows of a few sequences, from the models or from what is kept."""
        kept = {} if self.cached is None else self.cached
        missing = [int(i) for i in chosen if int(i) not in kept]
        rows: dict[int, Tensor] = {}
        if missing:
            x = self.snapshots.rows(self.tokens[missing])
            rows = dict(zip(missing, x if self.cached is None else x.half(), strict=True))
            if self.cached is not None:
                self.cached |= rows
        return torch.cat([rows[int(i)] if int(i) in rows else kept[int(i)] for i in chosen]).float()

    def __iter__(self) -> Iterator[Any]:  # tensors; of a share, :class:`sae.rows.Share`
        rows_of_sequence = self.is_row.sum(1)
        if int(np.sort(rows_of_sequence)[: self.group].sum()) < self.batch_size:
            raise UsageError(
                f"batch_size = {self.batch_size} rows is more than {self.group} sequences hold, which are read at a"
                " time. Use a smaller batch_size."
            )
        skip, epoch = self.start, 0
        while True:
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.tokens))
            for number in range(self.groups):
                chosen = np.sort(order[number * self.group : (number + 1) * self.group])
                batches = int(rows_of_sequence[chosen].sum()) // self.batch_size
                if skip < batches:
                    yield from self._of_group(chosen, [self.seed, 1, epoch, number], range(skip, batches))
                skip = max(0, skip - batches)
            epoch += 1

    def _of_group(self, chosen: np.ndarray, seed: list[int], which: range) -> Iterator[Any]:
        """Some of the batches of a group of sequences."""
        before, rows = self._mine(chosen)
        order = np.random.default_rng(seed).permutation(len(chosen) * (self.tokens.shape[1] - 1))
        shuffled = torch.from_numpy(order[self.is_row[chosen].reshape(-1)[order]]) - before
        for i in which:
            wanted = shuffled[i * self.batch_size : (i + 1) * self.batch_size]
            if self.parts == 1:
                yield rows[wanted]
            else:
                row_indices = ((wanted >= 0) & (wanted < len(rows))).nonzero().flatten()
                yield LocalRows(rows[wanted[row_indices]], row_indices, len(wanted))

    def _mine(self, chosen: np.ndarray) -> tuple[int, Tensor]:
        """Of a group's sequences this process's: how many rows come before them, and their rows."""
        pieces = _pieces(chosen)
        first, last = (len(pieces) * (self.part + i) // self.parts for i in (0, 1))
        # more processes than pieces: this one runs one sequence for the width of a row, and has none of them
        rows = torch.cat([self._run(p) for p in pieces[first:last]]) if first < last else self._run(chosen[:1])[:0]
        return sum(len(p) for p in pieces[:first]) * (self.tokens.shape[1] - 1), rows


def _pieces(sequences: np.ndarray) -> list[np.ndarray]:
    """Sequences in order, about as many at a time as a model is run on; the same cut for one process and for many."""
    return np.array_split(sequences, -(-len(sequences) // AT_ONCE))
