"""``workbench bench``: what a training step costs on this device."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from workbench.cli.common import DebugOption, JsonOption, say, verb

if TYPE_CHECKING:
    from workbench.planning.bench import Bench, Way


@verb
def bench(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 4096,
    d_in: Annotated[int, typer.Option(min=1, help="Width of a row.")] = 768,
    d_sae: Annotated[int, typer.Option(min=1, help="Latents.")] = 24576,
    k: Annotated[int, typer.Option("--k", min=1, help="Latents on at a time.")] = 32,
    repeats: Annotated[
        int, typer.Option(min=1, help="Steps timed for each arithmetic, after three for warming up.")
    ] = 10,
    arithmetic: Annotated[
        list[str] | None,
        typer.Option(
            help="float32, tf32, bf16, bf16 candidates, compiled or bf16, compiled; again for more. Default: each."
        ),
    ] = None,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Time one Top-K training step on a device in every arithmetic, and compare it with the CPU's.

    The first thing to run on a new GPU: step time, rows per second, the step in units of the dense encoder product
    (which no exact step avoids), the rate of that product and its share of the machine's, how far a few steps end from
    the same on the CPU, and what the arithmetic changes of explained variance. The first line, float32, is the null:
    what another order of sums does. What the device cannot do is named with the reason.

    Example: `workbench bench --device cuda`
    """
    from workbench.planning.bench import WAYS
    from workbench.planning.bench import bench as measure

    found = measure(device, rows=rows, d_in=d_in, d_sae=d_sae, k=k, repeats=repeats, ways=tuple(arithmetic or WAYS))
    if not json_output:
        _report(found)
    return asdict(found)


def _report(found: Bench) -> None:
    from workbench.planning.bench import EV_HELD_OUT, EV_SEEDS, EV_STEPS, PARITY_STEPS

    lacks = [name for name, can in found.abilities.items() if not can]
    say(
        f"{found.name}, {found.backend} backend: {found.rows:,} rows of {found.d_in:,}, {found.d_sae:,} latents, k ="
        f" {found.k}. It lacks: {', '.join(lacks) or 'nothing'}"
    )
    for way in found.ways:
        say(f"{way.name}: {_line(way, found.name)}")
    say(
        f"decoder: distance from the CPU's after {PARITY_STEPS} steps, over the way it went. EV: difference from the"
        f" CPU's in float32 after {EV_STEPS} steps, least and most of {EV_SEEDS} seeds, {EV_HELD_OUT:,} held-out rows"
    )


def _line(way: Way, name: str) -> str:
    if (found := way.measured) is None:
        return f"not measured: {way.refused}"
    share = "" if found.share_of_peak is None else f" ({found.share_of_peak:.0%} of the described {name})"
    return (
        f"{1e3 * found.seconds_per_step:,.1f} ms a step, {found.rows_per_second:,.0f} rows/s, {found.products:.2f}"
        f" dense products at {found.flops / 1e12:,.2f} TFLOP/s{share}; decoder {found.parity:.1e}; EV"
        f" {min(found.ev_change):+.4f} … {max(found.ev_change):+.4f}"
    )
