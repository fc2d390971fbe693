"""Questions nobody had asked: each experiment on made-up inputs whose answer is known, with the effect and without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from sae.errors import MissingError
from tests.workbench.bridges import bridge, tiny
from workbench.claims import all_claims, curves
from workbench.claims.base import verdict
from workbench.claims.rules import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED
from workbench.workspace import Workspace

BY_ID = {c.id: c for c in all_claims()}


def said(claim_id: str, lab: Any) -> str:
    return verdict(BY_ID[claim_id], BY_ID[claim_id].measure(lab))


class Once:
    """What a lab's ``once`` does."""

    def __init__(self) -> None:
        self.kept: dict[Any, Any] = {}

    def __call__(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


# --- trajectories ----------------------------------------------------------------------------------------------------

S, F, N = 10, 160, 4000
KINDS = np.array(["token", "previous-token", "context", "induction"])


def crosscoders(monkeypatch: pytest.MonkeyPatch, model: float, own: float, kind: float, seeds: int = 3) -> Any:
    """Crosscoders whose latents do the same in another order, with trajectories of three parts of these sizes: one that
    belongs to the latent, one that each crosscoder adds, one that all latents of a kind share.
    """
    from workbench.claims.evolution import trajectories

    rng = np.random.default_rng(0)
    of_latent, of_kind = rng.standard_normal((F, S)), rng.standard_normal((4, S))[np.arange(F) % 4]
    activity = np.where(rng.random((N, F)) < 0.05, rng.random((N, F)) + 0.5, 0)
    made: dict[int, Any] = {}
    for seed in range(seeds):
        order = rng.permutation(F)
        curve = 5 + np.linspace(0, 3, S) + model * of_latent + kind * of_kind + own * rng.standard_normal((F, S))
        curve[:, -1] = 40.0  # the largest, so that relative norms keep the parts
        noisy = np.where(rng.random((N, F)) < 0.9, activity, 0)
        table = pd.DataFrame({"latent": np.arange(F), "alive": True, "kind": KINDS[order % 4]})
        made[seed] = SimpleNamespace(
            table=table, norms=lambda i, c=curve[order]: c[i], codes=sp.csr_array(noisy[:, order]), id=f"s{seed}"
        )
    monkeypatch.setattr(trajectories, "codes", lambda lab, seed: made[seed].codes)
    monkeypatch.setattr(trajectories, "DRAWS", 60)
    return SimpleNamespace(
        evolution=lambda seed=0: made[seed], seeds=seeds, each_seed=lambda: range(seeds), once=Once(), quick=True
    )


TRAJECTORIES = "evolution.trajectories-of-the-model"


def test_trajectories_of_the_model_are_told_from_those_of_the_crosscoder(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0)
    found = BY_ID[TRAJECTORIES].measure(lab)
    assert verdict(BY_ID[TRAJECTORIES], found) == SUPPORTED, found
    assert found.effect.value == pytest.approx(1 / 1.09, abs=0.03), "the latent's own share of the variance"
    assert found.effect.n == 3 and found.more["matched"].value > 0.9
    assert found.more["same frequency and kind"].value < 0.2
    assert said(TRAJECTORIES, crosscoders(monkeypatch, model=0.3, own=1.0, kind=0.0)) == CONTRADICTED
    assert said(TRAJECTORIES, crosscoders(monkeypatch, model=0.0, own=1.0, kind=0.0)) == CONTRADICTED


def test_trajectories_that_all_latents_of_a_kind_share_are_not_the_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    found = BY_ID[TRAJECTORIES].measure(crosscoders(monkeypatch, model=0.0, own=0.3, kind=1.0))
    assert found.effect.value > 0.8, "matched latents do share them"
    assert verdict(BY_ID[TRAJECTORIES], found) != SUPPORTED, "and so do others of the kind"


def test_one_crosscoder_or_latents_that_match_nothing_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.claims.evolution import trajectories

    assert said(TRAJECTORIES, crosscoders(monkeypatch, 1.0, 0.3, 0.0, seeds=1)) == NOT_TESTABLE
    assert said(TRAJECTORIES, crosscoders(monkeypatch, 1.0, 0.3, 0.0, seeds=2)) == INCONCLUSIVE, "one pair"
    lab = crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0)
    rng = np.random.default_rng(9)
    monkeypatch.setattr(
        trajectories, "codes", lambda lab, seed: sp.csr_array((rng.random((N, F)) < 0.05).astype(float))
    )
    assert said(TRAJECTORIES, lab) == NOT_TESTABLE


