"""A world of planted features, made exactly by its seed, and rows drawn from it.

What is planted (directions, frequencies, sizes, factors of the copula, which parents exclude) is drawn from the same
generators in the same order as in the published implementation, so with one seed and one torch it is the same world;
rows are drawn by this one's own code and agree in distribution.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sae.worlds.config import WorldConfig


class World:
    """Planted features and the law of their firing.

    Attributes:
        features_GD: unit directions. bias_D: what every row has in common.
        wanted_G: how often each feature is to be on. latent_p_G: how often its Gaussian passes its threshold, before
        hierarchy and exclusion (equal without a hierarchy). size_G, spread_G: mean and standard deviation of its size.
        parent_G: its parent, -1 for none. exclusive_G: whether at most one of its children is on.
    """

    def __init__(self, config: WorldConfig | None = None):
        self.config = c = config or WorldConfig()
        G, seed = c.n_features, c.seed
        self.features_GD, self.bias_D = _directions(c)
        self.wanted_G = _zipf(G, c.exponent, c.p_max, c.p_min)
        self.size_G = torch.linspace(c.size_start, c.size_end, G)
        self.spread_G = (c.spread_mean + c.spread_std * torch.randn(G, generator=_generator(seed + 1))).abs()
        self.parent_G, self.exclusive_G = _hierarchy(c)
        self.latent_p_G = (
            _compensated(self.wanted_G, self.parent_G, self.exclusive_G) if c.compensate else self.wanted_G
        )
        self.threshold_G = math.sqrt(2) * torch.erfinv(1 - 2 * self.latent_p_G)
        self.factor_GR, self.own_G = _copula(c)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(rows [n, D], sizes of the features that make them [n, G], zero where a feature is off)."""
        G = self.config.n_features
        z = torch.randn(n, G, generator=generator) * self.own_G
        if self.config.rank:
            z.addmm_(torch.randn(n, self.config.rank, generator=generator), self.factor_GR.t())
        rows, features = (z > self.threshold_G).nonzero(as_tuple=True)
        sizes = self.size_G[features] + self.spread_G[features] * torch.randn(len(features), generator=generator)
        f = torch.zeros(n, G)
        f[rows, features] = sizes.clamp_min_(0)
        if self.config.levels:
            self._descend(f, generator)
        # of the few features that are on alone: nearly all products of whole matrices would be with zeros
        rows, features = f.nonzero(as_tuple=True)
        starts = torch.searchsorted(rows, torch.arange(n))
        made = nnf.embedding_bag(features, self.features_GD, starts, mode="sum", per_sample_weights=f[rows, features])
        return made + self.bias_D, f

    def batches(self, rows: int, seed: int) -> Iterator[Tensor]:
        """Training batches [rows, D] without end."""
        generator = _generator(seed)
        while True:
            yield self.sample(rows, generator)[0]

    def _descend(self, f: Tensor, generator: torch.Generator) -> None:
        """Make children depend on their parents, level by level and in place: off without them, one of several that
        exclude each other, as large as their parent relative to its mean.

        Only the children of parents that are on are looked at, which are few, in order of rows and then of features.
        """
        levels, C = self.config.levels, self.config.branching
        below = slice(levels[0][1], levels[-1][1])
        drawn_below = f[:, below].clone()
        f[:, below] = 0
        rows, parents = f[:, : levels[0][1]].nonzero(as_tuple=True)
        for above, here in itertools.pairwise(levels):
            children = here[0] + (parents - above[0])[:, None] * C + torch.arange(C)  # siblings stand side by side
            sizes = drawn_below[rows[:, None], children - below.start]
            on = sizes > 0
            rivals = ((on.sum(1) > 1) & self.exclusive_G[parents]).nonzero().flatten()
            if len(rivals):
                among = on[rivals]
                drawn = torch.rand(among.shape, generator=generator).masked_fill(~among, -1.0)
                on[rivals] = nnf.one_hot(drawn.argmax(1), C).bool()
            factor = on.to(f.dtype)
            if self.config.scale_children:
                factor = factor * (f[rows, parents] / self.size_G[parents])[:, None]
            sizes = sizes * factor
            f[rows[:, None], children] = sizes
            parent, child = (sizes > 0).nonzero(as_tuple=True)
            rows, parents = rows[parent], children[parent, child]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _zipf(n: int, exponent: float, p_max: float, p_min: float) -> Tensor:
    """[n] 1 / rank ** exponent, moved and scaled to run from p_max to p_min."""
    p = torch.arange(1, n + 1, dtype=torch.float32) ** -exponent
    return torch.full((1,), p_max) if n == 1 else p_min + (p_max - p_min) * (p - p[-1]) / (p[0] - p[-1])


