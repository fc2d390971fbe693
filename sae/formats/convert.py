"""Between the normal form and this package's dictionaries, and out to other libraries' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sae.errors import UsageError
from sae.files import new_folder, write_bytes, write_json
from sae.formats.normal import NormalForm
from sae.model import SAE, TopKSAE
from sae.threshold import ThresholdSAE


@torch.no_grad()
def to_dictionary(form: NormalForm) -> SAE:
    """A dictionary of this package that computes what the normal form says, in its precision; frozen.

    Raises:
        UsageError: a Top-K dictionary with a skip connection, or one whose output width differs from its input's.
    """
    d_in, f = form.W_enc.shape
    if form.W_dec.shape[1] != d_in:
        raise UsageError(f"the dictionary maps width {d_in} to {form.W_dec.shape[1]}; only equal widths are read here.")
    if form.act == "topk":
        if form.W_skip is not None:
            raise UsageError(
                "a Top-K transcoder with a skip connection is not read here. Convert it to thresholds first (sae.to_jumprelu)."
            )
        assert form.k is not None
        out: SAE = TopKSAE(d_in, f, form.k, dtype=form.W_enc.dtype)
    else:
        gated = ThresholdSAE(d_in, f, k=form.k or 0, skip=form.W_skip is not None, dtype=form.W_enc.dtype)
        if form.threshold is not None:
            gated.threshold_F.copy_(form.threshold.clamp_min(0))
        if form.W_skip is not None and gated.skip_DD is not None:
            gated.skip_DD.copy_(form.W_skip)
        out = gated
    out.enc_FD.copy_(form.W_enc.t())
    out.dec_FD.copy_(form.W_dec)
    out.b_dec.copy_(form.b_dec)
    out.b_enc.copy_(form.b_enc + out.enc_FD @ out.b_dec)
    out.metadata = {k: v for k, v in form.metadata.items() if k != "original_cfg"}
    if form.metadata.get("hook_name_out") not in (None, form.metadata.get("hook_name")):
        out.kind = "transcoder"
    return out.requires_grad_(False).eval()


@torch.no_grad()
def to_normal(sae: SAE) -> NormalForm:
    """The normal form of a Top-K or threshold dictionary (folded first)."""
    out = sae.folded()
    b_enc = out.b_enc - out.enc_FD @ out.b_dec
    threshold = out.threshold_F if isinstance(out, ThresholdSAE) else None
    skip = out.skip_DD if isinstance(out, ThresholdSAE) else None
    act: Any = "jumprelu" if isinstance(out, ThresholdSAE) else "topk"
    k = None if act == "jumprelu" else out.k
    return NormalForm(act, out.W_enc, b_enc, out.W_dec, out.b_dec, k=k, threshold=threshold, W_skip=skip, metadata=dict(out.metadata))


def write_sparsify(sae: SAE, path: str | Path) -> Path:
    """Write a Top-K SAE as a sparsify hook folder (``cfg.json`` + ``sae.safetensors``); loads with ``SparseCoder.load_from_disk``.

    Raises:
        UsageError: not a plain Top-K dictionary, which is all sparsify has. FileExistsError: the folder exists.
    """
    from safetensors.torch import save as to_bytes

    if not isinstance(sae, TopKSAE):
        raise UsageError(f"sparsify knows Top-K dictionaries; this is a {type(sae).__name__}.")
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
