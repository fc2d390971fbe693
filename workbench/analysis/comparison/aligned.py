"""The same tokens for every dictionary: rows of one store, read from it where it has them and computed where it has
not.

A comparison is made on the tokens of one reference store. A dictionary whose own store holds these very tokens (the
same store, or another one harvested with the same plan) reads its rows; for any other its model is run on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sae.errors import MissingError, UsageError
from workbench.dictionaries.reference import DictionaryRef
from workbench.workspace import Workspace

if TYPE_CHECKING:
    from workbench.activations import ActivationStore

BATCH = 32  # sequences per forward pass


@dataclass(frozen=True)
class TokenSet:
    """Rows of a reference store: whole sequences, in order, excluded positions left out. Arrays are [n]."""

    store: ActivationStore
    numbers: np.ndarray  # row numbers in the store
    ids: np.ndarray
    seq: np.ndarray
    pos: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def two_readings(self) -> bool:
        """Whether two tokenizers read the text, so that the sides have tokens of their own."""
        return False

    def read_by(self, words: str, who: str) -> TokenSet:
        """The tokens as the tokenizer with a digest of vocabulary reads them: these, where there is one reading."""
        return self

    @property
    def sequences(self) -> np.ndarray:
        """Sequences of the store, ascending."""
        return np.unique(self.seq)

    def places(self) -> np.ndarray:
        """Of each row: its sequence's number among these times the positions that may be rows, plus its position's."""
        positions = self.positions
        return np.searchsorted(self.sequences, self.seq) * len(positions) + np.searchsorted(positions, self.pos)

    @property
    def positions(self) -> np.ndarray:
        """Positions of a sequence that may be rows."""
        return self.store.spec.positions

    def sequences_with_rows(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int [n, ctx] of whole sequences, which of them are rows, bool likewise)."""
        return self.store.sequences_with_rows(sequences)


def rows_of_a_sequence(store: Any) -> int:
    """Rows that a sequence has, on average where a row mask leaves some without many."""
    spec = store.spec
    return max(1, round(len(store) / spec.n_seq)) if spec.row_mask else int(spec.rows_per_seq)


