"""Steered continuations: a running state gives what whole passes give, pushes are those of the probe, perplexity is
Hugging Face's own loss.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import workbench
from sae.errors import UsageError
from tests.workbench.analysis.graph.test_graph import random_dictionaries
from workbench.analysis.evaluation import steer_text as steer_text_module
from workbench.analysis.evaluation.probe import encode_text, push
from workbench.analysis.evaluation.steer_text import parse_changes
from workbench.analysis.evaluation.steering import Change, Dose, Steered, choose, dose_response, over_texts
from workbench.cli import app
from workbench.dictionaries.reference import DictionaryRef, find_dictionary
from workbench.exporting import FigureSpec
from workbench.exporting.figures import build
from workbench.models import load_model
from workbench.provenance import write_manifest
from workbench.results.doses import DoseRecords
from workbench.workspace import Workspace

PROMPT = "def __init__(self, name):\n    self."
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module", params=["mini-pythia", "mini-mamba"])
def case(request):
    model = load_model(request.param)
    return model, random_dictionaries(model, (1,)), encode_text(model, PROMPT)[0]


@pytest.mark.parametrize(
    "changes", [(), (Change(3, 8.0),), (Change(3, 0.0, True), Change(9, 4.0))], ids=["none", "push", "hold"]
)
def test_a_running_state_gives_what_whole_passes_give(case, changes):
    model, at, ids = case
    steered = Steered(model, at, ids, changes)
    made = list(steered.tokens(12))
    assert steered.reads_once and len(made) == 12
    text = ids
    for token in made:
        assert int(steered.whole(text)[-1][: steered.known].argmax()) == token
        text = torch.cat([text, torch.tensor([[token]])], 1)


def test_a_state_that_is_wrong_is_not_used(case, monkeypatch):
    """A model whose cached step gives other logits, or that takes no cache, is read whole for every token."""
    model, at, ids = case
    want = list(Steered(model, at, ids, [Change(3, 8.0)]).tokens(5))
    forward = type(model.original_model).forward

    def forgets(self, *args, past_key_values=None, cache_params=None, **kwargs):
        return forward(self, *args, **kwargs)  # the state is dropped, without a word

    monkeypatch.setattr(type(model.original_model), "forward", forgets)
    steered = Steered(model, at, ids, [Change(3, 8.0)])
    assert list(steered.tokens(5)) == want and not steered.reads_once


def test_a_prompt_of_one_token_is_read_whole(case):
    """There is nothing before it to begin a state with."""
    model, at, ids = case
    steered = Steered(model, at, ids[:, 1:2])
    made = list(steered.tokens(3))
    assert steered.reads_once is False
    text = ids[:, 1:2]
    for token in made:
        assert int(steered.whole(text)[-1][: steered.known].argmax()) == token
        text = torch.cat([text, torch.tensor([[token]])], 1)


def test_a_dose_is_the_probes_push_at_the_last_token(case, tmp_path):
    model, at, ids = case
    ws = Workspace(tmp_path / "ws")
    reference = _saved(ws, at[HOOK], "m")
    doses, target = dose_response(model, at, ids, [3], [0.0, 2.0, 8.0], tokens=3)
    assert doses[0].kl == pytest.approx(0, abs=1e-9) and 0 < doses[1].kl < doses[2].kl
    known = push(model, at[HOOK], reference, PROMPT, 3, 8.0, n=1)
    assert doses[2].kl == pytest.approx(known.kl, rel=1e-4)
    assert doses[2].probability > doses[0].probability and 0 <= target < 512
    assert all(d.perplexity is not None and d.perplexity >= 1 for d in doses)


def test_perplexity_is_the_models_own_loss(case):
    model, at, ids = case
    made = Steered(model, at, ids, [Change(3, 8.0)]).continuation(6, temperature=1.0, seed=4)
    text = torch.cat([ids, torch.tensor([made.ids])], 1)
    labels = text.clone()
    labels[:, : ids.shape[1]] = -100
    with torch.no_grad():
        loss = model.original_model(input_ids=text, labels=labels, use_cache=False).loss
    assert made.perplexity == pytest.approx(math.exp(float(loss)), rel=1e-4)


def test_draws_follow_their_seed_and_temperature(case):
    model, at, ids = case
    steered = Steered(model, at, ids)
    one, again, other = (list(steered.tokens(10, temperature=1.0, seed=s)) for s in (1, 1, 2))
    assert one == again != other and list(steered.tokens(3)) == list(steered.tokens(3, temperature=1e-6, seed=9))
    logits = torch.tensor([0.0, math.log(3.0)], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    assert sum(choose(logits, 1.0, g) for _ in range(2000)) / 2000 == pytest.approx(0.75, abs=0.04)


def test_what_does_not_fit_is_refused(case):
    model, at, ids = case
    with pytest.raises(UsageError, match="64 is not in the dictionary"):
        Steered(model, at, ids, [Change(64, 1.0)])
    steered = Steered(model, at, ids)
    steered.room = 3
    with pytest.raises(UsageError, match="leaves 3"):
        next(steered.tokens(4))
    assert parse_changes(["3=4", "5=-1.5"], ["7=0"]) == [Change(3, 4), Change(5, -1.5), Change(7, 0.0, True)]
    for add, sets, says in (
        (["3"], [], "LATENT=NUMBER"),
        (["x=1"], [], "x=1"),
        (["3=nan"], [], "nan"),
        (["3=1"], ["3=0"], "twice"),
    ):
        with pytest.raises(UsageError, match=says):
            parse_changes(add, sets)


def _saved(ws, sae, model):
    folder = ws.path("dictionaries", f"{model}.L1R-1x")
    sae.save(folder)
    about = {"model_name": model, "revision": None, "hook_name": HOOK, "site": "L1R", "kind": "sae"}
    write_manifest(folder, "dictionaries", folder.name, metadata=about)
    return find_dictionary(ws, folder.name)


def test_the_verb_says_and_writes_what_the_function_gives(tmp_path):
    ws = Workspace(tmp_path / "ws")
    _saved(ws, random_dictionaries(load_model("mini-mamba"), (1,))[HOOK], "mini-mamba")
    args = [
        "steer",
        "mini-mamba.L1R-1x",
        PROMPT,
        "--add",
        "3=8",
        "--tokens",
        "5",
        "--samples",
        "2",
        "--temperature",
        "1",
    ]
    out = tmp_path / "new" / "x.jsonl"
    result = CliRunner().invoke(app, [*args, "--dose", "0,8", "--out", str(out), "-w", str(ws.root), "--json"])
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [r["kind"] for r in rows] == ["continuation"] * 4 + ["dose"] * 2
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows
    assert [(r["steered"], r["seed"]) for r in rows[:4]] == [(False, 0), (False, 1), (True, 0), (True, 1)]
    found = workbench.steer(ws, "mini-mamba.L1R-1x", prompt=PROMPT, add=["3=8"], tokens=5, samples=2, temperature=1.0)
    assert [c.ids for c in found.steered] == [r["ids"] for r in rows[2:4]]
    for bad, says in (
        (["--add", "3=8", "--target", "two tokens of it"], "not one token"),
        (["--set", "3=0", "--dose", "1"], "--add LATENT=AMOUNT"),
        (["--add", "3=8", "--dose", "1,much"], "such as 0,2,4"),
    ):
        refused = CliRunner().invoke(app, [*args[:3], *bad, "-w", str(ws.root)])
        assert refused.exit_code == 2 and says in " ".join(refused.output.split()), refused.output


def test_what_is_held_is_held_at_every_dose(case):
    """By hand: the splice with both changes, and at amount 0 with the held one alone."""
    model, at, ids = case
    doses, target = dose_response(model, at, ids, [3], [0.0, 8.0], held=[Change(9, 4.0, True)])
    plain = torch.log_softmax(Steered(model, at, ids).whole(ids)[-1], -1)
    for dose, changes in zip(doses, ([Change(9, 4.0, True)], [Change(9, 4.0, True), Change(3, 8.0)]), strict=True):
        after = torch.log_softmax(Steered(model, at, ids, changes).whole(ids)[-1], -1)
        assert dose.kl == pytest.approx(float((plain.exp() * (plain - after)).sum()), abs=1e-12)
        assert dose.probability == pytest.approx(float(after[target].exp()))
    assert doses[0].kl > 1e-6


def test_doses_after_several_texts_are_means_with_intervals(tmp_path, monkeypatch):
    made = [
        [Dose(0.0, 0.0, 1.0, 0.1, start), Dose(4.0, k, 2.0 + k, 0.2, p)]
        for k, start, p in ((1.0, 2.0, 2.0), (2.0, 2.0, 8.0), (3.0, 500.0, None))
    ]
    none, some = over_texts(made)
    assert (none.amount, none.kl, none.kl_low, none.kl_high) == (0.0, 0.0, 0.0, 0.0)
    assert some.kl == pytest.approx(2) and 1 <= some.kl_low < 2 < some.kl_high <= 3
    assert some.logit == pytest.approx(4) and some.perplexity == pytest.approx(4)  # geometric, of those that went on
    assert none.perplexity == pytest.approx(2), "a text that ended at one amount is left out at all of them"
    assert 2 <= some.perplexity_low < 4 < some.perplexity_high <= 8
    assert over_texts([[Dose(1.0, 0.5, 0.0, 0.1, None)]])[0].perplexity is None

    ws = Workspace(tmp_path / "ws")
    _saved(ws, random_dictionaries(load_model("mini-pythia"), (1,))[HOOK], "mini-pythia")
    texts = [torch.randint(1, 500, (1, n), generator=torch.Generator().manual_seed(n)) for n in (9, 12, 15)]

    class Store:
        n_seq, heldout, skipped = 40, range(35, 40), (3, 37)  # 37 is held out and holds no text to go on with

        def sequence_tokens(self, i):
            return np.arange(100) % 500 + i

    monkeypatch.setattr(DictionaryRef, "store", lambda self, workspace: Store())
    found = steer_text_module._heldout(ws, find_dictionary(ws, "mini-pythia.L1R-1x"), 4, 0)
    assert [int(t[0, 0]) for t in found] == [35, 36, 38, 39] and all(8 <= t.shape[1] <= 64 for t in found)
    with pytest.raises(UsageError, match=r"--texts 5: the store of mini-pythia\.L1R-1x has 4 held-out sequences"):
        steer_text_module._heldout(ws, find_dictionary(ws, "mini-pythia.L1R-1x"), 5, 0)
    monkeypatch.setattr(steer_text_module, "_heldout", lambda *a: texts)
    asked = {"prompt": PROMPT, "add": ["3=1"], "dose": [0, 8], "tokens": 3, "texts": 3}
    kept = workbench.steer(ws, "mini-pythia.L1R-1x", **asked, keep=True)
    each = [
        dose_response(load_model("mini-pythia"), {HOOK: _of(ws)}, t, [3], [0.0, 8.0], target=None)[0][1].kl
        for t in texts
    ]
    assert kept.doses[1].kl == pytest.approx(sum(each) / 3, rel=1e-4)
    assert kept.doses[1].kl_low == pytest.approx(min(each), rel=1e-4)  # 3 texts: the lowest draw is one of them
    figure = build(FigureSpec(figure="dose_response", source=f"doses/{kept.kept.id}"), ws)
    assert figure.n == {"texts": 3, "amounts": 2} and "3 held-out texts" in figure.caption
    assert figure.panels[0].low == "kl_low" and "--texts 3" in kept.kept.manifest.command
    with pytest.raises(UsageError, match="--texts says after how many texts --dose measures"):
        workbench.steer(ws, "mini-pythia.L1R-1x", prompt=PROMPT, add=["3=1"], texts=3)


def _of(ws):
    return find_dictionary(ws, "mini-pythia.L1R-1x").load()


def test_kept_doses_are_a_result_with_a_figure(tmp_path):
    ws = Workspace(tmp_path / "ws")
    _saved(ws, random_dictionaries(load_model("mini-mamba"), (1,))[HOOK], "mini-mamba")
    asked = {"prompt": PROMPT, "add": ["3=1"], "set": ["9=0"], "dose": [8, 0, 2], "tokens": 4}
    made = workbench.steer(ws, "mini-mamba.L1R-1x", **asked, keep=True)
    records = DoseRecords.open(made.kept.path)
    assert records.table["amount"].tolist() == [0, 2, 8] and records.metadata["held"] == [[9, 0]]
    by_amount = {d.amount: d for d in made.doses}
    for row in records.table.to_dict("records"):
        assert row == pytest.approx({k: v for k, v in asdict(by_amount[row["amount"]]).items() if v is not None})
    lines = (made.kept.path / "steered.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == made.rows()
    assert workbench.steer(ws, "mini-mamba.L1R-1x", **asked, keep=True).kept.digest == made.kept.digest
    figure = build(FigureSpec(figure="dose_response", source=f"doses/{made.kept.id}"), ws)
    assert len(figure.panels) == 4 and figure.panels[0].frame["kl"].tolist() == records.table["kl"].tolist()
    assert "Latent #9 is held at 0." in figure.caption and f"dsv={made.kept.version}" in figure.permalink
    with pytest.raises(UsageError, match="--keep keeps what --dose measures"):
        workbench.steer(ws, "mini-mamba.L1R-1x", prompt=PROMPT, add=["3=1"], keep=True)
