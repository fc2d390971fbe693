"""``workbench bench``: what a training step costs on this device."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from workbench.cli.common import DebugOption, JsonOption, say, verb


@verb
def bench(
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = 4096,
    d_in: Annotated[int, typer.Option(min=1, help="Width of a row.")] = 768,
    d_sae: Annotated[int, typer.Option(min=1, help="Latents.")] = 24576,
    k: Annotated[int, typer.Option("--k", min=1, help="Latents on at a time.")] = 32,
    preselect: Annotated[
        bool, typer.Option("--bf16-preselect", help="Find candidates in bfloat16, compute them again in float32.")
    ] = False,
    json_output: JsonOption = False,
    debug: DebugOption = False,
) -> dict[str, Any]:
    """Time one Top-K training step on a device and compare it with the CPU's.

    The first thing to run on a new GPU: step time, rows per second, the step in units of the dense encoder product
    (which no exact step avoids), the rate of that product, and how far a few steps end from the same on the CPU.

    Example: `workbench bench --device cuda`
    """
    from workbench.planning.bench import PARITY_STEPS
    from workbench.planning.bench import bench as measure

    found = measure(device, rows=rows, d_in=d_in, d_sae=d_sae, k=k, preselect=preselect)
    if not json_output:
        share = "" if found.share_of_peak is None else f" ({found.share_of_peak:.0%} of the described {found.name})"
        say(
            f"{found.name}, {found.backend} backend, {found.dtype}: {1e3 * found.seconds_per_step:,.1f} ms a step of"
            f" {rows:,} rows, {found.rows_per_second:,.0f} rows/s"
        )
        say(
            f"a step is {found.products:.2f} dense products, and such a product runs at {found.flops / 1e12:,.2f}"
            f" TFLOP/s{share}; TF32 is {'on' if found.tf32 else 'off'}"
        )
        say(f"after {PARITY_STEPS} steps the decoder is {found.parity:.1e} of the way it went from where the CPU's is")
    return asdict(found)
