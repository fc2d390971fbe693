"""Which concepts come first in which model: own firings on a hand-made crosscoder, order and lag on made-up curves."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from crosscoders import Crosscoder
from sae.activation import TopK
from sae.errors import ConfigError
from sae.strict import parse_config
from workbench.analysis.evolution import architectures as arch
from workbench.analysis.evolution.architectures import Line, Pair
from workbench.analysis.evolution.own_codes import OwnCodes, own_codes
from workbench.analysis.evolution.plan import make_plan
from workbench.analysis.evolution.recipe import EvolveRecipe, resolve_sources
from workbench.analysis.evolution.snapshots import Source
from workbench.config import read_recipe
from workbench.results.lines import STATEMENTS, in_common, lag, lines_of

STEPS = (0, 16, 64, 256, 1024, 8192)
K, F, N, D = len(STEPS), 8, 3000, 8
LINES = (Line("a", "h", tuple(range(K)), STEPS), Line("b", "h", tuple(range(K, 2 * K)), STEPS))


def concepts(born: np.ndarray, *, noise: float = 0.05) -> tuple[Crosscoder, torch.Tensor, np.ndarray]:
    """A crosscoder over two models, raw rows, and which rows have which concept.

    ``born`` [2, F]: the snapshot from which each model writes each concept; before it there is noise alone.
    """
    rng = np.random.default_rng(0)
    on = rng.random((N, F)) < 0.05
    rows = []
    for model in range(2):
        for k in range(K):
            strength = on * rng.uniform(1, 2, (N, F)) * (k >= born[model])
            rows.append(strength * 3.0**model + noise * rng.standard_normal((N, F)))  # b is larger in every number
    cc = Crosscoder([D] * (2 * K), F, TopK(2))
    with torch.no_grad():
        cc.enc_FD.copy_(torch.eye(F).repeat(1, 2 * K) / (2 * K))
        cc.dec_FD.copy_(torch.eye(F).repeat(1, 2 * K))
        cc.b_enc.fill_(-0.1)  # noise alone does not fire
    cc.folded_in = True
    return cc.requires_grad_(False), torch.from_numpy(np.concatenate(rows, 1)).float(), on


def test_a_model_finds_a_concept_by_itself_from_the_snapshot_that_writes_it():
    born = np.stack([np.arange(F) % 4, np.arange(F) % 4 + 2])
    cc, x, _ = concepts(born)
    own = own_codes(cc, x.split(700), arch.last_of_others(LINES, 2 * K))
    assert own.n_rows == N and (own.n_fired > 100).all()
    for model in range(2):
        for i in range(F):
            curve, explained = (c[model * K : (model + 1) * K, i] for c in (own.agreement, own.explained))
            b = born[model, i]
            assert (np.abs(curve[:b]) < 0.06).all() and (curve[b:] > 0.6).all(), (model, i, curve)
            assert (explained[:b] < 0.02 * explained[b:].min()).all(), (model, i, explained)
    assert (cc.decoder_norms() == 1).all(), "and the decoder norms say nothing of it: the trap"


def test_own_firings_are_of_one_source_alone():
    """What the shared code owes to other sources is in no source's agreement, nor is a source's scale."""
    born = np.zeros((2, F), int)
    cc, x, _ = concepts(born)
    last = arch.last_of_others(LINES, 2 * K)
    before = own_codes(cc, [x], last)
    silent = x.clone()
    silent[:, :D] = 0.1 * torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    after = own_codes(cc, [silent], last)
    assert (np.abs(after.agreement[0]) < 0.06).all() and (before.agreement[0] > 0.6).all()
    assert (after.agreement[1:] > 0.6).all()
    with torch.no_grad():
        x[:, D : 2 * D] *= 7
        cc.enc_FD[:, D : 2 * D] /= 7
    scaled = own_codes(cc, [x], last)
    assert np.allclose(scaled.agreement, before.agreement), "the scale of a source says nothing"


def test_a_latent_that_never_fires_has_no_numbers():
    cc, x, _ = concepts(np.zeros((2, F), int))
    with torch.no_grad():
        cc.enc_FD[3] = 0
    own = own_codes(cc, [x], arch.last_of_others(LINES, 2 * K))
    assert own.n_fired[3] == 0 and np.isnan(own.agreement[:, 3]).all() and np.isnan(own.explained[:, 3]).all()
    assert not arch.shared_latents(own, LINES)[3]


def test_emergence_lies_between_two_snapshots_along_the_doublings_of_the_step():
    time = LINES[0].time
    assert time.tolist() == [3, 4, 6, 8, 10, 13]
    curves = np.array([[0, 0, 0.25, 0.75, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [0, -0.2, 0, 0, 0, 2]]).T
    found = arch.emergence(curves, time)
    assert found[:2].tolist() == [7, 3] and np.isnan(found[2]) and found[3] == pytest.approx(11.5)


def made_pair(lag: float = 0.0, context: float = 0.0, *, order: bool = True, n: int = 300, seed: int = 0) -> Pair:
    """Curves of two models: the second ``lag`` doublings later, by ``context`` more where the token leaves open."""
    rng = np.random.default_rng(seed)
    left, born = rng.random(n), rng.uniform(4, 8, n)
    other = born if order else rng.permutation(born)
    time = LINES[0].time[:, None]

    def curve(at: np.ndarray) -> np.ndarray:
        return np.clip(1 / (1 + np.exp(-3 * (time - at))) + 0.05 * rng.standard_normal((K, n)), 0, None)

    return Pair(LINES[0], LINES[1], (curve(born), curve(other + lag + context * left)), left, rng.uniform(30, 900, n))


def test_what_is_put_in_is_found_and_what_is_destroyed_is_not():
    pair = made_pair(lag=1.0, context=3.0)
    assert arch.same_order(pair) > 0.5 and arch.overall(pair.lag(), pair) == pytest.approx(2.5, abs=0.4)
    assert arch.later_with_context(pair.lag(), pair) == pytest.approx(2.0, abs=0.4), "thirds lie two thirds apart"
    null = arch.exchanged(pair, arch.later_with_context, n=100, seed=0)
    assert null.observed > null.high and abs(null.mean) < 0.5
    assert (order := arch.shuffled(pair, n=100, seed=0)).observed > order.high
    even = made_pair(lag=1.0)
    null = arch.exchanged(even, arch.later_with_context, n=100, seed=0)
    assert not null.observed > null.high, "a model that is late with everything is not later with context"
    random = made_pair(order=False)
    null = arch.shuffled(random, n=100, seed=0)
    assert not null.observed > null.high and abs(arch.same_order(random)) < 0.2


def claims_of(lines: list[Line]) -> list[str]:
    """What is claimed of models whose curves say nothing."""
    own = OwnCodes(np.ones((max(x.sources[-1] for x in lines) + 1, 60)), np.ones((2 * K, 60)), np.full(60, 99), 999)
    table = pd.DataFrame({"v_token": np.linspace(0, 1, 60), "n_fired": 99})
    return [r["claim"] for r in arch.architecture_claims(own, own.agreement, lines, table, n=5, seed=0)]


def test_two_models_without_snapshots_at_equal_steps_are_not_exchanged():
    between = Line(
        "b", "h", LINES[1].sources, (0, 24, 96, 384, 1536, 12288)
    )  # more than half a doubling from every one
    assert in_common(LINES[0], between) is None and np.isnan(lag(LINES[0], between, np.ones((2 * K, 4)))[0]).all()
    a = made_pair()
    with pytest.raises(ValueError, match=r"no snapshots .* in common"):
        arch.exchanged(Pair(LINES[0], between, a.curves, a.open_F, a.n_fired), arch.overall, n=5, seed=0)
    said = claims_of([LINES[0], between])
    assert not any("later" in claim for claim in said) and any("same order" in claim for claim in said), said


def test_two_models_are_held_against_each_other_where_both_have_snapshots():
    """A model whose first snapshot is late has nothing late by it."""
    late = Line("b", "h", tuple(range(K, 2 * K + 1)), (0, 64, 256, 1024, 1500, 2048, 4000))
    ours, theirs = in_common(LINES[0], late)
    assert (ours.steps, ours.sources) == ((0, 64, 256, 1024, 8192), (0, 2, 3, 4, 5))
    assert (theirs.steps, theirs.sources) == ((0, 64, 256, 1024, 4000), (6, 7, 8, 9, 12)), "1500 is farther from 1024"
    born = np.array([0, 20, 70, 300, 600])  # steps: as early in both
    curves = np.concatenate([(np.array(line.steps)[:, None] >= born) * 1.0 for line in (LINES[0], late)])
    found, n = lag(LINES[0], late, curves)
    assert n == 5 and np.allclose(found, 0), found
    whole = [arch.emergence(curves[list(x.sources)], x.time) for x in (LINES[0], late)]
    assert (whole[1] - whole[0])[0] == 2, "read from all snapshots, what was there from the start is late by two"
    said = claims_of([LINES[0], late])
    assert any("is later than" in claim and "5 snapshots in common" in claim for claim in said), said


def test_a_model_that_shares_few_latents_does_not_take_them_from_the_others():
    lines = [*LINES, Line("c", "h", tuple(range(2 * K, 3 * K)), STEPS)]
    agreement = np.ones((3 * K, 60))
    agreement[3 * K - 1, 10:] = 0.1  # at the end of its training the third has ten of the sixty
    own = OwnCodes(agreement, agreement, np.full(60, 99), 999)
    table = pd.DataFrame({"v_token": np.linspace(0, 1, 60), "n_fired": 99})
    rows = arch.architecture_claims(own, agreement, lines, table, n=5, seed=0)
    few = [r["claim"] for r in rows if r["verdict"] == "too few"]
    assert few == [f"shared latents emerge in the same order in {x} and c" for x in "ab"]
    assert {r["n"] for r in rows if "same order in a and b" in r["claim"]} == {60}


def test_the_bundled_models_are_compared_where_they_were():
    """The Transformer and the Mamba at all their snapshots; the hybrid at those it shares with either."""
    pythia, mamba, hybrid = lines_of(resolve_sources(read_recipe(EvolveRecipe, "mini-architectures")))
    assert in_common(pythia, mamba) == (pythia, mamba)
    for other in (pythia, mamba):
        ours, theirs = in_common(other, hybrid)
        assert theirs.steps[:4] == (0, 64, 256, 512) and theirs.steps[-1] == 4000
        assert ours.steps[:4] == (0, 64, 256, 512) and ours.steps[-1] == other.steps[-1]
        assert np.abs(np.log2(np.array(ours.steps[1:-1]) / np.array(theirs.steps[1:-1]))).max() <= 0.5


def test_models_of_a_crosscoder_are_told_by_their_snapshots():
    def sources(model: str, *steps: int | None) -> list[Source]:
        return [Source(f"{model}/{s}", model, f"step{s}", "h", s) for s in steps]

    two = [*sources("a", 0, 1, 2), *sources("b", 0, 4, 8, 16)]
    assert [(x.model, x.sources, x.steps) for x in lines_of(two)] == [
        ("a", (0, 1, 2), (0, 1, 2)),
        ("b", (3, 4, 5, 6), (0, 4, 8, 16)),
    ]
    assert arch.last_of_others(lines_of(two), 7) == [[6]] * 3 + [[2]] * 4
    for other in (two[:3], [*two[:3], *two[3:5]], [*two[:3], *two[:2:-1]], [*two[:3], *sources("b", 1, 2, None)]):
        assert lines_of(other) == []


def test_a_source_of_several_snapshots_is_one_source_each():
    recipe = read_recipe(EvolveRecipe, "mini-architectures")
    found = resolve_sources(recipe)
    lines = lines_of(found)
    assert [x.model for x in lines] == ["mini-pythia", "mini-mamba", "mini-hybrid"]
    assert all(len(x.steps) >= 10 and x.steps[0] == 0 for x in lines)
    assert found[0].name == "mini-pythia/step0/L1R" and [s.step for s in found][: len(lines[0].steps)] == list(
        lines[0].steps
    )
    with pytest.raises(ConfigError, match="say the same thing twice"):
        twice = {"sources": [{"model": "m", "revision": "step1", "revisions": ["step1", "step2"]}]}
        parse_config(EvolveRecipe, twice, where="x")


def test_the_table_has_a_row_per_latent_and_model():
    born = np.stack([np.arange(F) % 4, np.arange(F) % 4 + 2])
    cc, x, _ = concepts(born)
    own = own_codes(cc, [x], arch.last_of_others(LINES, 2 * K))
    latents = pd.DataFrame({"v_token": np.linspace(0, 1, F), "n_fired": own.n_fired})
    table = arch.architecture_table(own, cc.decoder_norms().numpy(), LINES, latents)
    assert len(table) == 2 * F and table["shared"].all()
    wide = table.pivot(index="latent", columns="model", values="emergence_own")
    assert (wide["b"] > wide["a"]).all() and (table["emergence_norm"] == 8).all(), "by its norm all were there at once"


def test_statements_of_before_are_told_apart_where_there_are_several_models() -> None:
    several, one = (make_plan(read_recipe(EvolveRecipe, name)) for name in ("mini-architectures", "mini-evolve"))
    assert several.describe()["statements"] == STATEMENTS
    assert "statements" not in one.describe()
