"""Several processes come to what one comes to: rows dealt, latents dealt, both; every loss term, counter and start."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from crosscoders import CrosscoderConfig
from sae import SAEConfig, TopKConfig, TranscoderConfig
from tests.sae.worlds import in_processes, trained

STEPS = 20
COMMON = {
    "dtype": "float64",
    "d_sae": 32,
    "k": 3,
    "lr": 2e-2,
    "dead_after": 40,
    "aux_every": 2,
    "k_start": 6,
    "k_anneal_share": 0.4,
}
TWO = {"widths": (8, 8), **COMMON}
CONFIGS = {
    "sae": TopKConfig(d_in=12, **COMMON),
    "crosscoder": CrosscoderConfig(**TWO, shared_latents=5, dedicated=3),
    "batchtopk": CrosscoderConfig(**TWO, activation="batchtopk"),
    "l1": CrosscoderConfig(
        **TWO, activation={"kind": "l1", "warmup": 6}, shared_latents=11, start={"scaling": "mean-norm"}
    ),
    "jumprelu": CrosscoderConfig(**TWO, activation={"kind": "jumprelu", "warmup": 6}),
    "per-source": CrosscoderConfig(**TWO, activation="jumprelu", gate="per-source"),
    "own-magnitude": CrosscoderConfig(**TWO, gate="own-magnitude", dedicated=2),
    "matryoshka": SAEConfig(d_in=12, **COMMON, activation="matryoshka", details={"clip": 0.2, "error": "per-length"}),
    "prefixes": SAEConfig(d_in=12, **COMMON, activation={"kind": "topk", "prefixes": (0.2, 0.6)}),
    "l0-target": SAEConfig(d_in=12, **(COMMON | {"k_start": 0}), activation="jumprelu"),
    "transcoder": TranscoderConfig(d_in=7, d_out=5, skip=True, **COMMON),
}
MESHES = {2: [(2, 1), (1, 2)], 4: [(4, 1), (2, 2), (1, 4)]}


def wanted(data: int, latents: int) -> dict[str, Any]:
    """Every kind of dictionary on the meshes of two and on 2 x 2; one of each room on the other meshes of four."""
    return CONFIGS if data * latents == 2 or data == latents else {n: CONFIGS[n] for n in ("sae", "crosscoder")}


CASES = [(name, mesh) for meshes in MESHES.values() for mesh in meshes for name in wanted(*mesh)]


def _all(process_mesh: Any, world: int) -> dict[str, Any]:
    out = {}
    for data, latents in MESHES[world]:
        with process_mesh(data, latents) as ranks:
            for name, config in wanted(data, latents).items():
                out[f"{name}-{data}-{latents}"] = trained(config, STEPS, ranks)
    return out


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    torch.set_num_threads(1)
    return {name: trained(config, STEPS) for name, config in CONFIGS.items()}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for world in MESHES:
        each = in_processes(
            world, lambda process_mesh, world=world: _all(process_mesh, world), tmp_path_factory.mktemp("world")
        )
        found |= {name: [one[name] for one in each] for name in each[0]}
    return found


def test_the_single_process_meets_every_case(alone: dict[str, Any]) -> None:
    """The comparison below would mean little if no latent died, none was revived, or no row was left out."""
    reports = alone["sae"]["reports"]
    assert max(r["dead"] for r in reports) > 3 and any(not math.isnan(r["aux"]) for r in reports)
    assert sum(alone["sae"]["revived"]) > 0 and sum(alone["crosscoder"]["revived"]) > 0
    assert {r["masked"] for r in reports} >= {2.0} and len({r["k"] for r in reports}) > 2


@pytest.mark.parametrize(("name", "mesh"), CASES, ids=lambda v: v if isinstance(v, str) else f"{v[0]}x{v[1]}")
def test_same_as_one_process(
    name: str, mesh: tuple[int, int], alone: dict[str, Any], several: dict[str, list[Any]]
) -> None:
    want, each = alone[name], several[f"{name}-{mesh[0]}-{mesh[1]}"]
    for got in each:
        assert got["plain"] == want["plain"] and got["tensors"].keys() == want["tensors"].keys()
        for key, tensor in want["tensors"].items():
            torch.testing.assert_close(
                got["tensors"][key], tensor, rtol=1e-8, atol=1e-8, msg=lambda m, key=key: f"{key}: {m}"
            )
        for a, b in zip(got["reports"], want["reports"], strict=True):
            assert a == pytest.approx(b, rel=1e-8, nan_ok=True)
