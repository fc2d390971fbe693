"""What the options a dictionary's model was loaded with mean for a model that is loaded unprocessed, as here.

SAELens keeps them as ``model_from_pretrained_kwargs``: arguments of TransformerLens'
``HookedTransformer.from_pretrained_no_processing`` (versions 1 to 3). A revision is kept; what changes the activations
of the hook is folded or refused by name; the rest changes nothing at the hook.
"""

from __future__ import annotations

import re
from typing import Any

from sae.errors import CorruptError
from sae.formats.layout import names

# Model families whose norms subtract the mean (LayerNorm), so that centring is possible, and those that do not
# (RMSNorm), where TransformerLens skips the centring with a warning.
_LAYERNORM = re.compile(
    r"gpt|pythia|neox|opt-|gelu|solu|attn-only|tinystories|tiny-stories|bloom|bert|santacoder|phi-[12]"
)
_RMSNORM = re.compile(r"llama|gemma|mistral|mixtral|qwen|phi-?[34]|olmo|smollm|yi-")
_RESIDUAL = re.compile(r"(blocks\.\d+\.)?(hook_(resid_(pre|mid|post)|mlp_out|attn_out|embed|pos_embed))")
_NORMALISED = re.compile(r"blocks\.\d+\.(ln[12]\.hook_normalized|mlp\.hook_(in|pre|post)|attn\.hook_[qkvz])")
_INSIDE = re.compile(r"blocks\.\d+\.(attn\.hook_[qkvz]|hook_[qkv]_input)")
_PYTHIA_STEPS = [0, *(2**i for i in range(10)), *range(1000, 144_000, 1000)]

# arguments that change no activation of a hook: where and how the model is loaded, and what follows after the last hook
_HARMLESS = names(
    "center_unembed device n_devices move_to_device dtype torch_dtype trust_remote_code cache_dir token"
    " default_padding_side local_files_only low_cpu_mem_usage attn_implementation device_map tokenizer n_ctx"
)


def read_model_kwargs(
    kwargs: dict[str, Any], hook: str | None, model: str | None, where: str
) -> tuple[dict[str, Any], bool]:
    """(metadata to keep, whether the input must be centred) for these options of the model.

    Raises:
        CorruptError: an option that changes the hook's activations in a way that cannot be folded, or is not known.
    """
    about: dict[str, Any] = {"model_from_pretrained_kwargs": kwargs} if kwargs else {}
    centred = False
    for key, value in kwargs.items():
        at = f"{where}: model_from_pretrained_kwargs has {key} = {value!r:.60}"
        if key in ("revision", "checkpoint_value", "checkpoint_index"):
            about["revision"] = _revision(key, value, model, at)
        elif key == "default_prepend_bos" and isinstance(value, bool):
            about["prepend_bos"] = value
        elif key in _HARMLESS or value is False or value is None:
            continue
        elif key == "center_writing_weights":
            centred = _centres(hook, model, at)
        elif key == "fold_ln" and hook is not None and not _INSIDE.fullmatch(hook):
            continue  # moves what hook_normalized holds, which the table of hook names knows
        elif key in ("fold_ln", "fold_value_biases", "refactor_factored_attn_matrices"):
            if hook is None or _INSIDE.fullmatch(hook):
                raise CorruptError(
                    f"{at}, which changes what {hook or 'an unnamed hook'} holds. Such weights cannot be folded here."
                )
        else:
            raise CorruptError(
                f"{at}: what this does to the activations of {hook or 'the hook'} is not known, so the dictionary is"
                " refused. If it does nothing, delete it."
            )
    return about | ({"centred_input": True} if centred else {}), centred


def is_rmsnorm(model: str) -> bool:
    """Whether a model of this name normalises without subtracting a mean (Llama, Gemma, Qwen, … by name)."""
    return _RMSNORM.search(model.lower()) is not None


def is_layernorm(model: str) -> bool:
    """Whether a model of this name normalises with a mean subtracted (GPT, Pythia, OPT, … by name). A name may be
    neither: then its norm is not known here.
    """
    return not is_rmsnorm(model) and _LAYERNORM.search(model.lower()) is not None


def _revision(key: str, value: Any, model: str | None, at: str) -> str:
    """The revision these options name: Pythia's checkpoints are branches ``step<N>`` of the hub."""
    if key == "revision" and isinstance(value, str) and value:
        return value
    if key != "revision" and isinstance(value, int) and not isinstance(value, bool) and "pythia" in str(model).lower():
        if key == "checkpoint_value" and value in _PYTHIA_STEPS:
            return f"step{value}"
        if key == "checkpoint_index" and -len(_PYTHIA_STEPS) <= value < len(_PYTHIA_STEPS):
            return f"step{_PYTHIA_STEPS[value]}"
    raise CorruptError(f"{at}, which names no revision of {model or 'the model'}. Write revision = '…' instead.")


def _centres(hook: str | None, model: str | None, at: str) -> bool:
    """Whether centred writing weights change what the hook holds."""
    name = str(model or "").lower()
    if is_rmsnorm(name):
        return False  # TransformerLens leaves the weights of RMSNorm models as they are
    if hook is not None and _RESIDUAL.fullmatch(hook) and is_layernorm(name):
        return True
    if hook is not None and _NORMALISED.fullmatch(hook):
        return False  # read through the norm, which subtracts the mean anyway
    raise CorruptError(
        f"{at}; whether that moves {hook or 'the hook'} of {model or 'a model without a name'} is not known here. Name"
        " model_name and hook_name in the configuration."
    )