def test_exchanged_partners_stay_in_their_group() -> None:
    from workbench.claims.evolution.trajectories import exchanged, strata

    groups = strata(KINDS[np.arange(400) % 4], np.geomspace(30, 3000, 400))
    assert len(set(groups)) == 16
    order = exchanged(groups, np.random.default_rng(0))
    assert sorted(order) == list(range(400)) and (groups[order] == groups).all()
    assert (order == np.arange(400)).mean() < 0.15


def test_the_curve_behind_a_claim_is_drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from workbench.claims.run import run_claim
    from workbench.exporting.figures import build
    from workbench.exporting.render import render
    from workbench.exporting.spec import FigureSpec

    lab = crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0)
    lab.workspace, lab.say, lab.replace = Workspace(tmp_path / "ws"), lambda line: None, False
    run_claim(BY_ID[TRAJECTORIES], lab)
    spec = FigureSpec(figure="claim_curve", source=f"claims/{TRAJECTORIES}")
    made = build(spec, lab.workspace)
    assert set(made.data["series"]) >= {"matched"} and "half of the variance" in made.caption
    assert b"<svg" in render(made, spec.style, formats=("svg",))["svg"]
    monkeypatch.setattr(curves, "CURVES", {})
    with pytest.raises(MissingError, match="has no curve"):
        build(spec, lab.workspace)


def test_curves_are_of_claims_that_exist() -> None:
    assert set(curves.CURVES) <= set(BY_ID) and all(c.says and c.x_label and c.y_label for c in curves.CURVES.values())


# --- effects ---------------------------------------------------------------------------------------------------------

EFFECTS, TELLS = "universality.similar-latents-same-effects", "universality.similarity-tells-effects"
TOKENS, VOCAB = 8, 40


def pairs_of(partner: float, control: float, follows: float = 1.0) -> pd.DataFrame:
    """A table of pairs from made-up effects: each latent has one; its partner shares as much of it as they are similar
    (times ``partner``), and another latent at the same places shares ``control`` of it.
    """
    from workbench.claims.universality.similar_effects import alike

    rng, rows = np.random.default_rng(0), []
    for layer in range(3):
        for seed in (0, 1):
            for latent in range(20):
                r = rng.uniform(0.1, 0.95)
                own = rng.standard_normal((TOKENS, VOCAB))

                def shared(part: float, own: np.ndarray = own) -> np.ndarray:
                    return part * own + np.sqrt(1 - part**2) * rng.standard_normal(own.shape)

                part = partner * (r if follows else 0.6)
                row = {"layer": layer, "seed": seed, "latent": latent, "raw": min(1, r + 0.2), "given_token": r}
                found = {"effects": shared(part), "control": shared(control), "ceiling": shared(0.9)}
                found["exchanged"] = np.roll(found["effects"], 1, axis=0)
                rows.append(row | {k: alike(own, v) for k, v in found.items()})
    return pd.DataFrame(rows)


def bench_of(monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame) -> Any:
    from workbench.claims.universality import similar_effects

    monkeypatch.setattr(similar_effects, "compared", lambda lab: table)
    return SimpleNamespace(quick=True)


def test_similar_latents_do_the_same_only_beyond_others_at_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = bench_of(monkeypatch, pairs_of(1.0, 0.2))
    found = BY_ID[EFFECTS].measure(lab)
    assert verdict(BY_ID[EFFECTS], found) == SUPPORTED and found.effect.n == 6, found
    assert found.more["another SAE seed"].value > 0.8 and abs(found.more["other rows"].value) < 0.1
    assert said(EFFECTS, bench_of(monkeypatch, pairs_of(1.0, 0.9))) == CONTRADICTED, "the shared token is the trap"
    assert said(EFFECTS, bench_of(monkeypatch, pairs_of(0.2, 0.0))) == CONTRADICTED, "too little is shared"
    assert said(EFFECTS, bench_of(monkeypatch, pairs_of(1.0, 0.2).head(10))) == NOT_TESTABLE


def test_similarity_tells_effects_only_where_they_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(TELLS, bench_of(monkeypatch, pairs_of(1.0, 0.2))) == SUPPORTED
    assert said(TELLS, bench_of(monkeypatch, pairs_of(1.0, 0.2, follows=0.0))) != SUPPORTED
    both = pairs_of(1.0, 0.2)
    assert said(TELLS, bench_of(monkeypatch, both.assign(control=both["effects"]))) != SUPPORTED, "the place decides"


