"""Repaired mixers give Hugging Face's numbers, padded, cached and trained."""

import copy

import pytest
import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM

from workbench.models.mamba import repair_mamba

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 3}


@pytest.fixture(
    params=[(MambaConfig, MambaForCausalLM), (FalconMambaConfig, FalconMambaForCausalLM)], ids=["mamba", "falcon"]
)
def pair(request: pytest.FixtureRequest) -> tuple[torch.nn.Module, torch.nn.Module]:
    config, model = request.param
    torch.manual_seed(0)
    original = model(config(**SHAPE)).eval()
    for p in original.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return original, repair_mamba(copy.deepcopy(original))


def tokens(seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 50, (3, 37), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_logits_equal(pair) -> None:
    original, repaired = pair
    torch.testing.assert_close(repaired(tokens()).logits, original(tokens()).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_equal(pair, side: str) -> None:
    original, repaired = pair
    mask = torch.ones(3, 37, dtype=torch.long)
    mask[1, (slice(0, 9) if side == "left" else slice(-9, None))] = 0
    got, want = (m(tokens(), attention_mask=mask).logits for m in (repaired, original))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_training_gradients_equal(pair) -> None:
    grads = []
    for model in pair:
        model.train()
        model(tokens(), labels=tokens()).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_generation_with_a_cache_equals_a_full_forward(pair) -> None:
    original, repaired = pair
    made = repaired.generate(tokens()[:, :5], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(
        made, original.generate(tokens()[:, :5], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    )
    step = repaired(tokens()[:, :9], use_cache=True)
    rest = repaired(tokens()[:, 9:], cache_params=step.cache_params, use_cache=True).logits  # several tokens at once
    torch.testing.assert_close(rest, original(tokens()).logits[:, 9:], atol=1e-5, rtol=1e-5)
