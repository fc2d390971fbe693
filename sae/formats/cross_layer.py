"""Cross-layer transcoders (CLT): latents that read at one layer and write at it and every later one.

    f_l = act(x_l W_enc_l + b_enc_l)        y_m = b_dec_m + sum over l <= m of f_l W_dec_l[m - l]

(Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs; Lindsey et al. 2024). Shapes: ``x``, ``y``
[L, n, D], ``f`` [L, n, F]; L layers, n tokens, D width, F latents of a layer.

A CLT is no dictionary of one place: it is read, encoded, decoded and written here, and :meth:`CrossLayer.layer` gives
the latents of one layer with what they write at their own, for records and labels. What would have to treat it as a
transcoder of one layer refuses it by name. Two layouts are read:

- circuit-tracer's (0.5, ``load_clt`` and ``to_safetensors`` of ``cross_layer_transcoder.py``):
  ``W_enc_<l>.safetensors`` with ``W_enc_<l>`` [F, D], ``b_enc_<l>`` [F], ``b_dec_<l>`` [D] and, for JumpReLU,
  ``threshold_<l>`` [F]; ``W_dec_<l>.safetensors`` with ``W_dec_<l>`` [F, L - l, D]; a ``config.yaml``. It has no place
  for a skip connection.
- Gemma Scope 2's (``load_gemma_scope_2_clt`` there): ``params_layer_<l>.safetensors`` with ``w_enc`` [D, F], ``w_dec``
  [F, L, D] (zero for layers before l), ``b_enc``, ``b_dec``, ``threshold`` and, in folders named ``…_affine``,
  ``affine_skip_connection`` [D, D]; the folders published hold no configuration, a ``config.json`` is read if there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError, UsageError
from sae.files import new_folder, write_bytes
from sae.formats.layout import (
    FLAG,
    NUMBER,
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
from sae.formats.normal import NormalForm
from sae.formats.tensors import in_float32, read_config, read_safetensors, read_yaml, refuse_negative

CROSS_LAYER = Layout(
    "circuit-tracer",
    "0.5 CLT",
    "2026-09",
    "config.yaml",
    ("relu", "jump_relu"),
    used={
        "model_kind": only("cross_layer_transcoder", why="a transcoder_set is read one layer at a time"),
        "feature_input_hook": TEXT,
        "feature_output_hook": TEXT,
        "model_name": TEXT_OR_NULL.or_absent(),
    },
    harmless=names("scan repo_id revision subfolder dtype n_layers description license"),
    refused=("skip connections",),
)
_AFTER_NORM = "model.layers.{}.pre_feedforward_layernorm.output"
_MLP_WRITES = "model.layers.{}.post_feedforward_layernorm.output"


def _ends_as(pattern: str) -> Rule:
    end = pattern.rsplit("}.", 1)[1]
    return Rule(f"a path that ends in {end!r}", lambda v: isinstance(v, str) and v.endswith(f".{end}"))


GEMMA_CLT = Layout(
    "Gemma Scope 2",
    "2025 release CLT",
    "2025-12",
    "params_layer_<l>.safetensors",
    ("jump_relu", "jump_relu with affine connection"),
    used={
        "architecture": only("jump_relu").or_absent(),
        "model_name": TEXT.or_absent(),
        "hf_hook_point_in": _ends_as(_AFTER_NORM).or_absent(),
        "hf_hook_point_out": _ends_as(_MLP_WRITES).or_absent(),
        "affine_connection": FLAG.or_absent(),
        "width": WHOLE.or_absent(),
        "num_layers": WHOLE.or_absent(),
        "l0": NUMBER.or_absent(),
    },
    harmless=names("type dtype layer"),
    refused=("crosscoders (decoders of layers before the encoder's)",),
)
LAYOUTS = (CROSS_LAYER, GEMMA_CLT)


@dataclass(frozen=True)
class CrossLayer:
    """One CLT. Shapes, with L layers: ``W_enc`` [L, D, F], ``b_enc`` [L, F], ``W_dec`` L times [F, L - l, D], ``b_dec``
    [L, D], ``threshold`` [L, F] (JumpReLU; None: ReLU), ``W_skip`` [L, D, D] (None: no skip connection). In float32;
    ``dtype`` is that of the files.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: tuple[Tensor, ...]
    b_dec: Tensor
    threshold: Tensor | None = None
    W_skip: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @property
    def n_layers(self) -> int:
        return len(self.W_enc)

    def checked(self, where: str) -> CrossLayer:
        """Itself, if its parts agree with each other and hold numbers.

        Raises:
            CorruptError: which part does not, by name; the message names ``where``.
        """
        layers, d, f = self.W_enc.shape
        want: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
            "b_enc": (self.b_enc, (layers, f)),
            "b_dec": (self.b_dec, (layers, d)),
            "threshold": (self.threshold, (layers, f)),
            "W_enc": (self.W_enc, (layers, d, f)),
            "W_skip": (self.W_skip, (layers, d, d)),
        }
        want |= {f"W_dec_{i}": (w, (f, layers - i, d)) for i, w in enumerate(self.W_dec)}
        if len(self.W_dec) != layers:
            raise CorruptError(f"{where}: {len(self.W_dec)} decoders for {layers} encoders.")
        for name, (tensor, shape) in want.items():
            if tensor is None:
                continue
            if tuple(tensor.shape) != shape:
                raise CorruptError(f"{where}: {name} has shape {tuple(tensor.shape)}; the encoders want {shape}.")
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise CorruptError(f"{where}: {name} holds NaN, infinity or no floating-point numbers.")
        return self

    def encode(self, x_LnD: Tensor) -> Tensor:
        """Latents [L, n, F] of the rows of every layer [L, n, D]."""
        z = torch.einsum("lnd,ldf->lnf", x_LnD, self.W_enc) + self.b_enc[:, None]
        return z.clamp_min(0) if self.threshold is None else z.clamp_min(0) * (z > self.threshold[:, None])

    def decode(self, f_LnF: Tensor, x_LnD: Tensor | None = None) -> Tensor:
        """What they write at every layer [L, n, D]: the sum of those at this layer and before it, and the skip
        connection of the rows ``x``, where there is one.

        Raises:
            UsageError: a skip connection, and no rows.
        """
        y = self.b_dec[:, None].repeat(1, f_LnF.shape[1], 1)
        for i, w in enumerate(self.W_dec):
            y[i:] += torch.einsum("nf,fmd->mnd", f_LnF[i], w)
        if self.W_skip is None:
            return y
        if x_LnD is None:
            raise UsageError(
                "this cross-layer transcoder has a skip connection: give the rows it read, too: decode(codes, x)."
            )
        return y + torch.einsum("lnd,lde->lne", x_LnD, self.W_skip)

    def layer(self, i: int) -> NormalForm:
        """The latents of layer ``i``, with what they write at their own layer: their values are exact, the
        reconstruction lacks what earlier layers write there.

        Raises:
            UsageError: no such layer.
        """
        if not 0 <= i < self.n_layers:
            raise UsageError(f"layer {i} is not in this cross-layer transcoder (0 to {self.n_layers - 1}).")
        about = {k: v.format(i) if k.startswith("hf_hook") else v for k, v in self.metadata.items()}
        about |= {"kind": "transcoder", "cross_layer": {"layer": i, "n_layers": self.n_layers}}
        for key, name in (("hook_name", "feature_input_hook"), ("hook_name_out", "feature_output_hook")):
            hook = about.pop(name, None)
            about |= {key: f"blocks.{i}.{hook}"} if hook else {}
        gate = None if self.threshold is None else self.threshold[i]
        act: Any = "relu" if gate is None else "jumprelu"
        skip = None if self.W_skip is None else self.W_skip[i]
        form = NormalForm(act, self.W_enc[i], self.b_enc[i], self.W_dec[i][:, 0], self.b_dec[i], None, gate, skip)
        return NormalForm(**{**vars(form), "metadata": about, "dtype": self.dtype})


