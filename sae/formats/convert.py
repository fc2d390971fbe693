"""Between the normal form and this package's dictionaries, and out to other libraries' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae.activation import Threshold, TopK
from sae.errors import UsageError
from sae.files import new_folder, write_bytes, write_json
from sae.formats.normal import NormalForm
from sae.model import SAE, TopKSAE, empty_sae
from sae.transcoder import Transcoder


@torch.no_grad()
def to_dictionary(form: NormalForm) -> SAE:
    """A dictionary of this package that computes what the normal form says, in its precision; frozen."""
    (d_in, f), d_out, dtype = form.W_enc.shape, form.W_dec.shape[1], form.dtype
    activation = (
        TopK(form.k or 0)
        if form.act == "topk"
        else Threshold(form.k or 0, "standard" if form.act == "relu" else "jumprelu")
    )
    elsewhere = form.metadata.get("hook_name_out") not in (None, form.metadata.get("hook_name"))
    elsewhere = elsewhere or form.metadata.get("kind") == "transcoder"
    if elsewhere or d_out != d_in or form.W_skip is not None:
        out: SAE = Transcoder(d_in, f, activation, d_out=d_out, skip=form.W_skip is not None, dtype=dtype)
        if form.W_skip is not None:
            out.get_parameter("skip_DD").copy_(form.W_skip)
    else:
        out = empty_sae(d_in, f, activation, dtype=dtype)
    if form.act == "jumprelu" and form.threshold is not None:
        out.threshold_F.copy_(form.threshold.clamp_min(0))
    out.enc_FD.copy_(form.W_enc.t())
    out.dec_FD.copy_(form.W_dec)
    out.b_dec.copy_(form.b_dec)
    out.b_enc.copy_(form.b_enc + form.b_dec @ form.W_enc if out.centred else form.b_enc)
    out.metadata = {k: v for k, v in form.metadata.items() if k != "original_cfg"}
    return out.requires_grad_(False).eval()


@torch.no_grad()
def to_normal(sae: SAE) -> NormalForm:
    """The normal form of a dictionary (folded first)."""
    out = sae.folded()
    threshold, skip = out.thresholds(), getattr(out, "skip_DD", None)
    act: Any = "topk" if threshold is None else "relu" if out.activation.architecture == "standard" else "jumprelu"
    k, gate = (out.k, None) if threshold is None else (None, None if act == "relu" else threshold)
    return NormalForm(
        act, out.W_enc, out.bias(), out.W_dec, out.b_dec, k=k, threshold=gate, W_skip=skip, metadata=dict(out.metadata)
    )


def write_sparsify(sae: SAE, path: str | Path) -> Path:
    """Write a Top-K SAE as a sparsify hook folder (``cfg.json`` + ``sae.safetensors``); loads with
    ``SparseCoder.load_from_disk``.

    Raises:
        UsageError: not a plain Top-K dictionary, which is all sparsify has. FileExistsError: the folder exists.
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(sae, TopKSAE):
        raise UsageError(
            f"the library sparsify holds Top-K dictionaries only; this is a {type(sae).__name__}. Use another format,"
            " such as sae.save (SAELens)."
        )
    out = sae.folded()
    tensors = {"encoder.weight": out.enc_FD, "encoder.bias": out.b_enc, "W_dec": out.dec_FD, "b_dec": out.b_dec}
    cfg = {
        "activation": "topk",
        "expansion_factor": out.d_sae // out.d_in,
        "normalize_decoder": True,
        "num_latents": out.d_sae,
        "k": out.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": out.d_in,
    }
    with new_folder(path) as folder:
        write_bytes(folder / "sae.safetensors", to_bytes({n: t.detach().contiguous() for n, t in tensors.items()}))
        write_json(folder / "cfg.json", cfg)
    return Path(path)
