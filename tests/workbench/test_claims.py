"""Claims judge by criteria fixed beforehand: an injected effect is found, a destroyed one is not."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from typer.testing import CliRunner

from sae.errors import MissingError
from workbench.claims import PAPERS, Claim, Finding, Lab, Measured, all_claims, verdict
from workbench.claims.base import FOUND, NOT_FOUND, NOT_TESTABLE, positive_beyond_control, untestable
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
        assert c.id.startswith(c.paper) and all((c.statement, c.paper_number, c.experiment, c.control, c.criterion, c.section))
    assert {c.paper for c in all_claims("evolution")} == {"evolution"}


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
    ("llama-scope.norm-selection", (measured(0.0, -0.01, 0.01), measured(-0.1), None), (measured(0.06, 0.05, 0.07), measured(-0.1), None)),
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
    ("universality.off-by-one", (measured(0.95, 0.9, 0.98), measured(1 / 12), None), (measured(0.2, 0.1, 0.3), measured(1 / 12), None)),
    ("evolution.emergent-latents", (measured(0.4, 0.3, 0.5), None, seeds["found"]), (measured(0.4, 0.3, 0.5), None, seeds["not found"])),
    ("evolution.same-snapshot-control", (measured(0.02, 0.01, 0.03), measured(0.6), None), (measured(0.5, 0.4, 0.6), measured(0.6), None)),
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
    topk = pd.DataFrame({"arm": ["topk", "topk", "l1"], "knob": [8, 8, 8], "l0": [8.0, 8.0, 8.0], "ev": [0.4, 0.6, 0.9]})
    assert best(topk).ev.tolist() == [0.6]


def toy(measure):
    return Claim("llama-scope.toy", "llama-scope", "0", "A toy.", "1", "None.", "None.", "Positive.", measure, positive_beyond_control)


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
    run_all([toy(good)], ws, seeds=3, quick=True, say=lambda _: None, done=seen.append)
    assert calls == [2, 3]  # another number of seeds is another result
    lab = Lab(ws, seeds=1)
    document = run_claim(toy(bad), Lab(ws, seeds=9))
    assert document["verdict"] == NOT_TESTABLE and "no such model" in document["note"] and lab.seeds == 1
    page = markdown(documents, seeds=2, quick=True)
    assert "1 found, 0 not found" in page and "**found**" in page and "1 [0.5, 1.5]" in page


def test_the_verb_names_what_does_not_exist(tmp_path):
    result = CliRunner().invoke(app, ["reproduce", "universalty", "-w", str(tmp_path / "ws")])
    assert result.exit_code == 2 and "'universality'" in result.output
    result = CliRunner().invoke(app, ["reproduce", "--only", "llama-scope.foldin", "-w", str(tmp_path / "ws")])
    assert result.exit_code == 2 and "llama-scope.folding" in result.output


@pytest.mark.slow
def test_one_claim_from_start_to_end(tmp_path):
    args = ["reproduce", "--only", "llama-scope.folding", "--seeds", "1", "--quick", "--json", "-w", str(tmp_path / "ws")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    claim = json.loads(result.stdout)["claims"][0]
    assert claim["verdict"] == FOUND and {"claim", "paper", "verdict", "control", "n"} <= set(claim)