def is_cross_layer(folder: Path) -> bool:
    """Whether a folder holds a CLT, by its file names."""
    return (folder / "W_enc_0.safetensors").is_file() or (folder / "params_layer_0.safetensors").is_file()


def read_cross_layer(folder: str | Path) -> CrossLayer:
    """A CLT in circuit-tracer's layout or Gemma Scope 2's.

    Raises:
        MissingError, UntrustedFile, CorruptError: a layer's file that is missing, a key, value or tensor that is not
        known, by name.
    """
    folder = Path(folder)
    if (folder / "params_layer_0.safetensors").is_file():
        return _read_gemma(folder)
    return _read_circuit_tracer(folder)


def _read_gemma(folder: Path) -> CrossLayer:
    cfg = read_config(folder / "config.json") if (folder / "config.json").is_file() else {}
    check_keys(cfg, replace(GEMMA_CLT, file="config.json"), str(folder))
    there = {p.name for p in folder.glob("params_layer_*.safetensors")}
    layers = len(there)
    if odd := there ^ {f"params_layer_{i}.safetensors" for i in range(layers)}:
        raise CorruptError(f"{folder}: {', '.join(sorted(odd))} missing, or of no layer. Download the folder again.")
    affine = bool(cfg.get("affine_connection", "affine" in folder.resolve().name))
    skip = ["affine_skip_connection"] if affine else []
    parts: list[dict[str, Tensor]] = []
    dtypes: set[torch.dtype] = set()
    for i in range(layers):
        where = f"{folder}/params_layer_{i}.safetensors"
        raw, dtype = in_float32(read_safetensors(folder / f"params_layer_{i}.safetensors"))
        if not affine and "affine_skip_connection" in raw:
            raise CorruptError(
                f"{where} holds affine_skip_connection, and neither the folder's name nor a config.json says so. Name"
                " the folder as it was published (…_affine)."
            )
        first = parts[0] if parts else raw
        if "w_enc" not in first or first["w_enc"].dim() != 2:
            raise CorruptError(f"{where}: w_enc [D, F] is missing; found {', '.join(sorted(raw)) or 'nothing'}.")
        d, f = first["w_enc"].shape
        required: dict[str, tuple[int, ...] | None] = {"w_enc": (d, f), "w_dec": (f, layers, d), "b_enc": (f,)}
        required |= {"b_dec": (d,), "threshold": (f,), **dict.fromkeys(skip, (d, d))}
        check_tensors(raw, required, where, "Gemma Scope 2 CLT")
        if i and bool(raw["w_dec"][:, :i].any()):
            raise CorruptError(f"{where}: w_dec writes to layers before {i}: that is a crosscoder, not read here.")
        parts.append(raw | {"w_dec": raw["w_dec"][:, i:].contiguous()})
        dtypes.add(dtype)
    for key, what in (("width", f * layers), ("num_layers", layers)):
        if cfg.get(key) not in (None, what, f if key == "width" else what):
            raise CorruptError(f"{folder}/config.json: {key} = {cfg[key]}; the files hold {layers} layers of {f}.")
    stacked = {k: torch.stack([p[k] for p in parts]) for k in ("w_enc", "b_enc", "b_dec", "threshold", *skip)}
    refuse_negative(stacked["threshold"], str(folder))
    about = {"imported_from": "Gemma Scope 2", "hf_hook_name": _AFTER_NORM, "hf_hook_name_out": _MLP_WRITES}
    return CrossLayer(
        stacked["w_enc"],
        stacked["b_enc"],
        tuple(p["w_dec"] for p in parts),
        stacked["b_dec"],
        stacked["threshold"],
        stacked.get("affine_skip_connection"),
        about | {"prepend_bos": True} | _gemma_model(folder, cfg),
        dtypes.pop() if len(dtypes) == 1 else torch.float32,
    ).checked(str(folder))


