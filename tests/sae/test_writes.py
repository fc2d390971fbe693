"""Dictionaries of writes: planted atoms of rank one are found, stay of rank one, fold, save and load; wrong folders are
refused.
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as nnf
from safetensors.torch import load_file, save_file

import sae
from sae import Trainer, WriteConfig
from sae.errors import ConfigError, CorruptError, NewerSchemaError, UserError
from sae.writes import leading_factors, outer, rank_one

SHAPE = 2, 4, 6
SIZE = 2 * 4 * 6


class World:
    """Writes that are, up to a little noise in their factors, one of a few planted writes at some strength."""

    def __init__(self, n=12, noise=0.02):
        self.g = torch.Generator().manual_seed(3)
        self.key = nnf.normalize(torch.randn(n, 2, 4, generator=self.g), dim=-1)
        self.value = torch.randn(n, 2, 6, generator=self.g)
        self.noise = noise

    @property
    def atoms(self):
        return nnf.normalize(outer(self.key, self.value), dim=1)

    def batch(self, rows):
        which = torch.randint(0, len(self.key), (rows,), generator=self.g)
        size = 0.5 + torch.rand(rows, 1, 1, generator=self.g)
        key, value = self.key[which], size * self.value[which]
        key, value = (t + self.noise * torch.randn(t.shape, generator=self.g) for t in (key, value))
        return torch.cat([key.flatten(1), value.flatten(1)], 1)


def trained(world, steps=300, **values):
    shape = {"d_in": SIZE, "heads": 2, "keys": 4, "values": 6}
    trainer = Trainer(WriteConfig(**shape, d_sae=24, k=1, lr=3e-3, dead_after=500, **values), total_steps=steps)
    for _ in range(steps):
        trainer.step(world.batch(256))
    return trainer


def rank_gap(atoms):
    return float((atoms - rank_one(atoms, SHAPE)).norm() / atoms.norm())


@pytest.mark.parametrize("values", [{}, {"activation": "norm-topk"}], ids=str)
def test_planted_writes_are_found_and_survive_folding_and_the_disk(values, tmp_path):
    world = World()
    trainer = trained(world, **values)
    out = trainer.dictionary()
    rows = world.batch(2000)
    assert sae.evaluate(out, [rows]).ev > 0.97
    assert (nnf.normalize(out.W_dec, dim=1) @ world.atoms.t()).amax(0).min() > 0.98
    assert rank_gap(trainer.model.dec_FD.detach()) < 1e-5 and not out.b_dec.any()
    writes = out.writes(rows)
    torch.testing.assert_close(out(writes), trainer.model.eval()(writes), rtol=1e-4, atol=1e-4)
    out.metadata = {"hook_name": "key", "hook_name_out": "value"}
    loaded = sae.load(out.save(tmp_path / "w"))
    assert isinstance(loaded, sae.WriteSAE) and loaded.shape == SHAPE and torch.equal(loaded(writes), out(writes))
    cfg = json.loads((tmp_path / "w/cfg.json").read_text())
    assert cfg["write"] == {"format": 1, "heads": 2, "keys": 4, "values": 6} and cfg["metadata"]["kind"] == "write"


def test_the_loss_is_the_squared_norm_of_the_state():
    """A row's error is that of its matrix, not of its two factors."""
    world = World()
    trainer = trained(world, steps=1)
    rows = world.batch(64)
    x, target = trainer.model.training_rows(rows)
    key, value = rows[:, :8].reshape(64, 2, 4), rows[:, 8:].reshape(64, 2, 6)
    by_hand = torch.stack([torch.outer(k, v) for n in range(64) for k, v in zip(key[n], value[n], strict=True)])
    torch.testing.assert_close(target, by_hand.reshape(64, SIZE) * trainer.model.scale_D)
    assert torch.equal(x, target)


def test_rank_one_is_the_best_approximation_per_head():
    rows = torch.randn(5, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for shape in (SHAPE, (2, 6, 4)):
        u, s, vh = torch.linalg.svd(rows.unflatten(-1, shape))
        best = s[..., :1, None] * u[..., :1] @ vh[..., :1, :]
        torch.testing.assert_close(rank_one(rows, shape), best.flatten(1))
        torch.testing.assert_close(outer(*leading_factors(rows, shape)), best.flatten(1))


def test_what_is_no_dictionary_of_writes_is_refused(tmp_path):
    world = World()
    out = trained(world, steps=2).dictionary()
    with pytest.raises(ConfigError, match=r"2 x \(4 \+ 6\)"):
        out.writes(torch.zeros(3, 7))
    with pytest.raises(ConfigError, match="= 48"):
        WriteConfig(d_in=47, heads=2, keys=4, values=6, d_sae=8, k=1)
    with pytest.raises(ConfigError, match="topk or norm-topk"):
        WriteConfig(d_in=SIZE, heads=2, keys=4, values=6, d_sae=8, k=1, activation="batchtopk")
    with pytest.raises(ConfigError, match="bias_rate = 0"):
        WriteConfig(d_in=SIZE, heads=2, keys=4, values=6, d_sae=8, k=1, details={"bias_rate": 1.0})
    with pytest.raises(UserError, match="fewer latents"):
        sae.prune(out, [world.batch(8)])
    with pytest.raises(ConfigError, match="rank-one"):
        sae.refit(out, [world.batch(8)])
    folder = out.save(tmp_path / "w")
    cfg = json.loads((folder / "cfg.json").read_text())
    newer = cfg | {"write": cfg["write"] | {"format": 2}}
    (folder / "cfg.json").write_text(json.dumps(newer))
    with pytest.raises(NewerSchemaError, match="format 2"):
        sae.load(folder)
    (folder / "cfg.json").write_text(json.dumps(cfg | {"write": cfg["write"] | {"keys": 5}}))
    with pytest.raises(CorruptError, match="do not fit"):
        sae.load(folder)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    tensors = load_file(folder / "sae_weights.safetensors")
    tensors["W_dec"] = torch.randn(tensors["W_dec"].shape, generator=torch.Generator().manual_seed(1))
    save_file(tensors, folder / "sae_weights.safetensors")
    with pytest.raises(CorruptError, match="24 atoms are not of rank one"):
        sae.load(folder)