def _directions(c: WorldConfig) -> tuple[Tensor, Tensor]:
    """(unit directions [G, D] driven apart, bias [D] of the wanted length)."""
    generator = _generator(c.seed)
    e = nnf.normalize(torch.randn(c.n_features, c.width, generator=generator), dim=1)
    bias = nnf.normalize(torch.randn(c.width, generator=generator), dim=0) * c.bias
    e = e.clone().requires_grad_(True)
    adam = torch.optim.Adam([e], lr=c.orthogonal_lr)
    for _ in range(c.orthogonal_steps):
        e.grad = overlap_gradient(e.detach())
        adam.step()
    return nnf.normalize(e.detach(), dim=1), bias


def overlap_gradient(e: Tensor) -> Tensor:
    """Gradient of sum_{i != j} (e_i . e_j)^2 + G sum_i (|e_i|^2 - 1)^2 for e [G, D].

    sum_j (e_i . e_j) e_j is e_i times the D x D matrix e^T e: G D^2 products instead of G^2 D, which for the published
    world (G = 16,384, D = 768) is a second a step and not twelve.
    """
    square = e.square().sum(1, keepdim=True)
    return 4 * (e @ (e.t() @ e) - square * e) + 4 * len(e) * (square - 1) * e


def _hierarchy(c: WorldConfig) -> tuple[Tensor, Tensor]:
    """(parent [G] of every feature, -1 for none; [G] whether its children exclude each other)."""
    parent = torch.full((c.n_features,), -1)
    exclusive = torch.zeros(c.n_features, dtype=torch.bool)
    for (first, after), (start, end) in zip(c.levels, c.levels[1:]):
        parent[start:end] = torch.arange(first, after).repeat_interleave(c.branching)
    parents = c.levels[-1][0] if c.levels else 0
    chosen = random.Random(c.seed + 3).sample(range(parents), int(parents * c.exclusive))
    exclusive[chosen] = True
    return parent, exclusive


def _compensated(wanted: Tensor, parent: Tensor, exclusive: Tensor) -> Tensor:
    """Frequencies before the hierarchy that give the wanted ones after it: over the parent's, times one plus the
    expected number of siblings that compete where they exclude each other; at most 1.
    """
    has = parent >= 0
    above = parent[has]
    out = wanted.clone()
    of_parent = wanted[above]
    siblings = torch.zeros_like(wanted).index_add(0, above, wanted[has])[above] - wanted[has]
    competing = 1 + siblings.clamp_min(0) / of_parent
    out[has] = wanted[has] / of_parent * torch.where(exclusive[above], competing, torch.ones_like(competing))
    return out.clamp(max=1.0)


def _copula(c: WorldConfig) -> tuple[Tensor, Tensor]:
    """(factors [G, R], own share [G]) of Gaussians with unit variance: sum_r factor_r eps_r + own eta."""
    if not c.rank:
        return torch.zeros(c.n_features, 0), torch.ones(c.n_features)
    factor = torch.randn(c.n_features, c.rank, generator=_generator(c.seed + 4)) * c.correlation
    square = factor.square().sum(1)
    most = 0.99  # of a Gaussian's variance may be shared
    factor = factor * torch.where(square > most, (most / square).sqrt(), torch.ones_like(square))[:, None]
    return factor, (1 - factor.square().sum(1)).sqrt()
