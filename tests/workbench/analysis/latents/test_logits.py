"""Direct logit effects against the model's own final norm and unembedding."""

from types import SimpleNamespace

import pytest
import torch

from sae.errors import UserError
from tests.workbench.models.test_head import measured_effects
from tests.workbench.models.zoo import random_model
from workbench.analysis.latents.logits import Readout, direct_logit_effects, readout
from workbench.models.load import bridge


@pytest.mark.parametrize(("name", "said"), [("gpt2", "LayerNorm folded (mean removed"), ("gemma", "gain 1 + w")])
def test_effects_are_the_models_own_up_to_the_residuals_scale(name, said):
    model = bridge(random_model(name))
    read = readout(model)
    directions, changes = measured_effects(model)
    torch.testing.assert_close(directions.float() @ read.W, changes.float(), atol=5e-2, rtol=1e-2)
    assert read.folded and said in read.note


def test_sides_are_sorted_and_small_vocabularies_are_padded():
    read = Readout(torch.randn(12, 7, generator=torch.Generator().manual_seed(1)), True, "")
    read.W.sub_(read.W.mean(1, keepdim=True))
    W = torch.randn(5, 12, generator=torch.Generator().manual_seed(2))
    ids, values = direct_logit_effects(W, read, n=10, block=2)
    effect = W @ read.W
    assert ids.shape == values.shape == (5, 2, 10)
    for i in range(5):
        assert ids[i, 0, :7].tolist() == effect[i].argsort(descending=True).tolist()
        assert ids[i, 1, :7].tolist() == effect[i].argsort().tolist()
    assert (ids[:, :, 7:] == -1).all()
    torch.testing.assert_close(effect.sum(1), torch.zeros(5), atol=1e-4, rtol=0)


def test_a_model_without_unembedding_is_refused_and_one_without_norm_says_so():
    with pytest.raises(UserError, match="no unembedding"):
        readout(SimpleNamespace())
    read = readout(bridge(random_model("opt_350m_like")))
    assert not read.folded and "the model shows none" in read.note


def test_blocks_of_any_size_name_the_same_tokens(monkeypatch):
    from workbench.analysis.latents import logits

    read = Readout(torch.randn(12, 30, generator=torch.Generator().manual_seed(3)), True, "")
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
