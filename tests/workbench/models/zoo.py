"""Tiny random models of many architectures: real Hugging Face configurations at width 48, every parameter perturbed so
that none is trivial. Nothing is downloaded.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers import AutoModelForCausalLM

V, D, L, H, F = 512, 48, 3, 6, 96
_SHAPE = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "intermediate_size": F,
    "max_position_embeddings": 256,
}
_IDS = {"bos_token_id": 0, "eos_token_id": 0}
_PAD0, _PAD1 = {**_IDS, "pad_token_id": 0}, {**_IDS, "pad_token_id": 1}
_GPT2 = {"vocab_size": V, "n_embd": D, "n_layer": L, "n_head": H, "n_positions": 256, **_IDS}
_OPT = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "ffn_dim": F,
    "max_position_embeddings": 256,
    **_PAD1,
}
_FALCON = {
    "vocab_size": V,
    "hidden_size": D,
    "num_hidden_layers": L,
    "num_attention_heads": H,
    "ffn_hidden_size": F,
    **_IDS,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2}
_SSM = {"mamba_n_heads": 12, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_chunk_size": 16}
_DELTA = {
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_MAMBA = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": L, "state_size": 8, **_PAD0}
_GQA = {"num_key_value_heads": 2}


def _own(kind: str, **values: Any) -> Callable[[], Any]:
    """A configuration of its own field names."""
    return lambda: getattr(hf, kind)(**values)


def _llama(kind: str, **values: Any) -> Callable[[], Any]:
    """A configuration that names its fields as Llama's."""
    return lambda: getattr(hf, kind)(**{**_SHAPE, **_PAD0, **values})


