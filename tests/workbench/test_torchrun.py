"""``torchrun -m workbench train``: the dictionaries of one process; a killed process ends the job and leaves what
another number continues.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae import checkpoint
from workbench.activations import HarvestRecipe, harvest
from workbench.corpus import TokenPlan
from workbench.workspace import Workspace

ID = "mini-pythia.L1R-2x"
STEPS = (
    1200  # enough for a kill to come before the end; processes in step with each other are slow where cores are scarce
)
PATIENCE = 500  # seconds for one job on a busy machine
RECIPE = """
store = "small"
sites = ["L1R"]
expansions = [2]
ks = [4]
batch_size = 128
tokens = {tokens}
[parallel]
latents = {latents}
[sae]
dtype = "float64"
dead_after = 300
"""


@pytest.fixture
def ws(tmp_path):
    """A workspace with a store of 64 sequences of random tokens."""
    home = Workspace(tmp_path / "ws")
    tokens = np.random.default_rng(0).integers(1, 500, (64, 48)).astype(np.int32)
    tokens[:, 0] = 0
    plan = TokenPlan(tokens, np.arange(64, dtype=np.int32), np.zeros(64, np.uint8), {"made": "random"})
    values = {
        "id": "small",
        "hooks": ["L1R"],
        "n_seq": 64,
        "ctx": 48,
        "seqs_per_shard": 32,
        "sources": [{"model": "mini-pythia"}],
    }
    harvest(HarvestRecipe.model_validate(values), home, plan=plan)
    return home


def start(ws: Workspace, processes: int, tokens: int, latents: int = 1) -> subprocess.Popen[str]:
    recipe = ws.root.parent / f"train-{processes}-{latents}.toml"
    recipe.write_text(RECIPE.format(tokens=tokens, latents=latents))
    begin = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []
    command = [sys.executable, *begin, "-m", "workbench", "train", str(recipe), "--workspace", str(ws.root)]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)


def finished(ws: Workspace, processes: int, tokens: int, latents: int = 1) -> dict[str, torch.Tensor]:
    job = start(ws, processes, tokens, latents)
    said = job.communicate(timeout=PATIENCE)[1]
    assert job.returncode == 0, said
    assert said.count("training mini-pythia") == 1  # one of them speaks
    return load_file(ws.path("dictionaries", ID) / "sae_weights.safetensors")


def again(ws: Workspace) -> None:
    ws.path("dictionaries", ID).rename(ws.root.parent / f"kept-{time.monotonic_ns()}")


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE)
def test_two_processes_make_the_dictionary_of_one(ws):
    want = finished(ws, 1, 2560)
    for latents in (1, 2):
        again(ws)
        got = finished(ws, 2, 2560, latents)
        assert got.keys() == want.keys()
        for name, tensor in want.items():
            torch.testing.assert_close(got[name], tensor, rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("then", [1, 4])
def test_a_killed_process_ends_the_job_and_another_number_goes_on(ws, then):
    tokens = 128 * STEPS
    job = start(ws, 2, tokens)
    folder = ws.path("dictionaries", ID) / "checkpoints"
    begin = time.monotonic()
    while not list(folder.glob("step_*/MANIFEST.json")):
        assert job.poll() is None and time.monotonic() - begin < PATIENCE
        time.sleep(0.05)
    workers = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    said = job.communicate(timeout=PATIENCE)[1]
    assert job.returncode != 0 and "SIGKILL" in said
    found = checkpoint.newest(folder)
    assert found is not None and STEPS // 10 <= found[2]["steps_done"] < STEPS
    finished(ws, then, tokens, latents=2 if then == 4 else 1)
    assert ws.complete("dictionaries", ID) and not folder.exists()
