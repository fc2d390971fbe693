"""The real libraries read what we write, and compute the same: run with the interpreter that PEERS_PYTHON names.

SAELens and sparsify are no dependency of this project; install them in an environment of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae
from sae import SAE, SAEConfig, TopKConfig, Trainer, TranscoderConfig, to_jumprelu
from sae.config import InitConfig, TrainingConfig
from sae.formats import read, to_dictionary, write_sparsify

PYTHON = os.environ.get("PEERS_PYTHON", "")

SAELENS = """
import sys, torch
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from pathlib import Path
x, out = load_file(sys.argv[2])["x"], {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    theirs = SAE.load_from_disk(folder)
    f = theirs.encode(x)
    y, forward = theirs.decode(f).contiguous(), theirs(x).contiguous()
    out |= {f"{folder.name} f": f.contiguous(), f"{folder.name} y": y, f"{folder.name} forward": forward}
    theirs.save_model(Path(sys.argv[4]) / folder.name)
save_file(out, sys.argv[3])
"""

SPARSIFY = """
import os, sys, torch
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
from pathlib import Path
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder
theirs = SparseCoder.load_from_disk(Path(sys.argv[1]), device="cpu")
x = load_file(sys.argv[2])["x"]
out = theirs(x)
f = torch.zeros(len(x), theirs.num_latents).scatter(1, out.latent_indices, out.latent_acts)
y = out.sae_out.detach()
save_file({"f": f.detach(), "y": y.contiguous(), "forward": y.clone()}, sys.argv[3])
theirs.save_to_disk(Path(sys.argv[4]))
"""


@cache
def has(package: str) -> bool:
    """Can the peers' interpreter import this package?"""
    if not PYTHON or shutil.which(PYTHON) is None:
        return False
    return (
        subprocess.run(
            [PYTHON, "-c", f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"]
        ).returncode
        == 0
    )


def needs(package: str) -> None:
    if not has(package):
        pytest.skip(f"{package} is not there: set PEERS_PYTHON to an interpreter that has it")


def rows(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed)) * 40 + 100


def train(config: TrainingConfig, *, beside: int = 0) -> SAE:
    """Twenty steps; ``beside``: width of an output that stands beside the rows (for transcoders)."""
    trainer = Trainer(config)
    mix = torch.randn(12, beside, generator=torch.Generator().manual_seed(5)) if beside else None
    for i in range(20):
        x = rows(256, i)
        trainer.step(x if mix is None else torch.cat([x, (x - 100).relu() @ mix + 7], dim=1))
    trainer.model.metadata = {"model_name": "mini", "hook_name": "blocks.0.hook_resid_post"}
    return trainer.dictionary()


@pytest.fixture(scope="module")
def trained() -> SAE:
    return train(TopKConfig(d_in=12, d_sae=48, k=5))


VARIANTS: dict[str, Any] = {
    "norm-topk": "norm-topk",
    "batchtopk": "batchtopk",
    "matryoshka": "matryoshka",
    "l1": "l1",
    "jumprelu-l0": {"kind": "jumprelu", "penalty": "l0-target", "threshold": 0.2},
    "jumprelu-tanh": {"kind": "jumprelu", "penalty": "tanh"},
}


def zoo(topk: SAE) -> dict[str, SAE]:
    """Every kind of dictionary that SAELens has a class for, trained here."""
    made = {"topk": topk, "converted": to_jumprelu(topk, [rows(2000, 7)])}
    made |= {name: train(SAEConfig(d_in=12, d_sae=48, k=5, activation=a)) for name, a in VARIANTS.items()}
    made["no pre-bias"] = train(SAEConfig(d_in=12, d_sae=48, k=5, start=InitConfig(pre_bias=False)))
    for skip in (False, True):
        for name in ("l1", "batchtopk", "jumprelu-l0"):
            config = TranscoderConfig(d_in=12, d_out=8, d_sae=48, k=5, activation=VARIANTS[name], skip=skip)
            made[f"transcoder {name}{' skip' if skip else ''}"] = train(config, beside=8)
    return made


def theirs(script: str, folder: Path, tmp: Path) -> tuple[dict[str, torch.Tensor], Path]:
    """(their latents and reconstructions of 300 rows, the folder they wrote)."""
    save_file({"x": rows(300, 99)}, tmp / "x.safetensors")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "disabled",
    }
    command = [
        PYTHON,
        "-c",
        script,
        str(folder),
        str(tmp / "x.safetensors"),
        str(tmp / "out.safetensors"),
        str(tmp / "written"),
    ]
    done = subprocess.run(command, env=env, cwd=tmp, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(tmp / "out.safetensors"), tmp / "written"


def compare(ours: SAE, want: dict[str, torch.Tensor]) -> None:
    x = rows(300, 99)
    f = ours.encode(x)
    assert 0.5 < float((f > 0).sum(1).float().mean()) <= 40
    torch.testing.assert_close(f, want["f"], rtol=1e-4, atol=2e-2)
    torch.testing.assert_close(ours(x), want["forward"], rtol=1e-4, atol=2e-2)
    if ours.skip(x) is None:
        torch.testing.assert_close(want["forward"], want["y"], rtol=1e-5, atol=1e-3)


@pytest.mark.slow
def test_saelens_loads_our_folders_as_they_are_and_we_load_what_it_saves(trained: SAE, tmp_path: Path) -> None:
    needs("sae_lens")
    made = zoo(trained)
    for name, ours in made.items():
        ours.save(tmp_path / "ours" / name)
    want, written = theirs(SAELENS, tmp_path / "ours", tmp_path)
    for name, ours in made.items():
        found = {
            key.removeprefix(f"{name} "): t
            for key, t in want.items()
            if key.removeprefix(f"{name} ") in ("f", "y", "forward")
        }
        for again in (ours, sae.load(tmp_path / "ours" / name), to_dictionary(read(written / name, "saelens"))):
            try:
                compare(again, found)
            except AssertionError as e:
                raise AssertionError(f"{name}: {e}") from e


@pytest.mark.slow
def test_sparsify_loads_what_we_write_and_we_load_what_it_saves(trained: SAE, tmp_path: Path) -> None:
    needs("sparsify")
    want, written = theirs(SPARSIFY, write_sparsify(trained, tmp_path / "layers.3"), tmp_path)
    compare(trained, want)
    compare(to_dictionary(read(written, "sparsify")), want)
