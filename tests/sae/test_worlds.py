"""Worlds of planted features: exact by seed, firing as wanted, hierarchies kept; every kind of dictionary finds the
features of a world without superposition, and none finds them in shuffled rows.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae import SAEConfig, Trainer
from sae.errors import ConfigError, UserError
from sae.worlds import WORLDS, Scorer, World, WorldConfig, score
from sae.worlds.world import overlap_gradient

TREES = {"n_features": 96, "width": 24, "roots": 4, "depth": 2, "orthogonal_steps": 5, "p_max": 0.5, "p_min": 0.02}


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_world_is_exact_by_its_seed() -> None:
    one, same, other = (World(WorldConfig(**TREES, seed=s)) for s in (3, 3, 4))
    for name in ("features_GD", "bias_D", "spread_G", "factor_GR", "exclusive_G", "latent_p_G"):
        assert torch.equal(getattr(one, name), getattr(same, name)), name
    assert not torch.equal(one.features_GD, other.features_GD)
    (x, f), (y, g) = one.sample(50, generator()), same.sample(50, generator())
    assert torch.equal(x, y) and torch.equal(f, g)
    torch.testing.assert_close(x, f @ one.features_GD + one.bias_D)


@settings(max_examples=15, deadline=None)
@given(
    roots=st.integers(0, 4),
    branching=st.integers(2, 4),
    depth=st.integers(1, 2),
    exclusive=st.floats(0, 1),
    scale=st.booleans(),
    rank=st.integers(0, 6),
)
def test_a_child_is_on_only_with_its_parent_and_excluded_siblings_never_meet(
    roots: int, branching: int, depth: int, exclusive: float, scale: bool, rank: int
) -> None:
    kw = TREES | {"roots": roots, "branching": branching, "depth": depth, "exclusive": exclusive, "rank": rank}
    world = World(WorldConfig(**kw, scale_children=scale))
    _, f = world.sample(400, generator())
    on = f > 0
    children = (world.parent_G >= 0).nonzero().flatten()
    assert len(children) == world.config.in_trees - roots
    assert not (on[:, children] & ~on[:, world.parent_G[children]]).any()
    for p in world.exclusive_G.nonzero().flatten():
        assert int(on[:, world.parent_G == p].sum(1).max()) <= 1
    assert (f >= 0).all()


@pytest.mark.parametrize("more", [{}, {"depth": 3, "roots": 1}, {"branching": 2, "exclusive": 0.0}])
def test_children_follow_their_parents_as_written_out_feature_by_feature(more: dict[str, int | float]) -> None:
    """Descent without a tree's shape: before it every feature has a size of its own, after it only children of parents
    that are on do, times their parent's relative size; of rivals that exclude each other one stays.
    """
    world = World(WorldConfig(**TREES | more, rank=0))
    before = torch.rand(60, 96, generator=generator(1)) * (torch.rand(60, 96, generator=generator(2)) < 0.6)
    before[0] = 0
    after = before.clone()
    world._descend(after, generator())
    for g in range(96):
        p = int(world.parent_G[g])
        if p < 0:
            assert torch.equal(after[:, g], before[:, g])
            continue
        follows = before[:, g] * after[:, p] / world.size_G[p]
        stays = after[:, g] > 0
        torch.testing.assert_close(after[stays, g], follows[stays])
        siblings = (world.parent_G == p).nonzero().flatten()
        rivals = (before[:, siblings] > 0).sum(1) * (after[:, p] > 0)
        left = (after[:, siblings] > 0).sum(1)
        assert torch.equal(left, rivals.clamp(max=1) if world.exclusive_G[p] else rivals)


def test_rows_in_which_nothing_is_on_are_the_bias() -> None:
    world = World(WorldConfig(**TREES | {"p_max": 1e-6, "p_min": 1e-7, "rank": 0, "compensate": False}))
    for n in (0, 5):
        x, f = world.sample(n, generator())
        assert x.shape == (n, 24) and not f.any() and torch.equal(x, world.bias_D.expand(n, -1))


def test_frequencies_are_those_wanted() -> None:
    """Without a hierarchy exactly (five standard errors); compensation brings the mean of a hierarchy's leaves near."""
    flat = World(WorldConfig(**TREES | {"roots": 0}))
    n = 20_000
    share = (flat.sample(n, generator())[1] > 0).float().mean(0)
    error = (flat.wanted_G * (1 - flat.wanted_G) / n).sqrt()
    assert ((share - flat.wanted_G).abs() < 5 * error + 1e-6).all()
    gentle = TREES | {"p_max": 0.3, "p_min": 0.001, "exponent": 1.0, "rank": 0}
    tree = World(WorldConfig(**gentle))
    share = (tree.sample(n, generator())[1] > 0).float().mean(0)
    leaves = slice(*tree.config.levels[-1])
    assert share[leaves].sum() == pytest.approx(float(tree.wanted_G[leaves].sum()), rel=0.2)
    bare = World(WorldConfig(**gentle, compensate=False))
    assert (bare.sample(n, generator())[1][:, leaves] > 0).float().mean(0).sum() < 0.3 * share[leaves].sum()


