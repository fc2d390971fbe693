"""Claims judge by criteria fixed beforehand: an injected effect is found, a destroyed one is not."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

from sae.errors import MismatchError, MissingError, UsageError, UserError
from workbench.claims import PAPERS, Claim, Finding, Lab, Measured, all_claims, protocol, verdict
from workbench.claims.agreement import at_the_border, check_size, disagreements, kept_of, results_document
from workbench.claims.base import untestable
from workbench.claims.page import markdown
from workbench.claims.pool import Task, run_tasks, startable, tasks_of
from workbench.claims.rules import (
    BY_CONSTRUCTION,
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTABLE,
    SUPPORTED,
    Rule,
    holm,
    injected,
    judge,
    scrambled,
)
from workbench.claims.run import describe, run_all, run_claim
from workbench.cli import app
from workbench.workspace import Workspace

BY_ID = {c.id: c for c in all_claims()}


def measured(value, low=None, high=None, n=100):
    return Measured(value, low, high, n)


def test_the_registry_covers_three_papers_and_every_claim_names_its_control():
    claims = all_claims()
    assert len(claims) >= 20 and len(BY_ID) == len(claims)
    assert {c.paper for c in claims} == set(PAPERS)
    for c in claims:
        assert c.id.startswith(c.paper) and all(
            (c.statement, c.paper_number, c.experiment, c.control, c.rule.words(""), c.unit, c.section)
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


FORMS = {  # numbers in the forms claims have them: one per seed, one per prompt, an interval from elsewhere
    "three seeds": Measured.of([0.4, 0.5, 0.6], unit="x"),
    "many units": Measured.of(np.linspace(0, 1, 60), unit="x"),
    "an interval": Measured(0.5, 0.4, 0.6, 64, "x"),
}
TESTED = [c for c in all_claims() if not c.construction]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("claim_id", [c.id for c in TESTED])
def test_an_injected_effect_is_supported_and_a_destroyed_one_is_not(claim_id, form):
    claim = replace(BY_ID[claim_id], unsettled="")
    effect, control = injected(claim.rule, FORMS[form], None)
    assert verdict(claim, Finding(effect, control)) == SUPPORTED
    low, high = claim.rule.region
    size = 1.0 if claim.rule.level == 0 else abs(claim.rule.level)
    wrong = low - size if np.isfinite(low) and claim.rule.kind != "within" else high + size
    beside = control.times(0) if claim.rule.control == "beaten" else control
    beside = (
        Measured.of([wrong + size * 5 * (1 if claim.rule.kind == "above" else -1)] * 2)
        if claim.rule.control == "beaten"
        else beside
    )
    assert (
        verdict(claim, Finding(Measured.of(np.array([wrong - 0.01 * size, wrong + 0.01 * size])), beside))
        == CONTRADICTED
    )
    rng = np.random.default_rng(0)
    null = [verdict(claim, Finding(*scrambled(claim.rule, effect, control, rng))) for _ in range(20)]
    assert np.mean([v == SUPPORTED for v in null]) <= 0.2


def test_a_null_run_of_the_whole_registry_supports_no_more_than_it_may():
    """Every tested claim, its numbers drawn again without the effect: at most 5 % and its interval are supported."""
    rng, hits, n = np.random.default_rng(7), 0, 0
    for _ in range(5):
        for claim in TESTED:
            for start in FORMS.values():
                effect, control = injected(claim.rule, start, None)
                effect = Measured.of(
                    effect.value + np.std(start.samples or (0.4, 0.6)) * rng.standard_normal(max(3, min(start.n, 8)))
                )
                control = Measured.of(control.value + 0.1 * rng.standard_normal(len(effect.samples)))
                hits += judge(claim.rule, *scrambled(claim.rule, effect, control, rng)).verdict == SUPPORTED
                n += 1
    assert binomtest(hits, n).proportion_ci(0.95).low <= 0.05, f"{hits} of {n}"


def test_nothing_is_supported_without_a_control_an_interval_or_a_number():
    for claim in TESTED:
        effect, control = injected(claim.rule, FORMS["many units"], None)
        for finding in (
            Finding(effect),
            Finding(measured(effect.value), control),
            Finding(measured(math.nan, n=0), control),
            Finding(effect, measured(math.nan, n=0)),
            Finding(effect, control, open="one snapshot only"),
        ):
            assert verdict(claim, finding) == INCONCLUSIVE, claim.id
        assert verdict(claim, untestable("too small")) == NOT_TESTABLE
        powerless = Finding(effect, effect)  # a control that behaves like the effect
        assert verdict(claim, powerless) != SUPPORTED, claim.id


def test_what_holds_by_construction_is_never_counted():
    construction = [c for c in all_claims() if c.construction]
    assert {c.id.partition(".")[2] for c in construction} >= {
        "wider-rarer",
        "entropies-crossed-in-order",
        "initialisation-latents",
    }
    for claim in construction:
        effect, control = injected(claim.rule, FORMS["three seeds"], None)
        assert verdict(claim, Finding(effect, control)) == BY_CONSTRUCTION
    page = markdown([describe(construction[0], Finding(effect, control))], seeds=3, quick=True)
    assert "0 claims tested" in page and "1 more hold by construction" in page


def test_intervals_cover_what_they_say():
    """Three seeds: Student's t holds the truth 95 times of 100, which the percentile bootstrap of three does not."""
    rng = np.random.default_rng(0)
    draws = [Measured.of(rng.normal(2.0, 1.0, 3)) for _ in range(2000)]
    assert 0.935 < np.mean([m.low <= 2 <= m.high for m in draws]) < 0.965
    m = Measured.of([1.0, 2.0, 3.0, float("nan")])
    assert m.n == 3 and m.value == 2 and m.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert Measured.of([1.0]).low is None and Measured.of([]).n == 0
    assert m.exact_p(0) == 1 / 8 and math.isnan(measured(1.0).exact_p(0))
    paired = Measured.of([1.0, 2.0, 3.0]).minus(Measured.of([0.0, 1.0, 2.0]))
    assert paired.value == paired.low == paired.high == 1
    welch = Measured.of([1.0, 2.0, 3.0]).minus(Measured.of([0.0, 0.5, 1.0, 1.5]))
    assert welch.low < welch.value == 1.25 < welch.high
    normal = measured(0.5, 0.4, 0.6).minus(measured(0.1, 0.0, 0.2))
    assert normal.value == 0.4 and normal.high - normal.value == pytest.approx(0.1 * 2**0.5)


