"""Claims judge by criteria fixed beforehand: an injected effect is found, a destroyed one is not."""

from __future__ import annotations

import json
import math
import multiprocessing

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from sae.errors import MissingError, UserError
from workbench.claims import PAPERS, Claim, Finding, Lab, Measured, all_claims, verdict
from workbench.claims.agreement import disagreements, results_document
from workbench.claims.base import FOUND, NOT_FOUND, NOT_TESTABLE, positive_beyond_control, untestable
from workbench.claims.pool import Task, run_tasks, startable, tasks_of
from workbench.claims.run import markdown, run_all, run_claim
from workbench.cli import app
from workbench.workspace import Workspace

BY_ID = {c.id: c for c in all_claims()}


def measured(value, low=None, high=None, n=100):
    return Measured(value, low, high, n)


def judge(claim_id, effect, control=None, table=None):
    return verdict(BY_ID[claim_id], Finding(effect, control, table))


def test_the_registry_covers_three_papers_and_every_claim_names_its_control():
    claims = all_claims()
    assert len(claims) >= 20 and len(BY_ID) == len(claims)
    assert {c.paper for c in claims} == set(PAPERS)
    for c in claims:
        assert c.id.startswith(c.paper) and all(
            (c.statement, c.paper_number, c.experiment, c.control, c.criterion, c.section)
        )
    assert {c.paper for c in all_claims("evolution")} == {"evolution"}


def test_every_row_of_the_papers_has_claims_and_every_claim_a_row():
    from workbench.claims.rows import ROWS

    named = {f"{paper}.{claim}" for paper, rows in ROWS.items() for claims in rows.values() for claim in claims}
    assert set(ROWS) == set(PAPERS) and named == set(BY_ID)
    assert all(claims for rows in ROWS.values() for claims in rows.values())


def test_claims_need_shared_experiments_that_exist():
    from workbench.claims.lab import SHARED

    for c in all_claims():
        assert c.needs and c.cost > 0
        for need in c.needs:
            assert need in SHARED or need.split(" ")[0] in {"circuits", "variant"}


conversion = {
    "good": pd.DataFrame({"ev_topk": [0.9], "ev_jumprelu": [0.899]}),
    "bad": pd.DataFrame({"ev_topk": [0.9], "ev_jumprelu": [0.8]}),
}
seeds = {v: pd.DataFrame({"verdict": ["found", v]}) for v in ("found", "not found")}

