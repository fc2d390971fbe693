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
from _race_libraries import LIBRARIES, PACKAGES, SETTINGS, ours


def slow(*sizes: Any) -> Any:
    """Ours, with five milliseconds of work more in every step."""
    step, reconstruct, latents = ours(*sizes)

    def longer(x: torch.Tensor) -> None:
        end = time.thread_time() + 0.005
        step(x)
        while time.thread_time() < end:
            torch.zeros(64, 64) @ torch.zeros(64, 64)

    return longer, reconstruct, latents


@pytest.fixture
def rows_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty batches of 32 rows of a small mixture, and held-out ones; a library twice as slow beside ours."""
    monkeypatch.setattr(_race_real, "ROWS", 32)
    monkeypatch.setattr(_race_real, "K", 3)
    monkeypatch.setattr(_race_real, "LEAST", 2)
    monkeypatch.setattr(_race_real, "RATES", (1e-3, 1e-2))
    monkeypatch.setitem(LIBRARIES, "slow", slow)
    monkeypatch.setitem(PACKAGES, "slow", "torch")
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40 * 32 + 256, 5, generator=g).relu() @ torch.randn(5, 12, generator=g)
    file = tmp_path / "rows.safetensors"
    tensors = {"train": x[: 40 * 32].bfloat16(), "heldout": x[40 * 32 :].bfloat16()}
    save_file(tensors, file, metadata={"rows": "a mixture"})
    return file


def test_a_slower_library_gets_fewer_steps_at_equal_seconds(rows_file: Path) -> None:
    runs = _race_real.Runs(rows_file, 1, None)
    rows = list(_race_real.race(runs, ["workbench", "slow"], seeds=2))
    equal_rows = [r for r in rows if r["at"] == "equal rows"]
    assert [r["lr"] for r in equal_rows] == [1e-3, 1e-2, *SETTINGS, 1e-3, 1e-2]
    assert all(r["steps"] == 40 and 0 < r["fvu"] < 1 for r in equal_rows)
    # one rate of each library is tried with all seeds: the best with the first; ours without a choice too
    seeds = [len(r["all_fvu"]) for r in equal_rows]
    assert sorted(seeds[:2]) == sorted(seeds[4:]) == [1, 2] and seeds[2:4] == [2, 2]
    assert all((r["half_interval"] is None) == (len(r["all_fvu"]) == 1) for r in equal_rows)
    best, late = (r for r in rows if r["at"] == "equal seconds")
    assert best["library"] == "workbench"
    assert best["fvu"] == min(r["fvu"] for r in equal_rows if r["library"] == "workbench" and len(r["all_fvu"]) == 2)
    assert late["library"] == "slow" and late["steps"] < 40 and late["seconds"] < 2 * best["seconds"] + 0.05
    assert late["fvu"] > best["fvu"]
    page = _race_real.markdown(rows, runs, 1, 0.5)
    assert "a mixture; 8 times its width" in page and "40 steps of 32 rows" in page and page.count("| slow |") == 3
    assert f"FVU {best['fvu']:.4f} ±" in _race_real.told(best)


def test_a_race_goes_on_where_it_stopped_and_only_there(
    rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, ran = tmp_path / "log.jsonl", []
    run = _race_real.Runs._run
    monkeypatch.setattr(_race_real.Runs, "_run", lambda self, *of: (ran.append(of), run(self, *of))[1])

    def race(threads: int = 1) -> list[dict[str, Any]]:
        ran.clear()
        return list(_race_real.race(_race_real.Runs(rows_file, threads, log), ["workbench"], seeds=1))

    first = race()
    assert len(ran) == 4 and race() == first and not ran
    assert len(log.read_text().splitlines()) == 4
    monkeypatch.setattr(_race_real, "K", 2)
    race()
    assert len(ran) == 4  # a run of another k says nothing
