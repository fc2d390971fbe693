"""Threshold dictionaries: definition, folding, conversion from Top-K, and the way through a folder."""

from __future__ import annotations

import pytest
import torch

import sae
from sae import ThresholdSAE, TopKConfig, Trainer, to_jumprelu
from sae.errors import CorruptError, UserError
from sae.formats import read, to_dictionary, to_normal, write_sparsify
from tests.sae.test_formats import EXACT, GOLDEN


def rows(n, d=8, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def random_threshold(d=8, f=32, seed=0):
    out = ThresholdSAE(d, f, dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in (out.enc_FD, out.dec_FD, out.b_enc, out.b_dec):
            p.copy_(torch.randn(p.shape, generator=g))
        out.threshold_F.copy_(torch.rand(f, generator=g))
    return out.requires_grad_(False)


def test_definition_and_sparse_codes_agree():
    s, x = random_threshold(), rows(2500).double().reshape(50, 50, 8)
    z = (x - s.b_dec) @ s.W_enc + s.b_enc
    f = torch.where(z > s.threshold_F.clamp_min(0), z, 0.0)
    torch.testing.assert_close(s.encode(x), f)
    values, indices = s.encode_sparse(x)
    assert values.shape == indices.shape == (50, 50, int((f > 0).sum(-1).max()))
    torch.testing.assert_close(torch.zeros_like(f).scatter_add(-1, indices, values), f)
    torch.testing.assert_close(s(x), f @ s.W_dec + s.b_dec)


@pytest.mark.parametrize("equal", [True, False])
def test_folding_keeps_outputs_and_thresholds(equal):
    s, x = random_threshold(), rows(200).double()
    s.scale_D.copy_(torch.full((8,), 0.05) if equal else torch.linspace(0.05, 2, 8))
    folded = s.folded()
    torch.testing.assert_close(folded(x), s(x))
    assert torch.equal(folded.encode(x) > 0, s.encode(x) > 0) and bool((folded.scale_D == 1).all())


def test_save_and_load(tmp_path):
    s, x = random_threshold(), rows(100).double()
    s.metadata = {"hook_name": "h"}
    s.save(tmp_path / "s")
    back = sae.load(tmp_path / "s")
    assert isinstance(back, ThresholdSAE) and back.metadata["hook_name"] == "h"
    torch.testing.assert_close(back(x), s(x))


def test_top_k_becomes_jumprelu_at_the_same_l0():
    """Held-out L0 within 2 % of k; what it costs in explained variance depends on the data, and is measured on the
    bundled models.
    """
    g = torch.Generator().manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(48, 16, generator=g), dim=1)

    def batch(n):
        on = torch.rand(n, 48, generator=g) < 0.08
        return (on * (0.5 + torch.rand(n, 48, generator=g))) @ features * 7 + 2

    trainer = Trainer(TopKConfig(d_in=16, d_sae=64, k=4, lr=4e-3))
    for _ in range(300):
        trainer.step(batch(512))
    topk = trainer.dictionary()
    jump = to_jumprelu(topk, (batch(1000) for _ in range(8)))
    x = batch(8000)
    l0 = (jump.encode(x) > 0).sum(1).float().mean()
    assert l0 == pytest.approx(4, rel=0.02)
    assert sae.evaluate(jump, [x]).ev > 0.5
    assert bool((jump.threshold_F == jump.threshold_F[0]).all()) and float(jump.threshold_F[0]) > 0
    with pytest.raises(UserError, match="no rows"):
        to_jumprelu(topk, [])


@pytest.mark.parametrize("name", EXACT)
def test_imported_dictionaries_compute_what_their_library_does(tmp_path, name):
    form = read(GOLDEN / name)
    x = rows(200, 6)
    ours = to_dictionary(form)
    want = form.decode(form.encode(x), x)
    torch.testing.assert_close(ours(x), want, atol=1e-5, rtol=1e-5)
    ours.save(tmp_path / "ours")
    torch.testing.assert_close(sae.load(tmp_path / "ours")(x), want, atol=1e-5, rtol=1e-5)
    back = to_normal(ours)
    torch.testing.assert_close(back.decode(back.encode(x), x), want, atol=1e-5, rtol=1e-5)


def test_sparsify_round_trip(tmp_path):
    trainer = Trainer(TopKConfig(d_in=8, d_sae=32, k=4))
    for i in range(5):
        trainer.step(rows(64, seed=i))
    ours = trainer.dictionary()
    form = read(write_sparsify(ours, tmp_path / "layers.3"))
    x = rows(100, seed=9)
    torch.testing.assert_close(form.decode(form.encode(x)), ours(x), atol=1e-4, rtol=1e-4)


def test_wrong_tensors_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    random_threshold().save(tmp_path / "s")
    path = tmp_path / "s" / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"threshold": tensors["threshold"][:-1].clone()}, path)
    with pytest.raises(CorruptError, match="threshold"):
        sae.load(tmp_path / "s")
    save_file(tensors | {"threshold": -tensors["threshold"] - 1}, path)
    with pytest.raises(CorruptError, match="negative"):
        sae.load(tmp_path / "s")