def _gemma_model(folder: Path, cfg: dict[str, Any]) -> dict[str, Any]:
    """The model by the configuration, or by the repository's name in the path (``gemma-scope-2-1b-pt``)."""
    about = {"claimed_l0": cfg["l0"]} if "l0" in cfg else {}
    name = str(cfg.get("model_name", "")).replace("-v3", "-3")
    if not name:
        found = (re.search(r"gemma-scope-2-(\w+-(?:pt|it))", p) for p in folder.resolve().parts)
        name = next((f"gemma-3-{m[1]}" for m in found if m), "")
    return about | ({"model_name": name if "/" in name else f"google/{name}"} if name else {})


def _read_circuit_tracer(folder: Path) -> CrossLayer:
    cfg = read_yaml(folder / "config.yaml")
    check_keys(cfg, CROSS_LAYER, str(folder))
    there = sorted(folder.glob("W_*.safetensors"))
    numbers = [int(m[1]) for p in there if (m := re.fullmatch(r"W_enc_(\d+)\.safetensors", p.name))]
    layers = len(numbers)
    wanted = {f"W_{side}_{i}.safetensors" for i in range(layers) for side in ("enc", "dec")}
    if not layers or (odd := wanted ^ {p.name for p in there}):
        what = ", ".join(sorted(odd)) if layers else "W_enc_0.safetensors"
        raise CorruptError(f"{folder}: {what} missing, or of no layer. Download the folder again.")
    if cfg.get("n_layers") not in (None, layers):
        raise CorruptError(f"{folder}/config.yaml: n_layers = {cfg['n_layers']}; there are files of {layers} layers.")
    enc, dec, dtypes = [], [], set()
    gated = None
    for i in range(layers):
        raw, dtype = in_float32(read_safetensors(folder / f"W_enc_{i}.safetensors"))
        where, gate = f"{folder}/W_enc_{i}.safetensors", f"threshold_{i}"
        required: dict[str, tuple[int, ...] | None] = dict.fromkeys((f"W_enc_{i}", f"b_enc_{i}", f"b_dec_{i}"))
        gated = gate in raw if gated is None else gated
        check_tensors(raw, required | ({gate: None} if gated else {}), where, "circuit-tracer CLT")
        other, _ = in_float32(read_safetensors(folder / f"W_dec_{i}.safetensors"))
        check_tensors(other, {f"W_dec_{i}": None}, f"{folder}/W_dec_{i}.safetensors", "circuit-tracer CLT")
        enc.append({k.rsplit("_", 1)[0]: v for k, v in raw.items()})
        dec.append(other[f"W_dec_{i}"])
        dtypes.add(dtype)
    for i, part in enumerate(enc):
        for key, tensor in part.items():
            if tensor.shape != enc[0][key].shape or tensor.dim() != (2 if key == "W_enc" else 1):
                raise CorruptError(f"{folder}: {key}_{i} has shape {tuple(tensor.shape)}, {key}_0 another, or no such.")
    stacked = {key: torch.stack([part[key] for part in enc]) for key in enc[0]}
    refuse_negative(stacked.get("threshold"), str(folder))
    keys = ("model_name", "feature_input_hook", "feature_output_hook")
    about = {"imported_from": "circuit-tracer", **{k: cfg[k] for k in keys if cfg.get(k)}}
    return CrossLayer(
        stacked["W_enc"].mT.contiguous(),
        stacked["b_enc"],
        tuple(dec),
        stacked["b_dec"],
        stacked.get("threshold"),
        None,
        about,
        dtypes.pop() if len(dtypes) == 1 else torch.float32,
    ).checked(str(folder))


