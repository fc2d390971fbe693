"""A dictionary as SAEBench takes it: an object with its tensors, three methods and a ``cfg`` that names model and hook.

SAEBench (github.com/adamkarvonen/SAEBench, ``sae_bench/custom_saes/base_sae.py``) asks of a custom SAE ``W_enc`` [d_in,
d_sae], ``W_dec`` [d_sae, d_in], ``b_enc``, ``b_dec``, ``encode``, ``decode``, ``forward``, ``to``, ``device``,
``dtype`` and ``cfg``. It checks unit-norm decoders; raw activations go in and come out. Its package is not needed here.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sae.errors import UsageError
from sae.model import SAE


@dataclass
class BenchConfig:
    """The fields SAEBench reads from ``sae.cfg``; it sets some of them itself, so this one is not frozen."""

    model_name: str
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    context_size: int | None = None
    hook_head_index: int | None = None
    architecture: str = ""
    architecture_str: str = ""
    apply_b_dec_to_input: bool = True
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    prepend_bos: bool = True
    normalize_activations: str = "none"
    dtype: str = "float32"
    device: str = "cpu"
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    dataset_path: str = ""
    dataset_trust_remote_code: bool = True
    seqpos_slice: tuple[int | None, ...] = (None,)
    training_tokens: int = -100_000
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for SAEBench's result files."""
        return asdict(self)


class BenchSAE(nn.Module):
    """Wraps a folded dictionary with unit decoders. Methods take any leading shape and give the dictionary's own type.

    Example:
        ``run_eval(..., selected_saes=[("ours", BenchSAE(sae.load("runs/a")))])``

    Args:
        sae: any SAE. model_name, hook_name: where its metadata does not say (a model TransformerLens knows, and its
        hook).

    Raises:
        UsageError: model or hook unknown, a hook without a layer, or a dictionary that does not reconstruct its own
        input.
    """

    def __init__(self, sae: SAE, *, model_name: str | None = None, hook_name: str | None = None):
        super().__init__()
        model_name, hook_name = model_name or sae.metadata.get("model_name"), hook_name or sae.metadata.get("hook_name")
        if not model_name or not hook_name:
            raise UsageError(
                f"SAEBench needs a model and a hook; the dictionary says {model_name!r} and {hook_name!r}. Pass them."
            )
        layer = re.search(r"\d+", hook_name)
        if layer is None:
            raise UsageError(f"hook {hook_name!r} names no layer, which SAEBench needs.")
        if sae.kind != "sae" or getattr(sae, "skip_DD", None) is not None:
            raise UsageError(
                f"SAEBench evaluates SAEs that read what they reconstruct; this is a {sae.kind} or has a skip"
                " connection."
            )
        self.inner = _unit(sae.folded()).requires_grad_(False).eval()
        self.cfg = BenchConfig(
            model_name,
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            hook_layer=int(layer[0]),
            hook_name=hook_name,
            context_size=sae.metadata.get("context_size"),
            architecture=sae.activation.architecture,
            architecture_str=sae.activation.architecture,
            activation_fn_str="topk" if sae.activation.architecture == "topk" else "relu",
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
        )

    @property
    def W_enc(self) -> Tensor:
        """[d_in, d_sae]"""
        return self.inner.W_enc

    @property
    def W_dec(self) -> Tensor:
        """[d_sae, d_in], unit rows."""
        return self.inner.W_dec

    @property
    def b_enc(self) -> Tensor:
        """[d_sae]"""
        return self.inner.b_enc

    @property
    def b_dec(self) -> Tensor:
        """[d_in]"""
        return self.inner.b_dec

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.inner.enc_FD.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""
        return self.inner.enc_FD.dtype

    def encode(self, x: Tensor) -> Tensor:
        """Dense latents [..., d_sae] of raw activations [..., d_in]."""
        return self.inner.encode(x)

    def decode(self, f: Tensor) -> Tensor:
        """Raw activations [..., d_in] from dense latents."""
        return self.inner.decode(f)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction, by the same two methods."""
        return self.decode(self.encode(x))


@torch.no_grad()
def _unit(sae: SAE) -> SAE:
    """``sae`` with unit decoder rows: each norm moves into its latent. Unchanged where rows are unit already or compete
    (top-k).

    Top-k over latents of other scales would select others, so such a dictionary is refused.

    Raises:
        UsageError: a Top-K dictionary whose decoder rows are not of one length.
    """
    norm = torch.linalg.vector_norm(sae.dec_FD, dim=1)
    if torch.allclose(norm, torch.ones_like(norm), atol=1e-5):
        return sae
    alike = bool((norm / norm[0] - 1).abs().max() < 1e-5)
    if sae.activation.architecture == "topk" and not alike:
        raise UsageError(
            "its decoder rows differ in length and its latents compete as they are: unit rows would select others."
        )
    sae.enc_FD.mul_(norm[:, None])
    sae.b_enc.mul_(norm)
    sae.dec_FD.div_(norm[:, None])
    threshold = getattr(sae, "threshold_F", None)
    if threshold is not None:
        threshold.mul_(norm)
    return sae
