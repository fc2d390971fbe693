"""Readers of SAELens folders (``cfg.json`` + ``sae_weights.safetensors``), one per age of the format.

Facts from the releases 2.1.3, 3.0.0, 3.23.4, 4.4.5, 5.11.0, 6.0.0, 6.22.3 and 6.54.12 (``sae.py``, ``saes/``,
``pretrained_sae_loaders.py``) and from the files published with them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError
from sae.formats.layout import (
    FLAG,
    OBJECT,
    OBJECT_OR_NULL,
    POSITIVE,
    TEXT,
    TEXT_OR_NULL,
    WHOLE,
    Layout,
    Rule,
    check_keys,
    check_tensors,
    names,
    only,
)
from sae.formats.model_kwargs import read_model_kwargs
from sae.formats.normal import Act, NormalForm, gated
from sae.formats.tensors import in_float32, read_config, read_safetensors

WEIGHTS = "sae_weights.safetensors"
_ACT: dict[str, Act] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "matryoshka_batchtopk": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
    "topk_transcoder": "topk",
    "topk_skip_transcoder": "topk",
}
_PER_INPUT = "it changes with every input and cannot be folded"
NORMALIZE = Rule(
    "'none' (or false, null), 'expected_average_only_in' (or true) or 'covariance_whitening'",
    lambda v: v is None or isinstance(v, bool) or v in ("none", "expected_average_only_in", "covariance_whitening"),
    f"constant_norm_rescale and layer_norm scale each row by itself: {_PER_INPUT}",
)
ONE_HEAD = only(None, why="a dictionary of a single head reads a part of the hook, which is not done here")
RESHAPE = Rule("'none' or 'hook_z'", lambda v: v in (None, "none", "hook_z"))

_ABOUT = names(
    "model_name hook_name hook_name_out context_size prepend_bos dataset_path hf_hook_name hf_hook_name_out"
    " neuronpedia_id seqpos_slice model_class_name exclude_special_tokens"
)
METADATA = Layout(
    "SAELens",
    "6.0 to 6.54 metadata",
    "",
    "cfg.json metadata",
    (),
    used={
        "model_from_pretrained_kwargs": OBJECT_OR_NULL.or_absent(),
        "hook_head_index": ONE_HEAD.or_absent(),
        "hook_head_index_out": ONE_HEAD.or_absent(),
        "model_name": TEXT_OR_NULL.or_absent(),
        "hook_name": TEXT_OR_NULL.or_absent(),
        "hook_name_out": TEXT_OR_NULL.or_absent(),
        "sae_lens_version": Rule(
            "a release of SAELens up to 6", lambda v: v is None or (isinstance(v, str) and _version(v) < (7,))
        ).or_absent(),
    },
    kept=_ABOUT,
    harmless=names(
        "sae_lens_training_version sequence_separator_token disable_concat_sequences dataset_trust_remote_code"
        " training_architecture training_architecture_details num_dead_features"
        " training_tokens hook_layer hook_layer_out sae_name sae_set d_head tokenizer_name"
    ),
)
V6 = Layout(
    "SAELens",
    "6.0 to 6.54",
    "2025-07 to 2026-10",
    "cfg.json",
    ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
    + ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
    used={
        "architecture": Rule(
            f"one of {', '.join((*_ACT, 'gated'))}", lambda v: isinstance(v, str) and v in (*_ACT, "gated")
        ),
        "d_in": WHOLE,
        "d_sae": WHOLE,
        "apply_b_dec_to_input": FLAG,
        "normalize_activations": NORMALIZE,
        "reshape_activations": RESHAPE.or_absent(),
        "metadata": OBJECT,
        "k": POSITIVE.or_absent(),
        "rescale_acts_by_decoder_norm": FLAG.or_absent(),
        "d_out": WHOLE.or_absent(),
    },
    harmless=names(
        "dtype device decoder_init_norm l1_coefficient l1_warm_up_steps lp_norm use_sparse_activations"
        " aux_loss_coefficient topk_threshold_lr jumprelu_init_threshold jumprelu_bandwidth"
        " jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps pre_act_loss_coefficient jumprelu_tanh_scale"
        " jumprelu_ste_to_input target_l0 matryoshka_widths use_matryoshka_aux_loss"
    ),
    refused=("abstopk", "matching_pursuit", "temporal", "normalize_activations: layer_norm, constant_norm_rescale")
    + ("single heads",),
    sections={"metadata": METADATA},
)
_TRAINING = names(
    "l1_coefficient lp_norm use_ghost_grads normalize_sae_decoder noise_scale decoder_orthogonal_init"
    " init_encoder_as_decoder_transpose mse_loss_normalization decoder_heuristic_init decoder_heuristic_init_norm"
    " scale_sparsity_penalty_by_decoder_norm jumprelu_init_threshold jumprelu_bandwidth"
)
_FLAT_ABOUT = names("context_size prepend_bos dataset_path neuronpedia_id seqpos_slice")
V3 = Layout(
    "SAELens",
    "3.0 to 5.11",
    "2024-06 to 2025-06",
    "cfg.json",
    ("standard", "topk (activation_fn_str)", "jumprelu", "gated"),
    used={
        "architecture": only("standard", "gated", "jumprelu", "topk").or_absent(),
        "d_in": WHOLE,
        "d_sae": WHOLE,
        "activation_fn_str": only("relu", "topk", why="tanh-relu bends the latents and has no place here"),
        "activation_fn_kwargs": OBJECT_OR_NULL.or_absent(),
        "apply_b_dec_to_input": FLAG,
        "finetuning_scaling_factor": FLAG,
        "normalize_activations": NORMALIZE,
        "hook_name": TEXT,
        "hook_head_index": ONE_HEAD.or_absent(),
        "model_name": TEXT_OR_NULL.or_absent(),
        "model_from_pretrained_kwargs": OBJECT_OR_NULL.or_absent(),
        "reshape_activations": RESHAPE.or_absent(),
    },
    kept=_FLAT_ABOUT,
    harmless=_TRAINING | names("dtype device hook_layer dataset_trust_remote_code sae_lens_training_version"),
    refused=("tanh-relu", "normalize_activations: layer_norm, constant_norm_rescale", "single heads"),
)
V0 = Layout(
    "SAELens",
    "0.1 to 2.1",
    "2024-01 to 2024-05",
    "cfg.json",
    ("standard",),
    used={
        "d_in": WHOLE,
        "d_sae": WHOLE,
        "activation_fn": only("relu", why="tanh-relu bends the latents and has no place here").or_absent(),
        "apply_b_dec_to_input": FLAG.or_absent(),
        "normalize_activations": NORMALIZE.or_absent(),
        "noise_scale": only(0, 0.0, why="this release adds noise to the latents in use, too").or_absent(),
        "hook_point": TEXT,
        "hook_point_head_index": ONE_HEAD.or_absent(),
        "model_name": TEXT_OR_NULL.or_absent(),
        "model_from_pretrained_kwargs": OBJECT_OR_NULL.or_absent(),
    },
    kept=_FLAT_ABOUT,
    harmless=_TRAINING
    | names(
        "dtype device hook_point_layer hook_point_eval model_class_name streaming is_dataset_tokenized seed"
        " use_cached_activations cached_activations_path b_dec_init_method expansion_factor from_pretrained_path"
        " n_batches_in_buffer training_tokens total_training_tokens finetuning_tokens store_batch_size"
        " store_batch_size_prompts train_batch_size train_batch_size_tokens tokens_per_buffer act_store_device autocast"
        " autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode adam_beta1 adam_beta2"
        " l1_warm_up_steps lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles"
        " finetuning_method feature_sampling_window feature_sampling_method resample_batches feature_reinit_scale"
        " dead_feature_window dead_feature_estimation_method dead_feature_threshold n_eval_batches"
        " eval_batch_size_prompts n_eval_seqs log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb"
        " wandb_project wandb_id run_name wandb_entity wandb_log_frequency eval_every_n_wandb_logs resume"
        " n_checkpoints checkpoint_path verbose model_kwargs sae_lens_version sae_lens_training_version d_head"
    ),
    refused=("tanh-relu", "noise_scale above 0", "single heads"),
)
# Releases since 0.5 write these entries and save the tensor `scaling_factor` with every dictionary, of ones where it
# was not fine-tuned; 1 and 2 themselves read a folder without it as ones ("old saves may not have scaling factors").
_SINCE_SCALING = names("finetuning_tokens finetuning_method sae_lens_version sae_lens_training_version")
SCALER = Layout(
    "SAELens",
    "6.0 to 6.54 scaler",
    "",
    "activation_scaler.json",
    (),
    used={
        "scaling_factor": Rule("a number above zero or null", lambda v: v is None or POSITIVE.holds(v)),
        "has_whitening": FLAG.or_absent(),
    },
)
LAYOUTS = (V6, V3, V0)


def _version(text: str) -> tuple[int, ...]:
    """``"6.13.1"`` -> (6, 13, 1); (99,) for what is no version, so that it counts as a later one."""
    return tuple(int(p) for p in text.replace("-", ".").split(".")[:3] if p.isdigit()) or (99,)


def read_saelens(folder: Path) -> NormalForm:
    """Any SAELens folder: 6 keeps what belongs to the model under ``metadata``, 3 to 5 flat, 0 to 2 as ``hook_point``.

    Raises:
        CorruptError: a key, value or tensor that is not known, named in the message.
    """
    cfg = read_config(folder / "cfg.json")
    tensors, dtype = in_float32(read_safetensors(folder / WEIGHTS))
    layout = V6 if "metadata" in cfg else V0 if "hook_point" in cfg else V3
    ours = layout is V6 and isinstance(cfg["metadata"], dict) and "kind" in cfg["metadata"]
    check_keys(cfg, replace(V6, sections={}) if ours else layout, str(folder))
    if layout is V0 and cfg.keys() & {"sae_lens_version", "sae_lens_training_version"}:
        for key in ("activation_fn", "apply_b_dec_to_input", "normalize_activations", "noise_scale"):
            if key not in cfg:  # files older than these entries do as their defaults say
                raise CorruptError(f"{folder}/cfg.json: SAELens 1 and 2 write {key!r}, which is missing here.")
    about = cfg["metadata"] if layout is V6 else cfg
    hook = about.get("hook_point") or about.get("hook_name")
    kept, centred = read_model_kwargs(
        about.get("model_from_pretrained_kwargs") or {}, hook, about.get("model_name"), str(folder)
    )
    metadata = {k: about[k] for k in sorted(_ABOUT & set(about)) if about[k] is not None}
    metadata |= {"hook_name": hook} if hook else {}
    if about.get("revision"):  # our own folders, saved again by SAELens
        metadata["revision"] = about["revision"]
    form = _form(cfg, tensors, layout, str(folder))
    form = form.about(imported_from="SAELens", **metadata, **kept, original_cfg=cfg)
    form = _unscaled(form, cfg.get("normalize_activations"), folder)
    form = form.with_centred_input() if centred else form
    return replace(form, dtype=dtype)


def _architecture(cfg: dict[str, Any], layout: Layout, where: str) -> tuple[str, int | float | None]:
    """(name in SAELens 6's words, k or None) of any age.

    Raises:
        CorruptError: entries that contradict each other, or a k that is missing.
    """
    if layout is V6:
        name, k = str(cfg["architecture"]), cfg.get("k")
    else:
        name = str(cfg.get("architecture", "standard"))
        options = dict(cfg.get("activation_fn_kwargs") or {})
        function = cfg.get("activation_fn_str") or cfg.get("activation_fn") or "relu"
        k = options.pop("k", None)
        if options:
            raise CorruptError(f"{where}/cfg.json: activation_fn_kwargs has {sorted(options)}, which is not read here.")
        if (function == "topk" and name not in ("standard", "topk")) or (function != "topk" and name == "topk"):
            raise CorruptError(
                f"{where}/cfg.json: architecture {name!r} with activation {function!r} is not read here."
            )
        if (function == "topk") != (k is not None):
            raise CorruptError(f"{where}/cfg.json: activation {function!r} with k = {k!r} in activation_fn_kwargs.")
        name = "topk" if function == "topk" else name
    if "topk" in name and "batch" not in name and not WHOLE.holds(k):
        raise CorruptError(f"{where}/cfg.json: k = {k!r} of a Top-K dictionary must be {WHOLE.what}.")
    if "topk" not in name and k is not None:
        raise CorruptError(f"{where}/cfg.json: k = {k!r} in a dictionary of architecture {name!r}.")
    return name, k


def _rescales(cfg: dict[str, Any], name: str, layout: Layout, where: str) -> bool:
    """Whether latents compete after multiplication by their decoder's norm (SAELens since 6.13; before, never)."""
    key = "rescale_acts_by_decoder_norm"
    if "topk" not in name or layout is not V6:
        if key in cfg:
            raise CorruptError(f"{where}/cfg.json: {key} in a dictionary of architecture {name!r}.")
        return False
    version = cfg["metadata"].get("sae_lens_version")
    if key not in cfg and not (version and _version(str(version)) < (6, 13)) and "transcoder" not in name:
        raise CorruptError(
            f"{where}/cfg.json: SAELens since 6.13 writes {key!r} (true or false), which is missing here."
        )
    return bool(cfg.get(key, False))


def _form(cfg: dict[str, Any], t: dict[str, Tensor], layout: Layout, where: str) -> NormalForm:
    name, k = _architecture(cfg, layout, where)
    d_in, f = cfg["d_in"], cfg["d_sae"]
    transcoder = "transcoder" in name
    d_out = cfg.get("d_out", d_in) if transcoder else d_in
    if "d_out" in cfg and not transcoder:
        raise CorruptError(f"{where}/cfg.json: d_out in a dictionary of architecture {name!r}.")
    required: dict[str, tuple[int, ...] | None] = {"W_enc": (d_in, f), "W_dec": (f, d_out), "b_dec": (d_out,)}
    optional: dict[str, tuple[int, ...] | None] = {}
    required |= {"b_gate": (f,), "r_mag": (f,), "b_mag": (f,)} if name == "gated" else {"b_enc": (f,)}
    batch = "batchtopk" in name
    if "jumprelu" in name:
        required["threshold"] = (f,)
    elif batch:
        required["topk_threshold"] = ()
    if "skip" in name:
        required["W_skip"] = (d_out, d_in)
    finetuned = "finetuning_scaling_factor" if cfg.get("finetuning_scaling_factor") else "scaling_factor"
    if layout is not V6:
        must = cfg.get("finetuning_scaling_factor") or (layout is V0 and bool(cfg.keys() & _SINCE_SCALING))
        (required if must else optional)[finetuned] = (f,)
    check_tensors(t, required, where, f"{layout.name} {name}", optional=optional)
    if name == "gated":
        form = gated(t["W_enc"], t["b_gate"], t["r_mag"], t["b_mag"], t["W_dec"], t["b_dec"])
        form = form.about(architecture_there="gated")
    else:
        threshold = t["topk_threshold"].float().expand(f).clone() if batch else t.get("threshold")
        skip = t["W_skip"].t().contiguous() if "W_skip" in t else None
        form = NormalForm(
            _ACT[name],
            t["W_enc"],
            t["b_enc"],
            t["W_dec"],
            t["b_dec"],
            k=int(k) if _ACT[name] == "topk" and k else None,
            threshold=threshold,
            W_skip=skip,
            metadata={"architecture_there": name, "claimed_l0": k} if batch else {},
        )
    form = form.checked(where)
    if cfg.get("apply_b_dec_to_input", True):
        if transcoder:
            raise CorruptError(f"{where}/cfg.json: apply_b_dec_to_input = true in a transcoder.")
        shift = form.b_dec
        form = form.with_input_bias(shift)
    if _rescales(cfg, name, layout, where):
        form = form.with_unit_decoders(threshold_is_weighted=True)
    scale = t.get(finetuned)
    if scale is not None and not torch.equal(scale, torch.ones_like(scale)):
        if not cfg.get("finetuning_scaling_factor") and layout is V3:
            raise CorruptError(
                f"{where}: the tensor 'scaling_factor' is not one everywhere, and finetuning_scaling_factor is false."
            )
        form = form.with_latent_scales(scale)
    return form


def _unscaled(form: NormalForm, normalize: Any, folder: Path) -> NormalForm:
    """``form`` for raw rows: the factor a checkpoint was trained with lies beside it.

    Raises:
        CorruptError: the configuration scales and no file says by how much, or a file does and the configuration
        does not.
    """
    scale, whitening = _scaler(folder)
    if normalize in (None, False, "none"):
        if scale is not None or whitening is not None:
            raise CorruptError(
                f"{folder}: activation_scaler.json holds a scale and cfg.json says that nothing is normalised; one of"
                " them is wrong."
            )
        return form
    if normalize == "covariance_whitening":
        if whitening is None:
            raise CorruptError(f"{folder}: rows were whitened and activation_whitening.safetensors is missing.")
        return form.with_whitening(*whitening)
    if scale is None or whitening is not None:
        raise CorruptError(
            f"{folder}: normalize_activations = {normalize!r}: the weights are for scaled activations, and the factor"
            f" ({'activation_scaler.json' if whitening is None else 'one without whitening'}) is missing. Take the"
            " folder of the finished training, in which SAELens folds it."
        )
    if form.W_skip is not None or form.W_dec.shape[1] != form.W_enc.shape[0]:
        raise CorruptError(f"{folder}: a scale of the input of a transcoder is not read here.")
    return form.with_scales(scale, scale).about(folded_scale=scale)


def _scaler(folder: Path) -> tuple[float | None, tuple[Tensor, Tensor, Tensor] | None]:
    """(factor on the rows, whitening) from the files beside a checkpoint: ``activation_scaler.json`` (SAELens 6), or
    ``activations_store_state.safetensors`` (5).
    """
    scale: float | None = None
    whitening = None
    if (folder / SCALER.file).exists():
        found = read_config(folder / SCALER.file)
        check_keys(found, SCALER, str(folder))
        scale = found["scaling_factor"]
        if found.get("has_whitening"):
            w = read_safetensors(folder / "activation_whitening.safetensors")
            check_tensors(w, {"mean": None, "matrix": None, "inverse_matrix": None}, str(folder), "SAELens whitening")
            whitening = (w["mean"], w["matrix"], w["inverse_matrix"])
    elif (folder / "activations_store_state.safetensors").exists():
        state = read_safetensors(folder / "activations_store_state.safetensors")
        if "estimated_norm_scaling_factor" in state:
            scale = float(state["estimated_norm_scaling_factor"])
    return scale, whitening
