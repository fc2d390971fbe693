"""Readers of weights published without a training library's folder: Gemma Scope (1, 2), Goodfire, circuit-tracer.

Facts from the loaders of SAELens 6.54 (``pretrained_sae_loaders.py``) and circuit-tracer 0.5
(``single_layer_transcoder.py``), arXiv 2408.05147 (Gemma Scope) and the released files' names.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae.errors import CorruptError
from sae.formats.layout import FLAG, NUMBER, TEXT, TEXT_OR_NULL, WHOLE, Layout, check_keys, check_tensors, names, only
from sae.formats.normal import NormalForm
from sae.formats.tensors import in_float32, read_config, read_safetensors, read_state_dict, read_yaml, refuse_negative

GEMMA_SCOPE = Layout("Gemma Scope", "2024 release", "2024-07", "params.npz", ("jumprelu", "transcoder"), used={})
GEMMA_SCOPE_2 = Layout(
    "Gemma Scope 2",
    "2025 release",
    "2025-12",
    "config.json",
    ("jumprelu", "transcoder", "transcoder with affine connection"),
    used={
        "architecture": only("jump_relu"),
        "model_name": TEXT,
        "hf_hook_point_in": TEXT,
        "hf_hook_point_out": TEXT_OR_NULL.or_absent(),
        "affine_connection": FLAG.or_absent(),
        "width": WHOLE.or_absent(),
        "l0": NUMBER.or_absent(),
    },
    harmless=names("type dtype num_layers layer"),
)
GOODFIRE = Layout("Goodfire", "2025 release", "2025-01", "<name>.pt or .pth", ("relu",), used={})
CIRCUIT_TRACER = Layout(
    "circuit-tracer",
    "0.1 to 0.5",
    "2025-05 to 2026-09",
    "config.yaml",
    ("transcoder", "skip transcoder", "jumprelu transcoder"),
    used={
        "model_kind": only("transcoder_set", why="a cross-layer transcoder is not read as a transcoder of one layer"),
        "feature_input_hook": TEXT,
        "feature_output_hook": TEXT,
        "model_name": TEXT_OR_NULL.or_absent(),
    },
    harmless=names("scan repo_id revision subfolder transcoders dtype n_layers description license"),
    refused=("cross_layer_transcoder",),
)
LAYOUTS = (GEMMA_SCOPE, GEMMA_SCOPE_2, GOODFIRE, CIRCUIT_TRACER)
_GEMMA_SITES = {"res": "layers.{l}", "mlp": "layers.{l}.mlp", "att": "layers.{l}.self_attn.o_proj.input"}


def _shaped(t: dict[str, Tensor], where: str, library: str, *, skip: str | None = None) -> int:
    """F of tensors named W_enc [d_in, F], W_dec, b_enc, b_dec, threshold, whose shapes must agree."""
    five = dict.fromkeys(("W_enc", "W_dec", "b_enc", "b_dec", "threshold"))
    check_tensors(t, five, where, library, optional={skip: None} if skip else {})
    if t["W_enc"].dim() != 2 or t["W_dec"].dim() != 2:
        raise CorruptError(
            f"{where}: W_enc {tuple(t['W_enc'].shape)} and W_dec {tuple(t['W_dec'].shape)} of {library}."
        )
    (d_in, f), d_out = t["W_enc"].shape, t["W_dec"].shape[1]
    shapes: dict[str, tuple[int, ...] | None] = {"W_enc": (d_in, f), "W_dec": (f, d_out), "b_enc": (f,)}
    shapes |= {"b_dec": (d_out,), "threshold": (f,)} | ({skip: (d_in, d_out)} if skip and skip in t else {})
    check_tensors(t, shapes, where, library)
    return int(f)


def read_gemma_scope(folder: Path) -> NormalForm:
    """A Gemma Scope folder: ``params.npz`` alone; its place and L0 stand in the path
    (``gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71``). Transcoders read the MLP's input before its norm's
    gain.

    Raises:
        CorruptError: tensors other than the five of a JumpReLU dictionary.
    """
    where = str(folder)
    try:
        with np.load(folder / "params.npz", allow_pickle=False) as data:
            raw = {key: torch.from_numpy(np.array(data[key])) for key in data}
    except (OSError, ValueError) as e:
        raise CorruptError(f"{where}/params.npz is not a whole archive of arrays: {e}. Download it again.") from e
    t, dtype = in_float32({re.sub(r"^w_", "W_", key): value for key, value in raw.items()})
    _shaped(t, where, "Gemma Scope")
    parts = [*folder.resolve().parts, *folder.parts]
    layer = next((m[1] for p in parts if (m := re.fullmatch(r"layer_(\d+)", p))), None)
    repository = next(
        (m for p in parts if (m := re.search(r"gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)", p))), None
    )
    about: dict[str, Any] = {"imported_from": "Gemma Scope", "prepend_bos": True, "context_size": 1024}
    if any(p == "embedding" for p in parts):
        raise CorruptError(f"{where}: dictionaries of Gemma's embedding are scaled by sqrt(d); they are not read here.")
    if repository and layer:
        size, tuning, kind = repository[1], repository[2], repository[3]
        about["model_name"] = f"google/gemma-2-{size}" + ("-it" if tuning == "it" else "")
        if kind == "transcoders":
            about |= {"kind": "transcoder", "hook_name": f"blocks.{layer}.ln2.hook_normalized"}
            about |= {"hook_name_out": f"blocks.{layer}.hook_mlp_out"}
        else:
            about["hf_hook_name"] = _GEMMA_SITES[kind].format(l=layer)
    l0 = next((m[1] for p in parts if (m := re.fullmatch(r"average_l0_(\d+)", p))), None)
    about |= {"claimed_l0": int(l0)} if l0 else {}
    form = NormalForm(
        "jumprelu", t["W_enc"], t["b_enc"], t["W_dec"], t["b_dec"], threshold=t["threshold"], metadata=about
    )
    return replace(form.checked(where), dtype=dtype)


def read_gemma_scope_2(folder: Path) -> NormalForm:
    """A Gemma Scope 2 folder: ``config.json`` + ``params.safetensors``.

    Raises:
        CorruptError: a key, value or tensor that is not known, named in the message.
    """
    where = str(folder)
    cfg = read_config(folder / "config.json")
    check_keys(cfg, GEMMA_SCOPE_2, where)
    raw, dtype = in_float32(read_safetensors(folder / "params.safetensors"))
    t = {re.sub(r"^w_", "W_", key): value for key, value in raw.items()}
    affine = bool(cfg.get("affine_connection"))
    if affine != ("affine_skip_connection" in t):
        raise CorruptError(f"{where}: affine_connection = {affine} and the tensors are {', '.join(sorted(t))}.")
    f = _shaped(t, where, "Gemma Scope 2", skip="affine_skip_connection" if affine else None)
    if cfg.get("width") not in (None, f):
        raise CorruptError(f"{where}/config.json: width = {cfg['width']}; w_enc has {f} latents.")
    model = str(cfg["model_name"]).replace("-v3", "-3")
    about: dict[str, Any] = {
        "imported_from": "Gemma Scope 2",
        "model_name": model if "/" in model else f"google/{model}",
        "hf_hook_name": cfg["hf_hook_point_in"],
        "hf_hook_name_out": cfg.get("hf_hook_point_out"),
        "kind": "transcoder" if cfg.get("hf_hook_point_out") not in (None, cfg["hf_hook_point_in"]) else None,
        "claimed_l0": cfg.get("l0"),
        "prepend_bos": True,
    }
    form = NormalForm(
        "jumprelu",
        t["W_enc"],
        t["b_enc"],
        t["W_dec"],
        t["b_dec"],
        threshold=t["threshold"],
        W_skip=t.get("affine_skip_connection"),
        metadata={k: v for k, v in about.items() if v is not None} | {"original_cfg": cfg},
    )
    return replace(form.checked(where), dtype=dtype)


def goodfire_file(folder: Path) -> Path | None:
    """The one pickle of a Goodfire folder, or None."""
    found = [p for p in folder.iterdir() if p.suffix in (".pt", ".pth")] if folder.is_dir() else []
    return found[0] if len(found) == 1 and "SAE" in found[0].name else None


def read_goodfire(folder: Path) -> NormalForm:
    """A Goodfire folder: one pickle named after model and layer (``Llama-3.1-8B-Instruct-SAE-l19.pth``), read in a
    limited child process; its input keeps the decoder's bias.

    Raises:
        CorruptError: tensors other than the four of a ReLU dictionary.
    """
    where, path = str(folder), goodfire_file(folder)
    if path is None:
        raise CorruptError(f"{where} holds no single .pt or .pth file of the name <model>-SAE-l<layer>.")
    t, dtype = in_float32(read_state_dict(path))
    weight = t.get("encoder_linear.weight")
    if weight is None or weight.dim() != 2:
        raise CorruptError(f"{where}: encoder_linear.weight [F, d] is missing; found {', '.join(sorted(t))}.")
    f, d = weight.shape
    required: dict[str, tuple[int, ...] | None] = {"encoder_linear.weight": (f, d), "encoder_linear.bias": (f,)}
    required |= {"decoder_linear.weight": (d, f), "decoder_linear.bias": (d,)}
    check_tensors(t, required, where, "Goodfire")
    named = re.fullmatch(r"(.+)-SAE-l(\d+)", path.stem)
    about: dict[str, Any] = {"imported_from": "Goodfire"}
    if named:
        about |= {"model_name": f"meta-llama/{named[1]}" if named[1].startswith("Llama") else named[1]}
        about |= {"hf_hook_name": f"layers.{named[2]}"}
    form = NormalForm(
        "relu",
        weight.t().contiguous(),
        t["encoder_linear.bias"],
        t["decoder_linear.weight"].t().contiguous(),
        t["decoder_linear.bias"],
        metadata=about,
    )
    return replace(form.checked(where), dtype=dtype)


def layer_file(path: Path) -> Path | None:
    """The file of one transcoder: ``path``, or the only ``layer_<n>.safetensors`` of a folder; None elsewhere."""
    if path.is_file():
        return path if re.fullmatch(r"layer_\d+\.safetensors", path.name) else None
    found = list(path.glob("layer_*.safetensors")) if path.is_dir() else []
    return found[0] if len(found) == 1 and (path / "config.yaml").is_file() else None


def read_circuit_tracer(path: Path) -> NormalForm:
    """One layer of a circuit-tracer transcoder set: ``layer_<n>.safetensors`` beside ``config.yaml``.

    Raises:
        CorruptError: a key, value or tensor that is not known, named in the message.
    """
    where, file = str(path), layer_file(path)
    if file is None:
        raise CorruptError(f"{where} names no layer; give one file, such as {where}/layer_0.safetensors.")
    cfg = read_yaml(file.parent / "config.yaml")
    check_keys(cfg, CIRCUIT_TRACER, str(file.parent))
    raw, dtype = in_float32(read_safetensors(file))
    if "b_enc" not in raw or "b_dec" not in raw:
        raise CorruptError(f"{where} is no transcoder of circuit-tracer: found {', '.join(sorted(raw))}.")
    f, d = len(raw["b_enc"]), len(raw["b_dec"])
    required: dict[str, tuple[int, ...] | None] = {"W_enc": (f, d), "W_dec": (f, d), "b_enc": (f,), "b_dec": (d,)}
    gate = "activation_function.threshold"
    check_tensors(raw, required, where, "circuit-tracer", optional={gate: (f,), "W_skip": (d, d)})
    refuse_negative(raw.get(gate), where)
    layer = int(file.stem.removeprefix("layer_"))
    about = {"imported_from": "circuit-tracer", "kind": "transcoder", "model_name": cfg.get("model_name")}
    about |= {"hook_name": f"blocks.{layer}.{cfg['feature_input_hook']}"}
    about |= {"hook_name_out": f"blocks.{layer}.{cfg['feature_output_hook']}"}
    form = NormalForm(
        "jumprelu" if gate in raw else "relu",
        raw["W_enc"].t().contiguous(),
        raw["b_enc"],
        raw["W_dec"],
        raw["b_dec"],
        threshold=raw.get(gate),
        W_skip=raw["W_skip"].t().contiguous() if "W_skip" in raw else None,
        metadata={k: v for k, v in about.items() if v is not None} | {"original_cfg": cfg},
    )
    return replace(form.checked(where), dtype=dtype)
