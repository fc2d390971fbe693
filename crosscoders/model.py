"""One latent space over several sources: snapshots, layers, two models, a Transformer and a Mamba.

A crosscoder is an SAE on the concatenation of its sources' rows. One product of shape (B, sum(D)) x (sum(D), F) gives
one (B, F) result that all sources share; what belongs to a source is its block of columns. It trains, evaluates, saves
and loads as the SAE it is; this class adds what the blocks mean.

Axes: B rows, S sources, F latents, D the concatenated width, D_s the width of source s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from crosscoders.gates import OwnMagnitude, PerSource
from sae.activation import Activation, NormTopK
from sae.backends import pick
from sae.encode import StepPlan, strongest
from sae.errors import ConfigError, UserError
from sae.model import ROWS, SAE, TINY, active_entries

LEAST = 1e-6  # of a latent's largest usual magnitude: what a source counts as that never had any
NO_DECODING = (
    "gate = 'own-magnitude': a code for all sources does not say how strong a latent is at each of them. Use"
    " reconstructed(x) or source_values(x), which see the rows."
)


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
        self.widths = tuple(int(w) for w in widths)  # first: an activation asks for them as it attaches
        super().__init__(sum(widths), d_sae, activation, dtype=dtype)
        self.sources = tuple(sources) or tuple(f"source-{i}" for i in range(len(self.widths)))
        if len(self.sources) != len(self.widths):
            raise ConfigError(
                f"{len(self.sources)} source names for {len(self.widths)} widths. Give one name per width."
            )
        self.shared_start = True
        self.shared_latents, self.shared_penalty, self.dedicated = 0, 1.0, 0
        self.folded_in = False
        self.register_buffer("source_scale_S", torch.ones(len(self.widths), dtype=dtype))
        self.register_buffer("gain_F", torch.ones(d_sae, dtype=dtype))
        self.source_scale_S: Tensor
        self.gain_F: Tensor
        self.own_FS: torch.nn.Parameter  # of crosscoders.gates.OwnMagnitude, as is the next
        self.usual_FS: Tensor
        self.rank_FS: Tensor

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
        gains = (self.gain_F[:, None] * self.usual()).t()[:, :, None]
        wanted = [s.reciprocal() if raw else torch.ones_like(s) for s in self.source_scale_S]
        here = [s if self.folded_in else torch.ones_like(s) for s in self.source_scale_S]
        return [b * g * (w * h) for b, g, w, h in zip(blocks, gains, wanted, here, strict=True)]

    def decoder_norms(self, *, raw: bool = False) -> Tensor:
        """Norms [n_sources, d_sae] of the decoder rows in training scale, before and after a save alike.

        Training scale has every source at the same size, so growth of the residual stream does not look like a latent
        being born; ``raw`` gives the norms in the model's own units. With a magnitude per source they are what a latent
        adds at that source where it is on, by root mean square.
        """
        norms = self._norms() * self.usual().t()
        return norms / self.source_scale_S[:, None] if raw else norms

    def _norms(self) -> Tensor:
        """[S, F] norms of the decoder rows as they are stored, in training scale."""
        norms = torch.stack(
            [torch.linalg.vector_norm(b, dim=1) for b in self.dec_FD.detach().split(self.widths, dim=1)]
        )
        return norms * self.gain_F * (self.source_scale_S[:, None] if self.folded_in else 1.0)

    def usual(self) -> Tensor:
        """[F, S] the root mean square of a latent's magnitude at every source, which folding makes one; ones where all
        sources share it, and for a latent that has never been on.
        """
        if not isinstance(self.activation, OwnMagnitude) or self.folded_in:
            return torch.ones_like(self.gain_F)[:, None].expand(-1, len(self.widths))
        size = self.usual_FS.sqrt()
        most = size.amax(1, keepdim=True)
        return torch.where(most > 0, torch.maximum(size, LEAST * most), torch.ones_like(size))

    # --- use -----------------------------------------------------------------------------------------------------

    def strengths(self, rows_BD: Tensor) -> Tensor:
        """p [B, F] of rows in the scale the weights expect, with a magnitude per source: the length that each latent
        would add to the concatenated row in training scale.
        """
        total = rows_BD.new_zeros(len(rows_BD), len(self.enc_FD))
        biases = self._own_biases()
        for x, enc, bias, n in zip(
            rows_BD.split(self.widths, 1), self.enc_FD.split(self.widths, 1), biases, self._competing(), strict=True
        ):
            total += (torch.addmm(bias, x, enc.t()).clamp_min_(0) * n).square_()
        return total.sqrt_()

    def _competing(self) -> Tensor:
        """[S, F] the decoder norms by which latents with a magnitude per source compete: those of the training."""
        return self.rank_FS.t() if self.folded_in else self._norms()

    def _own_biases(self) -> list[Tensor]:
        """[F] for every source: what is added to its rows' product with its encoder."""
        parts = zip(self.enc_FD.split(self.widths, 1), self.b_dec.split(self.widths), strict=True)
        return [self.b_enc + own - enc @ b for own, (enc, b) in zip(self.own_FS.unbind(1), parts, strict=True)]

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(values, indices) of the kept latents; with a magnitude per source the values are p (:meth:`strengths`)."""
        if not isinstance(self.activation, OwnMagnitude):
            return super().encode_sparse(x)
        parts, indices = self.source_values(x)
        return self._pooled(parts, indices), indices

    def _pooled(self, parts: list[Tensor], indices: Tensor) -> Tensor:
        squares = sum((f * n[indices]).square() for f, n in zip(parts, self._competing(), strict=True))
        assert isinstance(squares, Tensor)
        on = squares > 0  # the slope of a root at zero is not a number
        return torch.where(on, torch.where(on, squares, torch.ones_like(squares)).sqrt(), torch.zeros_like(squares))

    def source_values(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """What of each kept latent reaches each source: (S tensors of values [..., K], indices [..., K]) of raw rows
        [..., D]. One tensor S times, unless gates or magnitudes are per source.
        """
        if not isinstance(self.activation, OwnMagnitude):
            values, indices = super().encode_sparse(x)
            return [self.codes_at(values, s, indices) for s in range(len(self.widths))], indices
        rows = self._rows(x).reshape(-1, self.d_in)
        plan = StepPlan(self.k, pick("auto", rows), ranks=self.ranks)
        with torch.no_grad():
            found = [strongest(self.strengths(r), plan) for r in rows.split(ROWS)] or [
                (rows.new_zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64, device=rows.device))
            ]
            kept, indices = (torch.cat([one[i] for one in found]) for i in (0, 1))
        parts = []
        for part, enc, bias in zip(
            self.split(rows), self.enc_FD.split(self.widths, 1), self._own_biases(), strict=True
        ):
            if torch.is_grad_enabled() and (x.requires_grad or enc.requires_grad):
                z = torch.einsum("bd,bkd->bk", part, enc[indices])
            else:
                z = plan.backend.dots(part.contiguous(), enc.contiguous(), indices)
            parts.append(((z + bias[indices]).clamp_min(0) * (kept > 0)).reshape(*x.shape[:-1], -1))
        return parts, indices.reshape(*x.shape[:-1], -1)

    def reconstructed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(reconstruction [..., D], values, indices [..., K]) of raw rows."""
        if not isinstance(self.activation, OwnMagnitude):
            return super().reconstructed(x)
        y, parts, indices = self.reconstructed_by_source(x)
        return y, self._pooled(parts, indices), indices

    def reconstructed_by_source(self, x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """(reconstruction [..., D], what of each kept latent reaches each source, indices [..., K]) of raw rows: what
        :meth:`source_values` says beside what it gives, for one encoding.
        """
        if isinstance(self.activation, OwnMagnitude):
            parts, indices = self.source_values(x)
            y = torch.cat([self.split(self._decoded(f, indices))[s] for s, f in enumerate(parts)], dim=-1)
            return y, parts, indices
        y, values, indices = super().reconstructed(x)
        return y, [self.codes_at(values, s, indices) for s in range(len(self.widths))], indices

    def coded(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The rows of every source with what reaches it of each latent, where magnitudes are per source."""
        if not isinstance(self.activation, OwnMagnitude):
            yield from super().coded(x)
            return
        parts, indices = self.source_values(x)
        for rows, values in zip(self.split(x), parts, strict=True):
            yield rows, values, indices

    def rows_of(self, strength: Tensor, latents: Tensor) -> Tensor:
        """Raw rows in which some latents are (see :meth:`sae.model.SAE.rows_of`), as strong at every source."""
        if not isinstance(self.activation, OwnMagnitude):
            return super().rows_of(strength, latents)
        return self._decoded(strength, latents)

    def _decoded(self, values: Tensor, indices: Tensor) -> Tensor:
        """Raw activations [..., D] from the values that all sources get."""
        return super().decode_sparse(values, indices)

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """Raw activations [..., D] from kept latents; with a gate per source each source leaves out what its own gate
        closes.

        Raises:
            ConfigError: a magnitude per source, which one value per latent does not say.
        """
        if isinstance(self.activation, OwnMagnitude):
            raise ConfigError(NO_DECODING)
        if not isinstance(self.activation, PerSource):
            return super().decode_sparse(values, indices)
        norms = self.decoder_norms() / self.gain_F
        level = self.opening() * norms.amax(0)  # the common threshold t_i on z n_si
        open_ = [
            torch.where(values * norms[s][indices] > level[indices], values, torch.zeros_like(values))
            for s in range(len(self.widths))
        ]
        parts = [self.split(self._decoded(v, indices))[s] for s, v in enumerate(open_)]
        return torch.cat(parts, dim=-1)

    def opening(self) -> Tensor:
        """[F] the loosest source's thresholds of a dictionary with a gate per source."""
        threshold = self.thresholds()
        assert threshold is not None
        return threshold.detach()

    def codes_at(self, f: Tensor, source: int, latents: Tensor) -> Tensor:
        """What of the codes f [..., A] of some ``latents`` [A] reaches ``source``: all of it, unless the gate is per
        source.

        Raises:
            ConfigError: a magnitude per source; :meth:`source_values` has them.
        """
        if isinstance(self.activation, OwnMagnitude):
            raise ConfigError(NO_DECODING)
        if not isinstance(self.activation, PerSource):
            return f
        norms = (self.decoder_norms() / self.gain_F)[:, latents]
        return torch.where(f * norms[source] > self.opening()[latents] * norms.amax(0), f, torch.zeros_like(f))

    def decode(self, f: Tensor) -> Tensor:
        """Raw activations [..., D] from dense latent activations [..., F]; raises as :meth:`decode_sparse`."""
        if isinstance(self.activation, OwnMagnitude):
            raise ConfigError(NO_DECODING)
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
            scales.append(
                (mean_norm if self.start.scaling == "mean-norm" else centred.square().mean().sqrt()).reciprocal()
            )
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
        if isinstance(self.activation, NormTopK | OwnMagnitude):
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
        if isinstance(self.activation, OwnMagnitude):
            self._fold_magnitudes(out)
        out.source_scale_S.copy_(self.source_scale_S)
        out.gain_F.copy_(self.gain_F * gain)
        out.shared_latents, out.dedicated, out.folded_in = self.shared_latents, self.dedicated, True
        out.metadata = dict(self.metadata)
        return out

    def _fold_magnitudes(self, out: Self) -> None:
        """Give every latent's magnitude at every source a root mean square of one, and its decoder row the length."""
        usual = self.usual()
        each = usual.t().repeat_interleave(torch.tensor(self.widths, device=usual.device), dim=0).t()
        out.enc_FD.div_(each)
        out.dec_FD.mul_(each)
        out.own_FS.copy_((self.b_enc[:, None] + self.own_FS) / usual)
        out.b_enc.zero_()
        out.usual_FS.fill_(1.0)
        out.rank_FS.copy_(self._competing().t() * usual)

    def move_bias(self, bias_D: Tensor) -> None:
        """Another decoder bias, with the codes as they were."""
        if not isinstance(self.activation, OwnMagnitude):
            return super().move_bias(bias_D)
        blocks = zip(self.enc_FD.split(self.widths, 1), (bias_D - self.b_dec).split(self.widths), strict=True)
        self.own_FS.add_(torch.stack([enc @ d for enc, d in blocks], dim=1))
        self.b_dec.copy_(bias_D)

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
        scales = self.source_scale_S.tolist()
        return {
            "sources": [
                {"name": n, "width": w, "scale": s} for n, w, s in zip(self.sources, self.widths, scales, strict=True)
            ],
            "shared_latents": self.shared_latents,
            "dedicated_latents": self.dedicated,
        }
