"""`workbench benchmark synth`: rows of ours, published ones, peers in an environment of their own, a page."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sae import SAEConfig, Trainer
from sae.errors import ConfigError
from sae.worlds import Score
from sae.worlds.benchmark import Budget, Kept, Pool, at_l0, config_of, equal_l0
from sae.worlds.world import World
from workbench.cli import app
from workbench.runs import peers

runner = CliRunner()
TINY = ["--world", "orthogonal", "--steps", "12", "--latents", "24", "--k", "3", "--quick"]


def test_rows_of_ours_and_published_ones_and_the_page(tmp_path: Path) -> None:
    page = tmp_path / "synth.md"
    done = runner.invoke(
        app, ["benchmark", "synth", *TINY, "--json", "--kind", "topk", "--kind", "l1", "--write", str(page)]
    )
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    ours = [r for r in rows if r["who"] == "ours"]
    assert [r["kind"] for r in ours] == ["topk", "l1"]
    for r in ours:
        assert all(isinstance(r[key], float) for key in ("f1", "mcc", "ev", "l0", "dead", "f1_chance"))
    assert ours[0]["l0"] == pytest.approx(3, abs=0.1)
    theirs = {(r["kind"], r["l0"]): r for r in rows if r["who"] == "published"}
    assert theirs["matryoshka", 25.0]["f1"] == 0.8793 and theirs["batchtopk", 20.0]["mcc"] == 0.7526
    assert "| ours | topk |" in page.read_text() and "published" in page.read_text()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["synht"], "there is `workbench benchmark synth`"),
        (["synth", "--world", "smal"], "did you mean 'small'"),
        (["synth", "--kind", "topkk"], "did you mean 'topk'"),
        (["synth", "--k", "9", "--latents", "8"], "--k 9 latents cannot be on of --latents 8"),
    ],
)
def test_misuse_is_one_line(typed: list[str], told: str) -> None:
    done = runner.invoke(app, ["benchmark", *typed])
    assert done.exit_code == 2 and told in done.stderr


def test_no_environment_names_the_script(tmp_path: Path) -> None:
    done = runner.invoke(app, ["benchmark", "synth", *TINY, "--kind", "topk", "--peers", str(tmp_path)])
    assert done.exit_code == 1 and "benchmarks/peers.sh" in done.stderr


def test_a_peer_that_fails_is_said_and_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)  # knows none of the libraries
    done = runner.invoke(
        app, ["benchmark", "synth", *TINY, "--kind", "topk", "--peers", str(tmp_path), "--json", "--seeds", "1"]
    )
    assert done.exit_code == 0 and "SAELens topk at 0.003: failed (" in done.stderr
    assert {r["who"] for r in json.loads(done.stdout)["rows"]} == {"ours", "published"}


def test_finished_runs_are_kept_and_gone_on_from(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    typed = ["benchmark", "synth", *TINY, "--kind", "topk", "--json", "--log", str(log)]

    def ours(*more: str) -> dict:
        done = runner.invoke(app, [*typed, *more])
        assert done.exit_code == 0, done.stderr
        return next(r for r in json.loads(done.stdout)["rows"] if r["who"] == "ours")

    first = ours()
    (line,) = log.read_text().splitlines()
    assert ours() == first and log.read_text() == line + "\n"  # to the last digit of its seconds: nothing ran again
    two = ours("--seeds", "2")
    assert two["all_f1"][0] == first["all_f1"][0] and two["worlds"] == 2 and len(log.read_text().splitlines()) == 2
    ours("--steps", "13")
    assert len(log.read_text().splitlines()) == 3  # another budget is another run


def test_rates_of_other_libraries_are_compared_on_one_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of highest explained variance on the first world runs on all; what failed has no say, and is tried again
    by the next call.
    """
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").touch()
    asked: list[tuple[str, float, int]] = []
    numbers = dict.fromkeys(Score.__dataclass_fields__, 0.5)

    def job(python: Path, library: str, kind: str, lr: float, seed: int, budget: Budget, say: object) -> dict | None:
        asked.append((library, lr, seed))
        if library != "sparsify" or lr == 1e-2:
            return None
        return {"score": numbers | {"n": 1, "ev": 0.9 if lr == 1e-3 else 0.8}, "cpu_s": 1.0}

    monkeypatch.setattr(peers, "_job", job)
    kept = Kept(tmp_path / "runs.jsonl")
    budget = Budget(seeds=3)
    (found,) = peers.peer_rows(tmp_path, budget, ("topk",), quick=False, say=print, kept=kept)
    assert (found["who"], found["setting"], found["worlds"]) == ("sparsify", "lr 0.001", 3)
    theirs = [(lr, seed) for library, lr, seed in asked if library == "sparsify"]
    assert theirs == [(1e-3, 0), (3e-3, 0), (1e-2, 0), (1e-3, 1), (1e-3, 2)]
    asked.clear()
    assert peers.peer_rows(tmp_path, budget, ("topk",), quick=False, say=print, kept=Kept(kept.path)) == [found]
    assert {(lr, seed) for library, lr, seed in asked if library == "sparsify"} == {(1e-2, 0)}


