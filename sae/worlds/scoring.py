"""How well a dictionary found the features of a world: the published numbers, and two on what hierarchies do to it.

- ``mcc``         mean |cosine| of decoder rows and features under the best one-to-one assignment (arXiv 2505.20254)
- ``f1``          each latent as a classifier of the feature nearest to its decoder row, mean over all latents; a dead
                  one has 0. ``precision`` and ``recall`` likewise.
- ``f1_matched``  the same for the pairs of the assignment: no two latents answer for one feature
- ``f1_chance``   what ``f1`` would be if every latent fired as often, but at random rows
- ``uniqueness``  share of latents whose nearest feature no other latent before them has
- ``ev, l0, dead``  explained variance over centred rows, active latents per row, share of latents that never fire
- ``split``       share of the features found at all (cosine >= 0.5) that are the nearest of two or more living latents
- ``absorbed``    share of the parents in the hierarchy whose latent fires for them when they are on alone, but is
                  mostly silent when a child is on whose latent fires (feature absorption, Chanin et al. 2024, arXiv
                  2409.14507); NaN where there are none to judge

The first five are those of SynthSAEBench (arXiv 2602.14687), ``f1_matched`` and the rest are ours.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.errors import ConfigError, UserError
from sae.model import SAE
from sae.worlds.world import World

FOUND = 0.5  # cosine from which a latent's nearest feature counts as found
MOSTLY = 0.5


@dataclass(frozen=True)
class Score:
    """A dictionary's numbers on ``n`` rows of a world; see the module."""

    n: int
    f1: float
    precision: float
    recall: float
    f1_matched: float
    f1_chance: float
    mcc: float
    uniqueness: float
    ev: float
    l0: float
    dead: float
    split: float
    absorbed: float

    def row(self) -> dict[str, float]:
        """Plain numbers, for tables."""
        return asdict(self)


