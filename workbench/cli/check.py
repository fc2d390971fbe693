"""``workbench check``: is a store what it was when it was harvested?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from workbench.cli.common import DebugOption, JsonOption, bar, say, verb


@verb
def check(
    store: Annotated[
        Path,
        typer.Argument(
            help="The store's folder (for example workspace/stores/demo), or an HDF5 file of unknown origin."
        ),
    ],
    deep: Annotated[bool, typer.Option("--deep", help="Also re-read and re-hash every activation.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Only report; do not move bad files to quarantine/.")] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Verify an activation store; bad shards are set aside, and the command that makes them again is named.

    Exit 0: complete and right. Exit 1: something is missing or bad. A single file is examined in a limited process of
    its own: it says what the file holds, or why it is not safe to open.

    Example: `workbench check workspace/stores/demo --deep`
    """
    if store.is_file() or (store.exists() and not store.is_dir()) or store.is_symlink():
        from workbench.activations.foreign.inspect import inspect

        about = inspect(store)
        if not json_output:
            for d in about["datasets"]:
                say(f"{d['name']}: {d['dtype']} {d['shape']}")
        return about
    from workbench.activations.write.verify import check as run

    with bar(f"check {store.name}", None, "shard") as shown:
        report = run(store, deep=deep, quarantine=not keep, on_shard=shown.reach)
    if not json_output:
        for file, problem in report.problems:
            say(f"{file}: {problem}")
        if report.missing:
            say(f"missing: {', '.join(report.missing[:8])}{' …' if len(report.missing) > 8 else ''}")
        if report.strays:
            say(f"not part of the store: {', '.join(report.strays[:8])}")
        for file in report.set_aside:
            say(f"set aside: {file}")
        say(
            report.remedy
            or f"store {report.store!r} is complete: {report.shards} shards, {report.checked_bytes:,} bytes proven."
        )
    return report.as_dict() | {"exit_code": 0 if report.ok else 1}
