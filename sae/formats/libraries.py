"""Readers: a folder of another library in, its :class:`~sae.formats.normal.NormalForm` out.

Facts about each layout were read from the libraries themselves: SAELens 6.54, sparsify 1.3.3, dictionary_learning 0.1,
OpenMOSS Language-Model-SAEs (2026) and the files released with Llama Scope (arXiv 2410.20526).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError
from sae.formats.normal import Act, NormalForm
from sae.formats.tensors import need, read_config, read_safetensors, read_state_dict

_SAELENS: dict[str, Act] = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}


def _float(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating tensors in float32 (released weights are often bfloat16), everything else as it is."""
    return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}


def _metadata(library: str, cfg: dict[str, Any], **names: Any) -> dict[str, Any]:
    return {"imported_from": library, **{k: v for k, v in names.items() if v is not None}, "original_cfg": cfg}


def read_saelens(folder: Path) -> NormalForm:
    """SAELens inference folder: ``cfg.json`` + ``sae_weights.safetensors`` (standard, topk, jumprelu).

    Raises:
        CorruptError: another architecture, input normalisation that cannot be folded, or contradicting shapes.
    """
    cfg, t = read_config(folder / "cfg.json"), _float(read_safetensors(folder / "sae_weights.safetensors"))
    need(t, ["W_enc", "W_dec", "b_enc", "b_dec"], str(folder), "SAELens")
    architecture = cfg.get("architecture", "standard")
    act = _SAELENS.get(str(architecture))
    if act is None:
        raise CorruptError(
            f"{folder}: SAELens architecture {architecture!r} is not read here ({', '.join(_SAELENS)} are)."
        )
    if cfg.get("normalize_activations", "none") not in ("none", "expected_average_only_in"):
        raise CorruptError(
            f"{folder}: normalize_activations = {cfg['normalize_activations']!r} changes with every input and cannot be"
            " folded."
        )
    if cfg.get("reshape_activations", "none") not in ("none", None):
        raise CorruptError(f"{folder}: reshape_activations = {cfg['reshape_activations']!r} is not read here.")
    if (cfg.get("d_in"), cfg.get("d_sae")) != tuple(t["W_enc"].shape):
        raise CorruptError(
            f"{folder}: cfg.json says d_in, d_sae = {cfg.get('d_in')}, {cfg.get('d_sae')}; W_enc is"
            f" {tuple(t['W_enc'].shape)}."
        )
    meta = cfg.get("metadata") or {}
    form = NormalForm(
        act,
        t["W_enc"],
        t["b_enc"],
        t["W_dec"],
        t["b_dec"],
        k=int(cfg["k"]) if act == "topk" else None,
        threshold=t.get("threshold"),
        W_skip=t["W_skip"].t().contiguous() if "W_skip" in t else None,
        metadata=_metadata(
            "SAELens",
            cfg,
            **{k: meta.get(k, cfg.get(k)) for k in ("model_name", "hook_name", "hook_name_out", "context_size")},
        ),
    ).checked(str(folder))
    if cfg.get("apply_b_dec_to_input", "transcoder" not in architecture):
        form = form.with_input_bias(form.b_dec)
    if cfg.get("rescale_acts_by_decoder_norm"):
        form = form.with_unit_decoders(threshold_is_weighted=True)
    return form


def read_sparsify(folder: Path) -> NormalForm:
    """sparsify hook folder: ``cfg.json`` + ``sae.safetensors``. ``num_latents: 0`` there means d_in ×
    expansion_factor.
    """
    cfg, t = read_config(folder / "cfg.json"), _float(read_safetensors(folder / "sae.safetensors"))
    need(t, ["encoder.weight", "encoder.bias", "W_dec", "b_dec"], str(folder), "sparsify")
    if cfg.get("activation", "topk") != "topk":
        raise CorruptError(f"{folder}: sparsify activation {cfg['activation']!r} is not read here (topk is).")
    latents = cfg.get("num_latents") or cfg.get("d_in", 0) * cfg.get("expansion_factor", 0)
    if (latents, cfg.get("d_in")) != tuple(t["encoder.weight"].shape):
        raise CorruptError(
            f"{folder}: cfg.json says {latents} latents of width {cfg.get('d_in')}; encoder.weight is"
            f" {tuple(t['encoder.weight'].shape)}."
        )
    skip = t.get("W_skip")
    form = NormalForm(
        "topk",
        t["encoder.weight"].t().contiguous(),
        t["encoder.bias"],
        t["W_dec"],
        t["b_dec"],
        k=int(cfg.get("k", 0)),
        W_skip=None if skip is None else skip.t().contiguous(),
        metadata=_metadata("sparsify", cfg, hf_hook_name=folder.name),
    ).checked(str(folder))
    return form if cfg.get("transcode") else form.with_input_bias(form.b_dec)


