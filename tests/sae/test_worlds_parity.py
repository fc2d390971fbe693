"""Our worlds beside SAELens' generator: what is planted is the same to rounding, rows agree in distribution.

Run with the interpreter that PEERS_PYTHON names (it must know ``sae_lens``; see benchmarks/peers.sh).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sae.worlds import World, WorldConfig

PYTHON = os.environ.get("PEERS_PYTHON", "")
CONFIG: dict[str, Any] = {
    "n_features": 512,
    "width": 64,
    "roots": 8,
    "depth": 2,
    "exclusive": 0.75,
    "seed": 5,
    "orthogonal_steps": 30,
    "spread_mean": 0.5,
}
ROWS = 20_000
# only the generator's own modules are loaded, which need no language model library
THEIRS = """
import importlib.util, json, sys, types
for name in ("sae_lens", "sae_lens.synthetic"):
    top = importlib.util.find_spec("sae_lens").submodule_search_locations[0] if name == "sae_lens" else top
    path = top if name == "sae_lens" else top + "/synthetic"
    module = types.ModuleType(name); module.__path__ = [path]; sys.modules[name] = module
import logging, torch
sys.modules["sae_lens"].logger = logging.getLogger("sae_lens")
from safetensors.torch import save_file
from sae_lens.synthetic.synthetic_model import LowRankCorrelationConfig, OrthogonalizationConfig
from sae_lens.synthetic.synthetic_model import SyntheticModel, SyntheticModelConfig
from sae_lens.synthetic.firing_magnitudes import FoldedNormalMagnitudeConfig, LinearMagnitudeConfig
from sae_lens.synthetic.firing_probabilities import ZipfianFiringProbabilityConfig
from sae_lens.synthetic.hierarchy.config import HierarchyConfig
c, rows, out = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
m = SyntheticModel(SyntheticModelConfig(
    num_features=c["n_features"], hidden_dim=c["width"], seed=c["seed"], bias=c["bias"],
    firing_probability=ZipfianFiringProbabilityConfig(exponent=c["exponent"], max_prob=c["p_max"], min_prob=c["p_min"]),
    hierarchy=HierarchyConfig(total_root_nodes=c["roots"], branching_factor=c["branching"], max_depth=c["depth"],
        mutually_exclusive_portion=c["exclusive"], compensate_probabilities=c["compensate"],
        scale_children_by_parent=c["scale_children"]),
    orthogonalization=OrthogonalizationConfig(num_steps=c["orthogonal_steps"], lr=c["orthogonal_lr"]),
    correlation=LowRankCorrelationConfig(rank=c["rank"], correlation_scale=c["correlation"]),
    mean_firing_magnitudes=LinearMagnitudeConfig(start=c["size_start"], end=c["size_end"]),
    std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=c["spread_mean"], std=c["spread_std"])))
g = m.activation_generator
torch.manual_seed(0)
f = m.activation_generator.sample(rows)
on = f > 0
save_file({"features_GD": m.feature_dict.feature_vectors.detach().contiguous(),
    "bias_D": m.feature_dict.bias.detach().contiguous(), "latent_p_G": g.firing_probabilities.contiguous(),
    "size_G": g.mean_firing_magnitudes.contiguous(),
    "spread_G": g.std_firing_magnitudes.contiguous(), "factor_GR": m.correlation_matrix.correlation_factor.contiguous(),
    "share": on.float().mean(0), "size": f.sum(0) / on.sum(0).clamp_min(1), "l0": on.sum(1).float()}, out)
"""


def has_saelens() -> bool:
    if not PYTHON or shutil.which(PYTHON) is None:
        return False
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('sae_lens') is None)"
    return subprocess.run([PYTHON, "-c", found], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_saelens(), reason="PEERS_PYTHON names no interpreter that knows sae_lens")
def test_the_same_world_as_saelens(tmp_path: Path) -> None:
    config = WorldConfig(**CONFIG)
    file = tmp_path / "theirs.safetensors"
    done = subprocess.run(
        [PYTHON, "-c", THEIRS, config.model_dump_json(), str(ROWS), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, world = load_file(file), World(config)
    for name in ("size_G", "spread_G", "factor_GR", "latent_p_G", "bias_D", "features_GD"):
        torch.testing.assert_close(
            getattr(world, name), theirs[name], rtol=1e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    _, f = world.sample(ROWS, torch.Generator().manual_seed(1))
    on = f > 0
    share, l0 = on.float().mean(0), on.sum(1).float()
    error = ((share * (1 - share) + theirs["share"] * (1 - theirs["share"])) / ROWS).sqrt()
    assert ((share - theirs["share"]).abs() / error.clamp_min(1e-4)).amax() < 5  # 512 comparisons
    assert l0.mean() == pytest.approx(float(theirs["l0"].mean()), abs=5 * float(l0.std()) * (2 / ROWS) ** 0.5)
    assert l0.std() == pytest.approx(float(theirs["l0"].std()), rel=0.03)
    often = on.sum(0) > 500
    sizes = (f.sum(0) / on.sum(0).clamp_min(1))[often]
    assert ((sizes - theirs["size"][often]) / sizes).abs().median() < 0.01
    assert json.loads(config.model_dump_json())["n_features"] == 512
