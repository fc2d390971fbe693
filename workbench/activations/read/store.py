"""Reading a store: rows, sequences and tokens for analysis, shuffled batches for training.

No reader returns a row that differs from what was harvested: blocks are proven as they are read, and a bad one raises.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sae.errors import UsageError
from sae.files import sha256_json
from sae.strict import nearest
from workbench.activations.format.errors import ShardCorrupt, StoreIncomplete
from workbench.activations.format.layout import Container
from workbench.activations.format.numbers import to_float
from workbench.activations.format.seal import Seal, read_seal, seal_digest
from workbench.activations.format.shard import SHARDS, no_data, open_plan, plain_folder, read_blocks
from workbench.activations.format.spec import STORED, Source, StoreSpec, Stream, read_spec
from workbench.activations.read.batches import MEMORY_LIMIT, THREADS, Batches, Split, make_order
from workbench.activations.read.pool import ShardPool
from workbench.activations.read.row_ranges import merged, row_numbers, runs
from workbench.corpus.contract import TokenContract
from workbench.run import QUIET, Run

Names = str | Sequence[str]
_TOLD: set[str] = set()  # stores of which it was said that they are older than the contract


def say_old_rule(spec: StoreSpec, run: Run) -> None:
    """Of a store without a contract say, once, what it leaves open."""
    if "contract" not in spec.plan and spec.store_id not in _TOLD:
        _TOLD.add(spec.store_id)
        run.say(
            f"store {spec.id!r} was made by the old rule: a BOS inside its sequences counts as data. Harvest under"
            " another id to leave such rows out."
        )


class ActivationStore:
    """A complete activation store. Open it with :meth:`open`.

    Rows are numbered through the store: sequence by sequence, positions in order; excluded positions, and tokens that
    are no data wherever they stand (BOS, pads), are left out.
    Wherever ``source`` may be None the store must have one source only.
    """

    def __init__(self, folder: Path, spec: StoreSpec, seal: Seal | None):
        self.path, self.spec, self._seal = folder, spec, seal
        self._pid, self._pool = os.getpid(), ShardPool(folder, spec, seal)
        self._plan: Container | None = None
        self.skipped = seal.skipped if seal else ()
        r = spec.rows_per_seq
        self._skipped_rows = tuple((i * r, (i + 1) * r) for i in sorted(self.skipped))

    @cached_property
    def content(self) -> str:
        """Digest of everything in the shards, whatever command made them; empty where the store is not complete."""
        return "" if self._seal is None else sha256_json({name: seal for name, (_, seal) in self._seal.shards.items()})

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Open a store and check names and sizes; a shard's own proof comes when it is first read.

        Raises:
            MissingError: no store there. StoreIncomplete: shards or the seal are missing.
            ShardCorrupt: a shard has another size than it was sealed with. CorruptError, NewerSchemaError: see the
            message.
        """
        folder = Path(path)
        spec = read_spec(folder)
        plain_folder(folder / SHARDS)
        seal = read_seal(folder, spec)
        for name, (expected, _) in seal.shards.items():
            try:
                size = os.lstat(folder / SHARDS / name).st_size
            except FileNotFoundError:
                raise StoreIncomplete(
                    f"shard {name} of {folder} is missing. Run `workbench check {folder}`, then the same `workbench"
                    " harvest` again."
                ) from None
            if size != expected:
                raise ShardCorrupt(name, f"it has {size:,} bytes instead of {expected:,}", shard=int(name[:-3]))
        return cls(folder, spec, seal)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the store for itself (a loader's workers, for example)."""
        return ActivationStore.open, (str(self.path.absolute()),)

    def __repr__(self) -> str:
        return f"ActivationStore({str(self.path)!r}: {len(self):,} rows, hooks {self.hooks}, sources {self.sources})"

    def __len__(self) -> int:
        """Rows, per hook and source."""
        return self.spec.n_rows - len(self._gaps)

    @property
    def contract(self) -> TokenContract | None:
        """What its tokens were cut by; None: made before there was one (BOS inside sequences counts as data)."""
        found = self.spec.plan.get("contract")
        return None if found is None else TokenContract.model_validate(found)

    def check_tokenizer(self, tokenizer: Any, who: str, run: Run = QUIET) -> None:
        """Refuse to give tokens to a model that reads other words in them; says once what an older store leaves open.

        Raises:
            UsageError: ``who`` has another tokenizer.
        """
        if (contract := self.contract) is not None:
            if tokenizer is not None:
                contract.check(tokenizer, who, f"store {self.spec.id!r}")
        else:
            say_old_rule(self.spec, run)

    @cached_property
    def _gaps(self) -> np.ndarray:
        """Rows on disk that are no data, int64 ascending: tokens of ``exclude_ids`` at kept positions, and those that
        ``plan/rows`` leaves out.
        """
        if not self.spec.exclude_ids and not self.spec.row_mask:
            return np.zeros(0, np.int64)
        r, found = self.spec.rows_per_seq, []
        for block in range(-(-self.n_seq // 64)):
            left = no_data(self.spec, self._token_block(block), self._mask_block(block))
            found.append(np.flatnonzero(left) + block * 64 * r)
        return np.concatenate(found).astype(np.int64)

    def _on_disk(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of the store as rows on disk."""
        if not len(self._gaps):
            return numbers
        return numbers + np.searchsorted(self._gaps - np.arange(len(self._gaps)), numbers, side="right")

    def _first_from(self, on_disk: np.ndarray | int) -> Any:
        """The first row of the store at or after a row on disk."""
        return on_disk - np.searchsorted(self._gaps, on_disk)

    def rows_of(self, sequences: Sequence[int] | np.ndarray) -> np.ndarray:
        """Row numbers of whole sequences, int64, in the order given."""
        r = self.spec.rows_per_seq
        starts = np.asarray(sequences, np.int64) * r
        lo, hi = self._first_from(starts), self._first_from(starts + r)
        return np.concatenate([np.arange(a, b) for a, b in zip(lo, hi, strict=True)] or [np.zeros(0, np.int64)])

    def whole_sequences(self, ranges: list[slice]) -> list[slice]:
        """Ranges of rows as if no token had been left out, as ranges of this store's rows."""
        return [slice(int(self._first_from(s.start)), int(self._first_from(s.stop))) for s in ranges]

    def sequences_with_rows(self, sequences: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(token ids int32 [n, ctx] of whole sequences, which of them have a row, bool likewise)."""
        ids = np.zeros((len(sequences), self.ctx), np.int32)
        rows = np.zeros(ids.shape, bool)
        for k, i in enumerate(self._sequence_number(int(i)) for i in sequences):
            here = slice(i % 64, i % 64 + 1)
            tokens, mask = self._token_block(i // 64)[here], self._mask_block(i // 64)
            ids[k] = tokens
            rows[k, self.spec.positions] = ~no_data(self.spec, tokens, None if mask is None else mask[here])
        return ids, rows

    @property
    def hooks(self) -> list[str]:
        """Hook names that are the same for all sources."""
        return list(self.spec.hooks)

    @property
    def sources(self) -> list[str]:
        """Names of the models (or snapshots) whose rows are aligned here."""
        return [s.name for s in self.spec.sources]

    @property
    def store_id(self) -> str:
        """SHA-256 of what decides the content."""
        return self.spec.store_id

    @property
    def digest(self) -> str:
        """SHA-256 of the seal: names this store as another result's input."""
        return seal_digest(self.path)

    def source(self, name: str) -> Source:
        """What the store says about one of its sources: model, revision, digest of the weights.

        Raises:
            UsageError: no such source.
        """
        for s in self.spec.sources:
            if s.name == name:
                return s
        raise UsageError(f"store {self.spec.id!r} has no source {name!r} ({nearest(name, self.sources)})")

    @property
    def ctx(self) -> int:
        """Tokens per sequence, excluded positions included."""
        return self.spec.ctx

    @property
    def n_seq(self) -> int:
        """Sequences."""
        return self.spec.n_seq

    @property
    def heldout(self) -> range:
        """Sequences that are held out from training: the last 10 %."""
        return range(self.spec.n_seq - self.spec.heldout_seqs, self.spec.n_seq)

    def width(self, hook: Names, source: Names | None = None) -> int:
        """Numbers per row; of several hooks or sources, together."""
        return sum(s.width for s in self._streams(hook, source))

    def read(
        self, hook: Names, rows: slice | np.ndarray | Sequence[int] | None = None, source: Names | None = None
    ) -> torch.Tensor:
        """Rows as float32 [rows, width]: a slice, or an array of row numbers in any order; None reads all.

        Several sources and hooks lie side by side (sources outer). Rows of sequences that were left out are NaN.
        """
        streams = self._streams(hook, source)
        numbers = self._on_disk(row_numbers(slice(None) if rows is None else rows, len(self)))
        out = np.empty((len(numbers), sum(s.width for s in streams)), np.float32)
        at = 0
        for s in streams:
            for dest, lo, hi in runs(numbers, self.spec.rows_per_shard, self.spec.block_rows):
                part = np.empty((hi - lo, s.width), STORED[self.spec.dtype])
                self.pool.read_into(part, s, lo, hi)
                picked = part if isinstance(dest, slice) else part[numbers[dest] - lo]
                out[dest, at : at + s.width] = to_float(picked, self.spec.dtype)
            at += s.width
        for a, b in self._skipped_rows:
            out[(numbers >= a) & (numbers < b)] = np.nan
        return torch.from_numpy(out)

    def tokens(
        self, rows: slice | np.ndarray | Sequence[int] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token ids, sequence, position) of rows, each int [rows]."""
        numbers = self._on_disk(row_numbers(slice(None) if rows is None else rows, len(self)))
        seq, k = np.divmod(numbers, self.spec.rows_per_seq)
        pos = self.spec.positions[k]
        ids = np.empty(len(numbers), np.int32)
        for block in np.unique(seq // 64):
            at = np.flatnonzero(seq // 64 == block)
            ids[at] = self._token_block(int(block))[seq[at] - block * 64, pos[at]]
        return ids, seq, pos

    def sequence(self, i: int, hook: Names, source: Names | None = None) -> torch.Tensor:
        """All rows of sequence ``i``: [rows, width]."""
        return self.read(hook, self.rows_of([self._sequence_number(i)]), source)

    def sequence_tokens(self, i: int) -> np.ndarray:
        """Token ids of sequence ``i``, excluded positions included: int32 [ctx]."""
        i = self._sequence_number(i)
        return self._token_block(i // 64)[i % 64].copy()

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """(document id int32 [n_seq], kind uint8 [n_seq]) of the token plan."""
        plan = self._open_plan()
        return plan.small("plan/doc_ids"), plan.small("plan/kinds")

    def statistics(self, hook: str, source: str | None = None) -> dict[str, np.ndarray | float | int]:
        """``n`` rows, their ``mean`` [width], ``mean_square`` norm per row and ``max_abs``, without reading a row."""
        (stream,) = self._streams(hook, source)
        total, n, squares, largest = np.zeros(stream.width), 0, 0.0, 0.0
        for index in range(self.spec.n_shards):
            shard, _ = self.pool.get(index)
            total += shard.small(f"stats/{stream.key}/sum")
            m = shard.small(f"stats/{stream.key}/moments")
            n, squares, largest = n + int(m[0]), squares + float(m[1]), max(largest, float(m[2]))
        return {"n": n, "mean": total / max(n, 1), "mean_square": squares / max(n, 1), "max_abs": largest}

    def batches(
        self,
        hook: Names,
        batch_size: int,
        *,
        seed: int,
        source: Names | None = None,
        split: Split = "train",
        start: int = 0,
        epochs: int | None = None,
        window: int = 0,
        memory_limit: int = MEMORY_LIMIT,
        threads: int = THREADS,
    ) -> Batches:
        """Shuffled batches: an iterable of float32 tensors [batch_size, width], the same on every machine.

        Args:
            split: ``train`` (all but the held-out sequences), ``heldout`` or ``all``.
            start: first step; ``.starting_at(step)`` gives the same.
            epochs: None never ends; otherwise every row comes once per epoch and only the last batch may be short.
            window: shuffle within this many shards at a time (0 = all). A stream must: at most half its ring (0 =
            exactly that).
            memory_limit: bytes of the two buffers; it bounds how many rows are shuffled together, so it is part of the
            order.
            threads: readers; they change the speed and nothing else.
        """
        if batch_size < 1 or start < 0 or memory_limit < 1 or threads < 1:
            raise UsageError(
                f"batch_size = {batch_size}, start = {start}, memory_limit = {memory_limit}, threads = {threads}: all"
                " must be positive (start may be 0)."
            )
        streams, window = self._streams(hook, source), self._window(window)
        order = make_order(
            self.spec,
            streams,
            seed=seed,
            split=split,
            window=window,
            memory_limit=memory_limit,
            skipped=self._left_out(),
        )
        return self._watched(
            Batches(
                self._begin,
                tuple(streams),
                order,
                batch_size,
                self.spec.store_id,
                self.spec.dtype,
                start,
                epochs,
                threads,
                content=self.content,
            )
        )

    def _left_out(self) -> tuple[tuple[int, int], ...]:
        """Row ranges on disk that are never returned, ascending: skipped sequences, and tokens that are no data."""
        if not len(self._gaps):
            return self._skipped_rows
        edges = np.flatnonzero(np.diff(self._gaps) != 1)
        starts = self._gaps[np.concatenate([[0], edges + 1])].tolist()
        ends = (self._gaps[np.concatenate([edges, [len(self._gaps) - 1]])] + 1).tolist()
        return merged([*self._skipped_rows, *zip(starts, ends, strict=True)])

    def _window(self, window: int) -> int:
        """The window that is meant by a request for ``window``."""
        return window

    def _watched(self, batches: Batches) -> Batches:
        """The batches, with whatever must happen as they are read."""
        return batches

    def _begin(self, batches: Batches) -> ShardPool:
        """What an iteration reads from."""
        return self.pool

    def refresh(self) -> ActivationStore:
        """The store as it is now on disk. An open store, and a running epoch, never change under their reader."""
        return ActivationStore.open(self.path)

    @property
    def pool(self) -> ShardPool:
        """Open shards of this process (a forked child gets its own)."""
        if os.getpid() != self._pid:
            self._pid, self._pool, self._plan = os.getpid(), ShardPool(self.path, self.spec, self._seal), None
        return self._pool

    def _streams(self, hook: Names, source: Names | None) -> list[Stream]:
        if source is None:
            if len(self.sources) > 1:
                raise UsageError(
                    f"store {self.spec.id!r} has several sources; say which: source ="
                    f" {', '.join(map(repr, self.sources))}, or a list of them"
                )
            source = self.sources
        sources = [source] if isinstance(source, str) else list(source)
        hooks = [hook] if isinstance(hook, str) else list(hook)
        if not sources or not hooks:
            raise UsageError(
                "an empty list of hooks or sources was asked for. Name at least one, or leave the argument out for all."
            )
        return [self.spec.stream(s, h) for s in sources for h in hooks]

    def _sequence_number(self, i: int) -> int:
        if not -self.n_seq <= i < self.n_seq:
            raise UsageError(f"sequence {i} is not in the store: it has {self.n_seq}")
        return i % self.n_seq

    def _open_plan(self) -> Container:
        pool = self.pool  # resets the plan after a fork
        if self._plan is None:
            self._plan = (
                open_plan(pool.folder, self.spec, self._seal.layouts["plan"], self._seal.plan_seal)
                if self._seal
                else open_plan(pool.folder, self.spec)
            )
        return self._plan

    def _token_block(self, block: int) -> np.ndarray:
        return read_blocks(self._open_plan(), "plan/tokens", block, block + 1)

    def _mask_block(self, block: int) -> np.ndarray | None:
        """Which tokens of a block of sequences may be rows; None where the plan does not tell."""
        return read_blocks(self._open_plan(), "plan/rows", block, block + 1) if self.spec.row_mask else None
