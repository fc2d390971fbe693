"""What can go wrong with an activation store, each with the remedy in its message."""

from __future__ import annotations

from sae.errors import CorruptError, MismatchError, MissingError, NonFiniteError, UserError


class StoreBusy(UserError):
    """A live harvest with a different plan is writing this store."""


class StoreMismatch(MismatchError):
    """A store exists and was planned differently: the message names the field and both values."""


class StoreIncomplete(MissingError):
    """Shards or the seal are missing; the same harvest command makes them."""


class ShardCorrupt(CorruptError):
    """A file of the store is not what it was when it was committed. Nothing of it is returned."""

    def __init__(
        self, file: str, problem: str, *, shard: int | None = None, stream: str | None = None, block: int | None = None
    ):
        at = "".join(f", {k} {v}" for k, v in (("stream", stream), ("block", block)) if v is not None)
        super().__init__(
            f"{file} is corrupt{at}: {problem}. `workbench check` sets it aside and says how to make it again."
        )
        self.file, self.shard, self.stream, self.block = file, shard, stream, block


class ReadOnlyStore(UserError):
    """The store's folder may not be written to. Reading it works."""


class NonFiniteActivation(NonFiniteError):
    """NaN or infinity in an activation, or a value the stored type cannot hold. The shard was not committed."""

    def __init__(self, seq: int, pos: int, stream: str, why: str):
        super().__init__(
            f"activation of {stream} at sequence {seq}, position {pos} is {why}; the shard was not written. Choose"
            " dtype = 'bfloat16' or 'float32' for wide ranges, or non_finite = 'skip-sequence' to leave such sequences"
            " out."
        )
        self.seq, self.pos, self.stream = seq, pos, stream


class ResumeMismatch(MismatchError):
    """The data order to resume is not the one that was interrupted: the message names what differs."""
