"""The judgement of plans against measurements: a wrong plan is flagged, whatever is wrong with it; one disturbed run is
not.
"""

from __future__ import annotations

import copy

import pytest

from benchmarks.plan import LIMITS, judged

RUN = {"seconds": 10.0, "memory": 5e8, "disk": 4e6}


def found(**plans: float) -> dict[str, list[dict]]:
    """Three runs of a recipe, planned as they came out, but for the factors given."""
    one = {"run": RUN, "plan": {q: v * plans.get(q, 1.0) for q, v in RUN.items()}}
    return {"train": [copy.deepcopy(one) for _ in range(3)]}


def test_a_right_plan_keeps_every_limit():
    rows = judged(found())
    assert [r["quantity"] for r in rows] == list(LIMITS) and all(r["met"] and r["off"] == 0 for r in rows)


@pytest.mark.parametrize(
    ("quantity", "wrong", "right"),
    [
        ("seconds", (0.74, 1.26), (0.76, 1.24)),
        ("memory", (0.89, 1.11), (0.91, 1.09)),
        ("disk", (0.89, 1.11), (0.91, 1.09)),
    ],
)
def test_a_wrong_plan_is_flagged(quantity, wrong, right):
    for factor in wrong:
        assert [r["quantity"] for r in judged(found(**{quantity: factor})) if not r["met"]] == [quantity]
    for factor in right:
        assert all(r["met"] for r in judged(found(**{quantity: factor})))


def test_one_disturbed_run_of_three_changes_nothing_and_two_do():
    runs = found()
    runs["train"][1]["run"] = RUN | {"seconds": 30.0}
    assert all(r["met"] for r in judged(runs))
    runs["train"][2]["run"] = RUN | {"seconds": 30.0}
    assert [r["quantity"] for r in judged(runs) if not r["met"]] == ["seconds"]