# claim, (effect, control, table) injected, (effect, control, table) destroyed
CASES = [
    (
        "llama-scope.topk-frontier",
        (measured(0.05, 0.03, 0.07), measured(0.0, -0.01, 0.01), None),
        (measured(0.01, -0.01, 0.03), measured(0.0, -0.01, 0.01), None),
    ),
    (
        "llama-scope.wider-better",
        (measured(0.05, 0.03, 0.07), measured(0.0, -0.01, 0.01), None),
        (measured(0.05, 0.03, 0.07), measured(0.05, 0.02, 0.08), None),
    ),
    (
        "llama-scope.norm-selection",
        (measured(0.0, -0.01, 0.01), measured(-0.1), None),
        (measured(0.06, 0.05, 0.07), measured(-0.1), None),
    ),
    (
        "llama-scope.k-annealing",
        (measured(0.2, 0.1, 0.3), measured(0.0, -0.02, 0.02), None),
        (measured(-0.1, -0.2, 0.0), measured(0.0, -0.02, 0.02), None),
    ),
    (
        "llama-scope.jumprelu-conversion",
        (measured(0.005, 0.004, 0.006), measured(0.4), conversion["good"]),
        (measured(0.005, 0.004, 0.006), measured(0.4), conversion["bad"]),
    ),
    ("llama-scope.folding", (measured(1e-14), measured(0.3), None), (measured(0.2), measured(0.3), None)),
    (
        "llama-scope.geometry",
        (measured(0.3, 0.2, 0.4), measured(0.0, -0.01, 0.01), None),
        (measured(0.005, -0.01, 0.02), measured(0.0, -0.01, 0.01), None),
    ),
    (
        "universality.latents-above-neurons",
        (measured(0.3, 0.28, 0.32), measured(0.0), None),
        (measured(0.01, -0.01, 0.03), measured(0.0), None),
    ),
    (
        "universality.very-similar-share",
        (measured(0.43, 0.41, 0.45), measured(0.07), None),
        (measured(0.43, 0.41, 0.45), measured(0.5), None),
    ),
    (
        "universality.off-by-one",
        (measured(0.95, 0.9, 0.98), measured(1 / 12), None),
        (measured(0.2, 0.1, 0.3), measured(1 / 12), None),
    ),
    (
        "evolution.emergent-latents",
        (measured(0.4, 0.3, 0.5), None, seeds["found"]),
        (measured(0.4, 0.3, 0.5), None, seeds["not found"]),
    ),
    (
        "llama-scope.k-annealing-error",
        (measured(0.0, -0.005, 0.005), measured(-0.06), None),
        (measured(-0.1, -0.12, -0.08), measured(-0.06), None),
    ),
    (
        "llama-scope.fine-tuned",
        (measured(0.02, 0.01, 0.03), measured(0.9), None),
        (measured(0.3, 0.2, 0.4), measured(0.9), None),
    ),
    (
        "universality.mamba-few-layers",
        (measured(0.95, 0.9, 1.0), measured(0.0), None),
        (measured(0.5, 0.4, 0.6), measured(0.0), None),
    ),
    (
        "evolution.single-sae-gap",
        (measured(0.02, 0.01, 0.025), measured(0.08), None),
        (measured(0.05, 0.04, 0.06), measured(0.1), None),
    ),
    ("evolution.axes", (measured(0, 0, 1), measured(3), None), (measured(2, 1, 3), measured(3), None)),
    ("evolution.two-groups", (measured(0.995), measured(0.5), None), (measured(0.6), measured(0.5), None)),
    (
        "evolution.norm-tracks-probe",
        (measured(0.8, 0.7, 0.9), measured(0.5, 0.4, 0.6), None),
        (measured(0.5, 0.4, 0.6), measured(0.5, 0.4, 0.6), None),
    ),
    (
        "evolution.same-snapshot-control",
        (measured(0.02, 0.01, 0.03), measured(0.6), None),
        (measured(0.5, 0.4, 0.6), measured(0.6), None),
    ),
]


@pytest.mark.parametrize(("claim_id", "injected", "destroyed"), CASES, ids=[c[0] for c in CASES])
def test_an_injected_effect_is_found_and_a_destroyed_one_is_not(claim_id, injected, destroyed):
    assert judge(claim_id, *injected) == FOUND
    assert judge(claim_id, *destroyed) == NOT_FOUND
    assert judge(claim_id, measured(math.nan, n=0)) == NOT_FOUND
    assert verdict(BY_ID[claim_id], untestable("too small")) == NOT_TESTABLE


def test_measured_intervals():
    m = Measured.of([1.0, 2.0, 3.0, float("nan")])
    assert m.n == 3 and m.value == 2 and 1 <= m.low < 2 < m.high <= 3
    assert Measured.of([1.0, 2.0]).low is None and Measured.of([]).n == 0
    assert Measured.of([1, 2, 3]).low == Measured.of([1, 2, 3]).low


def test_the_l1_frontier_leaves_out_points_that_others_beat():
    from workbench.claims.llama_scope.topk_frontier import best, frontier

    points = pd.DataFrame({"arm": "l1", "l0": [10.0, 20.0, 20.0, 40.0, 30.0], "ev": [0.5, 0.7, 0.6, 0.65, 0.9]})
    assert frontier(points)[["l0", "ev"]].to_numpy().tolist() == [[10, 0.5], [20, 0.7], [30, 0.9]]
    topk = pd.DataFrame(
        {"arm": ["topk", "topk", "l1"], "knob": [8, 8, 8], "l0": [8.0, 8.0, 8.0], "ev": [0.4, 0.6, 0.9]}
    )
    assert best(topk).ev.tolist() == [0.6]


