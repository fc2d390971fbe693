"""Direct logit effects against the model's own final norm and unembedding."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sae.errors import UserError
from workbench.analysis.latents.logits import direct_logit_effects, readout


def bridge(norm: nn.Module, d: int = 12, vocab: int = 30):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        norm.weight.copy_(torch.rand(d, generator=g) + 0.5)
    return SimpleNamespace(W_U=torch.randn(d, vocab, generator=g), ln_final=SimpleNamespace(original_component=norm))


@pytest.mark.parametrize("norm", [nn.LayerNorm(12), nn.RMSNorm(12)])
def test_effect_is_the_norms_jacobian_up_to_its_scale(norm):
    """Around a residual with unit scale and zero mean, adding eps·d changes logits by eps·effect along directions that
    keep the scale.
    """
    model = bridge(norm)
    read = readout(model)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(12, generator=g)
    x = (x - x.mean()) / (x - x.mean()).pow(2).mean().sqrt()
    d = torch.randn(12, generator=g)
    d = d - (d @ x) / (x @ x) * x  # keeps |x| to first order

    def logits(residual):
        out = norm(residual) @ model.W_U
        return out - out.mean()

    with torch.no_grad():
        measured = (logits((x + 1e-3 * d)[None]) - logits((x - 1e-3 * d)[None])) / 2e-3
    torch.testing.assert_close(d @ read.W, measured[0], atol=2e-3, rtol=1e-3)
    assert read.folded and type(norm).__name__ in read.note


def test_sides_are_sorted_and_small_vocabularies_are_padded():
    model = bridge(nn.LayerNorm(12), vocab=7)
    W = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    ids, values = direct_logit_effects(W, readout(model), n=10, block=2)
    effect = W @ readout(model).W
    assert ids.shape == values.shape == (5, 2, 10)
    for i in range(5):
        assert ids[i, 0, :7].tolist() == effect[i].argsort(descending=True).tolist()
        assert ids[i, 1, :7].tolist() == effect[i].argsort().tolist()
    assert (ids[:, :, 7:] == -1).all()
    torch.testing.assert_close(effect.sum(1), torch.zeros(5), atol=1e-4, rtol=0)


def test_a_model_without_unembedding_is_refused_and_one_without_norm_says_so():
    with pytest.raises(UserError, match="no unembedding"):
        readout(SimpleNamespace())
    assert not readout(SimpleNamespace(W_U=torch.randn(4, 9))).folded
