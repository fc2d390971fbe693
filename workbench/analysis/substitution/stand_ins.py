"""What takes the place of a write: the atom that fires there, scaled by its code, and controls of the same norm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sae.writes import WriteSAE, leading_factors

ARMS = ("ablated", "atom", "matched", "permuted", "random", "pca")  # what is put in; the first is nothing
COMPONENTS = 32  # principal directions that are tried
PCA_ROWS = 8192

Factors = tuple[Tensor, Tensor]  # keys [n, H, K] and values [n, H, V]


@dataclass(frozen=True)
class StandIns:
    """The dictionary's atoms, the same in another order, and principal directions, as factors of unit norm.

    Attributes:
        order: [F] which atom stands for which in the permuted dictionary.
    """

    atoms: Factors
    order: Tensor
    components: Factors

    @classmethod
    def of(cls, dictionary: WriteSAE, writes: Tensor, alive: Tensor, seed: int) -> StandIns:
        """From writes [n, H·K·V] of the training text, and which atoms fire (bool [F])."""
        return cls(
            unit(leading_factors(dictionary.W_dec.detach(), dictionary.shape)),
            permuted(alive, seed),
            unit(leading_factors(principal(writes), dictionary.shape)),
        )

    def instead(
        self, arm: str, key: Tensor, value: Tensor, atoms: Tensor, codes: Tensor, rng: np.random.Generator
    ) -> Factors:
        """What an arm puts in the place of writes key [n, H, K] times value [n, H, V] at which ``atoms`` [n] fire with
        ``codes`` [n]: of the code's norm, but for the atom at the write's own (``matched``).
        """
        norm = (norms((key, value)) if arm == "matched" else codes)[:, None, None]
        if arm == "ablated":
            return torch.zeros_like(key), torch.zeros_like(value)
        if arm in ("atom", "matched", "permuted"):
            which = self.order[atoms] if arm == "permuted" else atoms
            new = self.atoms[0][which], self.atoms[1][which]
        elif arm == "random":
            drawn = [torch.from_numpy(rng.standard_normal(t.shape)).to(t) for t in (key, value)]
            new = unit((drawn[0], drawn[1]))
        else:
            overlap = torch.einsum("nhk,chk,nhv,chv->nc", key, self.components[0], value, self.components[1])
            best = overlap.abs().argmax(1)
            sign = overlap.gather(1, best[:, None]).sign()[:, :, None]
            new = self.components[0][best], sign * self.components[1][best]
        return new[0], norm * new[1]

    def whole(self, values: Tensor, indices: Tensor) -> Tensor:
        """[n, H, K, V]: all atoms of a code [n, k] together, what the dictionary makes of the write."""
        keys, content = self.atoms[0][indices], self.atoms[1][indices]
        return torch.einsum("nc,nchk,nchv->nhkv", values, keys, content)


def norms(factors: Factors) -> Tensor:
    """[n] Frobenius norms over all heads: those of the state."""
    key, value = factors
    return (key.square().sum(-1) * value.square().sum(-1)).sum(-1).sqrt()


def unit(factors: Factors) -> Factors:
    """The same at norm one."""
    key, value = factors
    return key, value / norms(factors).clamp_min(1e-30)[:, None, None]


def principal(writes: Tensor) -> Tensor:
    """The leading principal directions [C, H·K·V] of writes, not centred: the first is much of their mean."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        q = min(COMPONENTS + 8, *writes.shape)
        _, _, v = torch.svd_lowrank(writes, q=q, niter=3)
    return v.t()[:COMPONENTS]


def permuted(alive: Tensor, seed: int) -> Tensor:
    """[F] a cyclic order of the atoms that fire, drawn at random: every one stands for another; others stay."""
    order = torch.arange(len(alive))
    some = alive.nonzero().flatten()
    some = some[torch.from_numpy(np.random.default_rng([seed, 5]).permutation(len(some)))]
    order[some] = some.roll(1)
    return order


def alive_atoms(indices: Tensor, values: Tensor, n: int) -> Tensor:
    """bool [F] of latents that fire in codes (values, indices) of any shape."""
    return torch.bincount(indices[values > 0].flatten(), minlength=n) > 0
