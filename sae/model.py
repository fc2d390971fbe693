"""The sparse autoencoder itself: four tensors, an activation, and a scale that is folded away when it is saved.

Raw activations in, raw activations out, before and after folding. Both weights are stored (F, D) row-major, so that a
latent is one contiguous row; ``W_enc`` [D, F] and ``W_dec`` [F, D] are what users see.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sae.activation import Activation, Reconstruction, Threshold, TopK
from sae.backends import pick
from sae.encode import StepPlan, encode
from sae.errors import ConfigError, CorruptError, NonFiniteError, UserError
from sae.folder import CFG, check_shapes, dimensions, load, register, save
from sae.init import InitConfig
from sae.parallel import SINGLE_PROCESS, Ranks, per_latent
from sae.rows import StepRows

TINY = 1e-12
ROWS = 1024  # rows encoded at a time behind thresholds: bounds the dense pre-activations


class SAE(nn.Module):
    """``f = act((x * scale - b_dec) W_enc + b_enc)``, ``y = (f W_dec + b_dec) / scale``.

    Args:
        d_in: width D of a row. d_sae: latents F. activation: see :mod:`sae.activation`. d_out: width of what is
        reconstructed.

    Attributes:
        scale_D: factors on the input while training; all one in a saved dictionary.
        centred: whether b_dec is subtracted from the input (in a saved dictionary it is). start: how :meth:`initialise`
        starts.
        metadata: plain values that go into ``cfg.json`` (model_name, hook_name, seed, ...).
        ranks: the processes this dictionary is dealt to; the tensors with a row per latent then hold those of this one.
    """

    kind = "sae"
    ranks: Ranks = SINGLE_PROCESS

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: Activation,
        *,
        d_out: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.d_in, self.d_sae, self.d_out, self.activation = d_in, d_sae, d_out or d_in, activation
        self.enc_FD = nn.Parameter(torch.zeros(d_sae, d_in, dtype=dtype))
        self.dec_FD = nn.Parameter(torch.zeros(d_sae, self.d_out, dtype=dtype))
        self.b_enc = nn.Parameter(torch.zeros(d_sae, dtype=dtype))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out, dtype=dtype))
        self.register_buffer("scale_D", torch.ones(d_in, dtype=dtype))
        self.scale_D: Tensor
        self.metadata: dict[str, Any] = {}
        self.centred, self.start = True, InitConfig()
        self.candidates = 0  # see sae.activation.BatchTopK
        self.warm_up = 0  # steps in which the learning rate grows; the trainer says
        self.folded_in = False
        self.level: Tensor
        self.steps: Tensor
        self.threshold_F: Tensor
        self.log_threshold_F: nn.Parameter
        activation.attach(self)

    def extra_repr(self) -> str:
        """Sizes and activation, for ``print``."""
        out = "" if self.d_out == self.d_in else f", d_out={self.d_out}"
        return f"d_in={self.d_in}{out}, d_sae={self.d_sae}, activation={self.activation!r}"

    @property
    def W_enc(self) -> Tensor:
        """[d_in, d_sae]; a view, columns are latents."""
        return self.enc_FD.t()

    @property
    def W_dec(self) -> Tensor:
        """[d_sae, d_out]; rows are latents."""
        return self.dec_FD

    @property
    def k(self) -> int:
        """Latents kept per row (of a Top-K dictionary)."""
        return int(self.activation.k)  # type: ignore[attr-defined]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Widths of the parts of a decoder row whose norms count apart: one, but for crosscoders."""
        return (self.d_out,)

    def decoder_norms(self) -> Tensor:
        """Norms [1, d_sae] of the decoder rows as they are stored."""
        return torch.linalg.vector_norm(self.dec_FD.detach(), dim=1)[None]

    def penalty_shares(self) -> Tensor:
        """[F] factors of the latents' penalties."""
        return torch.ones_like(self.b_enc)

    # --- use -----------------------------------------------------------------------------------------------------

    def bias(self) -> Tensor:
        """[F] what is added to ``x * scale @ W_enc``."""
        return torch.addmv(self.b_enc, self.enc_FD, self.b_dec, alpha=-1) if self.centred else self.b_enc

    def thresholds(self) -> Tensor | None:
        """[F] what pre-activations must exceed, or None where a fixed number of latents is kept."""
        return self.activation.thresholds(self)

    def pre_activations(self, x: Tensor) -> Tensor:
        """z [n, F] of raw rows [n, d_in], before any selection."""
        return torch.addmm(self.bias(), self._rows(x), self.enc_FD.t())

    def _gated(self, x: Tensor, threshold_F: Tensor) -> Tensor:
        """Dense codes [n, F] of raw rows [n, d_in]; differentiable where a latent is on."""
        z = self.pre_activations(x)
        return z.clamp_min(0) * (z > threshold_F.detach())

    def _rows(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise ConfigError(
                f"rows have width {x.shape[-1]}, this dictionary expects {self.d_in}. Use activations of the hook it"
                " was trained on."
            )
        return x.to(self.enc_FD.dtype) * self.scale_D

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Kept latents of each row: (values, indices), both [..., k]; a value of zero means "not active".

        Behind thresholds the last axis is as long as the fullest of these rows needs.

        Args:
            x: raw activations [..., d_in], any leading shape. Values are differentiable in ``x`` where it asks for
            that.
        """
        threshold = self.thresholds()
        if threshold is not None:
            return self._encode_gated(x, threshold)
        rows = self._rows(x).reshape(-1, self.d_in)
        plan = StepPlan(
            self.activation.keep(self.k), pick("auto", rows), self.activation.selection_weights(self), ranks=self.ranks
        )
        with torch.no_grad():
            values, indices, _, _ = encode(rows, self.enc_FD, self.bias(), plan)
        if torch.is_grad_enabled() and (x.requires_grad or self.enc_FD.requires_grad):
            values = torch.einsum("bd,bkd->bk", rows, self.enc_FD[indices]) + self.bias()[indices]
        return values.clamp_min(0).reshape(*x.shape[:-1], -1), indices.reshape(*x.shape[:-1], -1)

    def _encode_gated(self, x: Tensor, threshold_F: Tensor) -> tuple[Tensor, Tensor]:
        """Active latents of each row, a bounded number of rows at a time."""
        kept = [active_entries(self._gated(rows, threshold_F)) for rows in x.reshape(-1, self.d_in).split(ROWS)]
        kept = kept or [
            (x.new_zeros(0, 1, dtype=self.enc_FD.dtype), torch.zeros(0, 1, dtype=torch.int64, device=x.device))
        ]
        width = max(v.shape[1] for v, _ in kept)
        values, indices = (
            torch.cat([nnf.pad(t, (0, width - t.shape[1])) for t in ts]) for ts in zip(*kept, strict=True)
        )
        return values.reshape(*x.shape[:-1], width), indices.reshape(*x.shape[:-1], width)

    def encode(self, x: Tensor) -> Tensor:
        """Dense latent activations [..., d_sae] of raw rows [..., d_in]."""
        threshold = self.thresholds()
        if threshold is not None:
            return self._gated(x.reshape(-1, self.d_in), threshold).reshape(*x.shape[:-1], self.d_sae)
        values, indices = self.encode_sparse(x)
        return values.new_zeros(*x.shape[:-1], self.d_sae).scatter(-1, indices, values)

    def decode(self, f: Tensor) -> Tensor:
        """Raw activations [..., d_out] from dense latent activations [..., d_sae]."""
        return (f @ self.dec_FD + self.b_dec) / self.target_scale

    def decode_sparse(self, values: Tensor, indices: Tensor) -> Tensor:
        """Raw activations [..., d_out] from kept latents (values, indices) [..., k]."""
        k = values.shape[-1]
        y = self.ranks.all_reduce_latents(
            pick("auto", values).decode(values.reshape(-1, k), indices.reshape(-1, k), self.dec_FD)
        )
        return ((y + self.b_dec) / self.target_scale).reshape(*values.shape[:-1], self.d_out)

    def forward(self, x: Tensor) -> Tensor:
        """The reconstruction of raw rows [..., d_in]."""
        y, skip = self.reconstructed(x)[0], self.skip(x)
        return y if skip is None else y + skip

    def reconstructed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(what the latents add up to [..., d_out], values, indices [..., k]) of raw rows."""
        values, indices = self.encode_sparse(x)
        return self.decode_sparse(values, indices), values, indices

    def coded(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(rows [n, D'], values, indices [n, k]) of each part of raw rows [n, d_in] that has codes of its own: one,
        but for crosscoders with a magnitude per source.
        """
        yield x, *self.encode_sparse(x)

    def skip(self, x: Tensor) -> Tensor | None:
        """What a connection past the latents adds to the reconstruction of raw rows; None where there is none."""
        return None

    # --- several processes ---------------------------------------------------------------------------------------

    def shard(self, ranks: Ranks) -> Self:
        """This dictionary, reduced to the latents of this process.

        Encoding gives these alone, numbered from the first; decoding sums all.
        """
        if ranks.latents > 1:
            self._replace_rows(lambda t: t[ranks.local_slice(self.d_sae)].clone())
        self.ranks = ranks
        return self

    def gather(self) -> Self:
        """The whole dictionary, put together in every process; shares the tensors that all have."""
        out = copy.copy(self)
        out._parameters, out._buffers = dict(self._parameters), dict(self._buffers)
        out._replace_rows(self.ranks.all_gather)
        out.ranks = SINGLE_PROCESS
        return out

    def _replace_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for name, p in list(self._parameters.items()):
            if per_latent(name) and p is not None:
                self._parameters[name] = nn.Parameter(change(p.detach()))
        for name, b in list(self._buffers.items()):
            if per_latent(name) and b is not None:
                self._buffers[name] = change(b)

    # --- training ------------------------------------------------------------------------------------------------

    @property
    def row_width(self) -> int:
        """Width of a training row."""
        return self.d_in

    @property
    def target_scale(self) -> Tensor:
        """[d_out] factors on what is reconstructed, while training."""
        return self.scale_D

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(what is read [..., d_in], what is reconstructed [..., d_out]) of raw training rows: the same, but for
        transcoders.
        """
        return rows, rows

    def rows_of(self, strength: Tensor, latents: Tensor) -> Tensor:
        """Raw rows [n, d_in] in which some latents [n, k] are, with a strength [n, k] in training scale."""
        return self.decode_sparse(strength / self.scale_D.mean(), latents)

    def training_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`pair` of raw rows [B, row_width] in training scale."""
        scaled = x.to(self.enc_FD.dtype) * self.scale_D
        return scaled, scaled

    def reconstruct(self, x_BD: Tensor, plan: StepPlan, target_BD: Tensor | None = None) -> Reconstruction:
        """(y, aux_y, values, indices, penalty or None) of rows in training scale, with gradients."""
        return self.activation.reconstruct(self, x_BD, plan, x_BD if target_BD is None else target_BD)

    def measure_scale(self, x_BD: Tensor) -> Tensor:
        """[D] factors that give rows [B, D] the length sqrt(D): the root-mean-square of centred rows, or the mean
        (``start.scaling``).
        """
        mean_square = (x_BD - x_BD.mean(0)).square().mean()
        if not mean_square > TINY * x_BD.square().mean():
            raise UserError(
                "the rows of the first batch are all the same: there is nothing to learn. Choose another hook, or"
                " other text."
            )
        mean_norm = self.start.scaling == "mean-norm"
        scale = x_BD.shape[1] ** 0.5 / x_BD.norm(dim=1).mean() if mean_norm else mean_square.rsqrt()
        return scale.expand(x_BD.shape[1]).clone()

    def measure(self, x_BD: Tensor) -> None:
        """Scale and biases from raw rows [B, row_width]."""
        self.scale_D.copy_(self.measure_scale(x_BD))
        self.b_dec.copy_((x_BD * self.scale_D).mean(0) if self.start.bias == "mean" else torch.zeros_like(self.b_dec))

    @torch.no_grad()
    def initialise(self, x_BD: Tensor, generator: torch.Generator) -> None:
        """Data-dependent start on raw rows: scale, mean as bias, random decoders of one norm, tied encoders of the best
        common length.

        Raises:
            UserError: constant rows. NonFiniteError: the scale overflows.
        """
        x = x_BD.to(self.enc_FD.dtype)
        self.measure(x)
        if not (torch.isfinite(self.scale_D).all() and torch.isfinite(self.target_scale).all()):
            raise NonFiniteError(
                "the scale of the first batch is not finite: its rows are too large for this precision. Use dtype ="
                " 'float32', or scale the rows down."
            )
        self.b_enc.zero_()
        norm = self.start.norm
        drawn = self.directions(self.d_sae, generator, self.ranks.local_slice(self.d_sae))
        self.dec_FD.copy_(drawn * (1.0 if norm == "search" else norm))
        self.constrain()
        self.enc_FD.copy_(self.encoder_start(self.dec_FD))
        self.activation.begin(self, self.pre_activations(self.pair(x[:1024])[0]))
        if self.start.encoder == "fitted" or norm == "search":
            self._fit_length(x[:1024])

    def _fit_length(self, x_BD: Tensor) -> None:
        """Give all encoders the common length of least error on raw rows: exact for Top-K, which is homogeneous; a
        start for the others.

        With ``start.norm = "search"`` encoders and decoders share it.
        """
        rows, target = self.pair(x_BD)
        y = self.reconstructed(rows)[0] * self.target_scale - self.b_dec
        factor = (y * (target * self.target_scale - self.b_dec)).sum() / y.square().sum().clamp_min(TINY)
        if not (factor.isfinite() and factor > 0):
            return
        if self.start.norm == "search":
            self.dec_FD.mul_(factor.sqrt())
            factor = factor.sqrt()
        self.enc_FD.mul_(factor)
        self.activation.raise_thresholds(self, float(factor))

    def move_bias(self, bias_D: Tensor) -> None:
        """Another decoder bias, with the codes as they were: the encoder goes on reading rows around the old one."""
        if self.centred:
            self.b_enc.add_(self.enc_FD @ (bias_D - self.b_dec))
        self.b_dec.copy_(bias_D)

    def encoder_start(self, decoders: Tensor) -> Tensor:
        """[n, d_in] encoder rows that go with decoder rows [n, d_out], of the same length."""
        return decoders

    def directions(self, n: int, generator: torch.Generator, wanted: slice = slice(None)) -> Tensor:
        """The ``wanted`` of ``n`` random unit directions [n, d_out] in float64.

        Which are wanted changes none of them.
        """
        return nnf.normalize(torch.randn(n, self.d_out, generator=generator, dtype=torch.float64)[wanted], dim=1)

    @torch.no_grad()
    def revive(
        self, latents_N: Tensor, residual_BD: Tensor, generator: torch.Generator, part: StepRows | None = None
    ) -> None:
        """Start dead latents anew where the reconstruction is worst (Bricken et al. 2023, *Towards Monosemanticity*,
        resampling).

        Each takes the direction of the residual of a row drawn with probability proportional to its squared error, plus
        noise; its encoder is half as long as the others' mean, so that AuxK rather than an abrupt start brings it in.
        ``part`` says where these rows stand among those of all processes; each process gives its own dead latents.
        """
        part = part or StepRows(residual_BD, len(residual_BD), 0)
        n, before = self.ranks.offset(len(latents_N))
        mine = slice(before, before + len(latents_N))
        error = part.spread(residual_BD.square().sum(1)).cpu().double()
        chosen = torch.multinomial(error, n, replacement=True, generator=generator).to(residual_BD.device)[mine]
        noise = self.directions(n, generator, mine).to(residual_BD)
        direction = nnf.normalize(
            nnf.normalize(part.fetch(residual_BD, chosen), dim=1) + 0.5 * nnf.normalize(noise, dim=1), dim=1
        )
        length = self.ranks.all_reduce_latents(torch.linalg.vector_norm(self.enc_FD, dim=1).mean()) / self.ranks.latents
        self.dec_FD[latents_N] = direction
        self.enc_FD[latents_N] = self.encoder_start(direction) * (0.5 * length)
        self.b_enc[latents_N] = 0
        if "log_threshold_F" in self._parameters:  # behind the one it died at a latent would stay dead
            usual = self.ranks.all_reduce_latents(self.log_threshold_F.mean()) / self.ranks.latents
            self.log_threshold_F[latents_N] = usual

    @torch.no_grad()
    def constrain(self) -> None:
        """Unit-norm decoder rows (in training scale), after every step, where the activation wants them."""
        if self.activation.unit_decoders:
            self.dec_FD.div_(torch.linalg.vector_norm(self.dec_FD, dim=1, keepdim=True).clamp_min_(TINY))

    @torch.no_grad()
    def folded(self) -> SAE:
        """A copy without a scale and with the same raw input-output behaviour: a plain Top-K, or a threshold for every
        latent.

        Free decoder norms go into the encoder. With one common scale decoders are then unit-norm and activations are in
        raw
        units: f is the length a latent adds. Thresholds follow (forgetting them multiplies L0).
        """
        gain, threshold = self._gain(), self.thresholds()
        out = self.like(self.activation.fold(gain))
        self._fold_into(out, gain)
        if threshold is not None:
            out.threshold_F.copy_(threshold * gain)
        out.metadata = dict(self.metadata)
        return out

    def _gain(self) -> Tensor:
        """[F] by what folding multiplies activations: back to raw units where one scale serves all, times a free
        decoder norm.
        """
        s = self.target_scale
        gain = s.reciprocal()[:1] if bool((s == s[0]).all()) else torch.ones_like(s[:1])
        if self.activation.folds_norms:
            n = self.decoder_norms().sum(0)
            gain = gain * torch.where(n > TINY, n, torch.ones_like(n))
        return gain.expand(self.d_sae)

    def _fold_into(self, out: SAE, gain: Tensor) -> None:
        out.enc_FD.copy_(self.enc_FD * self.scale_D * gain[:, None])
        out.b_enc.copy_((self.b_enc if self.centred else torch.addmv(self.b_enc, self.enc_FD, self.b_dec)) * gain)
        out.dec_FD.copy_(self.dec_FD / self.scale_D / gain[:, None])
        out.b_dec.copy_(self.b_dec / self.scale_D)

    def like(self, activation: Activation) -> SAE:
        """An empty dictionary of the same shape, precision and device with another activation, of the class that
        belongs to it.
        """
        return empty_sae(self.d_in, self.d_sae, activation, dtype=self.enc_FD.dtype).to(self.enc_FD.device)

    def own_cfg(self) -> tuple[str, dict[str, Any]]:
        """(architecture, its entries) of ``cfg.json``, in SAELens' names."""
        return self.activation.architecture, self.activation.cfg()

    def extras(self) -> dict[str, Tensor]:
        """Tensors saved beside ``W_enc``, ``W_dec``, ``b_enc`` and ``b_dec`` of a folded dictionary."""
        return {"threshold": self.threshold_F} if self.activation.architecture.startswith("jumprelu") else {}

    # --- disk ----------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``cfg.json`` and ``sae_weights.safetensors`` (:mod:`sae.folder`), folded, read back and compared."""
        return save(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a dictionary of this class from a folder.

        Raises:
            MissingError, CorruptError, NewerSchemaError: see :func:`sae.folder.load`. ConfigError: it is of another
            class.
        """
        found = load(path)
        if not isinstance(found, cls):
            raise ConfigError(f"{path} holds a {type(found).__name__}, not a {cls.__name__}. Use sae.load(path).")
        return found


class TopKSAE(SAE):
    """A Top-K SAE (Gao et al. 2024, arXiv 2406.04093)."""

    def __init__(self, d_in: int, d_sae: int, k: int, *, dtype: torch.dtype = torch.float32):
        super().__init__(d_in, d_sae, TopK(k), dtype=dtype)


class ThresholdSAE(SAE):
    """``f = z 1[z > threshold_F]``, ``z = relu((x * scale - b_dec) W_enc + b_enc)``.

    Args:
        k: nominal L0, 0 where it is not known. architecture: ``jumprelu``, or ``standard`` (a ReLU: thresholds are
        zero).
    """

    def __init__(
        self, d_in: int, d_sae: int, *, k: int = 0, architecture: str = "jumprelu", dtype: torch.dtype = torch.float32
    ):
        super().__init__(d_in, d_sae, Threshold(k, architecture), dtype=dtype)


def empty_sae(d_in: int, d_sae: int, activation: Activation, *, dtype: torch.dtype = torch.float32) -> SAE:
    """An empty SAE of the class that belongs to an activation: TopKSAE, ThresholdSAE, or SAE itself."""
    if type(activation) is TopK:
        return TopKSAE(d_in, d_sae, activation.k, dtype=dtype)
    if type(activation) is Threshold:
        return ThresholdSAE(d_in, d_sae, k=activation.k, architecture=activation.architecture, dtype=dtype)
    return SAE(d_in, d_sae, activation, dtype=dtype)


def active_entries(f: Tensor) -> tuple[Tensor, Tensor]:
    """Non-zero entries of dense codes [n, F] as (values, indices) [n, K], latents ascending; K at least 1."""
    width = max(1, int((f > 0).sum(1).max())) if len(f) else 1
    indices = f.detach().topk(width, dim=1).indices.sort(dim=1).values
    return f.gather(1, indices), indices


def read_topk(cfg: dict[str, Any], tensors: dict[str, Tensor], where: str) -> SAE:
    """The reader of plain Top-K dictionaries."""
    d_in, d_sae, k = dimensions(cfg, where, "k")
    check_shapes(tensors, {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}, where)
    if not 1 <= k <= d_sae:
        raise CorruptError(
            f"{where}/{CFG}: k = {k} is not between 1 and d_sae = {d_sae}. Restore the file from a copy."
        )
    sae = TopKSAE(d_in, d_sae, k, dtype=tensors["W_enc"].dtype)
    with torch.no_grad():
        sae.enc_FD.copy_(tensors["W_enc"].t())
        sae.dec_FD.copy_(tensors["W_dec"])
        sae.b_enc.copy_(tensors["b_enc"])
        sae.b_dec.copy_(tensors["b_dec"])
    return sae


register("topk", "sae", read_topk)
