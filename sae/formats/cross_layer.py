"""Cross-layer transcoders (CLT): latents that read at one layer and write at it and every later one.

    f_l = act(x_l W_enc_l + b_enc_l)        y_m = b_dec_m + sum over l <= m of f_l W_dec_l[m - l]

(Ameisen et al. 2025, transformer-circuits.pub/2025/attribution-graphs; Lindsey et al. 2024). Shapes: ``x``, ``y``
[L, n, D], ``f`` [L, n, F]; L layers, n tokens, D width, F latents of a layer.

A CLT is no dictionary of one place: it is read, encoded, decoded and written here, and :meth:`CrossLayer.layer` gives
the latents of one layer with what they write at their own, for records and labels. What would have to treat it as a
transcoder of one layer (``workbench import``) refuses it by name. The layout is circuit-tracer's (0.5, ``load_clt`` and
``to_safetensors`` of ``cross_layer_transcoder.py``): ``W_enc_<l>.safetensors`` with ``W_enc_<l>`` [F, D], ``b_enc_<l>``
[F], ``b_dec_<l>`` [D] and, for JumpReLU, ``threshold_<l>`` [F]; ``W_dec_<l>.safetensors`` with ``W_dec_<l>`` [F, L - l,
D]; a ``config.yaml``. That layout has no place for a skip connection, so there is none here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae.errors import CorruptError, UsageError
from sae.files import new_folder, write_bytes
from sae.formats.layout import TEXT, TEXT_OR_NULL, Layout, check_keys, check_tensors, names, only
from sae.formats.normal import NormalForm
from sae.formats.tensors import in_float32, read_safetensors, read_yaml, refuse_negative

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
    refused=("skip connections", "transcoders (Gemma Scope 2's own files)", "import as a dictionary of one layer"),
)


@dataclass(frozen=True)
class CrossLayer:
    """One CLT. Shapes, with L layers: ``W_enc`` [L, D, F], ``b_enc`` [L, F], ``W_dec`` L times [F, L - l, D], ``b_dec``
    [L, D], ``threshold`` [L, F] (JumpReLU; None: ReLU). In float32; ``dtype`` is that of the files.
    """

    W_enc: Tensor
    b_enc: Tensor
    W_dec: tuple[Tensor, ...]
    b_dec: Tensor
    threshold: Tensor | None = None
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

    def decode(self, f_LnF: Tensor) -> Tensor:
        """What they write at every layer [L, n, D]: the sum of those at this layer and before it."""
        y = self.b_dec[:, None].repeat(1, f_LnF.shape[1], 1)
        for i, w in enumerate(self.W_dec):
            y[i:] += torch.einsum("nf,fmd->mnd", f_LnF[i], w)
        return y

    def layer(self, i: int) -> NormalForm:
        """The latents of layer ``i``, with what they write at their own layer: their values are exact, the
        reconstruction lacks what earlier layers write there.

        Raises:
            UsageError: no such layer.
        """
        if not 0 <= i < self.n_layers:
            raise UsageError(f"layer {i} is not in this cross-layer transcoder (0 to {self.n_layers - 1}).")
        about = {k: v for k, v in self.metadata.items() if not k.startswith("feature_")}
        about |= {"kind": "transcoder", "cross_layer": {"layer": i, "n_layers": self.n_layers}}
        for key, name in (("hook_name", "feature_input_hook"), ("hook_name_out", "feature_output_hook")):
            about |= {key: f"blocks.{i}.{self.metadata[name]}"} if name in self.metadata else {}
        gate = None if self.threshold is None else self.threshold[i]
        act: Any = "relu" if gate is None else "jumprelu"
        form = NormalForm(act, self.W_enc[i], self.b_enc[i], self.W_dec[i][:, 0], self.b_dec[i], threshold=gate)
        return NormalForm(**{**vars(form), "metadata": about, "dtype": self.dtype})


def is_cross_layer(folder: Path) -> bool:
    """Whether a folder holds a CLT, by its file names."""
    return (folder / "W_enc_0.safetensors").is_file()


def read_cross_layer(folder: str | Path) -> CrossLayer:
    """A CLT in circuit-tracer's layout.

    Raises:
        MissingError, UntrustedFile, CorruptError: a layer's file that is missing, a key, value or tensor that is not
        known, by name.
    """
    folder = Path(folder)
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
        about,
        dtypes.pop() if len(dtypes) == 1 else torch.float32,
    ).checked(str(folder))


def write_cross_layer(clt: CrossLayer, path: str | Path) -> Path:
    """Write a CLT as circuit-tracer reads it (``load_clt``), in the precision of its files.

    Raises:
        UsageError: its metadata does not say which hooks it reads and writes. FileExistsError: the folder exists.
    """
    from safetensors.torch import save as to_bytes

    clt.checked("this cross-layer transcoder")
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