def test_holm_is_a_step_down():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan}) == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 1.0}
    )


def test_the_protocol_file_is_the_registry():
    frozen = protocol.frozen()
    assert frozen["claims"] == protocol.current(), "run python -m workbench.claims.protocol DATE"
    assert frozen["digest"] == protocol.digest(frozen["claims"]) and frozen["date"]
    assert all(c["statement"] and c["experiment"] and c["control"] and c["unit"] for c in frozen["claims"])
    assert all({"claim", "before", "after", "since", "commit", "why"} == set(c) for c in frozen["changes"])


def test_every_claim_is_in_the_audits_table_and_none_that_is_gone_but_the_replaced():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:\(new\) )?([\w.-]+) \| .+ \| (.+) \|$", page, re.M)
    done = {claim: what for claim, what in rows if "." in claim}
    replaced = {claim for claim, what in done.items() if what.startswith("replaced by ")}
    successors = {what.removeprefix("replaced by ").partition(":")[0] for what in done.values()} & set(BY_ID)
    assert set(done) - replaced | successors == set(BY_ID) and not replaced & set(BY_ID)
    for claim, what in done.items():
        if claim in BY_ID and BY_ID[claim].construction:
            assert what == "*by construction*", claim


def test_a_run_after_other_results_is_not_confirmatory(tmp_path):
    ws = Workspace(tmp_path / "ws")
    protocol.check_confirmatory(ws)
    with pytest.raises(UsageError, match="came after them"):
        protocol.check_confirmatory(ws, [{"protocol": "old"}])
    with ws.create(
        "claims", "llama-scope.folding", command="workbench reproduce", recipe={"protocol": "old"}, numbers={}
    ) as f:
        (f / "finding.json").write_text("{}")
    with pytest.raises(UsageError, match=r"folding was measured under another protocol"):
        protocol.check_confirmatory(ws)
    result = CliRunner().invoke(
        app, ["reproduce", "--only", "llama-scope.folding", "--confirmatory", "-w", str(ws.root)]
    )
    assert result.exit_code == 2 and "exploratory" in result.output