def toy(measure):
    return Claim(
        "llama-scope.toy",
        "llama-scope",
        "0",
        "A toy.",
        "1",
        "None.",
        "None.",
        "Positive.",
        measure,
        positive_beyond_control,
    )


def test_claims_are_written_once_and_errors_become_reasons(tmp_path):
    calls = []

    def good(lab):
        calls.append(lab.seeds)
        return Finding(measured(1.0, 0.5, 1.5), measured(0.0), pd.DataFrame({"x": [1]}))

    def bad(lab):
        raise MissingError("no such model")

    ws, seen = Workspace(tmp_path / "ws"), []
    documents = run_all([toy(good)], ws, seeds=2, quick=True, say=lambda _: None, done=seen.append)
    again = run_all([toy(good)], ws, seeds=2, quick=True, say=lambda _: None, done=seen.append)
    assert calls == [2] and documents == again and documents[0]["verdict"] == FOUND and len(seen) == 2
    with pytest.raises(UserError, match="seeds: 2 there, 3 asked"):
        run_all([toy(good)], ws, seeds=3, quick=True, say=lambda _: None, done=seen.append)
    run_all([toy(good)], ws, seeds=3, quick=True, replace=True, say=lambda _: None, done=seen.append)
    assert calls == [2, 3]  # another number of seeds is another result
    lab = Lab(ws, seeds=1)
    document = run_claim(toy(bad), Lab(ws, seeds=9, replace=True))
    assert document["verdict"] == NOT_TESTABLE and "no such model" in document["note"] and lab.seeds == 1
    page = markdown(documents, seeds=2, quick=True)
    assert "1 found, 0 not found" in page and "**found**" in page and "1 [0.5, 1.5]" in page


def test_the_verb_names_what_does_not_exist(tmp_path):
    result = CliRunner().invoke(app, ["reproduce", "universalty", "-w", str(tmp_path / "ws")])
    assert result.exit_code == 2 and "'universality'" in result.output
    result = CliRunner().invoke(app, ["reproduce", "--only", "llama-scope.foldin", "-w", str(tmp_path / "ws")])
    assert result.exit_code == 2 and "llama-scope.folding" in result.output


# --- several processes
# -------------------------------------------------------------------------------------------------

VARIANTS = [
    "universality.state-size",
    "universality.layers-needed",
    "evolution.warm-up",
]  # without --retrain they say at once why not


def test_tasks_come_after_what_they_need_and_the_longest_first():
    tasks = tasks_of(all_claims())
    by_name = {t.name: t for t in tasks}
    assert {"evolution", "demo store", "comparison", "circuits mini-mamba@step0"} <= set(by_name)
    assert not any(t.name.startswith("variant") for t in tasks) and any(
        t.name.startswith("variant") for t in tasks_of(all_claims(), retrain=True)
    )
    assert sorted(c for t in tasks for c in t.claims) == sorted(BY_ID)
    assert set(by_name["comparison"].after) == {"demo dictionaries", "seed dictionaries", "baseline dictionaries"}
    assert tasks[0].alone and all(after in by_name for t in tasks for after in t.after)
    assert {t.name for t in tasks_of([BY_ID["evolution.dimensionality"]])} == {
        "evolution",
        "workbench.claims.evolution.statistics",
    }
    finished, busy, order = set(), {}, []
    while len(order) < len(tasks):  # one worker at a time
        (task,) = startable([t for t in tasks if t.name not in finished], finished, busy, 1)
        assert finished.issuperset(task.after)
        finished.add(task.name)
        order.append(task.name)
    whole = next(t for t in tasks if t.alone)
    assert startable(tasks, set(), {None: by_name["evolution"]}, 1) == [] and startable(tasks, set(), {}, 2) == [whole]
    assert startable(tasks, set(), {None: whole}, 1) == []