def test_a_plan_times_steps_and_trains_nothing() -> None:
    done = runner.invoke(app, ["benchmark", "synth", *TINY, "--kind", "topk", "--kind", "l1", "--plan", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    by_kind = {r["kind"]: r for r in found["plan"]}
    assert set(by_kind) == {"worlds and rows", "topk", "l1"} and by_kind["topk"]["step_s"] > 0
    assert found["hours"] == pytest.approx(sum(r["hours"] for r in found["plan"]))
    twice = runner.invoke(app, ["benchmark", "synth", *TINY, "--steps", "100000", "--kind", "topk", "--plan", "--json"])
    assert json.loads(twice.stdout)["hours"] > 20 * found["hours"]  # 8,000 times the steps


def test_the_weight_of_a_penalty_is_searched() -> None:
    seen = []

    def make(weight: float) -> float:
        seen.append(weight)
        return 40.0 * weight**-0.7

    assert at_l0(make, lambda l0: l0, 9.0, first=2.0, tries=6) == pytest.approx(9.0, rel=0.05)
    assert len(seen) <= 5


def test_every_library_sees_the_same_rows_once_per_round() -> None:
    budget = Budget(world="orthogonal", latents=16, k=2, steps=7, batch=32)
    pool = Pool.drawn(World(budget.of(0)), budget, 0)
    batches = list(pool.batches())
    assert len(batches) == 7 and all(len(b) == 32 for b in batches)
    again = list(Pool.drawn(World(budget.of(0)), budget, 0).batches())
    assert all((a == b).all() for a, b in zip(batches, again))
    assert config_of("l1", "few-steps", 64, budget, 3, 0.5).activation.coefficient == 0.5
    assert set(Score.__dataclass_fields__) >= {"f1", "mcc", "ev", "l0", "dead", "uniqueness", "split", "absorbed"}


def test_thresholds_are_made_equal_at_one_l0() -> None:
    rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(SAEConfig(d_in=8, d_sae=32, k=4, activation="batchtopk"), total_steps=5)
    for _ in range(5):
        trainer.step(rows)
    sae = trainer.dictionary()
    sae.threshold_F.copy_(torch.linspace(0.1, 0.2, 32))
    made = equal_l0(sae, rows, 4)
    on = float((made.encode(rows) > 0).sum(1).float().mean())
    assert on == pytest.approx(4, abs=0.01)
    torch.testing.assert_close(made.threshold_F / made.threshold_F[0], torch.linspace(0.1, 0.2, 32) / 0.1)
    with pytest.raises(ConfigError, match="k = 32 latents a row"):
        equal_l0(sae, rows, 32)
    sae.threshold_F.zero_()
    with pytest.raises(ConfigError, match="no thresholds above zero"):
        equal_l0(sae, rows, 4)
