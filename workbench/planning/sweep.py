"""A plan over numbers of devices: the best layout at each, what binds there, and a figure and a table of it.

The model is that of :mod:`workbench.planning.cost`; nothing here was run on so many devices.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sae.errors import UsageError
from workbench.planning.cost import NOTHING, Layout
from workbench.planning.machine import Machine
from workbench.planning.recipes import PlannedRecipe

COLUMNS = ("devices", "layout", "hours", "device_hours", "efficiency", "memory_gb", "sent_per_step_mb", "binding")


def counts(text: str) -> list[int]:
    """``"1..1024"`` -> [1, 2, 4, …, 1024]; ``"8"`` -> [8].

    Raises:
        UsageError: not of this form.
    """
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    if match is None or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
        raise UsageError(f"--sweep {text!r} is not a range of numbers of devices. Write 1..1024, for example.")
    low, high = int(match[1]), int(match[2] or match[1])
    return [n for n in (low * 2**i for i in range(40)) if n <= high]


def layouts(planned: PlannedRecipe, devices: int) -> Iterator[Layout]:
    """The ways to deal ``devices``: independent jobs (powers of two, or all there are), parts of the batch, parts of
    the dictionary.
    """
    if planned.shape is None:
        yield Layout(jobs=devices)
        return
    groups = {2**i for i in range(devices.bit_length())} | {min(planned.jobs, devices)}
    for jobs in sorted(j for j in groups if j <= planned.jobs):
        each = devices // jobs  # what does not fill a group stays idle
        for latents in (2**i for i in range(each.bit_length())):
            data = each // latents
            if each % latents == 0 and latents <= planned.divisible and data <= planned.batch_size:
                yield Layout(jobs, data, latents)


def sweep(planned: PlannedRecipe, machine: Machine, devices: list[int]) -> list[dict[str, Any]]:
    """The fastest layout that fits, for each number of devices; the smallest in memory where none fits."""
    rows: list[dict[str, Any]] = []
    for n in devices:
        candidates = [(layout, planned.plan(layout).on(machine)) for layout in layouts(planned, n)]
        if not candidates:
            continue
        layout, best = min(
            candidates,
            key=lambda c: (
                not c[1]["fits_in_memory"],
                c[1]["seconds"] if c[1]["fits_in_memory"] else c[1]["memory_bytes"],
            ),
        )
        worst = max(best["causes"], key=lambda c: best["causes"][c])
        rows.append(
            {
                "devices": n,
                "layout": str(layout),
                "hours": best["hours"],
                "device_hours": best["hours"] * n,
                "memory_gb": best["memory_bytes"] / 1e9,
                "sent_per_step_mb": best["sent_per_step"] / 1e6,
                "fits": best["fits_in_memory"],
                "binding": worst if best["fits_in_memory"] else "memory size",
                "causes": {k: v / 3600 for k, v in best["causes"].items()},
            }
        )
    smallest = next((r for r in rows if r["fits"]), None)
    for r in rows:
        r["efficiency"] = smallest["device_hours"] / r["device_hours"] if smallest and r["fits"] else None
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The sweep as a Markdown table."""
    lines = [
        "| GPUs | layout | hours | GPU-hours | efficiency | memory per GPU | sent per step and GPU | binds |",
        "|---:|---|---:|---:|---:|---:|---:|---|",
    ]
    for r in rows:
        efficiency = "–" if r["efficiency"] is None else f"{r['efficiency']:.0%}"
        hours = f"{r['hours']:,.1f}" if r["fits"] else "does not fit"
        total = f"{r['device_hours']:,.0f}" if r["fits"] else "–"
        lines.append(
            f"| {r['devices']:,} | {r['layout']} | {hours} | {total} | {efficiency} | {r['memory_gb']:,.0f} GB |"
            f" {r['sent_per_step_mb']:,.1f} MB | {r['binding']} |"
        )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Hours by cause over devices, stacked, with the time that perfect scaling would take, as SVG or whatever ``path``
    ends in.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fits = [r for r in rows if r["fits"]]
    if not fits:
        raise UsageError(
            "no number of devices in the sweep holds this recipe; there is nothing to draw. Sweep over more devices,"
            " or make the dictionary smaller."
        )
    causes = list(dict.fromkeys(c for r in fits for c in r["causes"] if c != NOTHING))
    with plt.rc_context({"svg.hashsalt": "workbench", "font.size": 9}):
        figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
        x, below = range(len(fits)), [0.0] * len(fits)
        for cause, colour in zip(
            causes, ("#4477aa", "#66ccee", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb"), strict=False
        ):
            heights = [r["causes"].get(cause, 0.0) / r["hours"] * 100 for r in fits]
            axes.bar(x, heights, bottom=below, color=colour, label=cause, width=0.8)
            below = [a + b for a, b in zip(below, heights, strict=True)]
        axes.set_xticks(list(x), [f"{r['devices']:,}" for r in fits])
        axes.set(xlabel="GPUs", ylabel="share of the time, %", title=title)
        hours = axes.twinx()
        hours.plot(x, [r["hours"] for r in fits], color="black", marker="o", markersize=3, label="hours")
        hours.plot(
            x,
            [fits[0]["device_hours"] / r["devices"] for r in fits],
            color="black",
            linestyle=":",
            label="perfect scaling",
        )
        hours.set(ylabel="hours", yscale="log")
        handles = [*axes.get_legend_handles_labels()[0], *hours.get_legend_handles_labels()[0]]
        labels = [*axes.get_legend_handles_labels()[1], *hours.get_legend_handles_labels()[1]]
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