ZOO: dict[str, Callable[[], Any]] = {
    "gpt2": _own("GPT2Config", **_GPT2),
    "gpt_neo": _own(
        "GPTNeoConfig",
        vocab_size=V,
        hidden_size=D,
        num_layers=4,
        num_heads=H,
        attention_types=[[["global", "local"], 2]],
        window_size=8,
        intermediate_size=F,
        max_position_embeddings=256,
        **_IDS,
    ),
    "gptj": _own("GPTJConfig", rotary_dim=4, n_inner=F, **_GPT2),
    "gpt_neox": _llama(
        "GPTNeoXConfig",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    ),
    "gpt_neox_seq": _llama("GPTNeoXConfig", use_parallel_residual=False, tie_word_embeddings=False),
    "gpt_bigcode": _own("GPTBigCodeConfig", **_GPT2),
    "opt": _own("OPTConfig", word_embed_proj_dim=D, **_OPT),
    "opt_350m_like": _own("OPTConfig", word_embed_proj_dim=24, do_layer_norm_before=False, **_OPT),
    "bloom": _own("BloomConfig", vocab_size=V, hidden_size=D, n_layer=L, n_head=H, **_PAD1),
    "mpt": _own("MptConfig", vocab_size=V, d_model=D, n_layers=L, n_heads=H, max_seq_len=256),
    "xglm": _own(
        "XGLMConfig",
        vocab_size=V,
        d_model=D,
        num_layers=L,
        attention_heads=H,
        ffn_dim=F,
        max_position_embeddings=256,
        **_PAD1,
    ),
    "llama_mha": _llama("LlamaConfig", num_key_value_heads=H, tie_word_embeddings=True),
    "llama_gqa": _llama("LlamaConfig", tie_word_embeddings=False, **_GQA),
    "llama_mqa": _llama("LlamaConfig", num_key_value_heads=1, tie_word_embeddings=True),
    "llama_headdim": _llama("LlamaConfig", head_dim=16, tie_word_embeddings=False, **_GQA),
    "mistral": _llama("MistralConfig", sliding_window=8, **_GQA),
    "qwen2": _llama("Qwen2Config", tie_word_embeddings=True, **_GQA),
    "qwen3": _llama("Qwen3Config", head_dim=8, **_GQA),
    "gemma": _llama("GemmaConfig", num_key_value_heads=1, head_dim=16),
    "gemma2": _llama(
        "Gemma2Config",
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=8,
        final_logit_softcapping=30.0,
        attn_logit_softcapping=50.0,
        **_GQA,
    ),
    "gemma3": _llama(
        "Gemma3TextConfig",
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=8,
        num_hidden_layers=4,
        **_GQA,
    ),
    "gemma3n": _llama(
        "Gemma3nTextConfig",
        num_hidden_layers=4,
        head_dim=8,
        vocab_size_per_layer_input=V,
        hidden_size_per_layer_input=8,
        altup_num_inputs=2,
        laurel_rank=8,
        sliding_window=8,
        num_kv_shared_layers=0,
        intermediate_size=[F] * 4,
        activation_sparsity_pattern=[0.0] * 4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        **_GQA,
    ),
    "phi": _llama("PhiConfig"),
    "phi3": _llama("Phi3Config", **_GQA),
    "olmo": _llama("OlmoConfig"),
    "olmo2": _llama("Olmo2Config", **_GQA),
    "olmo3": _llama("Olmo3Config", sliding_window=8, num_hidden_layers=4, **_GQA),
    "falcon_7b_like": _own(
        "FalconConfig",
        multi_query=True,
        parallel_attn=True,
        bias=False,
        new_decoder_architecture=False,
        alibi=False,
        **_FALCON,
    ),
    "falcon_40b_like": _own(
        "FalconConfig",
        num_kv_heads=2,
        parallel_attn=True,
        bias=False,
        new_decoder_architecture=True,
        alibi=False,
        **_FALCON,
    ),
    "falcon_rw_like": _own(
        "FalconConfig",
        multi_query=False,
        parallel_attn=False,
        bias=True,
        new_decoder_architecture=False,
        alibi=True,
        **_FALCON,
    ),
    "stablelm": _llama("StableLmConfig", num_key_value_heads=H, partial_rotary_factor=0.25),
    "starcoder2": _llama("Starcoder2Config", **_GQA),
    "cohere": _llama("CohereConfig", logit_scale=0.25, **_GQA),
    "granite": _llama(
        "GraniteConfig",
        logits_scaling=4.0,
        residual_multiplier=0.5,
        embedding_multiplier=3.0,
        attention_multiplier=0.2,
        **_GQA,
    ),
    "smollm3": _llama("SmolLM3Config", **_GQA),
    "mixtral": _llama("MixtralConfig", num_local_experts=4, num_experts_per_tok=2, **_GQA),
    "qwen2_moe": _llama(
        "Qwen2MoeConfig",
        moe_intermediate_size=32,
        shared_expert_intermediate_size=48,
        decoder_sparse_step=1,
        **_MOE,
        **_GQA,
    ),
    "qwen3_moe": _llama("Qwen3MoeConfig", moe_intermediate_size=32, head_dim=8, **_MOE, **_GQA),
    "olmoe": _llama("OlmoeConfig", num_key_value_heads=H, **_MOE),
    "gpt_oss": _llama(
        "GptOssConfig",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        num_hidden_layers=4,
        **_GQA,
    ),
    "deepseek_v3": _llama(
        "DeepseekV3Config",
        num_key_value_heads=H,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_shared_experts=1,
    ),
    "mamba": _own("MambaConfig", time_step_rank=4, **_MAMBA),
    "falcon_mamba": _own("FalconMambaConfig", time_step_rank=4, **_MAMBA),
    "mamba2": _own("Mamba2Config", num_heads=12, head_dim=8, n_groups=2, expand=2, chunk_size=16, **_MAMBA),
    "bamba": _llama("BambaConfig", num_hidden_layers=4, attn_layer_indices=[2], **_SSM, **_GQA),
    "zamba2": _llama(
        "Zamba2Config",
        num_hidden_layers=4,
        layers_block_type=["mamba", "hybrid", "mamba", "hybrid"],
        mamba_d_state=8,
        mamba_ngroups=1,
        n_mamba_heads=4,
        chunk_size=16,
        num_mem_blocks=1,
        num_key_value_heads=H,
        adapter_rank=4,
    ),
    "jamba": _llama(
        "JambaConfig",
        num_hidden_layers=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
        **_MOE,
        **_GQA,
    ),
    "granitemoehybrid": _llama(
        "GraniteMoeHybridConfig",
        num_hidden_layers=4,
        layer_types=["mamba", "mamba", "attention", "mamba"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=48,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        embedding_multiplier=2.0,
        **_SSM,
        **_GQA,
    ),
    "nemotron_h": _llama(
        "NemotronHConfig",
        num_hidden_layers=4,
        layers_block_type=["mamba", "mlp", "attention", "mlp"],
        head_dim=8,
        mamba_num_heads=12,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
        **_GQA,
    ),
    "qwen3_next": _llama(
        "Qwen3NextConfig",
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        layer_types=["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        **_DELTA,
        **_MOE,
    ),
    "qwen3_5": _llama("Qwen3_5TextConfig", **_DELTA),
    "olmo_hybrid": _llama("OlmoHybridConfig", num_hidden_layers=4, **_GQA),
    "falcon_h1": _llama(
        "FalconH1Config", head_dim=8, mamba_d_ssm=96, lm_head_multiplier=0.5, embedding_multiplier=2.0, **_SSM, **_GQA
    ),
    "lfm2": _llama(
        "Lfm2Config",
        num_hidden_layers=4,
        block_ff_dim=96,
        block_multiple_of=8,
        full_attn_idxs=[1, 3],
        layer_types=["conv", "full_attention", "conv", "full_attention"],
        **_GQA,
    ),
    "rwkv": _own(
        "RwkvConfig",
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=L,
        attention_hidden_size=D,
        intermediate_size=F,
        context_length=256,
        **_IDS,
    ),
    "recurrent_gemma": _llama(
        "RecurrentGemmaConfig", num_key_value_heads=1, lru_width=D, attention_window_size=8, head_dim=8
    ),
}
ONE_OF_EACH_KIND = ("llama_gqa", "gpt2", "gemma2", "bamba", "qwen3_next")  # the default suite's; all others are slow


def perturbed(model: torch.nn.Module, seed: int = 0, scale: float = 0.12) -> torch.nn.Module:
    """The model with noise on every parameter but those that set time scales of a state."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if any(kept in name for kept in ("A_log", "dt_bias", "time_decay", "time_first")):
                continue
            p.add_((0.25 if p.dim() == 1 else scale) * torch.randn(p.shape, generator=generator))
    return model.eval()


def random_model(name: str, seed: int = 0) -> Any:
    """A Hugging Face model of the zoo."""
    torch.manual_seed(seed)
    return perturbed(AutoModelForCausalLM.from_config(ZOO[name](), attn_implementation="eager"), seed)


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """A model of the zoo as a folder that Hugging Face writes, with the bundled tokenizer as a hub would ship it."""
    from workbench.models import load_tokenizer

    os.environ.setdefault("TQDM_DISABLE", "1")
    with redirect_stderr(io.StringIO()):  # progress bars of one shard
        random_model(name, seed).save_pretrained(folder)
        load_tokenizer("mini-pythia").save_pretrained(folder)
    return folder
