"""What the parts of this room ask of a dictionary, written down so that none of them needs to import the class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sae.parallel import Ranks


class Weights(Protocol):
    """A dictionary in training, as its activation sees it: F latents, rows of width D, in training scale.

    Attributes:
        enc_FD, dec_FD, b_enc, b_dec: the parameters. level, steps, threshold_F, log_threshold_F: buffers and parameters
            that some activations attach. centred: whether b_dec is subtracted from the input. candidates: see
            :class:`sae.activation.BatchTopK`.
    """

    d_sae: int
    enc_FD: nn.Parameter
    dec_FD: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    level: Tensor
    steps: Tensor
    threshold_F: Tensor
    log_threshold_F: nn.Parameter
    centred: bool
    candidates: int
    warm_up: int  # steps in which the learning rate grows
    folded_in: bool  # of a crosscoder whose scales are in its weights
    training: bool
    ranks: Ranks

    @property
    def blocks(self) -> tuple[int, ...]:
        """Widths of the parts of a decoder row whose norms count apart."""

    def bias(self) -> Tensor:
        """[F] what is added to the encoder's product."""

    def decoder_norms(self) -> Tensor:
        """[blocks, F]."""

    def penalty_shares(self) -> Tensor:
        """[F] factors of the latents' penalties."""

    def register_buffer(self, name: str, tensor: Tensor | None) -> None:
        """Attach a buffer."""


class Dictionary(Protocol):
    """A dictionary in use: raw activations in, raw activations out. What this program's analyses take."""

    d_in: int
    d_sae: int
    d_out: int
    kind: str
    metadata: dict[str, Any]

    @property
    def k(self) -> int:
        """Latents kept per row; 0 where thresholds decide."""

    @property
    def W_enc(self) -> Tensor:
        """[d_in, d_sae]."""

    @property
    def W_dec(self) -> Tensor:
        """[d_sae, d_out]."""

    @property
    def b_enc(self) -> Any:
        """[d_sae]."""

    @property
    def b_dec(self) -> Any:
        """[d_out]."""

    def encode(self, x: Tensor) -> Tensor:
        """Codes [n, d_sae] of raw rows [n, d_in]."""

    def encode_sparse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(values, indices) [n, K] of the kept latents of raw rows."""

    def decode(self, f: Tensor) -> Tensor:
        """Raw rows [n, d_out] of codes [n, d_sae]."""

    def save(self, path: str | Path) -> Path:
        """Write the dictionary's folder."""
