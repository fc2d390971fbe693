"""Transcoders: a planted map is learnt; folding, saving and loading change nothing; widths may differ; the skip carries
the linear part.
"""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as nnf

import sae
from sae import Trainer, TranscoderConfig
from sae.errors import ConfigError, CorruptError

IN, OUT = 12, 10


class World:
    """Outputs are sums of directions that input directions switch on, plus a linear part."""

    def __init__(self, linear=0.0, n=20):
        self.g = torch.Generator().manual_seed(5)
        self.read = nnf.normalize(torch.randn(n, IN, generator=self.g), dim=1)
        self.write = nnf.normalize(torch.randn(n, OUT, generator=self.g), dim=1)
        self.map = linear * torch.randn(IN, OUT, generator=self.g)

    def batch(self, rows):
        on = (torch.rand(rows, len(self.read), generator=self.g) < 0.1) * (
            0.5 + torch.rand(rows, len(self.read), generator=self.g)
        )
        noise = torch.randn(rows, IN, generator=self.g)
        x = 5 * on @ self.read + 3 + noise * (1.0 if self.map.any() else 0.05)
        return torch.cat([x, 40 * on @ self.write + (noise @ self.map) - 7], 1)


def trained(world, steps=300, **values):
    trainer = Trainer(TranscoderConfig(d_in=IN, d_out=OUT, d_sae=32, k=3, lr=5e-3, **values), total_steps=steps)
    for _ in range(steps):
        trainer.step(world.batch(256))
    return trainer


@pytest.mark.parametrize(
    "values", [{}, {"skip": True}, {"activation": "batchtopk"}, {"activation": "jumprelu", "skip": True}], ids=str
)
def test_learns_folds_saves_and_loads(values, tmp_path):
    world = World()
    trainer = trained(world, **values)
    x, target = (rows := world.batch(1000))[:, :IN], rows[:, IN:]
    out = trainer.dictionary()
    assert sae.evaluate(out, [rows]).ev > 0.8
    assert (nnf.normalize(out.W_dec, dim=1) @ world.write.t()).amax(0).median() > 0.75
    with torch.no_grad():
        torch.testing.assert_close(out(x), trainer.model.eval()(x), rtol=1e-4, atol=1e-3)
        assert (out(x) - target).square().sum() < 0.25 * (target - target.mean(0)).square().sum()
    out.metadata = {"hook_name": "in", "hook_name_out": "out"}
    loaded = sae.load(out.save(tmp_path / "t"))
    assert (
        isinstance(loaded, sae.Transcoder)
        and torch.equal(loaded(x), out(x))
        and loaded.metadata["hook_name_out"] == "out"
    )
    cfg = json.loads((tmp_path / "t/cfg.json").read_text())
    assert (cfg["d_in"], cfg["d_out"], cfg["apply_b_dec_to_input"], cfg["metadata"]["kind"]) == (
        IN,
        OUT,
        False,
        "transcoder",
    )
    with pytest.raises(ConfigError, match="12 \\+ 10"):
        sae.evaluate(loaded, [x])


def test_the_skip_connection_carries_a_linear_part():
    world = World(linear=8.0)
    with_skip, without = (
        sae.evaluate(trained(world, skip=s).dictionary(), [world.batch(2000)]).ev for s in (True, False)
    )
    assert with_skip > without + 0.05


def test_a_top_k_transcoder_becomes_a_jumprelu_one(tmp_path):
    world = World()
    topk = trained(world, steps=100).dictionary()
    rows = world.batch(4000)
    jump = sae.to_jumprelu(topk, [rows])
    assert sae.evaluate(jump, [rows]).l0 == pytest.approx(3, rel=0.02)
    jump.save(tmp_path / "t")
    assert json.loads((tmp_path / "t/cfg.json").read_text())["architecture"] == "jumprelu_transcoder"
    assert torch.equal(sae.load(tmp_path / "t")(rows[:, :IN]), jump(rows[:, :IN]))


def test_exact_resume_and_bad_folders(tmp_path):
    world = World()
    data = [world.batch(64) for _ in range(8)]
    config = TranscoderConfig(d_in=IN, d_out=OUT, d_sae=32, k=3, skip=True, activation="batchtopk")
    whole, first, second = (Trainer(config, total_steps=8) for _ in range(3))
    for x in data:
        whole.step(x)
    for x in data[:4]:
        first.step(x)
    second.restore(*first.state())
    for x in data[4:]:
        second.step(x)
    for (name, a), b in zip(whole.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    path = whole.dictionary().save(tmp_path / "t")
    cfg = json.loads((path / "cfg.json").read_text())
    (path / "cfg.json").write_text(json.dumps(cfg | {"d_out": 11}))
    with pytest.raises(CorruptError, match=r"cfg\.json says"):
        sae.load(path)
