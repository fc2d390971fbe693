"""What a model does after its last block, against the model itself."""

import pytest
import torch

from sae.errors import UserError
from tests.workbench.models.zoo import random_model
from workbench.models.head import finished, head_of, probe_tokens, raw_logits
from workbench.models.load import bridge
from workbench.models.mamba import repair_mamba

# norms of every kind: w, 1 + w, no weight, with and without the mean; factors, soft caps, a projection, no norm
NORMS = {
    "llama_gqa": ("RMSNorm", False, 1.0, None),
    "gpt2": ("LayerNorm", False, 1.0, None),
    "gemma": ("RMSNorm", True, 1.0, None),
    "gemma2": ("RMSNorm", True, 1.0, 30.0),
    "olmo": ("LayerNorm", False, 1.0, None),
    "qwen3_5": ("RMSNorm", True, 1.0, None),
    "recurrent_gemma": ("RMSNorm", True, 1.0, 30.0),
    "cohere": ("LayerNorm", False, 0.25, None),
    "granite": ("RMSNorm", False, 0.25, None),
    "falcon_h1": ("RMSNorm", False, 0.5, None),
    "opt_350m_like": ("", False, 1.0, None),
    "mamba": ("RMSNorm", False, 1.0, None),
}


def measured_effects(model, n: int = 4):
    """(directions [n, D] that keep the scale of a real residual row, measured changes of the centred logits [n, V] per
    unit of them at residual scale 1).
    """
    head, tokens = head_of(model), probe_tokens(model)[:1]
    hook = f"blocks.{len(model.blocks) - 1}.hook_resid_post"
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=[hook], use_cache=False)
    x = cache[hook][0, -1].double()
    x = x - x.mean() if head.centred else x
    slope = 1 if head.cap is None else 1 - (logits[0, -1].double() / head.cap).square()
    scale = 1.0 if head.gain is None else float(x.square().mean().sqrt())

    def run(delta):
        def add(value, hook):
            value = value.clone()
            value[0, -1] += delta.to(value)
            return value

        with torch.no_grad(), model.hooks(fwd_hooks=[(hook, add)]):
            return model(tokens, use_cache=False)[0, -1].double()

    D, changes = torch.randn(n, len(x), generator=torch.Generator().manual_seed(0)).double(), []
    if head.gain is not None:
        D = D - (D @ x)[:, None] / (x @ x) * x
    for d in D:
        step = 1e-2 * float(x.norm() / d.norm())
        change = (run(step * d) - run(-step * d)) / (2 * step) / slope * scale
        changes.append(change - change.mean())
    return D, torch.stack(changes)


@pytest.mark.parametrize("name", NORMS)
def test_the_head_is_what_the_model_does(name):
    model = bridge(repair_mamba(random_model(name)))
    head = head_of(model)
    assert (head.norm, head.offset, round(head.factor, 4), head.cap) == NORMS[name]
    D, changes = measured_effects(model)
    W = head.linear().double()
    expected = D @ (W - W.mean(1, keepdim=True))
    assert (expected - changes).abs().max() < 5e-3 * changes.abs().max()
    assert head_of(model) is head  # measured once


def test_logits_are_made_again_from_the_last_block():
    model = bridge(random_model("gemma2"))
    head, tokens = head_of(model), probe_tokens(model)
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=["blocks.2.hook_resid_post"], use_cache=False)
        again = finished(raw_logits(model, cache["blocks.2.hook_resid_post"]), head.factor, head.cap)
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mini-pythia", "mini-mamba"])
def test_small_rows_of_an_untrained_model_are_no_other_norm(name):
    """The residual stream of an untrained model is so small that the norm's epsilon is a share of its square."""
    from workbench.models.load import load_model

    assert head_of(load_model(name, revision="step0")).norm == ("LayerNorm" if name == "mini-pythia" else "RMSNorm")


def test_a_norm_of_another_kind_is_refused():
    hf_model = random_model("llama_gqa")

    class Bent(type(hf_model.model.norm)):
        def forward(self, x):
            return torch.tanh(super().forward(x))

    hf_model.model.norm.__class__ = Bent
    with pytest.raises(UserError, match="no LayerNorm or RMSNorm"):
        head_of(bridge(hf_model))


def test_logits_that_are_more_than_a_linear_map_are_refused():
    model = bridge(random_model("llama_gqa"))
    hf_model = model.original_model
    plain = hf_model.forward

    def bent(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits.abs()
        return out

    hf_model.forward = bent
    with pytest.raises(UserError, match="not its final norm and unembedding"):
        head_of(model)
