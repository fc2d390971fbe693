"""Dictionaries of what a recurrent layer writes into its state.

A layer with H heads adds a matrix k_h v_hᵀ [K, V] to the state of each (keys K, values V; see
:mod:`workbench.models.recurrent`). Here a row is such a write, and an atom (a decoder row) is one as well: in every
head a matrix of rank one, so that it can take the place of a write. Atoms of that shape, and the test by substitution,
are those of WriteSAE (arXiv 2605.12770).

Training rows are the two factors side by side, [B, H·K + H·V]; codes and errors are those of the writes themselves
[B, H·K·V]: the loss is the squared norm in which the state lives. The encoder is any linear functional of a write. No
bias is written: a decoder bias would be of full rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.activation import Activation, TopK
from sae.errors import ConfigError, CorruptError, NewerSchemaError
from sae.folder import CFG, check_shapes, dimensions, register
from sae.model import SAE

FORMAT = 1  # of the entries under ``write`` in cfg.json
_RANK = 1e-3  # largest share of an atom's norm outside of its leading direction in a folder that is read


def outer(key: Tensor, value: Tensor) -> Tensor:
    """[..., H, K] and [..., H, V] -> [..., H·K·V]."""
    return (key[..., :, None] * value[..., None, :]).flatten(-3)


def rank_one(atoms: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The nearest rows [n, H·K·V] whose matrices [K, V] have rank one in every head (Eckart and Young 1936)."""
    heads, keys, values = shape
    blocks = atoms.unflatten(-1, (heads, keys, values))
    wide = blocks if keys <= values else blocks.transpose(-1, -2)
    leading = torch.linalg.eigh(wide @ wide.transpose(-1, -2)).eigenvectors[..., -1:]  # ascending: the last is largest
    nearest = leading @ (leading.transpose(-1, -2) @ wide)
    return (nearest if keys <= values else nearest.transpose(-1, -2)).flatten(-3)