def write_cross_layer(clt: CrossLayer, path: str | Path) -> Path:
    """Write a CLT as circuit-tracer reads it (``load_clt``), in the precision of its files.

    Raises:
        UsageError: its metadata does not say which hooks it reads and writes, or it has a skip connection.
        FileExistsError: the folder exists.
    """
    from safetensors.torch import save as to_bytes

    clt.checked("this cross-layer transcoder")
    if clt.W_skip is not None:
        raise UsageError(
            "this cross-layer transcoder has a skip connection, for which circuit-tracer's files of CLTs have"
            " no place (its load_clt reads none)."
        )
    cfg = _config(clt.metadata, "cross_layer_transcoder")
    with new_folder(path) as folder:
        for i in range(clt.n_layers):
            enc = {"W_enc": clt.W_enc[i].t(), "b_enc": clt.b_enc[i], "b_dec": clt.b_dec[i]}
            enc |= {} if clt.threshold is None else {"threshold": clt.threshold[i]}
            for name, part in (("enc", enc), ("dec", {"W_dec": clt.W_dec[i]})):
                whole = {f"{k}_{i}": v.detach().to(clt.dtype).contiguous().clone() for k, v in part.items()}
                write_bytes(folder / f"W_{name}_{i}.safetensors", to_bytes(whole))
        write_bytes(folder / "config.yaml", cfg)
    return Path(path)


