"""Read and write the checkpoint folder of the `mamba_ssm` package: `config.json` and `pytorch_model.bin`.

Same tensors as Hugging Face's Mamba but for the name of the embedding; the configuration uses `d_model`, `n_layer`,
`vocab_size` (before padding to `pad_vocab_size_multiple`) and `ssm_cfg` (`d_state`, `d_conv`, `expand`, `dt_rank`, …),
as in state-spaces/mamba, `mamba_ssm/models/config_mamba.py` and `modules/mamba_simple.py`.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from transformers import MambaConfig, MambaForCausalLM

from sae.errors import CorruptError, UsageError
from sae.files import disk_errors, read_json, write_bytes, write_json
from sae.formats.tensors import read_state_dict

_HF, _SSM = "backbone.embeddings.weight", "backbone.embedding.weight"
_SSM_CFG = {"d_state": 16, "d_conv": 4, "expand": 2, "dt_rank": "auto", "conv_bias": True, "bias": False}


def is_mamba_ssm_folder(folder: str | Path) -> bool:
    """Whether `folder` holds a checkpoint in this layout (Hugging Face configurations carry `model_type`)."""
    path = Path(folder)
    if not (path / "pytorch_model.bin").is_file() or not (path / "config.json").is_file():
        return False
    config = read_json(path / "config.json")
    return "d_model" in config and "n_layer" in config and "model_type" not in config


def export_mamba_ssm(model: MambaForCausalLM, folder: str | Path) -> Path:
    """Write a Hugging Face (or repaired) Mamba so that `MambaLMHeadModel.from_pretrained(folder)` reads it."""
    if model.config.model_type != "mamba":
        raise UsageError(
            f"only Mamba has a mamba_ssm layout here, not {model.config.model_type!r}. Use save_pretrained instead."
        )
    c = model.config
    ssm_cfg = {"d_state": c.state_size, "d_conv": c.conv_kernel, "expand": c.expand, "dt_rank": int(c.time_step_rank)}
    config = {
        "d_model": c.hidden_size,
        "n_layer": c.num_hidden_layers,
        "vocab_size": c.vocab_size,
        "ssm_cfg": {**ssm_cfg, "conv_bias": c.use_conv_bias, "bias": c.use_bias},
        "rms_norm": True,
        "residual_in_fp32": bool(c.residual_in_fp32),
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 1,
        "tie_embeddings": bool(c.tie_word_embeddings),
    }
    tensors = {
        _SSM if name == _HF else name: value.detach().cpu().clone() for name, value in model.state_dict().items()
    }
    path, buffer = Path(folder), io.BytesIO()
    torch.save(tensors, buffer)
    with disk_errors(str(path)):
        path.mkdir(parents=True, exist_ok=True)
    write_bytes(path / "pytorch_model.bin", buffer.getvalue())
    write_json(path / "config.json", config)
    return path


def import_mamba_ssm(folder: str | Path) -> MambaForCausalLM:
    """The model of a folder in this layout, as Hugging Face's MambaForCausalLM in float32, eval mode.

    Raises UntrustedFile where the file is not a state dict of plain tensors, CorruptError where tensors are missing,
    superfluous or of another shape than the configuration says.
    """
    path = Path(folder)
    raw = read_json(path / "config.json")
    tensors = read_state_dict(path / "pytorch_model.bin")  # a pickle: only a limited child process opens it
    if _SSM not in tensors:
        raise CorruptError(
            f"{path / 'pytorch_model.bin'} has no tensor {_SSM!r}: not a checkpoint of the library mamba_ssm. Give its"
            " original folder."
        )
    tensors[_HF] = tensors.pop(_SSM)
    tensors.setdefault("lm_head.weight", tensors[_HF])
    model = MambaForCausalLM(hf_config_of(raw, vocab_size=tensors[_HF].shape[0])).eval()
    try:
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise CorruptError(
            f"{path}: {str(error).splitlines()[-1].strip()} The tensors do not fit config.json."
        ) from error
    return model


def hf_config_of(raw: dict[str, Any], vocab_size: int) -> MambaConfig:
    ssm = {**_SSM_CFG, **raw.get("ssm_cfg", {})}
    if ssm.get("layer", "Mamba1") != "Mamba1" or raw.get("attn_layer_idx"):
        raise UsageError(
            f"layer {ssm.get('layer')!r} with attention layers {raw.get('attn_layer_idx')!r} is not a plain Mamba"
            " checkpoint, which is all that is read here."
        )
    if not raw.get("rms_norm", True):
        raise UsageError(
            "rms_norm = false: Hugging Face's Mamba has RMS norms only, so this checkpoint cannot be imported."
        )
    return MambaConfig(
        vocab_size=vocab_size,
        hidden_size=raw["d_model"],
        num_hidden_layers=raw["n_layer"],
        state_size=ssm["d_state"],
        conv_kernel=ssm["d_conv"],
        expand=ssm["expand"],
        time_step_rank=math.ceil(raw["d_model"] / 16) if ssm["dt_rank"] == "auto" else ssm["dt_rank"],
        use_conv_bias=ssm["conv_bias"],
        use_bias=ssm["bias"],
        residual_in_fp32=raw.get("residual_in_fp32", True),
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=raw.get("tie_embeddings", True),
    )