def choose_tokens(store: ActivationStore, n_tokens: int | None) -> TokenSet:
    """The last ``n_tokens`` rows in whole sequences: held-out ones first, then the end of the training part; None takes
    all.

    Raises:
        UsageError: the store has no usable row.
    """
    per_seq = rows_of_a_sequence(store)
    usable = np.setdiff1d(np.arange(store.n_seq), np.array(store.skipped, dtype=np.int64))
    wanted = len(usable) if n_tokens is None else -(-n_tokens // per_seq)
    chosen = usable[-wanted:] if wanted > 0 else usable[:0]
    if not len(chosen):
        raise UsageError(
            f"{store.path.name}: {n_tokens} tokens of {len(usable)} sequences is nothing to compare on. Raise"
            " --tokens, or harvest more sequences."
        )
    numbers = store.rows_of(chosen)
    return TokenSet(store, numbers, *store.tokens(numbers))


class Rows(ABC):
    """Activations of one source on a :class:`TokenSet`, numbered from 0; what
    :func:`~workbench.analysis.latents.encoded.encode_store` reads.
    """

    def __init__(self, tokens: TokenSet):
        self.of = tokens

    def __len__(self) -> int:
        return len(self.of)

    def tokens(self, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token ids, sequence, position) of rows."""
        return self.of.ids[rows], self.of.seq[rows], self.of.pos[rows]

    @abstractmethod
    def read(self, hook: Any, rows: Any = None, source: Any = None) -> torch.Tensor:
        """[rows, width] float32."""


class StoredRows(Rows):
    """Rows read from a store that holds the same tokens."""

    def __init__(self, tokens: TokenSet, store: ActivationStore):
        super().__init__(tokens)
        self.store = store

    def read(self, hook: Any, rows: Any = None, source: Any = None) -> torch.Tensor:
        """[rows, width] float32."""
        return self.store.read(hook, self.of.numbers[slice(None) if rows is None else rows], source)


class LiveRows(Rows):
    """Rows computed by running a model on the tokens; one hook at a time is kept."""

    def __init__(self, tokens: TokenSet, model: Any):
        super().__init__(tokens)
        self.model = model
        self._kept: tuple[Any, torch.Tensor] | None = None

    def read(self, hook: Any, rows: Any = None, source: Any = None) -> torch.Tensor:
        """[rows, width] float32; ``source`` is not used."""
        if self._kept is None or self._kept[0] != hook:
            self._kept = hook, self._run([hook] if isinstance(hook, str) else list(hook))
        return self._kept[1][slice(None) if rows is None else rows]

    def _run(self, hooks: list[str]) -> torch.Tensor:
        from workbench.activations.harvesting.forward import capture

        out = []
        for batch, keep in token_batches(self.of):
            seen = capture(self.model, batch, hooks)
            rows = torch.cat([seen[h] for h in hooks], dim=-1)[keep]
            out.append(rows.float())
        return torch.cat(out)


def token_batches(
    tokens: TokenSet, *, limit: int | None = None, halfway: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of whole sequences int64 [batch, ctx] with which tokens are rows, bool likewise; at most ``limit`` rows
    in all.

    ``halfway``: the same sequences, beginning with the middle one (circularly).
    """
    sequences = tokens.sequences
    if limit is not None:
        sequences = sequences[-max(1, limit // len(tokens.positions)) :]
    if halfway:
        sequences = np.roll(sequences, -(len(sequences) // 2))
    out = []
    for lo in range(0, len(sequences), BATCH):
        ids, rows = tokens.sequences_with_rows(sequences[lo : lo + BATCH])
        out.append((torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(rows)))
    return out


class Activations:
    """Where each dictionary's rows come from; models are loaded once, and one is held at a time."""

    def __init__(self, workspace: Workspace, tokens: TokenSet):
        self.workspace, self.tokens = workspace, tokens
        self._model: tuple[tuple[str, str | None], Any] | None = None
        self._stores: dict[str, bool] = {}

    def rows(self, reference: DictionaryRef) -> tuple[Rows, Any, Any]:
        """(rows, hook, source) for a dictionary."""
        from workbench.models.reading import token_contract

        if self.tokens.two_readings:
            if isinstance(reference.source, list) or not isinstance(reference.hook, str):
                raise UsageError(
                    f"{reference.id} is a crosscoder (it reads several sources); dictionaries of models with different"
                    " tokenizers are compared only where each reads one."
                )
            model = self.model(reference.model_name, reference.revision)
            tokens = self.tokens.read_by(token_contract(model).words, reference.model_name)
            return LiveRows(tokens, model), reference.hook, None
        store = self._aligned_store(reference)
        if store is not None:
            hook = self._stored_hook(store, reference)
            if hook is not None:
                return StoredRows(self.tokens, store), hook, reference.source
        if isinstance(reference.source, list):
            raise UsageError(
                f"{reference.id} is a crosscoder (it reads several sources), which only its own store holds. Compare"
                f" on it: --store {reference.metadata.get('store')}"
            )
        from workbench.models.same_tokens import check_same_tokens

        about = self.tokens.store.spec
        check_same_tokens(
            [*((s.model, s.revision) for s in about.sources), (reference.model_name, reference.revision)],
            f"the tokens of {about.id} mean nothing to the model of {reference.id}",
        )
        model = self.model(reference.model_name, reference.revision)
        self.tokens.store.check_tokenizer(getattr(model, "tokenizer", None), reference.model_name)
        return LiveRows(self.tokens, model), reference.hook, None

    def model(self, name: str, revision: str | None) -> Any:
        """A loaded model."""
        if self._model is None or self._model[0] != (name, revision):
            from workbench.models import load_model

            self._model = None
            self._model = (name, revision), load_model(name, revision=revision)
        return self._model[1]

    def _aligned_store(self, reference: DictionaryRef) -> ActivationStore | None:
        """The dictionary's own store, if these are its tokens too."""
        if not reference.metadata.get("store"):
            return None
        if str(reference.metadata["store"]) == self.tokens.store.spec.id:
            return self.tokens.store
        try:
            store = reference.store(self.workspace)
        except MissingError:
            return None
        return store if self._same_tokens(store) else None

    def _same_tokens(self, store: ActivationStore) -> bool:
        key = str(store.path)
        if key not in self._stores:
            of = self.tokens.store.spec
            same = store.spec.rows_per_seq == of.rows_per_seq and len(store) > int(self.tokens.numbers[-1])
            if same:
                theirs = store.tokens(self.tokens.numbers)
                mine = self.tokens.ids, self.tokens.seq, self.tokens.pos
                same = all(bool((x == y).all()) for x, y in zip(theirs, mine, strict=True))
                same = same and not np.isin(self.tokens.sequences, np.array(store.skipped, dtype=np.int64)).any()
            self._stores[key] = same
        return self._stores[key]

    @staticmethod
    def _stored_hook(store: ActivationStore, reference: DictionaryRef) -> Any:
        """The store's name of the dictionary's hook: streams are named alike for all sources, and say
        where they are.
        """
        if isinstance(reference.hook, list):
            return reference.hook
        sources = [reference.source] if isinstance(reference.source, str) else store.sources
        for stream in store.spec.streams:
            if stream.source in sources and reference.hook in (stream.at, stream.hook):
                return stream.hook
        return None