def write_transcoder_set(forms: Sequence[NormalForm], path: str | Path) -> Path:
    """Write the transcoders of layers 0, 1, … as the set circuit-tracer reads (``load_transcoder_set``).

    Raises:
        UsageError: Top-K (circuit-tracer's files have no place for k: :func:`sae.to_jumprelu` first), hooks that differ
        between layers or are not of layer 0, 1, …, or an output of another width than the input.
        FileExistsError: the folder exists.
    """
    from safetensors.torch import save as to_bytes

    hooks: set[tuple[str, str]] = set()
    for i, form in enumerate(forms):
        ends = [str(form.metadata.get(k) or "") for k in ("hook_name", "hook_name_out")]
        if not all(h.startswith(f"blocks.{i}.") for h in ends):
            raise UsageError(f"a set has one transcoder per layer, from layer 0; number {i} is at {' -> '.join(ends)}.")
        hooks.add((ends[0].split(".", 2)[2], ends[1].split(".", 2)[2]))
        if form.act == "topk":
            raise UsageError(
                f"the transcoder of layer {i} is Top-K, and circuit-tracer's files have no place for k. Make it a"
                " JumpReLU one first: sae.to_jumprelu."
            )
        if form.W_enc.shape[0] != form.W_dec.shape[1]:
            raise UsageError(f"the transcoder of layer {i} maps {form.W_enc.shape[0]} to {form.W_dec.shape[1]}.")
    if len(hooks) != 1:
        raise UsageError(f"the transcoders of a set read and write at one place per layer, not {sorted(hooks)}.")
    read, write = hooks.pop()
    about = {**forms[0].metadata, "feature_input_hook": read, "feature_output_hook": write}
    cfg = _config(about, "transcoder_set")
    with new_folder(path) as folder:
        for i, form in enumerate(forms):
            parts = {"W_enc": form.W_enc.t(), "b_enc": form.b_enc, "W_dec": form.W_dec, "b_dec": form.b_dec}
            parts |= {} if form.threshold is None else {"activation_function.threshold": form.threshold}
            parts |= {} if form.W_skip is None else {"W_skip": form.W_skip.t()}
            whole = {k: v.detach().to(form.dtype).contiguous().clone() for k, v in parts.items()}
            write_bytes(folder / f"layer_{i}.safetensors", to_bytes(whole))
        write_bytes(folder / "config.yaml", cfg)
    return Path(path)


def _config(about: dict[str, Any], kind: str) -> bytes:
    """``config.yaml``: what circuit-tracer asks for, and the model."""
    import yaml

    hooks = {k: about.get(k) for k in ("feature_input_hook", "feature_output_hook")}
    if missing := [k for k, v in hooks.items() if not v]:
        raise UsageError(f"its metadata does not say its {missing[0]}, which circuit-tracer asks for.")
    cfg = {"model_kind": kind, "model_name": about.get("model_name"), **hooks, "scan": about.get("model_name")}
    return yaml.safe_dump({k: v for k, v in cfg.items() if v is not None}, sort_keys=False).encode()
