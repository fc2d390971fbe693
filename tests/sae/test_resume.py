"""Resume to the bit: interrupted anywhere, a run ends with the weights, optimiser, counters and log it
would have had.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae import TopKConfig, checkpoint, train
from sae.changes import changes
from sae.errors import ConfigError, MismatchError, MissingError, NonFiniteError, OutOfSpace, UserError
from sae.loop import changes_since, contract

STEPS = 24
CONFIG = TopKConfig(d_in=12, d_sae=64, k=4, k_start=12, k_anneal_share=0.5, dead_after=300, aux_every=2, warmup_steps=5)


class Batches:
    """A pure function of the step; remembers from where it was asked."""

    def __init__(self, start: int = 0, poison: int | None = None):
        self.start, self.poison = start, poison
        self.asked: list[int] = []

    def __iter__(self) -> Iterator[Tensor]:
        step = self.start
        while True:
            x = (
                torch.randn(64, 12, generator=torch.Generator().manual_seed(step))
                @ torch.diag(torch.linspace(0.2, 3, 12))
                + 4
            )
            if step == self.poison:
                x[5, 5] = torch.nan
            yield x
            step += 1

    def starting_at(self, step: int) -> Batches:
        self.asked.append(step)
        return Batches(step, self.poison)


def run(out: Path, *, batches: Batches | None = None, resume: bool = False, steps: int = STEPS) -> None:
    torch.set_num_threads(1)
    train(
        CONFIG,
        batches or Batches(),
        total_steps=STEPS if steps == STEPS else steps,
        out=out,
        resume=resume or None,
        checkpoint_every=5,
        log_every=1,
    )


def final_state(out: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    return checkpoint.read(out / "checkpoints" / f"step_{STEPS:08d}")


def assert_same(a: Path, b: Path) -> None:
    (ta, pa), (tb, pb) = final_state(a), final_state(b)
    assert pa == pb
    assert ta.keys() == tb.keys()
    assert all(
        torch.equal(ta[n], tb[n]) or (n == "log" and torch.equal(ta[n].nan_to_num(-1), tb[n].nan_to_num(-1)))
        for n in ta
    )
    for name in ("cfg.json", "sae_weights.safetensors", "metrics.parquet"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


class Stop(Exception):
    pass


class Stopping(Batches):
    """Ends in an exception before step ``at``, as Ctrl-C would."""

    def __init__(self, at: int):
        super().__init__()
        self.at = at

    def __iter__(self) -> Iterator[Tensor]:
        for step, x in enumerate(super().__iter__()):
            if step == self.at:
                raise Stop
            yield x

    def starting_at(self, step: int) -> Batches:
        return self


def test_stopped_and_resumed_equals_uninterrupted(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(out, batches=Stopping(13))
    assert [p.name for p in checkpoint.steps_in(out / "checkpoints")] == ["step_00000005", "step_00000010"]
    batches = Batches()
    run(out, batches=batches, resume=True)
    assert batches.asked == [10]  # it really started there
    assert_same(whole, out)
    log = final_state(out)[0]["log"]
    assert log[:, 0].tolist() == list(range(STEPS))  # no step twice, none missing


def test_the_state_holds_dead_latents_and_annealed_k(whole: Path) -> None:
    """The run exercises what resuming must restore: AuxK took part, and K moved."""
    log = final_state(whole)[0]["log"]
    assert (log[:, 7] > 0).any()
    assert (~log[:, 6].isnan()).any()
    assert log[0, 8] == 12
    assert log[-1, 8] == 4


def test_batches_without_a_position_are_skipped_through(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for path in checkpoint.steps_in(tmp_path / "run/checkpoints")[-1:]:
        shutil.rmtree(path)
    train(
        CONFIG,
        (x for x in Batches()),
        total_steps=STEPS,
        out=tmp_path / "run",
        resume=True,
        checkpoint_every=5,
        log_every=1,
    )
    assert_same(whole, tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncate", "flip", "no-manifest", "no-state"])
def test_a_damaged_checkpoint_is_passed_over(
    whole: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    newest = checkpoint.steps_in(out / "checkpoints")[-1]
    state = newest / "state.safetensors"
    if damage == "truncate":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "flip":
        data = bytearray(state.read_bytes())
        data[-1] ^= 1
        state.write_bytes(bytes(data))
    else:
        (newest / ("MANIFEST.json" if damage == "no-manifest" else "state.json")).unlink()
    batches = Batches()
    run(out, batches=batches, resume=True)
    assert batches.asked == [20]
    assert "passing over a damaged checkpoint" in caplog.text
    assert_same(whole, out)


def test_a_series_is_kept(tmp_path: Path) -> None:
    train(
        CONFIG,
        Batches(),
        total_steps=STEPS,
        out=tmp_path,
        checkpoint_every=5,
        checkpoint_series=checkpoint.log_spaced(STEPS),
    )
    assert [int(p.name[5:]) for p in checkpoint.steps_in(tmp_path / "checkpoints")] == [1, 2, 4, 8, 16, 20, 24]
    assert checkpoint.log_spaced(8) == [1, 2, 4, 8]


def test_bad_requests(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=r"config\.lr: .* there, 0\.01 asked"):
        train(CONFIG.model_copy(update={"lr": 1e-2}), Batches(), total_steps=STEPS, out=whole, resume=True)
    with pytest.raises(MismatchError, match=f"total_steps: {STEPS} there, {STEPS + 1} asked"):
        train(CONFIG, Batches(), total_steps=STEPS + 1, out=whole, resume=True)
    with pytest.raises(MissingError, match="nothing to resume from"):
        train(CONFIG, Batches(), total_steps=STEPS, out=tmp_path / "a", resume=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="needs out"):
        train(CONFIG, Batches(), total_steps=STEPS, resume=True)
    with pytest.raises(UserError, match="the batches ended after 3 of 24 steps"):
        train(CONFIG, [x for x, _ in zip(Batches(), range(3), strict=False)], total_steps=STEPS)


def test_a_checkpoint_from_before_rates_rose_in_short_runs_is_not_gone_on_from() -> None:
    wanted = contract(CONFIG, STEPS, None)
    assert wanted["rate"] == 0.01 and changes_since(wanted, wanted) == []  # 64 latents: the highest rate there is
    older = {k: v for k, v in wanted.items() if k != "rate"}
    assert changes_since(older, wanted) == []
    wide = contract(CONFIG.model_copy(update={"d_sae": 2**14}), STEPS, None)
    older = {k: v for k, v in wide.items() if k != "rate"}
    assert [str(c) for c in changes_since(older, wide)] == [str(c) for c in changes({"rate": 1e-3}, {"rate": 2e-3})]
    given = contract(CONFIG.model_copy(update={"lr": 1e-3}), STEPS, None)
    assert changes_since({k: v for k, v in given.items() if k != "rate"}, given) == []


@pytest.mark.faults
def test_nan_in_training_keeps_the_last_good_checkpoint(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"training step 17: 1 of 64 rows hold NaN or infinity \(rows 5\)"):
        run(out, batches=Batches(poison=17))
    found = checkpoint.newest(out / "checkpoints")
    assert found is not None
    assert found[2]["steps_done"] == 15
    assert not (out / "cfg.json").exists()
    run(out, resume=True)
    assert_same(whole, out)


@pytest.mark.faults
def test_state_that_is_not_finite_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae.model import SAE

    honest = SAE.constrain

    def spoil(model: SAE) -> None:
        honest(model)
        spoil.calls += 1  # type: ignore[attr-defined]
        if spoil.calls == 11:  # type: ignore[attr-defined]  # one call belongs to the initialisation
            with torch.no_grad():
                model.b_enc[3] = torch.nan

    spoil.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(SAE, "constrain", spoil)
    with pytest.raises(NonFiniteError, match="by step 10: not saved"):
        run(tmp_path)
    assert [p.name for p in checkpoint.steps_in(tmp_path / "checkpoints")] == ["step_00000005"]


# --- faults that need a process of their own -------------------------------------------------------------------------

CHILD = (
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; import test_resume;"
    " test_resume.run(Path(sys.argv[1]), batches=eval(sys.argv[2]), resume=True)"
)


def child(out: Path, *prefix: str, batches: str = "None", **options: object) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*prefix, sys.executable, "-c", CHILD, str(out), batches],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        **options,
    )  # type: ignore[call-overload]


@pytest.mark.faults
def test_a_full_disk_during_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    """No file may grow beyond what the first checkpoints need: a later one fails, an earlier one stays, and the run
    goes on later.
    """
    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(out, batches=Stopping(13))
    before = {p: p.stat().st_mtime_ns for p in (out / "checkpoints").rglob("*")}

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    process = child(out, preexec_fn=small_files)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert b"OutOfSpace" in err
    assert b"no space left for" in err
    assert {p: p.stat().st_mtime_ns for p in (out / "checkpoints").rglob("*")} == before
    run(out, resume=True)
    assert_same(whole, out)


@pytest.mark.faults
def test_a_full_disk_is_named_in_this_process_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    trainer_out = tmp_path / "run"
    with pytest.raises(Stop):
        run(trainer_out, batches=Stopping(8))
    monkeypatch.setattr("sae.files.os.fsync", full)
    with pytest.raises(OutOfSpace):
        run(trainer_out, resume=True)
    assert [p.name for p in checkpoint.steps_in(trainer_out / "checkpoints")] == ["step_00000005"]
    assert [p for p in (trainer_out / "checkpoints").iterdir() if p.name.startswith(".")] == []


def killed_and_resumed(whole: Path, out: Path, *prefix: str) -> int:
    process = child(out, *prefix)
    process.communicate(timeout=300)
    code = process.returncode
    run(out, resume=True)
    assert_same(whole, out)
    leftovers = [p for p in (out / "checkpoints").iterdir() if p.name.startswith(".")]
    assert leftovers == []
    return code


needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed: no kill at a chosen system call"
)
CALLS = ("rename", "fsync", "write")


@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("call,nth", [("rename", 2), ("fsync", 9)])
def test_killed_inside_a_checkpoint(whole: Path, tmp_path: Path, call: str, nth: int) -> None:
    injection = (
        "strace",
        "-f",
        "-qq",
        "-o",
        os.devnull,
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:signal=SIGKILL:when={nth}",
    )
    code = killed_and_resumed(whole, tmp_path / "run", *injection)
    assert code != 0, "the kill did not happen"


@pytest.mark.slow
@pytest.mark.faults
@needs_strace
@pytest.mark.parametrize("call", CALLS)
def test_killed_at_every_file_call(whole: Path, tmp_path: Path, call: str) -> None:
    """The N-th call is killed for N = 1, 2, ... until the run completes."""
    for nth in range(1, 400):
        out = tmp_path / str(nth)
        injection = (
            "strace",
            "-f",
            "-qq",
            "-o",
            os.devnull,
            "-P",
            str(out),
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:signal=SIGKILL:when={nth}",
        )
        plain = tuple(p for p in injection if p not in ("-P", str(out)))
        if killed_and_resumed(whole, out, *plain) == 0:
            assert nth > 5
            return
        shutil.rmtree(out)
    pytest.fail("the run never completed")


class Killing(Batches):
    """SIGKILL to this process when batch ``at`` is asked for, as the memory killer would."""

    def __init__(self, at: int, start: int = 0):
        super().__init__(start)
        self.at = at

    def __iter__(self) -> Iterator[Tensor]:
        for step, x in enumerate(super().__iter__(), self.start):
            if step == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield x

    def starting_at(self, step: int) -> Killing:
        return Killing(self.at, step)


@pytest.mark.faults
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in range(1, 8))])
def test_killed_at_random_steps(whole: Path, tmp_path: Path, seed: int) -> None:
    """Killed, resumed and killed again further on; each life begins at the newest checkpoint of the last."""
    out, done = tmp_path / "run", 0
    for at in sorted(random.Random(seed).sample(range(1, STEPS), 2)):
        process = child(out, batches=f"test_resume.Killing({at})")
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        steps = [int(p.name[5:]) for p in checkpoint.steps_in(out / "checkpoints")]
        assert steps[-1:] == ([at - at % 5] if at >= 5 else [])
        done = max([done, *steps])
    batches = Batches()
    run(out, batches=batches, resume=True)
    assert batches.asked == [done]
    assert_same(whole, out)