def read_dictionary_learning(folder: Path) -> NormalForm:
    """dictionary_learning trainer folder: ``config.json`` + ``ae.pt`` (a pickle, read in a limited child process)."""
    cfg = read_config(folder / "config.json")
    trainer = cfg.get("trainer", cfg)
    t = _float(read_state_dict(folder / "ae.pt"))
    names = {
        "model_name": trainer.get("lm_name"),
        "hf_hook_name": trainer.get("submodule_name"),
        "layer": trainer.get("layer"),
    }
    meta = _metadata("dictionary_learning", cfg, **names)
    kind = str(trainer.get("dict_class", ""))
    if "W_enc" in t:  # JumpReluAutoEncoder does not subtract its decoder bias
        need(t, ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"], str(folder), "dictionary_learning")
        return NormalForm(
            "jumprelu", t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], threshold=t["threshold"], metadata=meta
        ).checked(str(folder))
    bias = "b_dec" if "b_dec" in t else "bias"
    need(t, ["encoder.weight", "encoder.bias", "decoder.weight", bias], str(folder), "dictionary_learning")
    enc, dec = t["encoder.weight"].t().contiguous(), t["decoder.weight"].t().contiguous()
    if (want := (trainer.get("activation_dim"), trainer.get("dict_size"))) != (None, None) and want != tuple(enc.shape):
        raise CorruptError(
            f"{folder}: config.json says activation_dim, dict_size = {want}; encoder.weight gives {tuple(enc.shape)}."
        )
    threshold, k = float(t.get("threshold", torch.tensor(-1.0))), int(t["k"]) if "k" in t else None
    if "BatchTopK" in kind or "Matryoshka" in kind:
        if threshold < 0:
            raise CorruptError(
                f"{folder}: {kind} without an inference threshold; it was saved before one was estimated."
            )
        form = NormalForm(
            "jumprelu",
            enc,
            t["encoder.bias"],
            dec,
            t[bias],
            threshold=torch.full((enc.shape[1],), threshold),
            metadata=meta,
        )
    elif k is not None:
        form = NormalForm("topk", enc, t["encoder.bias"], dec, t[bias], k=k, metadata=meta)
    else:
        form = NormalForm("relu", enc, t["encoder.bias"], dec, t[bias], metadata=meta)
    return form.checked(str(folder)).with_input_bias(t[bias])


def read_openmoss(folder: Path) -> NormalForm:
    """OpenMOSS (Language-Model-SAEs / Llamascopium) folder: ``config.json`` + ``sae_weights.safetensors``; no input
    bias.
    """
    cfg, t = read_config(folder / "config.json"), _float(read_safetensors(folder / "sae_weights.safetensors"))
    need(t, ["W_E", "W_D", "b_E", "b_D"], str(folder), "OpenMOSS")
    if cfg.get("sae_type", "sae") not in ("sae", "transcoder") or t["W_E"].dim() != 2:
        raise CorruptError(f"{folder}: OpenMOSS sae_type {cfg.get('sae_type')!r} is not read here (sae is).")
    act = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}.get(str(cfg.get("act_fn")))
    if act is None:
        raise CorruptError(
            f"{folder}: OpenMOSS act_fn {cfg.get('act_fn')!r} is not read here (relu, jumprelu, topk are)."
        )
    d_in = t["W_E"].shape[0]
    log_threshold = t.get("activation_function.log_jumprelu_threshold")
    threshold = None if log_threshold is None else log_threshold.exp().expand(t["W_E"].shape[1]).clone()
    form = NormalForm(
        act,  # type: ignore[arg-type]
        t["W_E"],
        t["b_E"],
        t["W_D"],
        t["b_D"],
        k=int(cfg["top_k"]) if act == "topk" else None,
        threshold=threshold if act == "jumprelu" else None,
        metadata=_metadata(
            "OpenMOSS", cfg, hook_name=cfg.get("hook_point_in"), hook_name_out=cfg.get("hook_point_out")
        ),
    ).checked(str(folder))
    if cfg.get("sparsity_include_decoder_norm", True):
        form = form.with_unit_decoders(threshold_is_weighted=True)
    if cfg.get("norm_activation") == "dataset-wise":
        scales = [_openmoss_scale(t, cfg.get(f"hook_point_{side}"), d_in, folder) for side in ("in", "out")]
        form = form.with_scales(*scales)
    elif cfg.get("norm_activation") in ("token-wise", "batch-wise"):
        raise CorruptError(
            f"{folder}: norm_activation = {cfg['norm_activation']!r} changes with every input and cannot be folded."
        )
    return form