def test_two_groups_are_told_from_one_with_hard_edges():
    from workbench.claims.evolution.two_groups import of_one_group, two_peaks

    rng = np.random.default_rng(1)
    null = np.quantile(of_one_group(300, draws=60), 0.95)
    assert two_peaks(rng.random(300)) < null and two_peaks(rng.beta(5, 5, 300)) < null
    assert two_peaks(rng.exponential(1, 300)) < null
    assert two_peaks(np.concatenate([rng.normal(0, 0.1, 150), rng.normal(1, 0.1, 150)])) > 2 * null


def test_learnt_is_ninety_percent_of_the_fall_and_an_interior_minimum_counts():
    from workbench.claims.evolution.ngrams import interior, learnt

    assert learnt([10, 5, 1.5, 1.0, 0.9]) == 2 and learnt([10, 9, 8, 7, 0]) == 4
    assert interior(np.array([3.0, 1.0, 2.0])) == 1 and interior(np.array([3.0, 2.0, 1.0])) == -1


def test_writes_are_told_layer_by_layer():
    """An injected relay: one layer writes at the token, one a position later; a flat layer is not one that writes."""
    from workbench.claims.universality.mamba_state import words, writes

    class Result:
        def array(self, name):
            rng = np.random.default_rng(0)
            out = rng.normal(0, 0.01, (64, 3, 12))
            out[:, 1, 2] -= 6
            out[:, 2, 3] -= 4
            return out

        def select(self, **equal):
            return pd.DataFrame({"offset": list(range(-2, 10))})

    found = writes(Result())
    assert [str(w) for w in found] == ["layer 1 at +0", "layer 2 at +1"] and "layer 2 at +1" in words(found)
    assert all(w.sharpness.value > 0.9 for w in found)
    assert found[1].at_plus_one.value > 0.9 > 0.1 > found[0].at_plus_one.value


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
        Rule("above", 0.0, "beaten"),
        "toy",
        measure,
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
    assert calls == [2] and documents == again and documents[0]["verdict"] == SUPPORTED and len(seen) == 2
    with pytest.raises(UserError, match="seeds: 2 there, 3 asked"):
        run_all([toy(good)], ws, seeds=3, quick=True, say=lambda _: None, done=seen.append)
    run_all([toy(good)], ws, seeds=3, quick=True, replace=True, say=lambda _: None, done=seen.append)
    assert calls == [2, 3]  # another number of seeds is another result
    lab = Lab(ws, seeds=1)
    document = run_claim(toy(bad), Lab(ws, seeds=9, replace=True))
    assert document["verdict"] == NOT_TESTABLE and "no such model" in document["note"] and lab.seeds == 1

    def older(lab):
        raise MismatchError("quick-evolve.s0 exists and is not what is asked for")

    with pytest.raises(MismatchError, match=r"quick-evolve\.s0"):  # of another size: nothing was found out
        run_claim(replace(toy(older), id="llama-scope.older"), Lab(ws))
    assert not ws.complete("claims", "llama-scope.older")
    page = markdown(documents, seeds=2, quick=True)
    assert "1 supported, 0 contradicted" in page and "**supported**" in page and "1 [0.5, 1.5]" in page


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


def test_what_is_there_in_another_size_ends_the_run_in_one_line(tmp_path):
    ws, found = Workspace(tmp_path / "ws"), Finding(measured(1.0, 0.5, 1.5), measured(0.0))
    run_claim(replace(toy(lambda lab: found), id=VARIANTS[0]), Lab(ws, seeds=2))
    with pytest.raises(MismatchError, match="seeds: 2 there, 3 asked"):
        run_tasks([Task("a", claims=tuple(VARIANTS[:1]))], Lab(ws, seeds=3), 1, lambda _: None)
    assert not multiprocessing.active_children()


# --- results held against earlier ones
# ---------------------------------------------------------------------------------


def result(claim="llama-scope.toy", verdict=SUPPORTED, effect=(0.5, 0.4, 0.6), control=(0.0, None, None)):
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
        (result(verdict=CONTRADICTED), "contradicted, earlier supported"),
        (result(verdict=INCONCLUSIVE), ""),
        (result(verdict=INCONCLUSIVE, effect=(0.8, 0.7, 0.9)), "effect 0.8 [0.7, 0.9], earlier 0.5 [0.4, 0.6]"),
        (result(verdict=BY_CONSTRUCTION), "by construction, earlier supported"),
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