def test_features_that_share_factors_fire_together() -> None:
    world = World(WorldConfig(**TREES | {"roots": 0, "rank": 3, "correlation": 0.4, "p_min": 0.3}))
    on = (world.sample(30_000, generator())[1][:, :40] > 0).double()
    got = torch.corrcoef(on.t())
    wanted = world.factor_GR[:40] @ world.factor_GR[:40].t()
    apart = ~torch.eye(40, dtype=torch.bool)
    both = torch.corrcoef(torch.stack([got[apart], wanted[apart].double()]))
    assert both[0, 1] > 0.95
    torch.testing.assert_close(world.factor_GR.square().sum(1) + world.own_G.square(), torch.ones(96))


def test_the_gradient_that_drives_directions_apart() -> None:
    e = torch.randn(7, 4, generator=generator(), dtype=torch.float64).requires_grad_(True)
    dots = e @ e.t()
    loss = (dots - torch.diag(dots.diagonal())).square().sum() + 7 * (dots.diagonal() - 1).square().sum()
    loss.backward()
    torch.testing.assert_close(overlap_gradient(e.detach()), e.grad)
    near = World(WorldConfig(**WORLDS["orthogonal"])).features_GD
    assert ((near @ near.t()) - torch.eye(64)).abs().max() < 0.02


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="84 features, more than n_features = 50"):
        WorldConfig(n_features=50, roots=4, depth=2)
    with pytest.raises(ConfigError, match=r"p_min = 0\.5 must be below"):
        WorldConfig(p_min=0.5)
    world = World(WorldConfig(**TREES))
    with pytest.raises(ConfigError, match="width 5, the world's have 24"):
        Scorer(world, torch.randn(8, 5))
    with pytest.raises(UserError, match="no rows"):
        Scorer(world, torch.randn(8, 24)).result()


def test_the_planted_dictionary_itself_scores_one_and_half_of_it_by_hand() -> None:
    world = World(WorldConfig(**TREES))
    x, f = world.sample(500, generator())
    scorer = Scorer(world, 3 * world.features_GD)
    scorer.update(f, x, x, f)
    s = scorer.result()
    fired = (f > 0).any(0).double()
    assert s.mcc == pytest.approx(1, abs=1e-5) and s.uniqueness == 1 and s.ev == 1 and s.split == 0
    assert s.absorbed == 0 and s.l0 == pytest.approx(float((f > 0).sum(1).double().mean()))
    assert s.f1 == pytest.approx(float(fired.mean())) and s.f1_matched == pytest.approx(s.f1)
    assert s.dead == pytest.approx(1 - float(fired.mean()))
    twice = Scorer(world, torch.cat([world.features_GD, world.features_GD[:48]]))
    twice.update(torch.cat([f, f[:, :48]], 1), x, x, f)
    assert twice.result().uniqueness == pytest.approx(96 / 144) and twice.result().split > 0.4


def test_absorption_is_a_parent_that_hides_behind_its_children() -> None:
    world = World(WorldConfig(**TREES))
    x, f = world.sample(3000, generator())
    parents = world.parent_G[world.parent_G >= 0].unique()
    codes = f.clone()
    for p in parents:  # a child's latent takes over its parent's part
        codes[(f[:, world.parent_G == p] > 0).any(1), p] = 0
    scorer = Scorer(world, world.features_GD)
    scorer.update(codes, x, x, f)
    assert scorer.result().absorbed == 1


KINDS = {
    "topk": ("topk", {}),
    "norm-topk": ("norm-topk", {}),
    "batchtopk": ("batchtopk", {}),
    "matryoshka": ("matryoshka", {}),
    "l1": ({"kind": "l1", "coefficient": 1.0}, {}),
    "jumprelu": ("jumprelu", {}),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_without_superposition_every_kind_finds_the_features_and_shuffled_rows_leave_chance(kind: str) -> None:
    """64 nearly orthogonal features in 64 dimensions: at least 98 % of them have a latent at a cosine of 0.9, over
    three streams of rows (of one stream a single feature more or less is rounding).
    """
    world = World(WorldConfig(**WORLDS["orthogonal"]))
    activation, own = KINDS[kind]
    config, steps = SAEConfig(d_in=64, d_sae=128, k=2, activation=activation, lr=3e-3, dead_after=5000, **own), 500
    shares = []
    for seed in (1, 2, 3):
        rows, trainer = world.batches(256, seed=seed), Trainer(config, total_steps=steps)
        for _ in range(steps):
            trainer.step(next(rows))
        made = trainer.dictionary()
        cosine = torch.nn.functional.normalize(made.W_dec, dim=1) @ world.features_GD.t()
        shares.append(float((cosine.amax(0) > 0.9).float().mean()))
    found = score(made, world, rows=4000)
    assert sum(shares) / len(shares) >= 0.98, (shares, found)
    assert found.f1_chance < 0.1 and found.f1_matched > 0.6, found
    shuffled = Scorer(world, made.W_dec)
    x, f = world.sample(4000, generator())
    codes = made.encode(x)
    shuffled.update(codes, made.decode(codes), x, f[torch.randperm(4000, generator=generator(9))])
    chance = shuffled.result()
    assert chance.f1 == pytest.approx(chance.f1_chance, abs=0.02)
