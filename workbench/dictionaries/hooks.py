"""Where a dictionary of another library reads and writes, in the hook names of the models here.

Libraries name the same place differently: TransformerLens 1 to 3 (``blocks.6.ln2.hook_normalized``), Hugging Face
module paths, with or without ``.output`` (``model.layers.6.mlp``, sparsify's ``layers.6.mlp``), dictionary_learning
(``resid_post_layer_6``) and the sites of this workbench (``L6R``). One table says what each means;
:func:`dictionary_hooks` is the one function that reads it.

Three names mean other places than they seem to. A module that a *transcoder* is named after is read at its input.
``hook_normalized`` of an unfolded LayerNorm model is behind gain and bias, that of an RMSNorm or folded model before
them (TransformerLens, ``components/layer_norm.py``, ``rms_norm.py``). ``hook_mlp_in`` of TransformerLens is the
residual stream before the norm, ``mlp.hook_in`` what the MLP is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae.errors import UsageError, UserError
from sae.files import read_json
from sae.formats.model_kwargs import is_layernorm, is_rmsnorm
from workbench.models.load import find_folder
from workbench.models.sites import hooks_of, pair_site, site_of


@dataclass(frozen=True)
class Hooks:
    """Hook names of what is read and written, and the site of the two, where they are one."""

    read: str | None
    write: str | None
    site: str | None


# below blocks.{l}: a name of TransformerLens 1 to 3 -> here. Names that mean the same are not listed.
_TRANSFORMER_LENS = {
    "mlp.hook_in": "ln2.hook_out",
    "hook_mlp_in": "ln2.hook_in",
    "hook_out": "hook_resid_post",
    "hook_in": "hook_resid_pre",
    "mlp.hook_out": "hook_mlp_out",
    "attn.hook_out": "hook_attn_out",
    "mixer.hook_out": "hook_mixer_out",
}
# a module of a block -> (what it is given, what it gives)
_MODULES = {
    "": ("hook_resid_pre", "hook_resid_post"),
    "mlp": ("ln2.hook_out", "hook_mlp_out"),
    "feed_forward": ("ln2.hook_out", "hook_mlp_out"),
    "attn": ("ln1.hook_out", "hook_attn_out"),
    "attention": ("ln1.hook_out", "hook_attn_out"),
    "self_attn": ("ln1.hook_out", "hook_attn_out"),
    "self_attention": ("ln1.hook_out", "hook_attn_out"),
    "mixer": ("hook_mixer_in", "hook_mixer_out"),
    "attn.c_proj": ("attn.hook_z", "hook_attn_out"),
    "self_attn.o_proj": ("attn.hook_z", "hook_attn_out"),
    "attention.dense": ("attn.hook_z", "hook_attn_out"),
    "mlp.c_fc": ("ln2.hook_out", "mlp.hook_pre"),
    "mlp.dense_h_to_4h": ("ln2.hook_out", "mlp.hook_pre"),
    "mlp.act": ("mlp.hook_pre", "mlp.hook_post"),
    "mlp.c_proj": ("mlp.hook_post", "hook_mlp_out"),
    "mlp.down_proj": ("mlp.hook_post", "hook_mlp_out"),
    "mlp.dense_4h_to_h": ("mlp.hook_post", "hook_mlp_out"),
    "ln_1": ("hook_resid_pre", "ln1.hook_out"),
    "ln_2": ("ln2.hook_in", "ln2.hook_out"),
    "input_layernorm": ("hook_resid_pre", "ln1.hook_out"),
    "pre_feedforward_layernorm": ("ln2.hook_in", "ln2.hook_out"),
    "post_feedforward_layernorm": ("mlp.hook_out", "hook_mlp_out"),
}
# the norm of this name precedes the MLP, but in Gemma 2 and 3 it follows attention
_POST_ATTENTION = {True: ("attn.hook_out", "hook_attn_out"), False: ("ln2.hook_in", "ln2.hook_out")}
_DICTIONARY_LEARNING = {
    "resid_post": "hook_resid_post",
    "resid_pre": "hook_resid_pre",
    "mlp_out": "hook_mlp_out",
    "mlp": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
    "attn": "hook_attn_out",
}
_HF = re.compile(r"(?:(?:model|base_model|transformer|gpt_neox|backbone|language_model|decoder)\.)*"
                 r"(?:layers|h|blocks|layer)\.(\d+)(?:\.(.+?))??(?:\.(input|output))?")  # fmt: skip


def dictionary_hooks(metadata: dict[str, Any]) -> Hooks:
    """Where a dictionary with this metadata (``hook_name``, ``hook_name_out``, ``hf_hook_name``, ``hf_hook_name_out``,
    ``layer``, ``kind``, ``site``) reads and writes.

    A Hugging Face path that is understood wins over a TransformerLens name beside it: it names a module, not a custom.
    A name that is in no table stays as it is, if it is TransformerLens', and is dropped otherwise.

    Raises:
        UsageError: ``hook_normalized`` of a model whose norm is not known.
    """
    transcoder = metadata.get("kind") == "transcoder"
    model = str(metadata.get("model_name") or "")
    if metadata.get("site") and not metadata.get("hook_name") and not metadata.get("hf_hook_name"):
        return _named(*hooks_of(str(metadata["site"])))
    folded = bool((metadata.get("model_from_pretrained_kwargs") or {}).get("fold_ln"))
    hf = _module(str(metadata.get("hf_hook_name") or ""), model, transcoder, metadata.get("layer"))
    hf_out = _module(str(metadata.get("hf_hook_name_out") or ""), model, False, None)
    tl = _transformer_lens(metadata.get("hook_name"), model, folded)
    tl_out = _transformer_lens(metadata.get("hook_name_out"), model, folded)
    read = (hf[0] if hf else None) or tl
    write = (hf_out[1] if hf_out else None) or tl_out or (hf[1] if hf and transcoder else None) or read
    return _named(read, write)


def _named(read: str | None, write: str | None) -> Hooks:
    if read is None:
        return Hooks(None, None, None)
    assert write is not None
    try:
        site = site_of(read) if read == write else pair_site(read, write)
    except UsageError:
        site = None  # a hook that is no site, such as hook_resid_pre, is fine: the hook name says where it is
    return Hooks(read, write, site)


def _transformer_lens(name: Any, model: str, folded: bool) -> str | None:
    """A TransformerLens hook name in today's meaning; a path of another kind in the same field is read as such."""
    if not name:
        return None
    name = str(name)
    module = None if name.startswith("blocks.") and "hook_" in name else _module(name, model, False, None)
    if module is not None:
        return module[0]
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match is None:
        return name
    layer, rest = match[1], match[2]
    if re.fullmatch(r"ln[12]\.hook_normalized", rest) and not folded and _subtracts_mean(model, name):
        rest = f"{rest[:3]}.hook_out"
    return f"blocks.{layer}.{_TRANSFORMER_LENS.get(rest, rest)}"