class Scorer:
    """Adds up rows; knows nothing of the library that made the codes.

    Args:
        world: what was planted. decoder_FD: decoder rows, of any length.

    Raises:
        ConfigError: decoder rows of another width than the world's.
    """

    def __init__(self, world: World, decoder_FD: Tensor):
        from scipy.optimize import linear_sum_assignment

        if decoder_FD.shape[1] != world.config.width:
            raise ConfigError(f"decoder rows have width {decoder_FD.shape[1]}, the world's have {world.config.width}.")
        F, G = len(decoder_FD), world.config.n_features
        cosine = (nnf.normalize(decoder_FD.float(), dim=1, eps=1e-8) @ world.features_GD.t()).abs()
        latents, features = (torch.from_numpy(i) for i in linear_sum_assignment(-cosine.numpy()))
        self.world, self.n = world, 0
        self.cosine_F, self.nearest_F = cosine.max(1)
        self.mcc = float(cosine[latents, features].mean())
        self.pairs = latents, features
        self.latent_G = torch.full((G,), -1).scatter(0, features, latents)  # the latent assigned to a feature, -1: none
        self.fired_F, self.on_G = torch.zeros(F, dtype=torch.float64), torch.zeros(G, dtype=torch.float64)
        self.nearest_hits, self.matched_hits = torch.zeros_like(self.fired_F), torch.zeros(len(latents)).double()
        D = world.config.width
        self.sum_D, self.square, self.error = torch.zeros(D, dtype=torch.float64), 0.0, 0.0
        self.child = ((world.parent_G >= 0) & (self.latent_G >= 0)).nonzero().flatten()
        self.child = self.child[self.latent_G[world.parent_G[self.child]] >= 0]
        self.together_G, self.hidden_G, self.alone_G, self.shown_G = (torch.zeros(G) for _ in range(4))

    def update(self, codes_BF: Tensor, y_BD: Tensor, x_BD: Tensor, f_BG: Tensor) -> None:
        """Add rows: dense codes (on where they are not zero), reconstructions, rows and planted sizes."""
        on, real = codes_BF != 0, f_BG > 0
        self.n += len(on)
        self.fired_F += on.sum(0)
        self.on_G += real.sum(0)
        self.nearest_hits += (on & real[:, self.nearest_F]).sum(0)
        latents, features = self.pairs
        self.matched_hits += (on[:, latents] & real[:, features]).sum(0)
        self.sum_D += x_BD.double().sum(0)
        self.square += float(x_BD.double().square().sum())
        self.error += float((x_BD - y_BD).double().square().sum())
        self._absorption(on, real)

    def _absorption(self, on: Tensor, real: Tensor) -> None:
        """Per parent: rows with a child whose latent fires, those of them in which its own is silent; rows without any
        child, those in which its own fires.
        """
        parent_G = self.world.parent_G
        parents = parent_G[self.child]
        with_child = real[:, parents] & real[:, self.child] & on[:, self.latent_G[self.child]]
        silent = ~on[:, self.latent_G[parents]]
        self.together_G.index_add_(0, parents, with_child.sum(0).float())
        self.hidden_G.index_add_(0, parents, (with_child & silent).sum(0).float())
        above = parents.unique()
        of_tree = (parent_G >= 0).nonzero().flatten()
        busy = torch.zeros(real.shape, dtype=torch.int16).index_add_(1, parent_G[of_tree], real[:, of_tree].short())
        alone = real[:, above] & (busy[:, above] == 0)
        self.alone_G[above] += alone.sum(0)
        self.shown_G[above] += (alone & on[:, self.latent_G[above]]).sum(0)

    def result(self) -> Score:
        """The numbers of all rows added.

        Raises:
            UserError: none were.
        """
        if not self.n:
            raise UserError("no rows to score a dictionary on: the batches are empty. Give at least one row.")
        latents, features = self.pairs
        real_F = self.on_G[self.nearest_F]
        share_F, share_real = self.fired_F / self.n, real_F / self.n
        alive = self.fired_F > 0
        found = self.nearest_F[alive & (self.cosine_F >= FOUND)]
        times = torch.bincount(found, minlength=len(self.on_G))
        variance = self.square - float(self.sum_D.square().sum()) / self.n
        judged = (self.together_G > 0) & (self.alone_G > 0) & (self.shown_G > MOSTLY * self.alone_G)
        hidden = judged & (self.hidden_G > MOSTLY * self.together_G)
        return Score(
            n=self.n,
            f1=_mean(_ratio(2 * self.nearest_hits, self.fired_F + real_F)),
            precision=_mean(_ratio(self.nearest_hits, self.fired_F)),
            recall=_mean(_ratio(self.nearest_hits, real_F)),
            f1_matched=_mean(_ratio(2 * self.matched_hits, self.fired_F[latents] + self.on_G[features])),
            f1_chance=_mean(_ratio(2 * share_F * share_real, share_F + share_real)),
            mcc=self.mcc,
            uniqueness=len(self.nearest_F.unique()) / len(self.nearest_F),
            ev=1 - self.error / variance,
            l0=float(self.fired_F.sum()) / self.n,
            dead=1 - _mean(alive),
            split=float((times > 1).sum() / max(1, int((times > 0).sum()))),
            absorbed=float(hidden.sum() / judged.sum()) if judged.any() else math.nan,
        )


@torch.no_grad()
def score(sae: SAE, world: World, *, rows: int = 20_000, seed: int = 1_000_003, batch: int = 2048) -> Score:
    """Score a dictionary on fresh rows of a world.

    Args:
        rows: how many. seed: of these rows; training rows have other seeds.

    Raises:
        ConfigError: a dictionary of another width.
    """
    scorer, generator = Scorer(world, sae.W_dec.detach()), torch.Generator().manual_seed(seed)
    for start in range(0, rows, batch):
        x, f = world.sample(min(batch, rows - start), generator)
        codes = sae.encode(x)
        scorer.update(codes, sae.decode(codes), x, f)
    return scorer.result()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, 0 where b is."""
    return torch.where(b > 0, a / b.clamp_min(1e-300), torch.zeros_like(a))


def _mean(x: Tensor) -> float:
    return float(x.double().mean())
