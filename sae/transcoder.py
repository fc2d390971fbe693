"""A transcoder: an SAE that reads one place and reconstructs another, such as an MLP's input and its output.

Dunefsky et al. 2024 (arXiv 2406.11944); with a skip connection Paulo et al. 2025 (arXiv 2501.18823).
Training rows are both places side by side, [B, d_in + d_out].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from sae.activation import Activation, Reconstruction, Threshold, TopK
from sae.devices import wide
from sae.encode import StepPlan
from sae.errors import ConfigError, CorruptError
from sae.folder import check_shapes, dimensions, register
from sae.model import SAE

# (activation's name in cfg.json, with a skip connection) -> architecture; SAELens has all but the Top-K ones
NAMES = {
    ("standard", False): "transcoder",
    ("standard", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder",
    ("jumprelu", True): "jumprelu_skip_transcoder",
    ("topk", False): "topk_transcoder",
    ("topk", True): "topk_skip_transcoder",
}
RIDGE = 0.1  # of the mean input variance, in the linear map that starts the encoders


class Transcoder(SAE):
    """``f = act((x * scale - mean) W_enc + b_enc)``, ``y = (f W_dec + b_dec [+ (x * scale - mean) W_skip]) /
    out_scale``.

    Args:
        d_out: width of what is reconstructed (d_in where not given). skip: a linear connection past the latents.

    Attributes:
        mean_D: of the input in training scale; zero in a saved dictionary. skip_DD: [d_in, d_out] or None.
    """

    kind = "transcoder"

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: Activation,
        *,
        d_out: int | None = None,
        skip: bool = False,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__(d_in, d_sae, activation, d_out=d_out, dtype=dtype)
        self.centred = False
        self.register_buffer("mean_D", torch.zeros(d_in, dtype=dtype))
        self.register_buffer("out_scale_D", torch.ones(self.d_out, dtype=dtype))
        self.register_buffer(
            "map_DD", torch.zeros(self.d_out, d_in, dtype=dtype)
        )  # decoder direction -> input that predicts it
        self.register_parameter("skip_DD", nn.Parameter(torch.zeros(d_in, self.d_out, dtype=dtype)) if skip else None)
        self.skip_DD: nn.Parameter | None
        self.mean_D: Tensor
        self.out_scale_D: Tensor
        self.map_DD: Tensor

    @property
    def row_width(self) -> int:
        """Width of a training row: both places."""
        return self.d_in + self.d_out

    @property
    def target_scale(self) -> Tensor:
        """[d_out] factors on what is reconstructed, while training."""
        return self.out_scale_D

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(what is read, what is reconstructed) of raw training rows [..., d_in + d_out]."""
        if rows.shape[-1] != self.row_width:
            raise ConfigError(
                f"rows have width {rows.shape[-1]}; this transcoder needs input and output side by side, {self.d_in} +"
                f" {self.d_out}."
            )
        return rows[..., : self.d_in], rows[..., self.d_in :]

    def training_rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`pair` in training scale, the input centred."""
        read, target = self.pair(x)
        return self._rows(read), target.to(self.dec_FD.dtype) * self.out_scale_D

    def rows_of(self, strength: Tensor, latents: Tensor) -> Tensor:
        """Raw rows [n, d_in] along the encoders of some latents [n, k], with a strength [n, k] in training scale."""
        directions = nnf.normalize(self.enc_FD, dim=1)[latents]
        return (torch.einsum("bk,bkd->bd", strength, directions) + self.mean_D) / self.scale_D

    def _rows(self, x: Tensor) -> Tensor:
        return super()._rows(x) - self.mean_D

    def skip(self, x: Tensor) -> Tensor | None:
        """What the skip connection adds to the reconstruction of raw rows [..., d_in], or None without one."""
        return None if self.skip_DD is None else self._rows(x) @ self.skip_DD / self.out_scale_D

    def reconstruct(self, x_BD: Tensor, plan: StepPlan, target_BD: Tensor | None = None) -> Reconstruction:
        """See :meth:`sae.model.SAE.reconstruct`; the latents reconstruct what the skip connection leaves."""
        assert target_BD is not None
        past = None if self.skip_DD is None else x_BD @ self.skip_DD
        y, aux_y, values, indices, penalty = super().reconstruct(
            x_BD, plan, target_BD if past is None else target_BD - past
        )
        return y if past is None else y + past, aux_y, values, indices, penalty

    def measure(self, x_BD: Tensor) -> None:
        """Scales, means, and the ridge regression of the output on the input, which tells an encoder where its
        decoder's output comes from.
        """
        read, target = self.pair(x_BD)
        self.scale_D.copy_(self.measure_scale(read))
        self.out_scale_D.copy_(self.measure_scale(target))
        self.mean_D.copy_((read * self.scale_D).mean(0))
        if self.start.bias == "mean":
            self.b_dec.copy_((target * self.out_scale_D).mean(0))
        rows, y = wide(self._rows(read)), wide(target * self.out_scale_D)
        gram = rows.t() @ rows / len(rows)
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        self.map_DD.copy_(torch.linalg.solve(gram, rows.t() @ (y - y.mean(0)) / len(rows)).t())

    def encoder_start(self, decoders: Tensor) -> Tensor:
        """[n, d_in] unit directions that best predict the outputs along ``decoders`` [n, d_out]."""
        return nnf.normalize(decoders.to(self.map_DD) @ self.map_DD, dim=1)

    def like(self, activation: Activation) -> SAE:
        """An empty transcoder of the same shape, precision and device with another activation."""
        has_skip = self.skip_DD is not None
        out = Transcoder(self.d_in, self.d_sae, activation, d_out=self.d_out, skip=has_skip, dtype=self.enc_FD.dtype)
        return out.to(self.enc_FD.device)

    def _fold_into(self, out: SAE, gain: Tensor) -> None:
        out.enc_FD.copy_(self.enc_FD * self.scale_D * gain[:, None])
        out.b_enc.copy_(torch.addmv(self.b_enc, self.enc_FD, self.mean_D, alpha=-1) * gain)
        out.dec_FD.copy_(self.dec_FD / self.out_scale_D / gain[:, None])
        b_dec: Tensor = self.b_dec
        if self.skip_DD is not None:
            b_dec = b_dec - self.mean_D @ self.skip_DD
            out.get_parameter("skip_DD").copy_(self.scale_D[:, None] * self.skip_DD / self.out_scale_D)
        out.b_dec.copy_(b_dec / self.out_scale_D)

    def own_cfg(self) -> tuple[str, dict[str, Any]]:
        """As an SAE's, with the transcoder's name and the width of what it writes."""
        architecture, own = super().own_cfg()
        return NAMES[architecture, self.skip_DD is not None], own | {"d_out": self.d_out}

    def extras(self) -> dict[str, Tensor]:
        """Tensors saved beside the four of every dictionary."""
        return super().extras() | ({} if self.skip_DD is None else {"W_skip": self.skip_DD.t()})


def read_transcoder(cfg: dict[str, Any], tensors: dict[str, Tensor], where: str) -> SAE:
    """The reader of transcoder folders.

    Raises:
        CorruptError: tensors of other shapes than promised.
    """
    d_in, d_sae = dimensions(cfg, where)
    d_out = int(cfg.get("d_out") or d_in)
    name = str(cfg["architecture"])
    base = "topk" if name.startswith("topk") else "jumprelu" if name.startswith("jumprelu") else "standard"
    expected: dict[str, tuple[int, ...]] = {
        "W_enc": (d_in, d_sae),
        "W_dec": (d_sae, d_out),
        "b_enc": (d_sae,),
        "b_dec": (d_out,),
    }
    if base == "jumprelu":
        expected["threshold"] = (d_sae,)
    skip = "W_skip" in tensors
    if skip:
        expected["W_skip"] = (d_out, d_in)
    check_shapes(tensors, expected, where)
    k = dimensions(cfg, where, "k")[2] if base == "topk" else int(cfg.get("metadata", {}).get("k") or 0)
    if base == "topk" and not 1 <= k <= d_sae:
        raise CorruptError(
            f"{where}/cfg.json: k = {k} is not between 1 and d_sae = {d_sae}. Restore the file from a copy."
        )
    activation = TopK(k) if base == "topk" else Threshold(k, base)
    out = Transcoder(d_in, d_sae, activation, d_out=d_out, skip=skip, dtype=tensors["W_enc"].dtype)
    with torch.no_grad():
        out.enc_FD.copy_(tensors["W_enc"].t())
        out.dec_FD.copy_(tensors["W_dec"])
        out.b_enc.copy_(tensors["b_enc"])
        out.b_dec.copy_(tensors["b_dec"])
        if cfg.get("apply_b_dec_to_input"):
            out.b_enc.sub_(out.enc_FD @ out.b_dec)
        if base == "jumprelu":
            out.threshold_F.copy_(tensors["threshold"])
        if out.skip_DD is not None:
            out.skip_DD.copy_(tensors["W_skip"].t())
    return out


for _architecture in (
    *NAMES.values(),
    "jumprelu",
    "standard",
):  # the last two with kind = transcoder: folders of earlier versions
    register(_architecture, "transcoder", read_transcoder)
    if "transcoder" in _architecture:
        register(_architecture, "sae", read_transcoder)