def test_a_verdict_at_the_border_is_told_and_counts_of_equal_units_have_a_resolution():
    earlier = results_document([result(control=(2.0, 2.0, 2.0))], seeds=3, quick=True, retrain=False)
    new = result(verdict=INCONCLUSIVE, control=(3.0, 3.0, 3.0))
    assert disagreements([new], earlier) == []
    assert [str(d) for d in at_the_border([new], earlier)] == [
        "llama-scope.toy: inconclusive, earlier supported; effect and control agree"
    ]
    assert at_the_border([result(control=(2.0, 2.0, 2.0))], earlier) == []
    far = result(verdict=INCONCLUSIVE, control=(5.0, 5.0, 5.0))
    assert len(disagreements([far], earlier)) == 1 and at_the_border([far], earlier) == []


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
    numbers["claims"][0]["verdict"] = CONTRADICTED
    (tmp_path / "RESULTS.json").write_text(json.dumps(numbers))
    altered = runner.invoke(app, [*args, "--against", str(page), "--json"])
    assert altered.exit_code == 1 and json.loads(altered.stdout)["differ"][0]["claim"] == VARIANTS[2]
    other = runner.invoke(app, [*args[:-4], "--seeds", "2", "-w", str(tmp_path / "ws"), "--against", str(page)])
    assert other.exit_code == 2 and "--seeds 1 --quick" in other.output and "or compare" not in other.output
    (tmp_path / "RESULTS-two.json").write_text(json.dumps(numbers | {"seeds": 2}))
    other = runner.invoke(app, [*args[:-4], "--seeds", "2", "-w", str(tmp_path / "ws"), "--against", str(page)])
    assert other.exit_code == 2 and "or compare with" in other.output and "RESULTS-two.md" in other.output
    old = {k: v for k, v in numbers.items() if k != "protocol"}
    (tmp_path / "RESULTS.json").write_text(json.dumps(old))
    refused = runner.invoke(app, [*args, "--against", str(page)])
    assert refused.exit_code == 2 and "before there was a protocol" in refused.output
    (tmp_path / "RESULTS.json").write_text("{}")
    assert runner.invoke(app, [*args, "--against", str(page)]).exit_code == 1
    assert runner.invoke(app, [*args, "--against", str(tmp_path / "none.md")]).exit_code == 1


def test_a_claim_measured_alone_joins_the_page_of_its_size_and_protocol(tmp_path):
    args = ["reproduce", "--quick", "--seeds", "1", "-w", str(tmp_path / "ws"), "--write", str(tmp_path / "R.md")]
    runner = CliRunner()
    assert runner.invoke(app, [*args, "--only", VARIANTS[2]]).exit_code == 0
    joined = runner.invoke(app, [*args, "--only", VARIANTS[0]])
    assert joined.exit_code == 0 and "kept on the page, from earlier runs under the same protocol: 1" in joined.output
    numbers = json.loads((tmp_path / "R.json").read_text())
    assert [c["claim"] for c in numbers["claims"]] == [VARIANTS[0], VARIANTS[2]], "in the registry's order"
    assert (
        numbers["retrain"]
        and not {*VARIANTS[::2]} & {*numbers["not_measured"]}
        and VARIANTS[1] in (numbers["not_measured"])
    )
    before = (tmp_path / "R.md").read_bytes()
    assert VARIANTS[0] in before.decode() and VARIANTS[2] in before.decode()
    lost = runner.invoke(app, [*args, "--only", VARIANTS[0], "--seeds", "2"])
    assert lost.exit_code == 2 and "one part of this one would replace" in lost.output
    assert (tmp_path / "R.md").read_bytes() == before
    # a run of all without --retrain leaves the claims that need other models, and drops the rest it did not measure
    (tmp_path / "R.json").write_text(json.dumps(numbers | {"claims": [result(), *numbers["claims"]]}))
    kept = kept_of(tmp_path / "R.md", {VARIANTS[0]}, seeds=1, quick=True, whole=True)
    assert [c["claim"] for c in kept["claims"]] == [VARIANTS[2]]
    assert kept_of(tmp_path / "R.md", (), seeds=2, quick=True, whole=True) == {"claims": []}
    # held against by a run that trains no models, they are left out; asked for, they must be there
    earlier = check_size(tmp_path / "R.md", seeds=1, quick=True, retrain=False)
    assert [c["claim"] for c in earlier["claims"]] == ["llama-scope.toy"]
    assert len(check_size(tmp_path / "R.md", seeds=1, quick=True, retrain=True)["claims"]) == 3


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