def test_two_processes_give_the_same_documents_in_the_order_of_the_claims(tmp_path):
    claims, lines, seen = [BY_ID[v] for v in VARIANTS], [], []
    options = {"seeds": 1, "quick": True, "say": lines.append}
    documents = run_all(claims, Workspace(tmp_path / "two"), workers=2, done=seen.append, **options)
    alone = run_all(claims, Workspace(tmp_path / "one"), done=lambda _: None, **options)
    assert [d["claim"] for d in documents] == VARIANTS and sorted(d["claim"] for d in seen) == sorted(VARIANTS)
    drop = [{k: v for k, v in d.items() if k != "version"} for d in documents]
    assert drop == [{k: v for k, v in d.items() if k != "version"} for d in alone]
    assert {d["verdict"] for d in documents} == {NOT_TESTABLE} and all("--retrain" in d["note"] for d in documents)


def test_a_failing_or_killed_worker_ends_the_run_with_its_reason(tmp_path):
    lab = Lab(Workspace(tmp_path / "ws"), seeds=1, quick=True)
    with pytest.raises(RuntimeError, match="KeyError"):
        run_tasks([Task("odd", claims=("no.such-claim",))], lab, 2, lambda _: None)
    assert not multiprocessing.active_children()

    def shoot(line):
        for process in multiprocessing.active_children():
            process.kill()

    lab.say = shoot
    with pytest.raises(RuntimeError, match="was killed; run the same command"):
        run_tasks(
            [Task("a", claims=tuple(VARIANTS[:1])), Task("b", claims=tuple(VARIANTS[1:]), after=("a",))],
            lab,
            1,
            lambda _: None,
        )
    assert not multiprocessing.active_children()


# --- results held against earlier ones
# ---------------------------------------------------------------------------------


def result(claim="llama-scope.toy", verdict=FOUND, effect=(0.5, 0.4, 0.6), control=(0.0, None, None)):
    keys = ("value", "low", "high")
    return {
        "claim": claim,
        "paper": "llama-scope",
        "verdict": verdict,
        "effect": dict(zip(keys, effect, strict=True)),
        "control_measured": control if control is None else dict(zip(keys, control, strict=True)),
        "n": 3,
    }


@pytest.mark.parametrize(
    ("new", "differs"),
    [
        (result(effect=(0.62, 0.55, 0.7)), ""),
        (result(effect=(0.62, None, None)), "effect 0.62, earlier 0.5 [0.4, 0.6]"),
        (result(effect=(0.8, 0.7, 0.9)), "effect 0.8 [0.7, 0.9], earlier 0.5 [0.4, 0.6]"),
        (result(verdict=NOT_FOUND), "not found, earlier found"),
        (result(control=(1e-12, None, None)), ""),
        (result(control=(0.3, None, None)), "control 0.3, earlier 0"),
        (result(control=None), "control none, earlier 0"),
        (
            result(effect=(float("nan"), None, None)) | {"effect": {"value": None}},
            "effect none, earlier 0.5 [0.4, 0.6]",
        ),
    ],
)
def test_results_agree_within_their_intervals(new, differs):
    earlier = results_document([result()], seeds=3, quick=True, retrain=False)
    assert [d.what for d in disagreements([new], earlier)] == ([differs] if differs else [])


def test_numbers_without_intervals_agree_within_half_and_missing_claims_are_told():
    earlier = results_document(
        [result(effect=(0.04, None, None)), result("llama-scope.other")], seeds=3, quick=True, retrain=False
    )
    assert disagreements([result(effect=(0.06, None, None))], earlier, complete=False) == []
    assert [str(d) for d in disagreements([result(effect=(0.1, None, None)), result("llama-scope.new")], earlier)] == [
        "llama-scope.toy: effect 0.1, earlier 0.04",
        "llama-scope.new: is not among the earlier results",
        "llama-scope.other: is missing from this run",
    ]
    untested = result(verdict=NOT_TESTABLE, effect=(None, None, None), control=None)
    assert disagreements([untested], results_document([untested], seeds=3, quick=True, retrain=False)) == []