def _openmoss_scale(t: dict[str, Tensor], hook: str | None, d_in: int, folder: Path) -> float:
    key = f"dataset_average_activation_norm.{hook}"
    if key not in t:
        raise CorruptError(f"{folder}: norm_activation is dataset-wise and {key} is missing.")
    return math.sqrt(d_in) / float(t[key])


def read_llama_scope(folder: Path) -> NormalForm:
    """A released Llama Scope dictionary: ``hyperparams.json`` + ``checkpoints/final.safetensors``.

    One scalar threshold on the scaled input's latents; the threshold is divided by the input scale when scales are
    folded (forgetting it is what gave users ten times the paper's L0).
    """
    cfg, t = (
        read_config(folder / "hyperparams.json"),
        _float(read_safetensors(folder / "checkpoints" / "final.safetensors")),
    )
    need(t, ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"], str(folder), "Llama Scope")
    enc, dec = t["encoder.weight"].t().contiguous(), t["decoder.weight"].t().contiguous()
    if (want := (cfg.get("d_model"), cfg.get("d_sae"))) != tuple(enc.shape):
        raise CorruptError(
            f"{folder}: hyperparams.json says d_model, d_sae = {want}; encoder.weight gives {tuple(enc.shape)}."
        )
    jump = cfg.get("jump_relu_threshold")
    act: Act = "jumprelu" if jump else "topk" if cfg.get("act_fn") == "topk" else "relu"
    form = NormalForm(
        act,
        enc,
        t["encoder.bias"],
        dec,
        t["decoder.bias"],
        k=int(cfg["top_k"]) if act == "topk" else None,
        threshold=torch.full((enc.shape[1],), float(jump)) if jump else None,
        metadata=_metadata(
            "Llama Scope",
            cfg,
            model_name="meta-llama/Llama-3.1-8B",
            hook_name=cfg.get("hook_point_in"),
            hook_name_out=cfg.get("hook_point_out"),
        ),
    ).checked(str(folder))
    if cfg.get("sparsity_include_decoder_norm", False):
        form = form.with_unit_decoders(threshold_is_weighted=True)
    norms = cfg.get("dataset_average_activation_norm")
    if cfg.get("norm_activation", "dataset-wise") == "dataset-wise" and norms:
        root = math.sqrt(enc.shape[0])
        form = form.with_scales(root / float(norms["in"]), root / float(norms.get("out", norms["in"])))
    return form


READERS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], NormalForm]]] = {
    "llama-scope": (lambda p: (p / "hyperparams.json").exists(), read_llama_scope),
    "sparsify": (lambda p: (p / "sae.safetensors").exists(), read_sparsify),
    "dictionary-learning": (lambda p: (p / "ae.pt").exists(), read_dictionary_learning),
    "openmoss": (
        lambda p: (
            (p / "config.json").exists() and (p / "sae_weights.safetensors").exists() and not (p / "cfg.json").exists()
        ),
        read_openmoss,
    ),
    "saelens": (lambda p: (p / "cfg.json").exists() and (p / "sae_weights.safetensors").exists(), read_saelens),
}


def detect(folder: str | Path) -> str:
    """Which library wrote a folder, by its file names.

    Raises:
        CorruptError: none of the known ones; the message says what was found and what is expected.
    """
    folder = Path(folder)
    for name, (is_it, _) in READERS.items():
        if is_it(folder):
            return name
    there = (
        ", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "nothing" if folder.is_dir() else "no such folder"
    )
    raise CorruptError(
        f"{folder} is not a dictionary of a known library (found: {there}). Expected cfg.json + sae_weights.safetensors"
        " (SAELens), cfg.json + sae.safetensors (sparsify), config.json + ae.pt (dictionary_learning), config.json +"
        " sae_weights.safetensors (OpenMOSS) or hyperparams.json + checkpoints/final.safetensors (Llama Scope)."
    )


def read(folder: str | Path, library: str | None = None) -> NormalForm:
    """Read a folder of ``library`` (found by file names where not given) into its normal form.

    Raises:
        MissingError, CorruptError, UntrustedFile: what is wrong with which file.
    """
    folder, library = Path(folder), library or detect(folder)
    try:
        return READERS[library][1](folder)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
    ) as e:  # a foreign file may hold anything anywhere
        if "can't allocate memory" in str(e):
            raise
        what = f"{e} is missing" if isinstance(e, KeyError) else str(e).splitlines()[0]
        raise CorruptError(
            f"{folder} is not a whole {library} dictionary: its configuration or tensors are not what they should be"
            f" ({what})."
        ) from e