def test_effects_are_compared_without_what_changes_no_probability() -> None:
    from workbench.claims.universality.similar_effects import alike

    x = np.random.default_rng(0).standard_normal((4, 9))
    assert alike(x, 3 * x + 7) == pytest.approx(1) and alike(x, -x) == pytest.approx(-1)
    assert np.isnan(alike(x, 0 * x + 2))


def test_a_control_fires_at_the_same_places_and_as_often() -> None:
    from workbench.claims.universality.similar_effects import Codes, Latent, control_for

    fires = sp.csr_array(np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]], float))
    column, rows = control_for(fires, np.array([100, 150, 900, 60]), 0)
    assert column == 1 and rows.tolist() == [0, 1], "the third fires there always, but far too often"
    assert control_for(fires, np.array([100, 1, 900, 1]), 0)[0] == -1
    codes = Codes([sp.csr_array((3, 4)), sp.csr_array((3, 5))])
    assert codes.latent(6) == Latent(1, 2) and codes.column(Latent(1, 2)) == 6 and codes.all.shape == (3, 9)


def test_an_ablation_is_the_models_own_forward_pass_without_the_latent() -> None:
    """Against the residual stream changed by hand, at one position, with a dictionary that is the identity."""
    from workbench.claims.universality.similar_effects import Place, ablation_effects

    model = bridge(tiny("neox"))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, model.cfg.d_vocab, (3, 12))
    hook, width = "blocks.0.hook_resid_post", model.cfg.d_model

    class Identity:
        W_dec = torch.eye(width)
        metadata = None

        def encode_sparse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, torch.arange(width).expand(x.shape)

        def decode_sparse(self, values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            return values

        def decode(self, f: torch.Tensor) -> torch.Tensor:
            return f

    where = [Place(hook, Identity(), 5, 2, 7), Place(hook, Identity(), 1, 0, 3)]
    found = ablation_effects(model, tokens, where)
    for place, change in zip(where, found, strict=True):

        def without(value: torch.Tensor, hook: Any, place: Any = place) -> torch.Tensor:
            value = value.clone()
            value[:, place.position, place.latent] = 0
            return value

        ids = torch.from_numpy(tokens[[place.sequence]])
        with torch.inference_mode():
            clean = model(ids, return_type="logits")[0, place.position].log_softmax(-1)
            changed = model.run_with_hooks(ids, fwd_hooks=[(hook, without)])[0, place.position].log_softmax(-1)
        assert np.allclose(change, (changed - clean).numpy(), atol=1e-5) and np.abs(change).max() > 1e-4


# --- relays ----------------------------------------------------------------------------------------------------------

LAW, FOLLOWS = "universality.off-by-one-law", "universality.offset-follows-the-tap"
STEPS = (2048, 8192, 14000, 27000)  # the first does not copy yet


class Relay:
    """A Mamba of two layers whose convolutions are all there is: each writes the value token where its taps put it."""

    def __init__(self, copies: bool, late: int = 1):
        self.copies, self.blocks = copies, []
        for tap in (0, late):
            weight = torch.full((3, 1, 4), 0.02)
            weight[:, 0, 3 - tap] = 1.0 if copies or tap == 0 else 0.02
            conv = SimpleNamespace(weight=weight)
            self.blocks.append(SimpleNamespace(mixer=SimpleNamespace(conv1d=conv)))


def relays_of(monkeypatch: pytest.MonkeyPatch, *, late: int = 1, in_the_tap: bool = True) -> Any:
    """A run of such Mambas and a second initialisation. Without ``in_the_tap`` writes stay where they are, whatever the
    taps.
    """
    from workbench.analysis.circuits import states
    from workbench.analysis.circuits.table import OFFSETS
    from workbench.claims.universality import relays

    def profile(model: Any, prompts: Any) -> Any:
        values = np.random.default_rng(0).normal(0, 0.02, (24, 2, len(OFFSETS)))
        for layer in (0, 1):
            for offset in range(4):
                fixed = 1.0 if offset == layer * late else 0.02
                size = float(relays.taps(model, layer)[0, 3 - offset]) if in_the_tap else fixed
                values[:, layer, OFFSETS.index(offset)] -= 5 * size
        return relays.Profile(values, OFFSETS)

    runs = [("mini-mamba", s, Relay(s > 2048, late)) for s in STEPS] + [("mini-mamba-s1", 14000, Relay(True, late))]
    monkeypatch.setattr(relays, "profile", profile)
    monkeypatch.setattr(relays, "preference", lambda model, prompts: 0.95 if model.copies else 0.5)
    monkeypatch.setattr(relays, "snapshots", lambda lab: runs)
    monkeypatch.setattr(states, "mixer_of", lambda model, layer: model.blocks[layer].mixer)
    monkeypatch.setattr(relays, "_prompts", lambda lab: range(24))
    flat = relays.Profile(np.random.default_rng(1).normal(0, 1, (24, 2, len(OFFSETS))), OFFSETS)
    monkeypatch.setattr(relays, "profile_of", lambda lab, model="", revision=None: flat)
    return SimpleNamespace(once=Once(), quick=True)


def test_off_by_one_is_a_law_only_if_every_mamba_that_copies_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = relays_of(monkeypatch)
    found = BY_ID[LAW].measure(lab)
    assert verdict(BY_ID[LAW], found) == SUPPORTED and len(found.table) == 4, found
    assert "layer 0 at +0" in found.note and "layer 1 at +1" in found.note and "--retrain" in found.note
    assert found.table["run"].tolist() == ["mini-mamba"] * 3 + ["mini-mamba-s1"]
    assert said(LAW, relays_of(monkeypatch, late=2)) == CONTRADICTED, "an offset of two is another law"
    lab = relays_of(monkeypatch)
    table = BY_ID[LAW].measure(lab).table
    table.loc[1, ["at_plus_one", "low", "high"]] = 0.1, 0.05, 0.2
    assert said(LAW, lab) == CONTRADICTED, "one that copies otherwise is enough"


def test_the_offset_follows_the_tap_only_if_it_is_in_the_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    found = BY_ID[FOLLOWS].measure(relays_of(monkeypatch))
    assert verdict(BY_ID[FOLLOWS], found) == SUPPORTED and found.effect.n == 4, found
    assert found.control.value < 0.2
    assert found.more["tap 1 of a snapshot that does not copy"].value < 0.1
    assert found.more["tap 1 of another that copies"].value == pytest.approx(1, abs=0.05)
    assert found.more["tap 1 given to a snapshot that does not copy"].value == pytest.approx(1, abs=0.05)
    assert said(FOLLOWS, relays_of(monkeypatch, in_the_tap=False)) == CONTRADICTED
    assert said(FOLLOWS, relays_of(monkeypatch, late=2)) == NOT_TESTABLE, "no layer writes at +1"


def test_taps_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.analysis.circuits import states
    from workbench.claims.universality import relays

    monkeypatch.setattr(states, "mixer_of", lambda model, layer: model.blocks[layer].mixer)
    model = Relay(True)
    before = relays.taps(model, 1).clone()
    with (
        pytest.raises(RuntimeError),
        relays.changed_taps(model, 1, {1: relays.tap_of(model, 1, 2), 2: relays.tap_of(model, 1, 1)}),
    ):
        assert float(relays.taps(model, 1)[0, 1]) == 1.0 and float(relays.taps(model, 1)[0, 2]) < 0.1
        raise RuntimeError
    assert (relays.taps(model, 1) == before).all()


# --- similarity in training ------------------------------------------------------------------------------------------

COMES = "universality.similarity-comes-with-copying"


def training(monkeypatch: pytest.MonkeyPatch, similar: list[float], bigram: list[float], noise: float = 0.01) -> Any:
    """Made-up curves over the pairs of a quick run: similarity above its null, divergence from the bigram table; both
    models copy from the third pair on.
    """
    from workbench.claims.universality import similarity_in_training as module

    rng = np.random.default_rng(0)
    rows = [
        {
            "seed": seed,
            "pair": i,
            "transformer": a,
            "mamba": b,
            "above": similar[i] + noise * rng.standard_normal(),
            "trained_transformer": similar[i] / 2,
        }
        for seed in range(3)
        for i, (a, b) in enumerate(module.QUICK)
    ]
    about = [
        {
            "model": m,
            "pair": i,
            "accuracy": (0.2, 0.3, 0.95, 1.0)[i],
            "kl_to_bigram": (5, 1, 2, 3)[i],
            "kl_bigram": d,
            "n": 900,
        }
        for m in module.MODELS
        for i, d in enumerate(bigram)
    ]
    monkeypatch.setattr(module, "similarities", lambda lab, pairs: pd.DataFrame(rows))
    monkeypatch.setattr(module, "events", lambda lab, pairs: pd.DataFrame(about))
    return SimpleNamespace(once=Once(), quick=True, seeds=3, each_seed=lambda: range(3))


def test_similarity_comes_with_copying_or_with_n_grams(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = [6.0, 1.0, 0.9, 0.9]
    found = BY_ID[COMES].measure(training(monkeypatch, [0.0, 0.05, 0.3, 0.4], learnt))
    assert verdict(BY_ID[COMES], found) == SUPPORTED and found.effect.value == pytest.approx(0.125, abs=0.05), found
    assert found.more["rise"].value == pytest.approx(0.4, abs=0.03) and "2,560/2,560" in found.note
    assert said(COMES, training(monkeypatch, [0.0, 0.35, 0.38, 0.4], learnt)) == CONTRADICTED
    late = training(monkeypatch, [0.0, 0.05, 0.3, 0.4], [6.0, 5.5, 1.0, 0.9])
    assert said(COMES, late) == INCONCLUSIVE, "n-grams are not learnt there either: the place tells nothing apart"
    assert said(COMES, training(monkeypatch, [0.1, 0.1, 0.11, 0.12], learnt, noise=0.02)) == INCONCLUSIVE, "no rise"


def test_the_place_before_copying_is_before_the_first_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.claims.universality.similarity_in_training import curve_of_copying, fallen, half_done, share_done

    pairs = [(0, 0)] * 4
    assert curve_of_copying(pairs, np.array([[0, 0, 0.9, 1], [0, 0, 0, 1.0]])) == 1
    assert curve_of_copying(pairs, np.array([[0, 0.9, 0.2, 0.1], [0, 0, 0, 0.1]])) == -1, "none copies to the end"
    curve = np.array([1.0, 2, 4, 5])
    assert share_done(curve, 1) == 0.25 and half_done(curve) == 2 and fallen(5 - curve, 2) == 0.75


def test_given_the_token_only_what_is_shared_beyond_it_lies_above_the_null() -> None:
    """Codes that depend on the token alone are no more similar than with tokens exchanged; a shared context is."""
    from workbench.analysis.comparison.given_token import TokenCells
    from workbench.claims.universality.similarity_in_training import above_null

    rng, n, f = np.random.default_rng(0), 6000, 24
    ids, context = rng.integers(0, 12, n), rng.random((n, f))
    cells = TokenCells.of(ids, np.repeat(np.arange(n // 10), 10))
    by_token = np.eye(12)[ids][:, np.arange(f) % 12]

    def codes(shared: float) -> sp.csr_array:
        own = rng.random((n, f))
        fires = shared * context + (1 - shared) * own > 0.7
        return sp.csr_array((by_token * fires * (1 + 0.1 * own))[cells.rows])

    given, null = above_null(codes(0.0), codes(0.0), cells, rng)
    assert abs(given - null) < 0.03
    given, null = above_null(codes(0.95), codes(0.95), cells, rng)
    assert given - null > 0.4


def test_every_curve_reads_the_table_its_claim_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    labs = {
        TRAJECTORIES: lambda: crosscoders(monkeypatch, model=1.0, own=0.3, kind=0.0),
        EFFECTS: lambda: bench_of(monkeypatch, pairs_of(1.0, 0.2)),
        FOLLOWS: lambda: relays_of(monkeypatch),
        COMES: lambda: training(monkeypatch, [0.0, 0.05, 0.3, 0.4], [6.0, 1.0, 0.9, 0.9]),
    }
    assert set(labs) == set(curves.CURVES)
    read = {c: curves.CURVES[c].read(BY_ID[c].measure(make()).table) for c, make in labs.items()}
    for claim, frame in read.items():
        assert set(frame) == {"x", "series", "value", "low", "high", "n"} and frame["value"].notna().all(), claim
        assert set(curves.CURVES[claim].dashed) <= set(frame["series"]), claim
    effects = read[EFFECTS].set_index("series")
    assert effects.loc["partner, r given the token", "value"].is_monotonic_increasing, "the curve that was put in"
    assert (read[COMES].loc[read[COMES]["series"] == "similarity", "n"] == 3).all()
    assert (read[COMES].loc[read[COMES]["series"] != "similarity", "n"] == 1).all(), "accuracy has no dictionary's seed"