def test_an_altered_results_file_is_told_with_exit_code_1(tmp_path):
    args = ["reproduce", "--only", VARIANTS[2], "--quick", "--seeds", "1", "-w", str(tmp_path / "ws")]
    page = tmp_path / "RESULTS.md"
    runner = CliRunner()
    assert runner.invoke(app, [*args, "--write", str(page)]).exit_code == 0
    assert "--write RESULTS.md`" in page.read_text() and str(tmp_path) not in page.read_text(), (
        "the page tells its own command, and no place"
    )
    numbers = json.loads((tmp_path / "RESULTS.json").read_text())
    assert (
        numbers["quick"] is True
        and numbers["claims"][0]["claim"] == VARIANTS[2]
        and "version" not in numbers["claims"][0]
    )
    same = runner.invoke(app, [*args, "--against", str(page)])
    assert same.exit_code == 0 and "0 differ by more than the intervals" in same.output
    numbers["claims"][0]["verdict"] = FOUND
    (tmp_path / "RESULTS.json").write_text(json.dumps(numbers))
    altered = runner.invoke(app, [*args, "--against", str(page), "--json"])
    assert altered.exit_code == 1 and json.loads(altered.stdout)["differ"][0]["claim"] == VARIANTS[2]
    other = runner.invoke(app, [*args[:-4], "--seeds", "2", "-w", str(tmp_path / "ws"), "--against", str(page)])
    assert other.exit_code == 2 and "--seeds 1 --quick" in other.output and "or compare" not in other.output
    (tmp_path / "RESULTS-two.json").write_text(json.dumps(numbers | {"seeds": 2}))
    other = runner.invoke(app, [*args[:-4], "--seeds", "2", "-w", str(tmp_path / "ws"), "--against", str(page)])
    assert other.exit_code == 2 and "or compare with" in other.output and "RESULTS-two.md" in other.output
    (tmp_path / "RESULTS.json").write_text("{}")
    assert runner.invoke(app, [*args, "--against", str(page)]).exit_code == 1
    assert runner.invoke(app, [*args, "--against", str(tmp_path / "none.md")]).exit_code == 1


# --- statistics of single claims: what they must see, and what they must not
# -------------------------------------------


def test_the_turning_point_moves_with_the_axis_only_for_directions_that_drift():
    from workbench.claims.evolution.axes import shift, turning, weights_of

    steps = np.array([0, 64, 256, 768, 1088, 1152, 1344, 2560, 4608, 9000])
    first, second = np.arange(10) < 4, np.arange(10) >= 4
    two = 0.9 * (np.outer(first, first) | np.outer(second, second)) + 0.1
    assert shift(two, steps) == (0, {"snapshots": 4, "steps": 4, "log steps": 4})
    drifting = 1 - np.abs(np.arange(10)[:, None] - np.arange(10)) / 10
    assert shift(drifting, steps)[0] > 1
    weights = weights_of(steps)
    assert all(w.sum() == pytest.approx(1) for w in weights.values()) and weights["steps"].argmax() in (8, 9)
    assert turning(two, weights["snapshots"]) == 4


def test_two_groups_and_a_dip_are_seen_and_their_absence_too():
    from workbench.claims.evolution.two_groups import dip, one_group_p

    rng = np.random.default_rng(0)
    two = np.concatenate([rng.normal(0.1, 0.05, 200), rng.normal(0.8, 0.1, 200)])
    assert one_group_p(two, draws=60) < 0.05 < one_group_p(rng.normal(0.5, 0.2, 400), draws=60)
    flat = 0.7 + 0.1 * rng.standard_normal((80, 8))
    dipped = flat - np.array([0, 0.1, 0.4, 0.2, 0, 0, 0, 0])
    effect, null = dip(dipped)
    assert effect.low > 0.3 > null.high and effect.value == pytest.approx(0.35, abs=0.1)
    assert dip(flat)[0].low < 0.05
    falling = 0.9 - 0.1 * np.arange(8) + 0 * flat  # falls for good: no dip
    assert dip(falling)[0].value <= 0


