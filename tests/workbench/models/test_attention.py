"""Attention that transformers computes, and parts that TransformerLens hides: hooks against Hugging Face's own modules
with hooks made by hand.
"""

import pytest
import torch

from tests.workbench.models.zoo import random_model
from workbench.analysis.circuits.layers import attention_layers
from workbench.models.anatomy import anatomy_of
from workbench.models.load import bridge
from workbench.models.mamba import repair_mamba

SHOWN = {"jamba": [1, 3], "olmo_hybrid": [3], "nemotron_h": [2], "qwen3_5": [3], "qwen3_next": [3], "zamba2": [1, 3]}
T = 11


@pytest.fixture(scope="module")
def made():
    have = {}

    def make(name):
        if name not in have:
            have[name] = random_model(name), bridge(repair_mamba(random_model(name)), name=name)
        return have[name]

    return make


def tokens() -> torch.Tensor:
    return torch.randint(1, 500, (2, T), generator=torch.Generator().manual_seed(1))


def logits(model, *edits):
    with torch.no_grad(), model.hooks(fwd_hooks=list(edits)):
        return model(tokens(), use_cache=False)


def theirs(hf, module, hook, kind):
    handle = getattr(module, f"register_forward_{kind}")(hook)
    try:
        with torch.no_grad():
            return hf(tokens()).logits
    finally:
        handle.remove()


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.filterwarnings("ignore")
def test_heads_left_out_are_hugging_faces_without_them(made, name):
    hf, model = made(name)
    assert attention_layers(model) == SHOWN[name], [layer.not_patched for layer in anatomy_of(model).layers]
    modules = [m for m in hf.modules() if hasattr(m, "num_key_value_groups")]
    clean = logits(model)
    with torch.no_grad():
        torch.testing.assert_close(clean, hf(tokens()).logits, atol=2e-5, rtol=1e-4)
    for module, l in zip(modules, SHOWN[name], strict=True):
        layer, at = anatomy_of(model).layers[l], f"blocks.{l}.attn.hook_"
        width = module.o_proj.in_features // layer.heads
        assert (layer.gated != "") == name.startswith("qwen")

        def no_head(value, hook):  # head 1 reads nothing
            value = value.clone()
            value[:, 1] = 0
            return value

        def no_output(_, args, width=width):
            value = args[0].clone()
            value[..., width : 2 * width] = 0
            return (value,)

        def no_value(value, hook):  # nobody reads the values of position 3 in the last group
            value = value.clone()
            value[:, 3, -1] = 0
            return value

        def no_output_of(_, args, out, width=width):
            value = out.clone()
            value[:, 3, -width:] = 0
            return value

        for ours, want in (
            ((at + "pattern", no_head), theirs(hf, module.o_proj, no_output, "pre_hook")),
            ((at + "v", no_value), theirs(hf, module.v_proj, no_output_of, "hook")),
        ):
            found = logits(model, ours)
            assert (found - clean).abs().max() > 1e-4
            torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-4)
        _, cache = model.run_with_cache(tokens(), names_filter=[at + "attn_scores", at + "pattern"], use_cache=False)
        torch.testing.assert_close(cache[at + "attn_scores"].softmax(-1), cache[at + "pattern"])


@pytest.mark.filterwarnings("ignore")
def test_a_bridge_whose_logits_would_change_stays_as_it_is(monkeypatch):
    from workbench.models import attention

    monkeypatch.setattr(attention, "shown_attention", lambda *a, **k: (attention_without_mask(*a, **k), None))
    model = bridge(repair_mamba(random_model("jamba")), name="jamba")
    torch.testing.assert_close(logits(model), random_model("jamba")(tokens()).logits, atol=2e-5, rtol=1e-4)
    assert anatomy_of(model).layers[1].not_patched


def attention_without_mask(module, q, k, v, mask, scaling, **_):
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    return ((q @ k.transpose(2, 3) * scaling).softmax(-1) @ v).transpose(1, 2).contiguous()