def _subtracts_mean(model: str, hook: str) -> bool:
    """Whether the norms of a model are LayerNorms, by its name, or by its configuration where it lies on this machine.

    Raises:
        UsageError: neither says, so what the hook holds is not known.
    """
    if is_rmsnorm(model) or is_layernorm(model):
        return is_layernorm(model)
    keys = _configuration(model)
    if "rms_norm_eps" in keys or "rms_norm" in keys:
        return False
    if keys & {"layer_norm_eps", "layer_norm_epsilon"}:
        return True
    named = f"the model {model!r}, whose norm is not known here" if model else "a model without a name"
    layer = hook.rsplit(".hook_", 1)[0]
    raise UsageError(
        f"{hook!r} of {named}: this hook holds the rows after the norm's gain in a model with LayerNorm, before it in"
        " one with RMSNorm, so which rows the dictionary read is not known. Give a model whose config.json is here"
        f" with --model, or, for a LayerNorm, --hook {layer}.hook_out."
    )


def _configuration(model: str) -> set[str]:
    """Keys of a model's ``config.json``, where it lies on this machine or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        folder = find_folder(model) if model else None
        cached = try_to_load_from_cache(model, "config.json") if "/" in model and folder is None else None
        file = folder / "config.json" if folder is not None else cached
        cfg = read_json(Path(file)) if isinstance(file, (str, Path)) else {}
    except (UserError, ValueError):
        return set()
    return set(cfg) | set(cfg.get("text_config") or {})


def _module(path: str, model: str, transcoder: bool, layer: Any) -> tuple[str, str] | None:
    """(hook read, hook written) of a module path; None where no table knows it."""
    known = re.fullmatch(r"([a-z_]+?)_layer_?(\d+)", path)
    if known and known[1] in _DICTIONARY_LEARNING:
        hook = f"blocks.{known[2]}.{_DICTIONARY_LEARNING[known[1]]}"
        return hook, hook
    if path in _DICTIONARY_LEARNING and isinstance(layer, int):
        hook = f"blocks.{layer}.{_DICTIONARY_LEARNING[path]}"
        return hook, hook
    if re.fullmatch(r"L\d+(R|A|M|TC|S)", path):
        return hooks_of(path)
    match = _HF.fullmatch(path)
    if match is None:
        return ("hook_embed", "hook_embed") if path.endswith(("embed_tokens", "embed_in", "wte")) else None
    sub = match[2] or ""
    hooks = _POST_ATTENTION["gemma" in model.lower()] if sub == "post_attention_layernorm" else _MODULES.get(sub)
    if hooks is None:
        return None
    given, gives = (f"blocks.{match[1]}.{h}" for h in hooks)
    if transcoder:
        return (gives if match[3] == "output" else given), gives
    place = given if match[3] == "input" else gives
    return place, place
