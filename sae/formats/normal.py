"""The normal form of a dictionary of any library: raw rows in, raw rows out, every scale and norm folded.

    z = x W_enc + b_enc          f = act(z)          y = f W_dec + b_dec (+ x W_skip)

``act`` is ReLU, a fixed number of largest values (top-k), or a threshold per latent (JumpReLU). A bias that a library
subtracts from its input is folded into ``b_enc``, a scale on its input into the weights and thresholds, and a selection
weighted by decoder norm into unit decoders, so that two libraries' dictionaries can be compared number by number.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sae.errors import CorruptError

Act = Literal["relu", "topk", "jumprelu"]


@dataclass(frozen=True)
class NormalForm:
    """One dictionary. Shapes: ``W_enc`` [d_in, F], ``b_enc`` [F], ``W_dec`` [F, d_out], ``b_dec`` [d_out],
    ``threshold`` [F] (JumpReLU), ``W_skip`` [d_in, d_out] (transcoders)."""

    act: Act
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None
    W_skip: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32  # of the file; the tensors here are float32, so that foldings do not round

    def checked(self, where: str) -> NormalForm:
        """Itself, if its parts agree with each other.

        Raises:
            CorruptError: shapes, activation or numbers contradict each other; the message names ``where``.
        """
        d_in, f = self.W_enc.shape
        d_out = self.W_dec.shape[1]
        want = {"b_enc": (f,), "W_dec": (f, d_out), "b_dec": (d_out,), "threshold": (f,), "W_skip": (d_in, d_out)}
        for name, shape in want.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise CorruptError(
                    f"{where}: {name} has shape {tuple(tensor.shape)}, W_enc {tuple(self.W_enc.shape)} wants {shape}."
                )
        if self.act == "topk" and not (self.k and 1 <= self.k <= f):
            raise CorruptError(f"{where}: k = {self.k} is not between 1 and {f} latents.")
        if self.act == "jumprelu" and self.threshold is None:
            raise CorruptError(f"{where}: a JumpReLU dictionary without thresholds.")
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"):
            tensor = getattr(self, name)
            if tensor is not None and not tensor.is_floating_point():
                raise CorruptError(
                    f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point numbers."
                )
            if tensor is not None and not torch.isfinite(tensor).all():
                raise CorruptError(f"{where}: {name} holds NaN or infinity.")
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Dense latents [n, F] of raw rows [n, d_in]; the definition, used to compare formats."""
        z = x @ self.W_enc + self.b_enc
        if self.act == "jumprelu":
            assert self.threshold is not None
            return z.clamp_min(0) * (z > self.threshold)
        f = z.clamp_min(0)
        if self.act == "topk":
            assert self.k is not None
            top = f.topk(self.k, dim=-1)
            f = torch.zeros_like(f).scatter(-1, top.indices, top.values)
        return f

    def decode(self, f: Tensor, x: Tensor | None = None) -> Tensor:
        """Raw reconstruction [n, d_out]; ``x`` is needed where there is a skip connection."""
        y = f @ self.W_dec + self.b_dec
        return y if self.W_skip is None or x is None else y + x @ self.W_skip

    def about(self, **metadata: Any) -> NormalForm:
        """Itself with further metadata."""
        return replace(self, metadata={**self.metadata, **metadata})

    # --- foldings, each exact ------------------------------------------------------------------------------------

    def with_whitening(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> NormalForm:
        """Fold a dictionary of whitened rows ``(x - mean) @ matrix`` whose output goes back by ``y @ inverse + mean``
        (SAELens, ``covariance_whitening``; arXiv 2511.13981). Tensors: [d_in], [d_in, d_in], [d_in, d_in].
        """
        exact = [t.double() for t in (self.W_enc, self.b_enc, self.W_dec, self.b_dec)]
        mean, matrix, inverse = mean.double(), matrix.double(), inverse.double()
        w_enc = matrix @ exact[0]
        return replace(
            self,
            W_enc=w_enc.float(),
            b_enc=(exact[1] - mean @ w_enc).float(),
            W_dec=(exact[2] @ inverse).float(),
            b_dec=(exact[3] @ inverse + mean).float(),
        )

    def with_centred_input(self) -> NormalForm:
        """Fold ``x <- x - mean of x over its width``: what centring of the writing weights of a LayerNorm model does to
        its residual stream. Exact: ``W_enc <- (I - 11ᵀ/d) W_enc``; the output stays centred, as it was trained.
        """
        skip = self.W_skip
        return replace(
            self,
            W_enc=self.W_enc - self.W_enc.mean(0, keepdim=True),
            W_skip=None if skip is None else skip - skip.mean(0, keepdim=True),
        )

    def with_latent_scales(self, s_F: Tensor) -> NormalForm:
        """Fold factors [F] on the latents before the decoder (SAELens' fine-tuning scale) into ``W_dec``."""
        return replace(self, W_dec=self.W_dec * s_F[:, None])

    def with_input_bias(self, b_pre: Tensor) -> NormalForm:
        """Fold ``z = (x - b_pre) W_enc + b_enc`` into ``b_enc``."""
        return replace(self, b_enc=self.b_enc - b_pre @ self.W_enc)

    def with_scales(self, s_in: float, s_out: float) -> NormalForm:
        """Fold a dictionary that was trained on ``s_in * x`` and predicts ``s_out * y``.

        Latents keep the units of the scaled input divided by ``s_in`` and thresholds are divided with them
        (Llama Scope §3.3.4 gives the weights; thresholds live on the same scale and must follow).
        """
        return replace(
            self,
            b_enc=self.b_enc / s_in,
            W_dec=self.W_dec * (s_in / s_out),
            b_dec=self.b_dec / s_out,
            threshold=None if self.threshold is None else self.threshold / s_in,
            W_skip=None if self.W_skip is None else self.W_skip * (s_in / s_out),
        )

    def with_unit_decoders(self, *, threshold_is_weighted: bool) -> NormalForm:
        """Move decoder norms into the encoder: f' = f·‖d‖, d' = d/‖d‖.

        ``threshold_is_weighted`` says that thresholds (and the top-k selection) already compare f·‖d‖, as OpenMOSS and
        SAELens' ``rescale_acts_by_decoder_norm`` do; then they stay as they are.
        """
        norm = self.W_dec.norm(dim=1).clamp_min(torch.finfo(self.W_dec.dtype).tiny)
        threshold = self.threshold if self.threshold is None or threshold_is_weighted else self.threshold * norm
        return replace(
            self,
            W_enc=self.W_enc * norm,
            b_enc=self.b_enc * norm,
            W_dec=self.W_dec / norm[:, None],
            threshold=threshold,
        )


def gated(
    W_enc: Tensor, b_gate: Tensor, r_mag: Tensor, b_mag: Tensor, W_dec: Tensor, b_dec: Tensor, **more: Any
) -> NormalForm:
    """A gated dictionary (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 7-8) as the JumpReLU one it equals.

    f = 1[x W + b_gate > 0] relu(e^r (x W) + b_mag). With z = e^r (x W) + b_mag the gate opens where
    z > b_mag - e^r b_gate, so that difference, at least zero, is the threshold.
    """
    gain = r_mag.exp()
    threshold = (b_mag - gain * b_gate).clamp_min(0)
    return NormalForm("jumprelu", W_enc * gain, b_mag, W_dec, b_dec, threshold=threshold, **more)
