"""Reader of dictionary_learning trainer folders: ``config.json`` + ``ae.pt``, a pickle read in a limited child process.

Facts from release 0.1.0 and the repository's history since 2023 (``dictionary.py``, ``trainers/``): what a dictionary
computes follows from its ``dict_class``; the trainer's other entries are how it was trained.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError
from sae.formats.layout import NUMBER, OBJECT, OBJECT_OR_NULL, WHOLE, Layout, Rule, check_keys, check_tensors, names
from sae.formats.normal import NormalForm, gated
from sae.formats.tensors import in_float32, read_config, read_state_dict

# class -> its tensors besides encoder and decoder, in the library's names
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_DIRECT = ("W_enc", "b_enc", "W_dec", "b_dec")
TENSORS: dict[str, tuple[str, ...]] = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "threshold"),
    "GatedAutoEncoder": ("encoder.weight", "decoder.weight", "decoder_bias", "r_mag", "gate_bias", "mag_bias"),
    "JumpReluAutoEncoder": (*_DIRECT, "threshold"),
    "MatryoshkaBatchTopKSAE": (*_DIRECT, "threshold"),
}
_OPTIONAL = {
    "AutoEncoderTopK": ("k", "threshold"),
    "BatchTopKSAE": ("k",),
    "MatryoshkaBatchTopKSAE": ("k", "group_sizes"),
}
_BUFFER = names("d_submodule io n_ctxs ctx_len refresh_batch_size out_batch_size device layer")
TRAINER = Layout(
    "dictionary_learning",
    "0.1",
    "2023-11 to 2025-08",
    "config.json trainer",
    tuple(TENSORS),
    used={
        "dict_class": Rule(f"one of {', '.join(TENSORS)}", lambda v: isinstance(v, str) and v in TENSORS),
        "activation_dim": WHOLE,
        "dict_size": WHOLE,
        "k": WHOLE.or_absent(),
    },
    kept=names("layer lm_name submodule_name"),
    harmless=names(
        "trainer_class lr steps seed device wandb_name warmup_steps decay_start resample_steps l1_penalty"
        " sparsity_penalty sparsity_function sparsity_warmup_steps sparsity_coefficient p_start p_end anneal_start"
        " anneal_end n_sparsity_updates sparsity_queue_length sparsity_loss_queue_length lambda_warm_steps"
        " threshold_start_step threshold_beta auxk_alpha top_k_aux target_l0 bandwidth group_fractions group_weights"
        " group_sizes weights_temperature steps_before_annealing adaptive_sparsity_penalty activation_queue_length"
        " norm_factor"
    ),
)
CONFIG = Layout(
    "dictionary_learning",
    "0.1",
    "2023-11 to 2025-08",
    "config.json",
    tuple(TENSORS),
    used={"trainer": OBJECT, "buffer": OBJECT_OR_NULL.or_absent()},
    refused=("IdentityDict", "other classes"),
    sections={
        "trainer": TRAINER,
        "buffer": Layout("dictionary_learning", "0.1", "", "config.json buffer", (), {}, harmless=_BUFFER),
    },
)
LAYOUTS = (CONFIG,)


def read_dictionary_learning(folder: Path) -> NormalForm:
    """A trainer folder of dictionary_learning.

    BatchTopK dictionaries are used with their running threshold, as the library does outside training.

    Raises:
        CorruptError: a key, value or tensor that is not known, named in the message.
    """
    where = str(folder)
    cfg = read_config(folder / "config.json")
    check_keys(cfg, CONFIG, where)
    trainer = cfg["trainer"]
    kind, d, f = trainer["dict_class"], trainer["activation_dim"], trainer["dict_size"]
    t, dtype = in_float32(read_state_dict(folder / "ae.pt"))
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.weight": (f, d),
        "encoder.bias": (f,),
        "decoder.weight": (d, f),
        "decoder.bias": (d,),
        "bias": (d,),
        "b_dec": (d,),
        "decoder_bias": (d,),
        "W_enc": (d, f),
        "b_enc": (f,),
        "W_dec": (f, d),
        "r_mag": (f,),
        "gate_bias": (f,),
        "mag_bias": (f,),
        "threshold": (f,) if kind == "JumpReluAutoEncoder" else (),
        "k": (),
    }
    if "encoder.weight" in t and tuple(t["encoder.weight"].shape) != (f, d):
        raise CorruptError(
            f"{where}: config.json says activation_dim, dict_size = {(d, f)}; encoder.weight gives"
            f" {tuple(t['encoder.weight'].shape[::-1])}."
        )
    required: dict[str, tuple[int, ...] | None] = {name: shapes[name] for name in TENSORS[kind]}
    optional = {name: shapes.get(name) for name in _OPTIONAL.get(kind, ())}
    check_tensors(t, required, where, f"dictionary_learning {kind}", optional=optional)
    if "TopK" in kind and "threshold" in TENSORS[kind] and not t["threshold"] >= 0:
        raise CorruptError(
            f"{where}: {kind} without an inference threshold ({float(t['threshold'])}); it was saved before one was"
            " estimated."
        )
    form = _form(kind, t, _k(kind, trainer, t, where)).checked(where)
    groups = t.get("group_sizes")
    if groups is not None and int(groups.sum()) != f:
        raise CorruptError(f"{where}: group_sizes {groups.tolist()} do not sum to {f} latents.")
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    about: dict[str, Any] = {
        "imported_from": "dictionary_learning",
        "architecture_there": kind,
        "model_name": trainer.get("lm_name"),
        "hf_hook_name": module,
        "layer": layer,
        "context_size": (cfg.get("buffer") or {}).get("ctx_len"),
    }
    about = {key: value for key, value in about.items() if value is not None}
    claimed = trainer.get("k") if "TopK" in kind and form.act != "topk" else trainer.get("target_l0")
    if NUMBER.holds(claimed):
        about["claimed_l0"] = claimed
    return replace(form.about(**about, original_cfg=cfg), dtype=dtype)


def _k(kind: str, trainer: dict[str, Any], t: dict[str, Tensor], where: str) -> int | None:
    """k of the weights, or of the configuration where an older release kept it there alone."""
    k = trainer.get("k")
    if "k" in t:
        if t["k"].is_floating_point() or (k is not None and int(t["k"]) != k and "TopK" in kind):
            raise CorruptError(
                f"{where}: the tensor k = {t['k'].item()} and k = {k} of config.json contradict each other."
            )
        k = int(t["k"])
    return k


def _form(kind: str, t: dict[str, Tensor], k: int | None) -> NormalForm:
    """What the class computes, read from its ``encode`` and ``decode``."""
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        enc, b_enc, dec, b_dec = (t[name] for name in _DIRECT)
    else:
        enc, dec = t["encoder.weight"].t().contiguous(), t["decoder.weight"].t().contiguous()
        b_enc = t.get("encoder.bias", torch.zeros(enc.shape[1]))
        b_dec = t[next(name for name in TENSORS[kind] if name in ("bias", "b_dec", "decoder.bias", "decoder_bias"))]
    if kind == "GatedAutoEncoder":
        return gated(enc, t["gate_bias"], t["r_mag"], t["mag_bias"], dec, b_dec).with_input_bias(b_dec)
    if kind == "JumpReluAutoEncoder":  # does not subtract its decoder's bias
        return NormalForm("jumprelu", enc, b_enc, dec, b_dec, threshold=t["threshold"])
    if kind == "AutoEncoderNew":  # nor does this
        return NormalForm("relu", enc, b_enc, dec, b_dec)
    if kind == "AutoEncoder":
        return NormalForm("relu", enc, b_enc, dec, b_dec).with_input_bias(b_dec)
    if kind == "AutoEncoderTopK":
        return NormalForm("topk", enc, b_enc, dec, b_dec, k=k).with_input_bias(b_dec)
    threshold = t["threshold"].expand(enc.shape[1]).clone()
    return NormalForm("jumprelu", enc, b_enc, dec, b_dec, threshold=threshold).with_input_bias(b_dec)
