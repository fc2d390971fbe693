"""The store on systems that are not at hand: its tests again, with what those systems lack hidden (``profiles.py``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.portable.profiles import PROFILES

ROOT = Path(__file__).resolve().parents[2]
QUICK = (  # writing, locks, kill and resume, reading, replaced folders
    "tests/sae/test_files.py",
    "tests/workbench/activations/write",
    "tests/workbench/activations/test_rivals.py",
    "tests/workbench/activations/read/test_batches.py",
)


def run_tests(profile: str, *arguments: str) -> None:
    """Run tests in a fresh process that plays ``profile``."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=os.environ | {"WORKBENCH_PROFILE": profile},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"on {profile}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("profile", PROFILES)
def test_the_store_holds_on(profile):
    run_tests(profile, "-m", "not slow", *QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_all_of_the_store_and_training_hold_on(profile):
    run_tests(
        profile, "tests/workbench/activations", "tests/sae/test_resume.py", "tests/sae/test_folder.py", "-m", "not slow"
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", PROFILES)
def test_the_demo_runs_on(profile, tmp_path):
    env = os.environ | {
        "WORKBENCH_PROFILE": profile,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "portable"), str(ROOT)]),
    }
    command = [sys.executable, "-m", "workbench", "demo", "--no-ui", "--workspace", str(tmp_path / "workspace")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
