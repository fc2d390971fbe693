"""Proving a store, setting bad files aside, and saying what to make again.

A quick check proves names, sizes, structure, tokens and digest tables of every shard (milliseconds each); a deep one
also re-reads every activation. Files that fail are moved to ``quarantine/`` and the seal is taken away, so that the
same harvest makes exactly what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sae.errors import CorruptError, NewerSchemaError, UntrustedFile
from workbench.activations.disk import calls as disk
from workbench.activations.format.errors import ShardCorrupt, StoreIncomplete
from workbench.activations.format.seal import SEAL_JSON, Seal, read_seal
from workbench.activations.format.shard import (
    NO_DATA,
    PLAN,
    SHARDS,
    check_blocks,
    no_data,
    open_plan,
    open_shard,
    plain_folder,
    read_blocks,
    token_table,
)
from workbench.activations.format.spec import StoreSpec, read_spec
from workbench.activations.write.fill import set_aside

if TYPE_CHECKING:
    from workbench.corpus import TokenPlan

_PIECE = 8 * 1024 * 1024


@dataclass
class Report:
    """What a check found. ``problems`` are (file, what is wrong); ``set_aside`` the files that were moved."""

    store: str
    store_id: str
    shards: int
    deep: bool
    checked_bytes: int = 0
    sealed: bool = True
    problems: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    set_aside: list[str] = field(default_factory=list)
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether the store is complete and everything looked at is right."""
        return self.sealed and not self.problems and not self.missing

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "ok": self.ok,
            **{k: v for k, v in self.__dict__.items() if k != "problems"},
            "problems": [{"file": f, "problem": p} for f, p in self.problems],
        }


def check(
    folder: str | Path,
    *,
    deep: bool = False,
    quarantine: bool = True,
    on_shard: Callable[[int, int], None] | None = None,
) -> Report:
    """Check a store.

    Args:
        deep: also re-hash every block and compare every token with the plan.
        quarantine: move bad files to ``quarantine/``; without it they are only reported.

    Raises:
        MissingError: no store there. CorruptError, NewerSchemaError: ``store.json`` itself is damaged or newer.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    plain_folder(folder / SHARDS)
    report = Report(spec.id, spec.store_id, spec.n_shards, deep)
    seal = _seal(folder, spec, report)
    plan = _plan(folder, spec, seal, report, deep)
    for index in range(spec.n_shards):
        if on_shard:
            on_shard(index, spec.n_shards)
        name = spec.shard_name(index)
        try:
            _shard(folder, spec, index, seal, plan, report, deep)
        except FileNotFoundError:
            report.missing.append(name)
        except (ShardCorrupt, UntrustedFile) as e:
            report.problems.append((f"{SHARDS}/{name}", str(e)))
    if on_shard:
        on_shard(spec.n_shards, spec.n_shards)
    expected = {spec.shard_name(i) for i in range(spec.n_shards)}
    report.strays = sorted(set(os.listdir(folder / SHARDS)) - expected)
    if quarantine:
        for file in dict.fromkeys(f for f, _ in report.problems):
            report.set_aside.append(set_aside(folder, folder / file).relative_to(folder).as_posix())
    report.remedy = _remedy(folder, spec, report)
    return report


def _seal(folder: Path, spec: StoreSpec, report: Report) -> Seal | None:
    try:
        return read_seal(folder, spec)
    except StoreIncomplete:
        report.sealed = False
    except NewerSchemaError:
        raise
    except (CorruptError, UntrustedFile) as e:
        report.sealed = False
        report.problems.append((SEAL_JSON, str(e)))
    return None


def _plan(folder: Path, spec: StoreSpec, seal: Seal | None, report: Report, deep: bool) -> TokenPlan | None:
    """Check the token plan; returns it for a deep check."""
    try:
        plan = open_plan(folder, spec, seal.layouts["plan"], seal.plan_seal) if seal else open_plan(folder, spec)
        if not deep:
            return None
        tokens, rows = (
            read_blocks(plan, name, 0, plan.layout.datasets[name].n_blocks) if name in plan.layout.datasets else None
            for name in ("plan/tokens", "plan/rows")
        )
        assert tokens is not None
        from workbench.corpus import TokenPlan

        found = TokenPlan(tokens, plan.small("plan/doc_ids"), plan.small("plan/kinds"), rows=rows)
        if spec.plan.get("digest") not in (None, found.digest):
            raise ShardCorrupt(PLAN, "its tokens are not those of store.json")
        return found
    except FileNotFoundError:
        report.missing.append(PLAN)
    except (ShardCorrupt, UntrustedFile) as e:
        report.problems.append((PLAN, str(e)))
    return None


def _shard(
    folder: Path, spec: StoreSpec, index: int, seal: Seal | None, plan: TokenPlan | None, report: Report, deep: bool
) -> None:
    known = (seal.layout(spec, index), seal.shards[spec.shard_name(index)][1]) if seal else (None, None)
    container = open_shard(folder, spec, index, *known)
    try:
        size = os.fstat(container.fd).st_size
        report.checked_bytes += size - (0 if deep else sum(d.nbytes for d in container.layout.large))
        if not deep:
            return
        disk.expect(container.fd, in_order=True)
        for d in container.layout.large:
            digests, row_bytes = container.small(d.digests), d.row_bytes
            step = max(1, _PIECE // (d.block_rows * row_bytes))
            buffer = np.empty(min(step, d.n_blocks) * d.block_rows * row_bytes, np.uint8)
            for first in range(0, d.n_blocks, step):
                last = min(d.n_blocks, first + step)
                want = (min(d.shape[0], last * d.block_rows) - first * d.block_rows) * row_bytes
                got = disk.read_all(
                    container.fd,
                    buffer.data[:want],
                    container.layout.offsets[d.name] + first * d.block_rows * row_bytes,
                )
                check_blocks(container, d, buffer.data[:got], first, last, digests)
        if plan is not None:
            lo, hi = spec.seqs(index)
            table = token_table(spec, plan.tokens, index)
            said = {name: container.small(name) for name in (*table, "tok/flags")}
            said["tok/flags"] = (said["tok/flags"] & NO_DATA) > 0
            table["tok/flags"] = no_data(spec, plan.tokens[lo:hi], None if plan.rows is None else plan.rows[lo:hi])
            for name, values in table.items():
                if not np.array_equal(said[name], values):
                    raise ShardCorrupt(container.path.name, f"{name} is not what the plan says", shard=index)
    finally:
        container.close()


def _remedy(folder: Path, spec: StoreSpec, report: Report) -> str:
    if report.ok:
        return ""
    n = len(report.missing) + len({f for f, _ in report.problems if f.startswith(SHARDS)})
    what = (
        f"makes the {n} missing of {spec.n_shards} shards and leaves the others alone" if n else "completes the store"
    )
    return f"`workbench harvest <the recipe of {spec.id!r}> --workspace {folder.parent.parent}` {what}."