def test_norms_that_follow_a_probe_are_told_from_norms_that_follow_the_trend():
    from workbench.claims.evolution.probe import separability, within

    rng = np.random.default_rng(0)
    auc = 0.5 + 0.4 * rng.random((50, 10))
    follow = auc + 0.02 * rng.standard_normal(auc.shape)
    assert np.nanmean(within(follow, auc)) > 0.9 > 0.2 > abs(np.nanmean(within(follow[rng.permutation(50)], auc)))
    assert np.isnan(within(np.ones((1, 10)), auc[:1])).all()
    x = rng.standard_normal((4000, 6))
    on = np.stack([x[:, 0] + 0.1 * rng.standard_normal(4000) > 1, rng.random(4000) > 0.8], axis=1)
    seen, blind = separability(x, on)
    assert seen > 0.97 and abs(blind - 0.5) < 0.05


def test_entropies_are_crossed_in_order_or_not_at_all():
    from workbench.claims.evolution.entropies import crossings

    phases = pd.DataFrame({"loss": [6.0, 4.5, 3.0, 2.0], "ce_unigram": 5.0, "ce_bigram": 3.5})
    assert crossings(phases) == (1, 2)
    assert crossings(phases.assign(ce_bigram=1.0)) == (1, -1)


def test_what_fine_tuning_costs_is_resampled_in_pairs():
    from types import SimpleNamespace

    from workbench.claims.llama_scope.fine_tuned import lost

    rng = np.random.default_rng(0)
    error = rng.uniform(1, 9, 40)
    base, other = (
        SimpleNamespace(sums=pd.DataFrame({"sequence": range(40), "error": e, "centred": 100.0}))
        for e in (error, error + 3)
    )
    value, low, high = lost(base, other)
    assert (
        value == pytest.approx(0.03) and low == pytest.approx(0.03) == high
    )  # the same loss in every sequence: no doubt


@pytest.mark.slow
def test_retrain_trains_a_variant_and_judges_it(tmp_path, monkeypatch):
    import workbench.config as config

    read = config.read_recipe
    tiny = {"steps": 6, "batch": 2, "ctx": 64, "d_model": 16, "n_layers": 1, "kind_weights": (), "snapshots": ()}
    monkeypatch.setattr(config, "read_recipe", lambda kind, name: read(kind, name).model_copy(update=tiny))
    args = [
        "reproduce",
        "--only",
        "universality.layers-needed",
        "--seeds",
        "1",
        "--quick",
        "--json",
        "-w",
        str(tmp_path / "ws"),
    ]
    without = json.loads(CliRunner().invoke(app, args).stdout)["claims"][0]
    assert without["verdict"] == NOT_TESTABLE and "--retrain" in without["note"]
    result = CliRunner().invoke(app, [*args, "--retrain"])
    assert result.exit_code == 0, result.output
    claim = json.loads(result.stdout)["claims"][0]
    assert claim["verdict"] == FOUND and claim["effect"]["value"] > 1  # six steps teach no copying
    assert Workspace(tmp_path / "ws").complete("models", "mini-mamba-l2")


@pytest.mark.slow
def test_one_claim_from_start_to_end(tmp_path):
    args = [
        "reproduce",
        "--only",
        "llama-scope.folding",
        "--seeds",
        "1",
        "--quick",
        "--json",
        "-w",
        str(tmp_path / "ws"),
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    claim = json.loads(result.stdout)["claims"][0]
    assert claim["verdict"] == FOUND and {"claim", "paper", "verdict", "control", "n"} <= set(claim)
