"""One latent space over several sources: snapshots, layers, two models, a Transformer and a Mamba.

A crosscoder is an SAE on the concatenation of its sources' rows. One product of shape (B, sum(D)) x (sum(D), F) gives
one (B, F) result that all sources share; what belongs to a source is its block of columns. It trains, evaluates, saves
and loads as the SAE it is; this class adds what the blocks mean.

Axes: B rows, S sources, F latents, D the concatenated width, D_s the width of source s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from crosscoders.gates import PerSource
from sae.activation import Activation, NormTopK
from sae.errors import ConfigError, UserError
from sae.model import SAE, TINY, active_entries


class Crosscoder(SAE):
    """``z = sum_s (x_s scale_s - b_s) W_enc_s + b_enc``, ``f = gate(z)``, ``y_s = (f W_dec_s + b_s) / scale_s``.

    Args:
        widths: D_s of every source. sources: their names (source-0, ... where none are given).
        activation: see :mod:`sae.activation`, :mod:`sae.penalised` and :mod:`crosscoders.gates`.

    Attributes:
        source_scale_S: factor of each source in training; kept beside a folded dictionary.
        gain_F: factor by which folding multiplied each latent's activation (one while training).
    """

    kind = "crosscoder"

    def __init__(
        self,
        widths: Sequence[int],
        d_sae: int,
        activation: Activation,
        *,
        sources: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(sum(widths), d_sae, activation, dtype=dtype)
        self.widths = tuple(int(w) for w in widths)
        self.sources = tuple(sources) or tuple(f"source-{i}" for i in range(len(self.widths)))
        if len(self.sources) != len(self.widths):
            raise ConfigError(
                f"{len(self.sources)} source names for {len(self.widths)} widths. Give one name per width."
            )
        self.scaling, self.shared_start = "centred", True
        self.shared_latents, self.shared_penalty, self.dedicated = 0, 1.0, 0
        self.folded_in = False
        self.register_buffer("source_scale_S", torch.ones(len(self.widths), dtype=dtype))
        self.register_buffer("gain_F", torch.ones(d_sae, dtype=dtype))
        self.source_scale_S: Tensor
        self.gain_F: Tensor

    def extra_repr(self) -> str:
        """Width of every source, latents and activation, for ``print``."""
        sources = ", ".join(f"{name}={width}" for name, width in zip(self.sources, self.widths, strict=True))
        return f"{sources}, d_sae={self.d_sae}, activation={self.activation!r}"

    # --- what the blocks mean ------------------------------------------------------------------------------------

    @property
    def blocks(self) -> tuple[int, ...]:
        """The widths: the norm of a decoder row counts at every source apart."""
        return self.widths

    def penalty_shares(self) -> Tensor:
        """[F] factors of the latents' penalties: a discount for the shared ones."""
        shares = torch.ones_like(self.b_enc)
        shares[self.ranks.local(slice(0, self.shared_latents), self.d_sae)] *= self.shared_penalty
        return shares

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Rows [..., D] as one tensor [..., D_s] per source."""
        return x.split(self.widths, dim=-1)

    def decoder_blocks(self, *, raw: bool = False) -> list[Tensor]:
        """Decoder rows [F, D_s] of every source, in training scale (``raw``: in the model's own units); the same before
        and after a save.
        """
        blocks = self.dec_FD.detach().split(self.widths, dim=1)
        gain = self.gain_F[:, None]
        wanted = [s.reciprocal() if raw else torch.ones_like(s) for s in self.source_scale_S]
        here = [s if self.folded_in else torch.ones_like(s) for s in self.source_scale_S]
        return [b * gain * (w * h) for b, w, h in zip(blocks, wanted, here, strict=True)]

    def decoder_norms(self, *, raw: bool = False) -> Tensor:
        """Norms [n_sources, d_sae] of the decoder rows in training scale, before and after a save alike.

        Training scale has every source at the same size, so growth of the residual stream does not look like a latent
        being born; ``raw`` gives the norms in the model's own units.
        """
        norms = torch.stack(
            [torch.linalg.vector_norm(b, dim=1) for b in self.dec_FD.detach().split(self.widths, dim=1)]
        )
        factor = torch.ones_like(self.source_scale_S)
        if self.folded_in:
            factor = factor * self.source_scale_S
        if raw:
            factor = factor / self.source_scale_S
        return norms * self.gain_F * factor[:, None]

    # --- use -----------------------------------------------------------------------------------------------------

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """Raw activations [..., D] from kept latents; with a gate per source each source leaves out what its own gate
        closes.
        """
        if not isinstance(self.activation, PerSource):
            return super().decode_sparse(values, indices)
        norms = self.decoder_norms() / self.gain_F
        level = self.opening() * norms.amax(0)  # the common threshold t_i on z n_si
        open_ = [
            torch.where(values * norms[s][indices] > level[indices], values, torch.zeros_like(values))
            for s in range(len(self.widths))
        ]
        parts = [self.split(super(Crosscoder, self).decode_sparse(v, indices))[s] for s, v in enumerate(open_)]
        return torch.cat(parts, dim=-1)

    def opening(self) -> Tensor:
        """[F] the loosest source's thresholds of a dictionary with a gate per source."""
        threshold = self.thresholds()
        assert threshold is not None
        return threshold.detach()

    def codes_at(self, f: Tensor, source: int, latents: Tensor) -> Tensor:
        """What of the codes f [..., A] of some ``latents`` [A] reaches ``source``: all of it, unless the gate is per
        source.
        """
        if not isinstance(self.activation, PerSource):
            return f
        norms = (self.decoder_norms() / self.gain_F)[:, latents]
        return torch.where(f * norms[source] > self.opening()[latents] * norms.amax(0), f, torch.zeros_like(f))

    def decode(self, f: Tensor) -> Tensor:
        """Raw activations [..., D] from dense latent activations [..., F]."""
        if isinstance(self.activation, PerSource):
            values, indices = active_entries(f.reshape(-1, self.d_sae))
            return self.decode_sparse(values, indices).reshape(*f.shape[:-1], self.d_in)
        return super().decode(f)

    # --- training ------------------------------------------------------------------------------------------------

    def measure_scale(self, x_BD: Tensor) -> Tensor:
        """[D] factors that bring every source to length sqrt(D_s): root-mean-square of centred rows, or mean norm
        (``scaling``).
        """
        scales = []
        for name, part in zip(self.sources, self.split(x_BD), strict=True):
            centred = part - part.mean(0)
            if not centred.square().mean() > TINY * part.square().mean():
                raise UserError(
                    f"the rows of source {name!r} are all the same: there is nothing to learn. Choose another hook or"
                    " snapshot."
                )
            mean_norm = part.norm(dim=1).mean() / part.shape[1] ** 0.5
            scales.append((mean_norm if self.scaling == "mean-norm" else centred.square().mean().sqrt()).reciprocal())
        self.source_scale_S.copy_(torch.stack(scales))
        return self.source_scale_S.repeat_interleave(torch.tensor(self.widths, device=x_BD.device))

    def directions(self, n: int, generator: torch.Generator, wanted: slice = slice(None)) -> Tensor:
        """The ``wanted`` of ``n`` random directions [n, d_in] in float64, of unit norm at every source; with
        ``shared_start`` the same at sources of one width."""
        drawn: dict[int, Tensor] = {}
        blocks = []
        for width in self.widths:
            if width not in drawn or not self.shared_start:
                fresh = torch.randn(n, width, generator=generator, dtype=torch.float64)
                drawn[width] = (fresh / fresh.norm(dim=1, keepdim=True))[wanted]
            blocks.append(drawn[width])
        return torch.cat(blocks, 1)

    @torch.no_grad()
    def constrain(self) -> None:
        """After every step: closed blocks stay zero, tied ones equal, and with Top-K the concatenated rows keep unit
        norm.

        Top-K scores f sum_s n_si do not change when a latent's decoder grows and its encoder shrinks, so one norm is
        free; in a penalised crosscoder the norms are what the penalty acts on, and are left alone.
        """
        blocks = self.dec_FD.split(self.widths, dim=1)
        if self.shared_latents:
            shared = self.ranks.local(slice(0, self.shared_latents), self.d_sae)
            tied = torch.stack([b[shared] for b in blocks]).mean(0)
            for b in blocks:
                b[shared] = tied
        for s, (b, e) in enumerate(zip(blocks, self.enc_FD.split(self.widths, dim=1), strict=True)):
            for other in range(len(self.widths)):
                if self.dedicated and other != s:
                    theirs = self.ranks.local(self.partition(other), self.d_sae)
                    b[theirs] = 0
                    e[theirs] = 0
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
        gain, scale, thresholds = torch.ones_like(self.gain_F), torch.ones_like(self.scale_D), self.thresholds()
        if not self.folded_in:
            norms = self.decoder_norms().sum(0) if isinstance(self.activation, NormTopK) else gain
            gain, scale = torch.where(norms > TINY, norms, gain), self.scale_D
        out = type(self)(
            self.widths, self.d_sae, self.activation.fold(gain), sources=self.sources, dtype=self.enc_FD.dtype
        ).to(self.enc_FD.device)
        out.enc_FD.copy_(self.enc_FD * gain[:, None] * scale)
        out.b_enc.copy_(self.b_enc * gain)
        out.dec_FD.copy_(self.dec_FD / gain[:, None] / scale)
        out.b_dec.copy_(self.b_dec / scale)
        if thresholds is not None:
            out.threshold_F.copy_(thresholds * gain)
        out.source_scale_S.copy_(self.source_scale_S)
        out.gain_F.copy_(self.gain_F * gain)
        out.shared_latents, out.dedicated, out.folded_in = self.shared_latents, self.dedicated, True
        out.metadata = dict(self.metadata)
        return out

    # --- disk ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write the SAELens folder of the concatenated SAE and ``crosscoder.safetensors`` beside it (see
        :mod:`crosscoders.folder`).
        """
        from crosscoders.folder import save

        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a crosscoder from a folder.

        Raises:
            MissingError, CorruptError: see :func:`sae.folder.load`. ConfigError: the folder holds another kind of
            dictionary.
        """
        import crosscoders.folder  # noqa: F401  # registers the readers

        return super().load(path)

    def about(self) -> dict[str, Any]:
        """What ``cfg.json`` says about the sources."""
        scales = self.source_scale_S.double().tolist()
        return {
            "sources": [
                {"name": n, "width": w, "scale": s} for n, w, s in zip(self.sources, self.widths, scales, strict=True)
            ],
            "shared_latents": self.shared_latents,
            "dedicated_latents": self.dedicated,
        }
