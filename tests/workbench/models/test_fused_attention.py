"""Attention by torch's fused kernel: Hugging Face's own activations, and only where nobody looks inside."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.workbench.models.zoo import ZOO, random_model, save
from workbench.activations.harvesting.forward import ModelProducer, capture
from workbench.models import load_model
from workbench.models.fused_attention import _close, agrees, fused_attention

OFTEN = ("llama_gqa", "mistral", "gemma2", "gpt2", "bamba")
REFUSED = ("gemma3n", "falcon_40b_like", "granitemoehybrid")  # whole, when they are loaded
FUSED = {
    *("bamba", "cohere", "falcon_h1", "gemma", "gemma3", "granite", "lfm2", "llama_gqa", "llama_headdim", "llama_mha"),
    *("llama_mqa", "mistral", "mixtral", "olmo", "olmo2", "olmo3", "olmoe", "phi", "qwen2", "qwen2_moe", "qwen3"),
    *("qwen3_5", "qwen3_moe", "qwen3_next", "stablelm", "starcoder2"),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_model(save("llama_gqa", tmp_path_factory.mktemp("zoo") / "llama_gqa"))


@pytest.fixture
def tokens():
    return torch.randint(1, 500, (2, 40), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    "name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in ZOO if n not in REFUSED]
)
@pytest.mark.filterwarnings("ignore")
def test_the_residual_stream_is_hugging_faces(name, tmp_path, tokens):
    model = load_model(save(name, tmp_path / name))
    last = model.cfg.n_layers - 1
    hooks = ["blocks.0.hook_resid_post", f"blocks.{last}.hook_resid_pre"]
    with fused_attention(model, hooks) as fused:
        seen = capture(model, tokens, hooks)
    assert fused == (name in FUSED)
    if fused:
        with torch.no_grad():
            theirs = random_model(name)(tokens, output_hidden_states=True).hidden_states
        torch.testing.assert_close(seen[hooks[0]], theirs[1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(seen[hooks[1]], theirs[last], rtol=1e-4, atol=1e-4)


def test_the_model_is_as_it_was_afterwards(llama, tokens):
    hooks = ["blocks.1.hook_resid_post", "blocks.1.attn.hook_z"]
    before = capture(llama, tokens, hooks)
    with pytest.raises(RuntimeError, match="on purpose"), fused_attention(llama, hooks[:1]) as fused:
        assert fused
        raise RuntimeError("on purpose")
    after = capture(llama, tokens, hooks)
    assert all(torch.equal(before[name], after[name]) for name in hooks)


@pytest.mark.parametrize("name", ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_z", "blocks.1.attn.q.hook_out"])
def test_where_somebody_looks_inside_nothing_changes(llama, tokens, name):
    with fused_attention(llama, [name]) as fused:
        assert not fused
    with llama.hooks(fwd_hooks=[(name, lambda value, hook: value)]), fused_attention(llama, []) as fused:
        assert not fused


def test_the_output_of_attention_is_seen_and_may_be_changed(llama, tokens):
    hooks = ["blocks.0.hook_attn_out", "blocks.1.hook_resid_post"]
    plain = capture(llama, tokens, hooks)
    with fused_attention(llama, hooks) as fused:
        seen = capture(llama, tokens, hooks)
        with llama.hooks(fwd_hooks=[(hooks[0], lambda value, hook: value * 0)]):
            cut = capture(llama, tokens, hooks[1:])
    with llama.hooks(fwd_hooks=[(hooks[0], lambda value, hook: value * 0)]):
        wanted = capture(llama, tokens, hooks[1:])
    assert fused
    torch.testing.assert_close(seen, plain, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cut, wanted, rtol=1e-4, atol=1e-4)


def test_what_does_not_agree_is_not_used(llama, tokens):
    hooks = ["blocks.1.hook_resid_post"]
    assert agrees(lambda: capture(llama, tokens, hooks), llama, hooks)
    config = llama.blocks[0].attn.original_component.config

    def other_when_fused():
        seen = capture(llama, tokens, hooks)
        return {n: v * (1.01 if config._attn_implementation == "sdpa" else 1) for n, v in seen.items()}

    assert not agrees(other_when_fused, llama, hooks)

    def fails_when_fused():
        if config._attn_implementation == "sdpa":
            raise TypeError("asked for something else")
        return capture(llama, tokens, hooks)

    assert not agrees(fails_when_fused, llama, hooks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_half_precision_is_never_called_the_same(dtype):
    x = torch.ones(3, 4, dtype=dtype)
    assert _close(x, x) == (dtype is torch.float64)
    x[0, 0] = 5000  # beside which all others are compared all the same
    assert not _close(x, x + 0.01)


def test_what_begins_behind_the_first_tokens_is_asked_about(llama, tmp_path):
    """Of a window or a scaling of positions the first tokens say nothing: a whole sequence is compared."""
    spec = SimpleNamespace(positions=np.arange(1, 80), batch_size=2, streams=[], dtype="float32")
    producer, seen = ModelProducer(spec, np.ones((2, 80), np.int32), {"m": llama}), []
    llama_run = torch.randint(1, 500, (2, 80), generator=torch.Generator().manual_seed(4))
    with llama.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: seen.append(value.shape))]):
        assert producer._may_fuse("m", llama_run, ["blocks.1.hook_resid_post"])
    assert [tuple(s[:2]) for s in seen] == [(1, 80), (1, 80)]


def test_a_harvest_stores_the_same_rows(llama, tokens):
    streams = [SimpleNamespace(source="m", at=f"blocks.{i}.hook_resid_post", key=f"L{i}R") for i in (0, 2)]
    spec = SimpleNamespace(positions=np.arange(1, 40), batch_size=1, streams=streams, dtype="float32")
    asked = []

    class Watched(ModelProducer):
        def _may_fuse(self, *given):
            asked.append(super()._may_fuse(*given))
            return asked[-1]

    rows = list(Watched(spec, tokens.numpy(), {"m": llama})(0, 2))
    assert asked == [True, True]
    seen = capture(llama, tokens, [s.at for s in streams])
    for s in streams:
        stored = np.concatenate([part[s.key] for part in rows])
        np.testing.assert_allclose(stored, seen[s.at][:, 1:].reshape(78, -1), rtol=1e-4, atol=1e-4)