def leading_factors(atoms: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(keys [n, H, K] of unit length, values [n, H, V]) of rows [n, H·K·V]: their product is :func:`rank_one`."""
    u, s, vh = torch.linalg.svd(atoms.unflatten(-1, shape), full_matrices=False)
    return u[..., 0], s[..., :1] * vh[..., 0, :]


class WriteSAE(SAE):
    """An SAE whose atoms are writes: ``f = act(<E_i, k vᵀ>)``, ``k vᵀ ≈ Σ f_i k_i v_iᵀ``.

    Args:
        shape: (heads H, keys K, values V) of the layer's state.
    """

    kind = "write"

    def __init__(
        self,
        shape: tuple[int, int, int],
        d_sae: int,
        activation: Activation,
        *,
        dtype: torch.dtype = torch.float32,
    ):
        heads, keys, values = shape
        super().__init__(heads * keys * values, d_sae, activation, dtype=dtype)
        self.shape = shape
        self.centred = False
        self._examples: Tensor | None = None

    @property
    def row_width(self) -> int:
        """Width of a training row: the factors of all heads."""
        heads, keys, values = self.shape
        return heads * (keys + values)

    def writes(self, rows: Tensor) -> Tensor:
        """Writes [..., H·K·V] of raw training rows [..., H·K + H·V].

        Raises:
            ConfigError: rows of another width.
        """
        heads, keys, values = self.shape
        if rows.shape[-1] != self.row_width:
            raise ConfigError(
                f"rows have width {rows.shape[-1]}; this dictionary of writes needs keys and values side by side,"
                f" {heads} x ({keys} + {values})."
            )
        key, value = rows.split([heads * keys, heads * values], -1)
        return outer(key.unflatten(-1, (heads, keys)), value.unflatten(-1, (heads, values)))

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The writes of raw training rows: what is read is what is reconstructed."""
        writes = self.writes(rows)
        return writes, writes

    def training_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`pair` in training scale."""
        scaled = self.writes(x.to(self.enc_FD.dtype)) * self.scale_D
        return scaled, scaled

    def measure(self, x_BD: Tensor) -> None:
        """The scale of the writes of raw rows; nothing is written by default."""
        self.scale_D.copy_(self.measure_scale(self.writes(x_BD)))
        self.b_dec.zero_()

    def initialise(self, x_BD: Tensor, generator: torch.Generator) -> None:
        """As any SAE, from writes of the first batch: directions drawn at random touch few of them."""
        writes = self.writes(x_BD.to(self.enc_FD.dtype))
        self._examples = writes[writes.square().sum(1) > 0]
        try:
            super().initialise(x_BD, generator)
        finally:
            self._examples = None

    def directions(self, n: int, generator: torch.Generator, wanted: slice = slice(None)) -> Tensor:
        """Unit directions [n, H·K·V]: writes of the first batch, each once where there are as many, or at random."""
        if self._examples is None or not len(self._examples):
            return super().directions(n, generator, wanted)
        rounds = -(-n // len(self._examples))
        order = torch.cat([torch.randperm(len(self._examples), generator=generator) for _ in range(rounds)])[:n]
        return nnf.normalize(self._examples[order.to(self._examples.device)].double(), dim=1)[wanted]

    @torch.no_grad()
    def constrain(self) -> None:
        """Rank one in every head, unit norm, after every step."""
        self.dec_FD.copy_(rank_one(self.dec_FD, self.shape))
        super().constrain()

    def like(self, activation: Activation) -> SAE:
        """An empty dictionary of writes of the same shape, precision and device with another activation."""
        return WriteSAE(self.shape, self.d_sae, activation, dtype=self.enc_FD.dtype).to(self.enc_FD.device)

    def own_cfg(self) -> tuple[str, dict[str, Any]]:
        """As an SAE's, with the shape of the state."""
        architecture, own = super().own_cfg()
        heads, keys, values = self.shape
        return architecture, own | {"write": {"format": FORMAT, "heads": heads, "keys": keys, "values": values}}


def read_writes(cfg: dict[str, Any], tensors: dict[str, Tensor], where: str) -> SAE:
    """The reader of folders of kind ``write``.

    Raises:
        NewerSchemaError: written by a later version. CorruptError: tensors of other shapes than promised, a bias, or
            atoms that are not of rank one.
    """
    about = cfg.get("write")
    if not isinstance(about, dict) or not all(
        isinstance(about.get(n), int) and about[n] >= 1 for n in ("format", "heads", "keys", "values")
    ):
        raise CorruptError(
            f"{where}/{CFG}: write = {about!r} must name format, heads, keys and values, each a whole number from 1"
            " up. Restore the file from a copy."
        )
    if about["format"] > FORMAT:
        raise NewerSchemaError(
            f"{where}: dictionaries of writes in format {about['format']} are newer than this program, which reads up"
            f" to {FORMAT}. Update it."
        )
    d_in, d_sae, k = dimensions(cfg, where, "k")
    shape = about["heads"], about["keys"], about["values"]
    if shape[0] * shape[1] * shape[2] != d_in or not 1 <= k <= d_sae:
        raise CorruptError(
            f"{where}/{CFG}: d_in = {d_in} and k = {k} do not fit {about} (d_in = heads * keys * values) and d_sae ="
            f" {d_sae} (at least k). Restore the file from a copy."
        )
    check_shapes(tensors, {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_enc": (d_sae,), "b_dec": (d_in,)}, where)
    atoms = tensors["W_dec"].double()
    outside = (atoms - rank_one(atoms, shape)).norm(dim=1) > _RANK * atoms.norm(dim=1)
    if bool(outside.any()) or bool(tensors["b_dec"].any()):
        what = f"{int(outside.sum())} atoms are not of rank one" if bool(outside.any()) else "b_dec is not zero"
        raise CorruptError(
            f"{where}: {what}, so they are no writes (rank-one matrices). Restore the folder from a copy, or train it"
            " again."
        )
    out = WriteSAE(shape, d_sae, TopK(k), dtype=tensors["W_enc"].dtype)
    with torch.no_grad():
        out.enc_FD.copy_(tensors["W_enc"].t())
        out.dec_FD.copy_(tensors["W_dec"])
        out.b_enc.copy_(tensors["b_enc"])
    return out


register("topk", "write", read_writes)
