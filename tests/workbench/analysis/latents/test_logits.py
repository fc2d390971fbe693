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


def test_blocks_of_any_size_name_the_same_tokens(monkeypatch):
    from workbench.analysis.latents import logits

    read = readout(bridge(nn.RMSNorm(12)))
    W = torch.randn(11, 12, generator=torch.Generator().manual_seed(4))
    whole = direct_logit_effects(W, read, n=5)
    monkeypatch.setattr(logits, "EFFECT_BYTES", 4 * 30 * 3)  # three latents of thirty tokens
    sizes: list[int] = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, *a, **k: sizes.append(len(x)) or topk(x, *a, **k))
    small = direct_logit_effects(W, read, n=5)
    assert max(sizes) == 3
    assert (small[0] == whole[0]).all()
    assert abs(small[1] - whole[1]).max() < 1e-5


def test_tokens_that_no_text_shows_and_no_tokenizer_has_are_not_ranked():
    import numpy as np

    from workbench.analysis.latents.records_build import MANY_TOKENS, ranked_tokens

    seen = np.arange(MANY_TOKENS) * 3
    among, said = ranked_tokens(seen, 49_152, 49_152)
    assert among.tolist() == seen.tolist() and "occur in the text" in said
    among, said = ranked_tokens(seen, 49_152, 3_000)  # ids beyond the tokenizer, though a padded store held them
    assert among.max() < 3_000
    among, said = ranked_tokens(np.array([1, 2]), 640, 512)  # too little text to say: all the tokenizer has
    assert among.tolist() == list(range(512)) and "512 tokens of the tokenizer" in said
    assert ranked_tokens(np.array([1, 2]), 512, 512) == (None, "")
    assert ranked_tokens(np.tile([4, 5], 200), 8)[0].tolist() == [4, 5]  # as before: 50 tokens per id
