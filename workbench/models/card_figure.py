"""The figure of a model card: training loss, and what forms when."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np


def draw(card: dict[str, Any]) -> bytes:
    """An SVG with the training loss (left) and the criteria per snapshot (right, where measured); the same bytes for
    the same card.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": card["name"], "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        every, loss = card["loss_curve"]["every"], np.asarray(card["loss_curve"]["loss"])
        wide = max(len(loss) // 200, 1)
        means = loss[: len(loss) // wide * wide].reshape(-1, wide).mean(1)
        left.plot((np.arange(len(means)) + 0.5) * every * wide, means, lw=1)
        left.set(xlabel="step", ylabel="training loss (nats)", title=card["name"])
        rows = {
            int(m[1]): row for name, row in card.get("criteria", {}).items() if (m := re.fullmatch(r"step(\d+)", name))
        }
        steps = sorted(rows)
        for key, label in (("single_match", "single-match accuracy"), ("agreement", "agreement accuracy")):
            right.plot(steps, [rows[s][key] for s in steps], marker=".", lw=1, label=label)
        if rows:
            gap = max(max(row["copy_gap"] for row in rows.values()), 1e-9)
            right.plot(
                steps, [rows[s]["copy_gap"] / gap for s in steps], marker=".", lw=1, label=f"copy gap / {gap:.1f} nats"
            )
            right.set_xscale("symlog", linthresh=64)
            right.legend(frameon=False)
        right.set(xlabel="step (snapshots)", ylim=(-0.05, 1.05))
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()
