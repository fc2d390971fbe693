"""A model folder as the other libraries take it: TransformerLens' model of it, in their environment.

Its own ``from_pretrained`` takes names it knows, and no folder; so its parts are called one by one, and what comes out
must give Hugging Face's own logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

NEAR = 1e-3  # of the largest logit


def hooked(folder: Path) -> Any:
    """The ``HookedTransformer`` of a folder in Hugging Face's layout, weights as they are.

    Raises:
        SystemExit: its logits are not those of the model in the folder.
    """
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.loading_from_pretrained import convert_hf_model_config, get_pretrained_state_dict
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    told = convert_hf_model_config(str(folder)) | {
        "model_name": folder.name,
        "original_architecture": theirs.config.architectures[0],
        "dtype": torch.float32,
        "device": "cpu",
        "init_weights": False,
        "default_prepend_bos": False,
    }
    config = HookedTransformerConfig.from_dict(told)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = HookedTransformer(config, tokenizer=tokenizer, move_to_device=False)
    state = get_pretrained_state_dict(str(folder), config, theirs)
    model.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    tokens = (torch.arange(64) * 7919 % config.d_vocab).reshape(2, 32)
    with torch.no_grad():
        ours, wanted = model(tokens, prepend_bos=False), theirs(tokens).logits
    off = float((ours - wanted).abs().max() / wanted.abs().max())
    if not off < NEAR:
        raise SystemExit(f"TransformerLens' logits of {folder} are {off:.2g} of the largest off: nothing is compared.")
    return model.eval()
