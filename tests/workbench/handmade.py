"""Models whose circuit is known because their weights were written by hand."""

from __future__ import annotations

import math

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM

VOCAB = 16


@torch.no_grad()
def induction_transformer() -> GPTNeoXForCausalLM:
    """Two layers of three heads: L0H0 copies the previous token, L1H1 finds it and copies what is there; every other
    head writes zero.

    Residual stream of 96: the token (0..15), the previous token (16..31), the prediction (32..47). Heads have 32
    dimensions, of which the first 16 are rotated by position and the last 16 carry a token.
    """
    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=8,
        max_position_embeddings=64,
        rotary_pct=0.5,
        use_parallel_residual=True,
        tie_word_embeddings=False,
    )
    model = GPTNeoXForCausalLM(config).eval()
    for p in model.parameters():
        p.zero_()
    body, eye = model.gpt_neox, torch.eye(VOCAB)
    body.embed_in.weight[:, :16] = eye
    for norm in [
        body.final_layer_norm,
        *(n for layer in body.layers for n in (layer.input_layernorm, layer.post_attention_layernorm)),
    ]:
        norm.weight.fill_(1.0)
    # fused rows per head: 32 of q, 32 of k, 32 of v
    first, second = body.layers[0].attention, body.layers[1].attention
    angle = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    a = torch.full((16,), 15.0)  # rotated pairs are (i, i+8); the key is the query turned by one position
    first.query_key_value.bias[0:16] = a
    first.query_key_value.bias[32:40] = a[:8] * torch.cos(angle) - a[8:] * torch.sin(angle)
    first.query_key_value.bias[40:48] = a[8:] * torch.cos(angle) + a[:8] * torch.sin(angle)
    first.query_key_value.weight[64 + 16 : 96, 0:16] = eye
    first.dense.weight[16:32, 16:32] = 0.2 * eye
    head = 96  # rows of head 1
    second.query_key_value.weight[head + 16 : head + 32, 0:16] = 3 * eye
    second.query_key_value.weight[head + 48 : head + 64, 16:32] = 3 * eye
    second.query_key_value.weight[head + 80 : head + 96, 0:16] = eye
    second.dense.weight[32:48, 32 + 16 : 64] = 0.2 * eye
    model.get_output_embeddings().weight[:, 32:48] = eye
    return model


@torch.no_grad()
def storing_mamba(offset: int, lifetime: int | None = None) -> MambaForCausalLM:
    """One layer that stores (token A -> token B) `offset` positions after B, and reads it when A returns; offset 0, 1
    or 2. Less than half of a write is left after `lifetime` positions and not before (0.5 of a position beyond the
    half-life); hardly anything is ever forgotten by default.

    48 channels: values (token `offset` back), keys (token `offset` + 1 back), queries (the token itself); 16 states,
    one per key.
    """
    config = MambaConfig(
        vocab_size=VOCAB,
        hidden_size=48,
        num_hidden_layers=1,
        state_size=16,
        expand=1,
        conv_kernel=4,
        time_step_rank=1,
        use_bias=True,
        tie_word_embeddings=False,
    )
    model = MambaForCausalLM(config).eval()
    for p in model.parameters():
        p.zero_()
    block, eye = model.backbone.layers[0], torch.eye(VOCAB)
    mixer = block.mixer
    block.norm.weight.fill_(1.0)
    model.backbone.norm_f.weight.fill_(1.0)
    model.backbone.embeddings.weight[:, :16] = eye
    for group, lag in enumerate((offset, offset + 1, 0)):
        channels = slice(16 * group, 16 * group + 16)
        mixer.in_proj.weight[channels, 0:16] = eye
        mixer.conv1d.weight[channels, 0, 3 - lag] = 1.0
    mixer.in_proj.bias[48:] = 2.0  # an open gate
    mixer.x_proj.weight[1:17, 16:32] = 0.3 * eye  # B = key
    mixer.x_proj.weight[17:33, 32:48] = 0.3 * eye  # C = query
    mixer.dt_proj.bias.fill_(0.5)
    step = math.log1p(math.exp(0.5))  # softplus of the bias, the same at all positions
    forgetting = -9.0 if lifetime is None else math.log(math.log(2) / (lifetime - 0.5) / step)
    mixer.A_log.fill_(forgetting)
    mixer.out_proj.weight[16:32, 0:16] = 0.1 * eye  # values are the prediction
    model.lm_head.weight[:, 16:32] = eye
    return model
