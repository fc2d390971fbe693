"""The race on real activations: every rate at equal rows, then the best at equal seconds, and the page of both."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import _race_real
from _race_libraries import LIBRARIES, SETTINGS, ours


def slow(*sizes: Any) -> Any:
    """Ours, with five milliseconds of work more in every step."""
    step, reconstruct, latents = ours(*sizes)

    def longer(x: torch.Tensor) -> None:
        end = time.thread_time() + 0.005
        step(x)
        while time.thread_time() < end:
            torch.zeros(64, 64) @ torch.zeros(64, 64)

    return longer, reconstruct, latents


def test_a_slower_library_gets_fewer_steps_at_equal_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_race_real, "ROWS", 32)
    monkeypatch.setattr(_race_real, "K", 3)
    monkeypatch.setattr(_race_real, "LEAST", 2)
    monkeypatch.setattr(_race_real, "RATES", (1e-3, 1e-2))
    monkeypatch.setitem(LIBRARIES, "slow", slow)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40 * 32 + 256, 5, generator=g).relu() @ torch.randn(5, 12, generator=g)
    file = tmp_path / "rows.safetensors"
    save_file({"train": x[: 40 * 32].bfloat16(), "heldout": x[40 * 32 :].bfloat16()}, file)
    rows = list(_race_real.race(file, ["workbench", "slow"], seeds=2, threads=1))
    equal_rows = [r for r in rows if r["at"] == "equal rows"]
    assert [r["lr"] for r in equal_rows] == [*SETTINGS, 1e-3, 1e-2, 1e-3, 1e-2]
    assert all(r["steps"] == 40 and len(r["all_fvu"]) == 2 and 0 < r["fvu"] < 1 for r in equal_rows)
    best, late = (r for r in rows if r["at"] == "equal seconds")
    assert best["library"] == "workbench"
    assert best["fvu"] == min(r["fvu"] for r in equal_rows if r["library"] == "workbench")
    assert late["library"] == "slow" and late["steps"] < 40 and late["seconds"] < 2 * best["seconds"] + 0.05
    assert late["fvu"] > best["fvu"]
    page = _race_real.markdown(rows, 40, 1, 0.5)
    assert "40 steps of 32 rows, 2 seeds" in page and page.count("| slow |") == 3
    assert f"FVU {best['fvu']:.4f}" in _race_real.told(best)
