"""Readers of OpenMOSS folders: Language-Model-SAEs / Llamascopium, and the files released as Llama Scope.

Facts from the repository's history (2024-06 to 2026-05: ``core/config.py``, ``lm_saes/config.py``,
``llamascopium/models/``) and from the files released with arXiv 2410.20526.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError
from sae.formats.layout import (
    FLAG,
    OBJECT_OR_NULL,
    POSITIVE,
    TEXT_OR_NULL,
    WHOLE,
    Layout,
    Rule,
    check_keys,
    check_tensors,
    names,
    only,
)
from sae.formats.normal import Act, NormalForm
from sae.formats.tensors import in_float32, read_config, read_safetensors

_NORMS = Rule(
    "'dataset-wise' or 'inference'",
    lambda v: v in ("dataset-wise", "inference"),
    "token-wise and batch-wise norms change with every input and cannot be folded",
)
_NO_GLU = only(False, why="a gated linear unit in the encoder has no place here").or_absent()
_NO_PRE_BIAS = only(False, why="this reader knows no dictionaries of that kind").or_absent()
# how it was trained, initialised and distributed; none of it is read by encode or decode
_TRAINING = names(
    "dtype device seed l1_coefficient l1_coefficient_warmup_steps lp use_ghost_grads bias_init_method"
    " decoder_bias_init_method decoder_exactly_unit_norm decoder_exactly_fixed_norm geometric_median_max_iter"
    " init_decoder_norm init_encoder_norm init_encoder_with_decoder_transpose k_warmup_steps initial_k"
    " use_batch_norm_mse use_gau_encoder tp_size ddp_size from_pretrained_path sae_from_pretrained_path"
    " sae_pretrained_name_or_path strict_loading use_triton_kernel sparsity_threshold_for_triton_spmm_kernel"
    " sparsity_threshold_for_csr jumprelu_threshold_window jumprelu_threshold_grad_scale promote_act_fn_dtype"
    " force_unit_decoder_norm circuit_tracing_mode exp_name exp_series exp_result_dir exp_result_path use_ddp"
    " remove_gradient_parallel_to_decoder_directions"
)
OPENMOSS = Layout(
    "OpenMOSS",
    "lm_saes to Llamascopium 2.0",
    "2024-10 to 2026-05",
    "config.json",
    ("sae", "transcoder") + ("relu", "jumprelu", "topk"),
    used={
        "sae_type": only("sae", "transcoder").or_absent(),
        "act_fn": only("relu", "jumprelu", "topk", why="batch variants keep no threshold for single rows"),
        "norm_activation": _NORMS,
        "sparsity_include_decoder_norm": FLAG,
        "top_k": WHOLE.or_absent(),
        "d_model": WHOLE.or_absent(),
        "d_sae": WHOLE.or_absent(),
        "expansion_factor": POSITIVE.or_absent(),
        "hook_point_in": TEXT_OR_NULL,
        "hook_point_out": TEXT_OR_NULL,
        "use_decoder_bias": FLAG.or_absent(),
        "use_glu_encoder": _NO_GLU,
        "apply_decoder_bias_to_pre_encoder": _NO_PRE_BIAS,
        "jump_relu_threshold": only(None, 0, 0.0, why="it lies in the tensors since 2025").or_absent(),
    },
    harmless=_TRAINING,
    refused=("batchtopk", "glu", "crosscoder, clt, lorsa, molt", "token-wise and batch-wise norms"),
)
LLAMA_SCOPE = Layout(
    "Llama Scope",
    "2024 release",
    "2024-10",
    "hyperparams.json",
    ("jumprelu", "topk", "relu"),
    used={
        "d_model": WHOLE,
        "d_sae": WHOLE,
        "act_fn": only("jumprelu", "topk", "relu"),
        "jump_relu_threshold": Rule("a number above zero or null", lambda v: v in (None, 0) or POSITIVE.holds(v)),
        "top_k": WHOLE.or_absent(),
        "norm_activation": _NORMS,
        "dataset_average_activation_norm": OBJECT_OR_NULL.or_absent(),
        "sparsity_include_decoder_norm": FLAG,
        "hook_point_in": TEXT_OR_NULL,
        "hook_point_out": TEXT_OR_NULL.or_absent(),
        "use_decoder_bias": only(True).or_absent(),
        "use_glu_encoder": _NO_GLU,
        "apply_decoder_bias_to_pre_encoder": _NO_PRE_BIAS,
    },
    harmless=_TRAINING | names("expansion_factor sae_type"),
    refused=("glu",),
)
LAYOUTS = (OPENMOSS, LLAMA_SCOPE)
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_AVERAGE = "dataset_average_activation_norm."


def read_openmoss(folder: Path) -> NormalForm:
    """An OpenMOSS folder (``config.json`` + ``sae_weights.safetensors``); its input keeps the decoder's bias.

    Raises:
        CorruptError: a key, value or tensor that is not known, named in the message.
    """
    where = str(folder)
    cfg = read_config(folder / "config.json")
    t, dtype = in_float32(read_safetensors(folder / "sae_weights.safetensors"))
    check_keys(cfg, OPENMOSS, where)
    if "W_E" not in t or t["W_E"].dim() != 2:
        found = ", ".join(f"{k} {tuple(v.shape)}" for k, v in sorted(t.items()))
        raise CorruptError(f"{where} is not an OpenMOSS dictionary of one site: W_E [d, F] expected, found {found}.")
    d, f = t["W_E"].shape
    _promised(cfg, d, f, where)
    act: Act = cfg["act_fn"]
    bias = cfg.get("use_decoder_bias", True)
    required: dict[str, tuple[int, ...] | None] = {"W_E": (d, f), "b_E": (f,), "W_D": (f, d)}
    required |= ({"b_D": (d,)} if bias else {}) | ({_LOG_THRESHOLD: None} if act == "jumprelu" else {})
    check_tensors(t, required, where, "OpenMOSS", harmless=[n for n in t if n.startswith(_AVERAGE)])
    threshold = t[_LOG_THRESHOLD].exp().expand(f).clone() if act == "jumprelu" else None
    metadata: dict[str, Any] = {"imported_from": "OpenMOSS", "hook_name": cfg["hook_point_in"]}
    metadata |= {"hook_name_out": cfg["hook_point_out"], "original_cfg": cfg}
    form = NormalForm(
        act,
        t["W_E"],
        t["b_E"],
        t["W_D"],
        t["b_D"] if bias else torch.zeros(d),
        k=_top_k(cfg, where) if act == "topk" else None,
        threshold=threshold,
        metadata={k: v for k, v in metadata.items() if v is not None},
    ).checked(where)
    if cfg["sparsity_include_decoder_norm"]:
        form = form.with_unit_decoders(threshold_is_weighted=True)
    if cfg["norm_activation"] == "dataset-wise":
        form = form.with_scales(*(_scale(t, cfg[f"hook_point_{side}"], d, where) for side in ("in", "out")))
    return replace(form, dtype=dtype)


def _promised(cfg: dict[str, Any], d: int, f: int, where: str) -> None:
    """Raise unless the sizes of the configuration, where it gives them, are those of the tensors."""
    factor = cfg.get("expansion_factor")
    want = {"d_model": d, "d_sae": f} | ({"expansion_factor": factor} if factor and int(d * factor) == f else {})
    for key in ("d_model", "d_sae", "expansion_factor"):
        if cfg.get(key) is not None and cfg[key] != want.get(key):
            raise CorruptError(f"{where}: config.json says {key} = {cfg[key]}; W_E is {(d, f)}.")


def _top_k(cfg: dict[str, Any], where: str) -> int:
    if "top_k" not in cfg:
        raise CorruptError(f"{where}: a Top-K dictionary without top_k in its configuration.")
    return int(cfg["top_k"])


def _scale(t: dict[str, Tensor], hook: str | None, d_in: int, where: str) -> float:
    key = f"{_AVERAGE}{hook}"
    if key not in t or not float(t[key]) > 0:
        raise CorruptError(f"{where}: norm_activation is dataset-wise and {key} is missing or not above zero.")
    return math.sqrt(d_in) / float(t[key])


def read_llama_scope(folder: Path) -> NormalForm:
    """A released Llama Scope dictionary: ``hyperparams.json`` + ``checkpoints/final.safetensors``.

    One scalar threshold, of what latents add to the reconstruction of raw rows: the release folds the scales, then the
    decoder's norms, and found its threshold on the dictionary so folded (``post_processing.py``,
    ``SparseAutoEncoder.from_config``, 2024-11). Taking it for one of the scaled input gives users ten times the paper's
    L0.
    """
    where = str(folder)
    cfg = read_config(folder / "hyperparams.json")
    check_keys(cfg, LLAMA_SCOPE, where)
    t, dtype = in_float32(read_safetensors(folder / "checkpoints" / "final.safetensors"))
    d, f = cfg["d_model"], cfg["d_sae"]
    if "encoder.weight" in t and tuple(t["encoder.weight"].shape) != (f, d):
        raise CorruptError(
            f"{where}: hyperparams.json says d_model, d_sae = {(d, f)}; encoder.weight gives"
            f" {tuple(t['encoder.weight'].shape[::-1])}."
        )
    required = {"encoder.weight": (f, d), "encoder.bias": (f,), "decoder.weight": (d, f), "decoder.bias": (d,)}
    check_tensors(t, required, where, "Llama Scope")
    act, jump = cfg["act_fn"], cfg["jump_relu_threshold"]
    if (act == "jumprelu") != bool(jump):
        raise CorruptError(f"{where}: act_fn = {act!r} with jump_relu_threshold = {jump!r}.")
    form = NormalForm(
        act,
        t["encoder.weight"].t().contiguous(),
        t["encoder.bias"],
        t["decoder.weight"].t().contiguous(),
        t["decoder.bias"],
        k=_top_k(cfg, where) if act == "topk" else None,
        threshold=torch.full((f,), float(jump)) if jump else None,
        metadata={
            "imported_from": "Llama Scope",
            "model_name": "meta-llama/Llama-3.1-8B",
            **{k: v for k, v in _hooks(cfg).items() if v is not None},
            **({"claimed_l0": cfg["top_k"]} if act == "jumprelu" and "top_k" in cfg else {}),
            "original_cfg": cfg,
        },
    ).checked(where)
    if cfg["norm_activation"] == "dataset-wise":
        norms = cfg.get("dataset_average_activation_norm") or {}
        if not norms.keys() <= {"in", "out"} or "in" not in norms or not all(POSITIVE.holds(v) for v in norms.values()):
            raise CorruptError(
                f"{where}: norm_activation is dataset-wise and dataset_average_activation_norm = {norms!r} does not"
                " hold in (and out) above zero."
            )
        if "out" not in norms and cfg.get("hook_point_out") not in (None, cfg["hook_point_in"]):
            raise CorruptError(f"{where}: a transcoder whose dataset_average_activation_norm has no 'out'.")
        root = math.sqrt(d)
        form = form.with_scales(root / float(norms["in"]), root / float(norms.get("out", norms["in"])))
    form = replace(form, threshold=torch.full((f,), float(jump)) if jump else None)  # of the folded dictionary
    if cfg["sparsity_include_decoder_norm"]:
        form = form.with_unit_decoders(threshold_is_weighted=True)
    return replace(form, dtype=dtype)


def _hooks(cfg: dict[str, Any]) -> dict[str, Any]:
    return {"hook_name": cfg["hook_point_in"], "hook_name_out": cfg.get("hook_point_out")}