def test_a_dip_is_seen_and_its_absence_too():
    from workbench.claims.evolution.two_groups import dip

    flat = 0.7 + 0.1 * np.random.default_rng(0).standard_normal((80, 8))
    dipped = flat - np.array([0, 0.1, 0.4, 0.2, 0, 0, 0, 0])
    value, null = dip(dipped)
    assert value == pytest.approx(0.35, abs=0.1) and value > 0.3 > null
    assert dip(flat)[0] < 0.05
    assert dip(0.9 - 0.1 * np.arange(8) + 0 * flat)[0] <= 0  # falls for good: no dip


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


def test_added_loss_is_per_sequence_and_token():
    from types import SimpleNamespace

    from workbench.claims.llama_scope.fine_tuned import added

    sums = pd.DataFrame({"sequence": [0, 0, 1], "ce": [1.0, 2.0, 3.0], "ce_spliced": [2.0, 3.0, 4.5], "n": [2, 2, 3]})
    assert added(SimpleNamespace(sums=sums)).tolist() == [0.5, 0.5]


def test_what_retrain_costs_is_what_its_help_says(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.models.load.bundled", list)
    lab = Lab(Workspace(tmp_path / "ws"))
    names = {n.removeprefix("variant ") for c in all_claims() for n in c.needs if n.startswith("variant ")}
    minutes = sum(map(lab.to_train, names)) / 2
    said = re.sub(r"\s+", " ", CliRunner().invoke(app, ["reproduce", "--help"]).stdout.replace("│", ""))
    found = re.search(r"about (\d+) minutes more", said)
    assert found is not None and abs(int(found[1]) - minutes) < 5


@pytest.mark.parametrize(("workers", "minutes", "processes"), [(1, 60, "process"), (2, 30, "processes")])
def test_retrain_says_first_what_it_trains_and_how_long(tmp_path, monkeypatch, workers, minutes, processes):
    taken = {"mini-mamba-c1": 25.0, "mini-mamba-c2": 25.0, "mini-pythia-w1000": 10.0, "mini-mamba-n4": 0.0}
    monkeypatch.setattr(Lab, "to_train", lambda self, name: taken[name])
    monkeypatch.setattr("workbench.claims.run.run_claim", lambda claim, lab: {"claim": claim.id})
    monkeypatch.setattr(
        "workbench.claims.pool.run_tasks", lambda tasks, lab, n, done: [done({"claim": i}) for i in ids]
    )
    ids = ["universality.off-by-one-widths", "universality.state-size", "evolution.warm-up"]
    claims = [next(c for c in all_claims() if c.id == i) for i in ids]
    said = []
    run_all(
        claims,
        Workspace(tmp_path / "ws"),
        seeds=1,
        quick=True,
        retrain=True,
        workers=workers,
        say=said.append,
        done=lambda document: None,
    )
    assert said == [
        f"3 models are trained for this, about {minutes} minutes with {workers} {processes}: mini-mamba-c1,"
        " mini-mamba-c2, mini-pythia-w1000"
    ]


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
    assert claim["verdict"] == SUPPORTED and claim["effect"]["value"] > 1  # six steps teach no copying
    assert Workspace(tmp_path / "ws").complete("models", "mini-mamba-l2")


@pytest.mark.slow
def test_one_claim_from_start_to_end(tmp_path):
    args = [
        "reproduce",
        "--only",
        "llama-scope.folding",
        "--seeds",
        "2",
        "--quick",
        "--json",
        "-w",
        str(tmp_path / "ws"),
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    claim = json.loads(result.stdout)["claims"][0]
    assert claim["verdict"] == SUPPORTED and {"claim", "paper", "verdict", "control", "n"} <= set(claim)
