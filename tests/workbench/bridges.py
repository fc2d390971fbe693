"""Tiny random models behind TransformerBridge, for tests of hooks and circuits."""

from __future__ import annotations

import copy

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from workbench.models.mamba import repair_mamba
from workbench.models.recurrent import attach

SHAPE = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}


def tiny(kind: str, seed: int = 0, scale: float = 0.1, **overrides: object) -> torch.nn.Module:
    """An unrepaired Hugging Face model: "neox", "mamba", "falcon" or "mamba2".

    Parameters are perturbed so that none is trivial.
    """
    torch.manual_seed(seed)
    shape = {**SHAPE, **overrides}
    if kind == "neox":
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(
                **{"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128, **shape}
            )
        )
    elif kind == "mamba2":
        model = Mamba2ForCausalLM(
            Mamba2Config(
                **{"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "expand": 2, "chunk_size": 8, **shape}
            )
        )
    elif kind == "falcon":
        model = FalconMambaForCausalLM(FalconMambaConfig(**{"state_size": 4, "time_step_rank": 3, **shape}))
    else:
        model = MambaForCausalLM(MambaConfig(**{"state_size": 4, "time_step_rank": 3, **shape}))
    for p in model.parameters():
        p.data += scale * torch.randn_like(p)
    return model.eval()


def bridge(model: torch.nn.Module) -> TransformerBridge:
    """A bridge over a copy of `model`, repaired."""
    model = repair_mamba(copy.deepcopy(model))
    model.config.use_cache = False  # as `load_model` does: with a cache, hooks of recurrent layers are silent
    made = build_bridge_from_module(model, architecture=type(model).__name__, hf_config=model.config)
    attach(made)
    return made


def tokens(n: int = 3, length: int = 21, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, SHAPE["vocab_size"], (n, length), generator=torch.Generator().manual_seed(seed))
