"""The adapter has what SAEBench's own base class has, and computes what the dictionary computes."""

from __future__ import annotations

import pytest
import torch

from sae import SAE, TopKConfig, TopKSAE, Trainer, to_jumprelu
from sae.errors import UsageError
from sae.formats import BenchSAE

# what sae_bench/custom_saes/custom_sae_config.py declares and its evaluations read
FIELDS = [
    "model_name",
    "d_in",
    "d_sae",
    "hook_layer",
    "hook_name",
    "context_size",
    "hook_head_index",
    "architecture",
    "apply_b_dec_to_input",
    "activation_fn_str",
    "activation_fn_kwargs",
    "prepend_bos",
    "normalize_activations",
    "dtype",
    "device",
    "model_from_pretrained_kwargs",
    "dataset_path",
    "dataset_trust_remote_code",
    "seqpos_slice",
    "training_tokens",
    "sae_lens_training_version",
    "neuronpedia_id",
]


def rows(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) * 20 + 5


@pytest.fixture(scope="module")
def trained() -> SAE:
    trainer = Trainer(TopKConfig(d_in=8, d_sae=32, k=4))
    for i in range(5):
        trainer.step(rows(64, i))
    trainer.model.metadata = {
        "model_name": "pythia-70m-deduped",
        "hook_name": "blocks.3.hook_resid_post",
        "context_size": 128,
    }
    return trainer.dictionary()


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_the_adapter_is_the_dictionary(trained: SAE, kind: str) -> None:
    sae = trained if kind == "topk" else to_jumprelu(trained, [rows(512)])
    bench, x = BenchSAE(sae), rows(40, 9).view(5, 8, 8)
    f = bench.encode(x)
    assert f.shape == (5, 8, 32) and (bench.W_enc.shape, bench.W_dec.shape) == ((8, 32), (32, 8))
    torch.testing.assert_close(bench.decode(f), sae(x))
    assert torch.equal(bench(x), bench.decode(f))  # SAEBench compares the two
    by_hand = torch.relu((x - bench.b_dec) @ bench.W_enc + bench.b_enc)
    torch.testing.assert_close(f[f > 0], by_hand[f > 0], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(bench.W_dec.data.norm(dim=1), torch.ones(32), atol=1e-5, rtol=0)
    assert bench.cfg.architecture == kind


def test_the_config_has_every_field_and_can_be_set(trained: SAE) -> None:
    cfg = BenchSAE(trained).cfg
    assert set(FIELDS) <= set(cfg.to_dict())
    assert (cfg.model_name, cfg.hook_layer, cfg.hook_name, cfg.context_size) == (
        "pythia-70m-deduped",
        3,
        "blocks.3.hook_resid_post",
        128,
    )
    cfg.dtype = "bfloat16"
    half = BenchSAE(trained).to(device="cpu", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and half.encode(rows(3)).dtype == torch.bfloat16


def test_gradients_reach_the_activations(trained: SAE) -> None:
    x = rows(4).requires_grad_()
    BenchSAE(trained)(x).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())


def test_decoders_of_other_lengths(trained: SAE) -> None:
    """A threshold moves with its latent; where latents compete as they are, unit rows would change the choice."""
    gated = to_jumprelu(trained, [rows(512)])
    long = gated.folded()
    with torch.no_grad():
        factor = torch.linspace(0.5, 2, 32)
        long.enc_FD /= factor[:, None]
        long.b_enc /= factor
        long.dec_FD *= factor[:, None]
        long.threshold_F /= factor
    torch.testing.assert_close(BenchSAE(long)(rows(50)), gated(rows(50)), rtol=1e-4, atol=1e-3)
    uneven = trained.folded()
    with torch.no_grad():
        uneven.dec_FD[0] *= 2
    with pytest.raises(UsageError, match="differ in length"):
        BenchSAE(uneven)


def test_what_it_needs_to_know() -> None:
    with pytest.raises(UsageError, match="None and None"):
        BenchSAE(TopKSAE(4, 8, 2))
    with pytest.raises(UsageError, match="names no layer"):
        BenchSAE(TopKSAE(4, 8, 2), model_name="m", hook_name="hook_embed")
