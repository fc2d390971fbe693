"""One latent space over several sources: snapshots, layers, two models, a Transformer and a Mamba.

A crosscoder is an SAE on the concatenation of its sources' rows. One product of shape (B, sum(D)) x (sum(D), F) gives one
(B, F) result that all sources share; what belongs to a source is its block of columns. It trains, evaluates, saves and
loads as the SAE it is; this class adds what the blocks mean.

Axes: B rows, S sources, F latents, D the concatenated width, D_s the width of source s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from crosscoders.gates import BatchTopK, JumpReLU, NormTopK, Threshold
from sae.activation import Activation
from sae.encode import StepPlan
from sae.errors import ConfigError, NonFiniteError, UserError
from sae.model import SAE
from sae.threshold import active_entries

TINY = 1e-12


class Crosscoder(SAE):
    """``z = sum_s (x_s scale_s - b_s) W_enc_s + b_enc``, ``f = gate(z)``, ``y_s = (f W_dec_s + b_s) / scale_s``.

    Args:
        widths: D_s of every source. sources: their names (source-0, ... where none are given).
        activation: see :mod:`crosscoders.gates`.

    Attributes:
        source_scale_S: factor of each source in training; kept beside a folded dictionary.
        gain_F: factor by which folding multiplied each latent's activation (one while training).
        threshold_F: a gated latent is on where z exceeds it (unused by Top-K).
    """

    kind = "crosscoder"

    def __init__(
        self, widths: Sequence[int], d_sae: int, activation: Activation, *, sources: Sequence[str] = (), dtype: torch.dtype = torch.float32
    ):
        super().__init__(sum(widths), d_sae, activation, dtype=dtype)
        self.widths = tuple(int(w) for w in widths)
        self.sources = tuple(sources) or tuple(f"source-{i}" for i in range(len(self.widths)))
        if len(self.sources) != len(self.widths):
            raise ConfigError(f"{len(self.sources)} source names for {len(self.widths)} widths. Give one name per width.")
        self.scaling, self.shared_start, self.start_norm = "centred", True, 1.0
        self.shared_latents, self.shared_penalty, self.dedicated = 0, 1.0, 0
        self.penalty_warmup, self.threshold_start, self.threshold_rate = 0, 0.1, 1.0
        self.folded_in, self.candidates = False, 4 * getattr(activation, "k", 1)
        self.register_buffer("source_scale_S", torch.ones(len(self.widths), dtype=dtype))
        self.register_buffer("gain_F", torch.ones(d_sae, dtype=dtype))
        self.register_buffer("threshold_F", torch.zeros(d_sae, dtype=dtype))
        self.register_buffer("level", torch.zeros((), dtype=dtype))  # BatchTopK: running minimum of the kept scores
        self.source_scale_S: Tensor
        self.gain_F: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # for the warm-up of penalties
        self.threshold_F: Tensor
        self.steps: Tensor
        self.level: Tensor
        if isinstance(activation, JumpReLU):
            self.log_threshold_F = nn.Parameter(torch.zeros(d_sae, dtype=dtype))

    # --- what the blocks mean ------------------------------------------------------------------------------------

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rows [..., D] as one tensor [..., D_s] per source."""
        return x.split(self.widths, dim=-1)

    def decoder_blocks(self, *, raw: bool = False) -> list[Tensor]:
        """Decoder rows [F, D_s] of every source, in training scale (``raw``: in the model's own units); the same before and after a save."""
        blocks = self.dec_FD.detach().split(self.widths, dim=1)
        gain = self.gain_F[:, None]
        wanted = [s.reciprocal() if raw else torch.ones_like(s) for s in self.source_scale_S]
        here = [s if self.folded_in else torch.ones_like(s) for s in self.source_scale_S]
        return [b * gain * (w * h) for b, w, h in zip(blocks, wanted, here, strict=True)]

    def decoder_norms(self, *, raw: bool = False) -> Tensor:
        """Norms [n_sources, d_sae] of the decoder rows in training scale, before and after a save alike.

        Training scale has every source at the same size, so growth of the residual stream does not look like a latent being
        born; ``raw`` gives the norms in the model's own units.
        """
        norms = torch.stack([torch.linalg.vector_norm(b, dim=1) for b in self.dec_FD.detach().split(self.widths, dim=1)])
        factor = torch.ones_like(self.source_scale_S)
        if self.folded_in:
            factor = factor * self.source_scale_S
        if raw:
            factor = factor / self.source_scale_S
        return norms * self.gain_F * factor[:, None]

    # --- use -----------------------------------------------------------------------------------------------------

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Active latents of each row: (values, indices), both [..., K]; a value of zero means "not active".

        With a gate K is the largest number of latents on in any of these rows.
        """
        if not self.gated:
            return super().encode_sparse(x)
        rows = self._rows(x).reshape(-1, self.d_in)
        kept = [active_entries(self.gate(self.pre_activations(part))) for part in rows.split(1024)]
        width = max(1, max(v.shape[1] for v, _ in kept))
        values = torch.cat([nn.functional.pad(v, (0, width - v.shape[1])) for v, _ in kept])
        indices = torch.cat([nn.functional.pad(i, (0, width - i.shape[1])) for _, i in kept])
        return values.reshape(*x.shape[:-1], width), indices.reshape(*x.shape[:-1], width)

    @property
    def gated(self) -> bool:
        """Whether thresholds decide what is on, rather than a count per row."""
        return isinstance(self.activation, Threshold) or (isinstance(self.activation, BatchTopK) and bool(self.level > 0))

    def pre_activations(self, rows: Tensor) -> Tensor:
        """z [B, F] of rows already in training scale."""
        return torch.addmm(self.b_enc - self.enc_FD @ self.b_dec, rows, self.enc_FD.t())

    def thresholds(self) -> Tensor:
        """[F]: a gated latent is on where z exceeds this (the loosest source's, where the gate is per source)."""
        if isinstance(self.activation, BatchTopK):
            return self.level / self.decoder_norms().sum(0).clamp_min(TINY)
        if self.folded_in or not isinstance(self.activation, JumpReLU):
            return self.threshold_F
        t = self.level_thresholds()
        return t / self.decoder_norms().amax(0).clamp_min(TINY) if self.activation.per_source else t

    def level_thresholds(self) -> Tensor:
        """Learnt thresholds t_i [F] of a JumpReLU crosscoder in training."""
        return self.threshold_start * torch.exp(self.threshold_rate * self.log_threshold_F)

    def gate(self, z: Tensor) -> Tensor:
        """f [B, F]: z where it exceeds the threshold, else 0."""
        return torch.where(z > self.thresholds().detach(), z, torch.zeros_like(z)).clamp_min(0)

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """Raw activations [..., D] from kept latents; with a gate per source each source leaves out what its own gate closes."""
        if not (isinstance(self.activation, JumpReLU) and self.activation.per_source):
            return super().decode_sparse(values, indices)
        norms = self.decoder_norms() / self.gain_F
        level = self.thresholds() * norms.amax(0)  # the common threshold t_i on z n_si
        open_ = [
            torch.where(values * norms[s][indices] > level[indices], values, torch.zeros_like(values)) for s in range(len(self.widths))
        ]
        parts = [self.split(super(Crosscoder, self).decode_sparse(v, indices))[s] for s, v in enumerate(open_)]
        return torch.cat(parts, dim=-1)

    def codes_at(self, f: Tensor, source: int, latents: Tensor) -> Tensor:
        """What of the codes f [..., A] of some ``latents`` [A] reaches ``source``: all of it, unless the gate is per source."""
        if not (isinstance(self.activation, JumpReLU) and self.activation.per_source):
            return f
        norms = (self.decoder_norms() / self.gain_F)[:, latents]
        return torch.where(f * norms[source] > self.thresholds()[latents] * norms.amax(0), f, torch.zeros_like(f))

    def decode(self, f: Tensor) -> Tensor:
        """Raw activations [..., D] from dense latent activations [..., F]."""
        if isinstance(self.activation, JumpReLU) and self.activation.per_source:
            values, indices = active_entries(f.reshape(-1, self.d_sae))
            return self.decode_sparse(values, indices).reshape(*f.shape[:-1], self.d_in)
        return super().decode(f)

    # --- training ------------------------------------------------------------------------------------------------

    def reconstruct(self, target_BD: Tensor, plan: StepPlan) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """(y, aux_y, values, indices, penalty) of rows in training scale; see :mod:`crosscoders.reconstruct`."""
        from crosscoders.reconstruct import reconstruct

        return reconstruct(self, target_BD, plan)

    def measure_scale(self, x_BD: Tensor) -> Tensor:
        """[D] factors that bring every source to length sqrt(D_s): root-mean-square of centred rows, or mean norm (``scaling``)."""
        scales = []
        for name, part in zip(self.sources, self.split(x_BD), strict=True):
            centred = part - part.mean(0)
            if not centred.square().mean() > TINY * part.square().mean():
                raise UserError(
                    f"the rows of source {name!r} are all the same: there is nothing to learn. Choose another hook or snapshot."
                )
            mean_norm = part.norm(dim=1).mean() / part.shape[1] ** 0.5
            scales.append((mean_norm if self.scaling == "mean-norm" else centred.square().mean().sqrt()).reciprocal())
        self.source_scale_S.copy_(torch.stack(scales))
        return self.source_scale_S.repeat_interleave(torch.tensor(self.widths, device=x_BD.device))

    @torch.no_grad()
    def initialise(self, x_BD: Tensor, generator: torch.Generator) -> None:
        """Scales, mean as bias, one random direction per latent copied to all sources of one width, tied encoders of the best length.

        Raises:
            UserError: a constant source. NonFiniteError: the scale overflows.
        """
        x = x_BD.to(self.enc_FD.dtype)
        self.scale_D.copy_(self.measure_scale(x))
        if not torch.isfinite(self.scale_D).all():
            raise NonFiniteError("the scale of the first batch is not finite: its rows are too large for this precision.")
        self.b_dec.copy_((x * self.scale_D).mean(0))
        self.b_enc.zero_()
        self.dec_FD.copy_(self.directions(self.d_sae, generator) * self.start_norm)
        self.constrain()
        self.enc_FD.copy_(self.dec_FD)
        probe = x[:1024]
        y, target = self(probe) * self.scale_D - self.b_dec, probe * self.scale_D - self.b_dec
        factor = (y * target).sum() / y.square().sum().clamp_min(TINY)
        if factor.isfinite() and factor > 0:
            self.enc_FD.mul_(factor)  # exact for Top-K, which is homogeneous; a start for the gates

    def directions(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, d_in] random directions in float64, of unit norm at every source; with ``shared_start`` the same at sources of one width."""
        drawn: dict[int, Tensor] = {}
        blocks = []
        for width in self.widths:
            if width not in drawn or not self.shared_start:
                fresh = torch.randn(n, width, generator=generator, dtype=torch.float64)
                drawn[width] = fresh / fresh.norm(dim=1, keepdim=True)
            blocks.append(drawn[width])
        return torch.cat(blocks, 1)

    @torch.no_grad()
    def constrain(self) -> None:
        """After every step: closed blocks stay zero, tied ones equal, and with Top-K the concatenated rows keep unit norm.

        Top-K scores f sum_s n_si do not change when a latent's decoder grows and its encoder shrinks, so one norm is free;
        in a penalised crosscoder the norms are what the penalty acts on, and are left alone.
        """
        blocks = self.dec_FD.split(self.widths, dim=1)
        if self.shared_latents:
            tied = torch.stack([b[: self.shared_latents] for b in blocks]).mean(0)
            for b in blocks:
                b[: self.shared_latents] = tied
        for s, (b, e) in enumerate(zip(blocks, self.enc_FD.split(self.widths, dim=1), strict=True)):
            for other in range(len(self.widths)):
                if self.dedicated and other != s:
                    b[self.partition(other)] = 0
                    e[self.partition(other)] = 0
        if isinstance(self.activation, NormTopK):
            self.dec_FD.div_(torch.linalg.vector_norm(self.dec_FD, dim=1, keepdim=True).clamp_min_(TINY))

    def partition(self, source: int) -> slice:
        """The latents that only ``source`` may use: the last S * dedicated latents, ``dedicated`` each."""
        start = self.d_sae - (len(self.widths) - source) * self.dedicated
        return slice(start, start + self.dedicated)

    @torch.no_grad()
    def folded(self) -> Self:
        """A copy for use: raw rows in and out, a plain Top-K or a threshold, scales and gains kept beside.

        The weights sum_s n_si under which latents compete go into the encoder first, the sources' scales second.
        """
        if self.folded_in:
            gain, scale, thresholds = torch.ones_like(self.gain_F), torch.ones_like(self.scale_D), self.threshold_F
        else:
            gain = self.decoder_norms().sum(0) if isinstance(self.activation, NormTopK) else torch.ones_like(self.gain_F)
            gain, scale, thresholds = torch.where(gain > TINY, gain, torch.ones_like(gain)), self.scale_D, self.thresholds().detach()
        out = type(self)(self.widths, self.d_sae, self.activation.fold(gain), sources=self.sources, dtype=self.enc_FD.dtype).to(
            self.enc_FD.device
        )
        out.enc_FD.copy_(self.enc_FD * gain[:, None] * scale)
        out.b_enc.copy_(self.b_enc * gain)
        out.dec_FD.copy_(self.dec_FD / gain[:, None] / scale)
        out.b_dec.copy_(self.b_dec / scale)
        out.threshold_F.copy_(thresholds * gain)
        out.source_scale_S.copy_(self.source_scale_S)
        out.gain_F.copy_(self.gain_F * gain)
        out.shared_latents, out.dedicated, out.folded_in = self.shared_latents, self.dedicated, True
        out.metadata = dict(self.metadata)
        return out

    # --- disk ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the SAELens folder of the concatenated SAE and ``crosscoder.safetensors`` beside it (see :mod:`crosscoders.folder`)."""
        from crosscoders.folder import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a crosscoder from a folder.

        Raises:
            MissingError, CorruptError: see :func:`sae.folder.load`. ConfigError: the folder holds another kind of dictionary.
        """
        import crosscoders.folder  # noqa: F401  # registers the readers

        return super().load(path)

    def about(self) -> dict[str, Any]:
        """What ``cfg.json`` says about the sources."""
        scales = self.source_scale_S.double().tolist()
        return {
            "sources": [{"name": n, "width": w, "scale": s} for n, w, s in zip(self.sources, self.widths, scales, strict=True)],
            "shared_latents": self.shared_latents,
            "dedicated_latents": self.dedicated,
        }
