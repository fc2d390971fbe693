"""What the two kinds of file in a store hold: shards of activations, and the token plan they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import UntrustedFile
from workbench.activations.disk import calls as disk
from workbench.activations.format import layout as format
from workbench.activations.format.errors import ShardCorrupt, StoreIncomplete
from workbench.activations.format.layout import Container, Dataset, Layout, lay_out, open_container
from workbench.activations.format.spec import FORMAT, SCHEMA, STORED, StoreSpec

PLAN = "plan.h5"
SHARDS = "shards"
NO_DATA = 2
"""Bit of ``/tok/flags``: the row's token is one of ``exclude_ids``, or ``plan/rows`` leaves it out; the row is zero and
never returned.
"""
SKIPPED = 1
"""Bit of ``/tok/flags``: the sequence had a non-finite activation and was left out; its rows are zero and never
returned.
"""


def shard_datasets(spec: StoreSpec, index: int) -> list[Dataset]:
    """All datasets of a shard."""
    lo, hi = spec.rows(index)
    n = hi - lo
    out = [Dataset(f"acts/{s.key}", STORED[spec.dtype], (n, s.width), spec.block_rows) for s in spec.streams]
    out += [
        Dataset("tok/ids", "<i4", (n,)),
        Dataset("tok/seq", "<i8", (n,)),
        Dataset("tok/pos", "<i4", (n,)),
        Dataset("tok/flags", "|u1", (n,)),
    ]
    for s in spec.streams:
        out += [Dataset(f"stats/{s.key}/sum", "<f8", (s.width,)), Dataset(f"stats/{s.key}/moments", "<f8", (3,))]
    out.append(Dataset("store_json", "|u1", (len(spec.to_json()),)))
    return format.complete(out)


def shard_attributes(spec: StoreSpec, index: int) -> dict[str, Any]:
    """Root attributes of a shard."""
    (s0, s1), (r0, r1) = spec.seqs(index), spec.rows(index)
    return {
        "format": FORMAT,
        "schema_version": SCHEMA,
        "store_id": spec.store_id,
        "shard": index,
        "seq_start": s0,
        "seq_end": s1,
        "row_start": r0,
        "n_rows": r1 - r0,
        "ctx": spec.ctx,
        "logical_dtype": spec.dtype,
        "hash": spec.hash,
        "block_rows": spec.block_rows,
    }


def token_table(spec: StoreSpec, tokens: np.ndarray, index: int) -> dict[str, np.ndarray]:
    """The ``tok/…`` datasets of a shard: token id, sequence and position of every row. ``tokens`` [n_seq, ctx]."""
    lo, hi = spec.seqs(index)
    keep = spec.positions
    n = hi - lo
    return {
        "tok/ids": np.ascontiguousarray(tokens[lo:hi][:, keep], "<i4").reshape(-1),
        "tok/seq": np.repeat(np.arange(lo, hi, dtype="<i8"), len(keep)),
        "tok/pos": np.tile(keep.astype("<i4"), n),
    }


def no_data(spec: StoreSpec, tokens: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Which rows on disk of some sequences are none of the store's: bool [n * rows_per_seq].

    Args:
        tokens: [n, ctx] of the sequences. rows: ``plan/rows`` of them; None where the plan has none.
    """
    out = np.isin(tokens[:, spec.positions], spec.exclude_ids)
    if rows is not None:
        out |= ~np.asarray(rows)[:, spec.positions].astype(bool)
    return out.reshape(-1)


def plain_folder(path: Path) -> None:
    """Refuse a link in place of one of the store's folders.

    Raises:
        UntrustedFile: a link. StoreIncomplete: nothing there.
    """
    if path.is_symlink():
        raise UntrustedFile(
            f"{path} is a link; a store's folders are plain folders. Replace it by a copy of what it stands for."
        )
    if not path.is_dir():
        raise StoreIncomplete(f"{path} does not exist. Run the `workbench harvest` that made the store again.")


def open_shard(
    folder: Path, spec: StoreSpec, index: int, layout: Layout | None = None, seal: str | None = None
) -> Container:
    """Open and prove one shard of a store: by the layout and seal in the store's seal, or from the plan alone.

    Raises:
        ShardCorrupt: it is not shard ``index`` of this store as it was committed. FileNotFoundError: it is missing.
    """
    path = folder / SHARDS / spec.shard_name(index)
    if layout is not None:
        return open_container(path, layout, seal=seal, shard=index)
    layout, pages = lay_out(shard_datasets(spec, index), shard_attributes(spec, index))
    return open_container(path, layout, pages=pages, shard=index)


def plan_datasets(spec: StoreSpec) -> list[Dataset]:
    """All datasets of ``plan.h5``."""
    out = [Dataset("plan/tokens", "<i4", (spec.n_seq, spec.ctx), 64)]
    if spec.row_mask:
        out.append(Dataset("plan/rows", "|u1", (spec.n_seq, spec.ctx), 64))
    out += [Dataset("plan/doc_ids", "<i4", (spec.n_seq,)), Dataset("plan/kinds", "|u1", (spec.n_seq,))]
    return format.complete(out)


def plan_attributes(spec: StoreSpec) -> dict[str, Any]:
    """Root attributes of ``plan.h5``."""
    return {
        "format": FORMAT,
        "schema_version": SCHEMA,
        "store_id": spec.store_id,
        "n_seq": spec.n_seq,
        "ctx": spec.ctx,
        "hash": spec.hash,
    }


def open_plan(folder: Path, spec: StoreSpec, layout: Layout | None = None, seal: str | None = None) -> Container:
    """Open and prove a store's token plan; see :func:`open_shard`."""
    if layout is not None:
        return open_container(folder / PLAN, layout, seal=seal)
    layout, pages = lay_out(plan_datasets(spec), plan_attributes(spec))
    return open_container(folder / PLAN, layout, pages=pages)


def read_blocks(container: Container, dataset: str, first: int, last: int) -> np.ndarray:
    """Rows of blocks ``first … last - 1`` of a large dataset, every block proven.

    Raises:
        ShardCorrupt: a block is not what was written.
    """
    d = container.layout.datasets[dataset]
    row_bytes = d.row_bytes
    lo, hi = first * d.block_rows, min(d.shape[0], last * d.block_rows)
    out = np.empty((hi - lo, *d.shape[1:]), d.dtype)
    view = disk.bytes_of(out)
    got = disk.read_all(container.fd, view, container.layout.offsets[dataset] + lo * row_bytes)
    check_blocks(container, d, view[:got], first, last)
    return out


def check_blocks(
    container: Container, d: Dataset, view: memoryview, first: int, last: int, digests: np.ndarray | None = None
) -> None:
    """Compare the bytes of blocks ``first … last - 1`` with their digests.

    Raises:
        ShardCorrupt: naming the first block that differs.
    """
    import xxhash

    table = container.small(d.digests) if digests is None else digests
    step = d.block_rows * d.row_bytes
    for block in range(first, last):
        part = view[(block - first) * step : (block - first + 1) * step]
        if xxhash.xxh3_64_intdigest(part) != int(table[block]):
            raise ShardCorrupt(
                container.path.name, "its bytes changed after they were written", stream=d.name, block=block
            )
