"""Scorers: numbers by hand, delphi's on shared excerpts, rules as judges of planted latents, and a language model
that a server plays.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sae.errors import UsageError
from tests.workbench.test_explain import VOCAB, Server, codes, endpoint, reference  # noqa: F401 - a fixture
from workbench.analysis.explain import prompts
from workbench.analysis.explain.endpoint import EndpointError, Local
from workbench.analysis.explain.language_model import Notebook
from workbench.analysis.explain.rules import label_by_rule
from workbench.analysis.explain.run import Encoded
from workbench.analysis.explain.scorers import run as scoring
from workbench.analysis.explain.scorers.judges import ModelJudge, RuleJudge
from workbench.analysis.explain.scorers.measures import balanced_accuracy, correlation, roc_area
from workbench.analysis.explain.scorers.samples import Exam, Sample, gather_exams
from workbench.analysis.explain.scorers.similarity import likeness
from workbench.models import load_hf, load_tokenizer
from workbench.provenance import write_manifest
from workbench.results.scores import SCORERS, ScoreRecords
from workbench.run import QUIET
from workbench.workspace import Workspace

DELPHI = json.loads((Path(__file__).parent / "delphi.json").read_text())


def test_balanced_accuracy_by_hand():
    """8 of 10 positives and 9 of 10 negatives; Wilson's ends .4902–.9433 and .5958–.9821, put together by MOVER."""
    said, truth = [True] * 8 + [False] * 2 + [True] + [False] * 9, [True] * 10 + [False] * 10
    found = balanced_accuracy(said, truth)
    assert found.value == pytest.approx(0.85) and (found.n_positive, found.n_negative) == (10, 10)
    assert found.precision == pytest.approx(8 / 9) and found.recall == pytest.approx(0.8)
    assert found.f1 == pytest.approx(2 * (8 / 9) * 0.8 / (8 / 9 + 0.8))
    assert found.low == pytest.approx(0.85 - math.hypot(0.8 - 0.4902, 0.9 - 0.5958) / 2, abs=1e-4)
    assert found.high == pytest.approx(0.85 + math.hypot(0.9433 - 0.8, 0.9821 - 0.9) / 2, abs=1e-4)
    perfect = balanced_accuracy(truth, truth)
    assert perfect.value == 1 and 0.8 < perfect.low < 0.9 and perfect.high == pytest.approx(1)
    assert math.isnan(balanced_accuracy([True], [True]).value)  # nothing to tell it from
    silent = balanced_accuracy([False] * 4, [True, True, False, False])
    assert (silent.value, silent.precision, silent.f1) == (0.5, 0, 0)


def test_area_under_the_curve_counts_pairs_and_its_interval_never_closes():
    likes, truth = [3, 1, 2, 2, 0], [True, True, True, False, False]
    assert roc_area(likes, truth).value == pytest.approx((2 + 1 + 1.5) / 6)
    perfect = roc_area(range(20), [False] * 10 + [True] * 10)
    assert perfect.value == 1 == perfect.high and 0.7 < perfect.low < 0.95
    middle = roc_area([0] * 20, [False] * 10 + [True] * 10)
    assert middle.value == 0.5 and middle.low == pytest.approx(1 - middle.high) and middle.low < 0.35
    # Newcombe's equation holds at both ends: |estimate - end| = 1.96 times the standard error there
    found = roc_area(likes * 3, truth * 3)
    m, n = found.n_positive, found.n_negative
    for end in (found.low, found.high):
        more = ((m + n) / 2 - 1) * ((1 - end) / (2 - end) + end / (1 + end))
        assert abs(found.value - end) == pytest.approx(
            1.959964 * math.sqrt(end * (1 - end) * (1 + more) / (m * n)), rel=1e-5
        )


def test_correlation_is_over_all_tokens_together():
    rng = np.random.default_rng(0)
    x, y = rng.random((6, 9)), rng.random((6, 9))
    found = correlation(list(x), list(y), [True] * 3 + [False] * 3)
    assert found.value == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1]) and found.chance == 0
    assert found.low < found.value < found.high
    assert math.isnan(correlation([np.zeros(9)] * 4, list(y[:4]), [True] * 4).value)


def test_delphis_metrics_on_delphis_own_answers():
    for name in ("detection", "fuzzing", "fuzzing_active"):
        answers = DELPHI[name]["answers"]
        found = balanced_accuracy([a["prediction"] for a in answers], [a["activating"] for a in answers])
        want = DELPHI[name]["metrics"]
        assert (found.value, found.precision, found.recall, found.f1) == pytest.approx(
            (want["accuracy"], want["precision"], want["recall"], want["f1_score"])
        )


def _delphi_exam() -> Exam:
    samples = [
        Sample(np.arange(len(e["tokens"])) + 100 * k, tuple(e["tokens"]), np.array(e["values"]), e["active"])
        for k, e in enumerate(DELPHI["excerpts"])
    ]
    return Exam(0, 8.0, [s for s in samples if s.truth], [s for s in samples if not s.truth], [])


def test_excerpts_are_marked_as_delphi_marks_them():
    """Right marks are the same text; wrong ones are as many, on tokens that delphi may mark, too."""
    exam = _delphi_exam()
    theirs = {a["text"] for a in DELPHI["detection"]["answers"]}
    assert {s.text.rstrip("\n") for s in exam.detection()} == theirs  # the reader cut a last line's end
    for name, ours in (("fuzzing", exam.fuzzing()), ("fuzzing_active", exam.fuzzing_active())):
        answers = DELPHI[name]["answers"]
        assert {s.text.rstrip("\n") for s in ours if s.truth} == {a["text"] for a in answers if a["activating"]}
        bare = {a["text"].replace("<<", "").replace(">>", ""): a["text"] for a in answers if not a["activating"]}
        wrong = [s for s in ours if not s.truth]
        assert {"".join(s.tokens).rstrip("\n") for s in wrong} == set(bare)
        for s in wrong:
            their_marks = sum(map(_n_tokens, re.findall(r"<<(.*?)>>", bare["".join(s.tokens).rstrip("\n")], re.S)))
            assert int(s.marked.sum()) == their_marks == 4  # 3.08 active tokens on average, rounded up
            assert (s.values[s.marked] <= 0.3 * s.values.max()).all()


def _n_tokens(text: str) -> int:
    words = sorted({t for e in DELPHI["excerpts"] for t in e["tokens"]}, key=len, reverse=True)
    return len(re.findall("|".join(map(re.escape, words)), text))


def test_detection_scores_what_delphi_scores():
    """The same judge on the same excerpts."""

    class Reader:
        name = "reader"

        def fits(self, latent, label, samples):
            return [s.text.count("cat") > 1 for s in samples]

    (row,) = scoring.score_exam(_delphi_exam(), "cats", Reader(), ["detection"])
    want = DELPHI["detection"]["metrics"]
    assert row["value"] == pytest.approx(want["accuracy"]) and row["f1"] == pytest.approx(want["f1_score"])
    assert row["unreadable"] == 0 and row["n_positive"] == row["n_negative"] == 12


def test_simulation_scores_what_delphi_scores():
    exam, guesses = _delphi_exam(), DELPHI["simulation"]["guesses"]

    class Guesser:
        name = "guesser"

        def simulate(self, latent, label, sample):
            return np.array(guesses[sample.rows[0] // 100])

    (row,) = scoring.score_exam(exam, "cats", Guesser(), ["simulation"])
    assert row["value"] == pytest.approx(DELPHI["simulation"]["correlation"], abs=1e-12)


def test_expected_levels_are_delphis_expectation_over_digits():
    given = DELPHI["simulation"]["logprobs"]
    p = torch.softmax(torch.tensor([given[str(d)] for d in range(10)], dtype=torch.float64), -1)
    assert float(p @ torch.arange(10.0, dtype=torch.float64)) == pytest.approx(DELPHI["simulation"]["expected"])


@pytest.fixture(scope="module")
def labels(codes):  # noqa: F811
    return label_by_rule(codes, VOCAB)


def test_rules_judge_planted_latents(codes, labels):  # noqa: F811
    """A rule that is the latent gets everything right; another latent's rule does not; a rule that names the token
    alone falls for near misses.
    """
    judge, word = RuleJudge(codes, VOCAB, labels), labels.set_index("latent")["label"]
    exams = {e.latent: e for e in gather_exams(codes, VOCAB, [1, 2, 3], examples=12, window=8)}
    assert set(exams) == {1, 2, 3}
    for latent, exam in exams.items():
        assert len(exam.positives) == len(exam.zeros) == len(exam.hard) >= 6
        assert all((s.values > 0).any() for s in exam.positives)
        assert not any(s.values.any() for s in [*exam.zeros, *exam.hard])
        odd = np.unique(codes.seq)[1::2]
        assert all(np.isin(codes.seq[s.rows], odd).all() for s in [*exam.positives, *exam.zeros, *exam.hard])
        rows = {r["scorer"]: r for r in scoring.score_exam(exam, word[latent], judge, list(SCORERS))}
        assert [rows[s]["value"] for s in ("detection", "hard_detection", "fuzzing", "fuzzing_active")] == [1, 1, 1, 1]
        assert rows["simulation"]["value"] == pytest.approx(1)
        assert rows["similarity"]["judge"] == "nobody"
    naive = RuleJudge(codes, VOCAB, labels)
    naive.labels.loc[3, "where"] = ""  # “dog” anywhere, not only inside brackets
    found = {
        r["scorer"]: r["value"] for r in scoring.score_exam(exams[3], "dog", naive, ["detection", "hard_detection"])
    }
    assert found["hard_detection"] < 0.65 < found["detection"] <= 1
    other = RuleJudge(codes, VOCAB, labels[labels["latent"] == 7].assign(latent=3))  # “42”
    wrong = scoring.score_exam(exams[3], "42", other, ["fuzzing", "simulation"])
    assert wrong[0]["value"] == pytest.approx(0.5, abs=0.1) and abs(wrong[1]["value"]) < 0.3


def test_words_that_label_and_excerpt_share():
    text = ["the cat sat", "a dog ran", "( cat )", "the the the"]
    found = likeness("“␣cat” after “(”", text)
    assert found[2] == max(found) and found[0] > found[1] == found[3] == 0
    assert likeness("", text) == [0, 0, 0, 0]


def test_answers_are_read_strictly():
    assert prompts.read_levels("0, 3,10", 3).tolist() == [0, 3, 10]
    for bad in ("0,3", "0,3,11", "0,x,1", "", "0,nan,1"):
        with pytest.raises(prompts.UnreadableAnswer):
            prompts.read_levels(bad, 3)


class Scorer(Server):
    """Answers by the label's word: an excerpt fits if it holds it, a mark if it is it, a level is 10 on it."""

    refuses = False

    def answer(self, question):
        if self.refuses:
            return "I would rather not say."
        if "described as" not in question:
            return super().answer(question)
        word = re.search(r"described as: (.*)", question)[1].strip()
        listed = [m[2] for m in re.finditer(r"^(\d+)\. (.*)$", question, re.M)]
        if "How active" in question:
            return ", ".join("10" if word in t else "0" for t in listed)
        if "every marked token" in question:
            fit = [all(m.strip() == word for m in re.findall("<<(.*?)>>", t)) for t in listed]
        else:
            fit = [word in t for t in listed]
        return ", ".join(str(i + 1) for i, f in enumerate(fit) if f) or "none"


@pytest.fixture
def served():
    s = Scorer()
    yield s
    s.http.shutdown()
    s.http.server_close()


@pytest.fixture
def labelled(codes, labels, tmp_path, monkeypatch):  # noqa: F811
    """A workspace with labels by rule and by a model: “cat” for the latent that fires on it, “tree” for one that does
    not; the dictionary is never encoded again.
    """
    monkeypatch.setattr(scoring, "encode_subject", lambda *args, **options: Encoded(codes, VOCAB))
    ws = Workspace(tmp_path)
    words = pd.DataFrame({"latent": [2, 3], "label": ["cat", "tree"], "label_score": [0.9, 0.5]})
    for explainer, table in (("rules", labels), ("m", words)):
        folder = ws.path("explanations", f"toy.{explainer}")
        folder.mkdir(parents=True)
        table.to_parquet(folder / "labels.parquet")
        write_manifest(
            folder, "explanations", folder.name, recipe={"n_tokens": None}, metadata={"explainer": explainer}
        )
    return ws


def test_a_language_model_judges_words(labelled, served):
    completer, _ = endpoint(served)
    item = scoring.score_explanations(labelled, reference(), "m", completer, latents=[2, 3], examples=12, run=QUIET)
    records = ScoreRecords.open(item.path)
    good, bad = (records.of(i).set_index("scorer") for i in (2, 3))
    assert list(good.index) == list(SCORERS) and (good.drop("similarity")["judge"] == "fake").all()
    assert good.loc["fuzzing", "value"] == 1 and good.loc["fuzzing", "low"] < 1
    assert good.loc["simulation", "value"] > 0.4 > abs(bad.loc["simulation", "value"])
    assert bad.loc["fuzzing", "value"] == pytest.approx(0.5, abs=0.15) and bad.loc["fuzzing", "low"] < 0.5
    assert good.loc["hard_detection", "value"] < good.loc["detection", "value"]  # other cats stand in the near misses
    mean = records.summary.set_index("scorer")
    assert mean.loc["fuzzing", "mean"] == pytest.approx((1 + bad.loc["fuzzing", "value"]) / 2)
    assert item.manifest.metadata["judge"] == "fake" and item.manifest.numbers["unreadable"] == 0
    answers = (item.path / "answers.jsonl").read_text().splitlines()
    assert len(answers) == len(served.seen) and {json.loads(a)["kind"] for a in answers} == {
        "detect",
        "fuzz",
        "simulate",
    }
    again = scoring.score_explanations(labelled, reference(), "m", completer, latents=[2, 3], examples=12, run=QUIET)
    assert again.digest == item.digest and len(served.seen) == len(answers)


def test_an_interrupted_scoring_asks_nothing_twice(labelled, served):
    completer, _ = endpoint(served)
    served.fail = [(200, {})] * 7 + [(400, {})]
    asked = {"latents": [2], "examples": 12, "scorers": ["fuzzing", "simulation"], "run": QUIET}
    with pytest.raises(EndpointError, match="refused the request"):
        scoring.score_explanations(labelled, reference(), "m", completer, **asked)
    assert not labelled.complete("scores", "toy.m.by-fake") and len(served.seen) == 8
    item = scoring.score_explanations(labelled, reference(), "m", completer, **asked)
    assert len((item.path / "answers.jsonl").read_text().splitlines()) == len(served.seen) - 1


def test_a_judge_that_says_nothing_readable_gives_no_number(labelled, served):
    served.refuses = True
    completer, _ = endpoint(served)
    item = scoring.score_explanations(labelled, reference(), "m", completer, latents=[2], examples=12, run=QUIET)
    table = ScoreRecords.open(item.path).table.set_index("scorer").drop("similarity")
    assert table["value"].isna().all() and (table["n_positive"] == 0).all() and (table["unreadable"] >= 12).all()
    assert item.manifest.numbers["fuzzing"] is None


def test_the_rule_itself_judges_rules_only(labelled):
    item = scoring.score_explanations(labelled, reference(), "rules", None, sample=4, examples=12, run=QUIET)
    assert item.id == "toy.rules.by-rule" and item.manifest.numbers["n_latents"] == 4
    with pytest.raises(UsageError, match="are words, not rules"):
        scoring.score_explanations(labelled, reference(), "m", None, run=QUIET)
    with pytest.raises(UsageError, match="'fuzz' does not exist"):
        scoring.score_explanations(labelled, reference(), "rules", None, scorers=["fuzz"], run=QUIET)
    with pytest.raises(UsageError, match="latent 5 has no label"):
        scoring.score_explanations(labelled, reference(), "rules", None, latents=[5], run=QUIET)


def test_a_model_on_this_machine_is_read_by_its_probabilities(codes, labels, tmp_path):  # noqa: F811
    """By hand: the more probable of yes and no, and the digits' expectation after each tab in one pass."""
    model, tokenizer = load_hf("mini-pythia"), load_tokenizer("mini-pythia")
    local = Local("mini-pythia", model, tokenizer)
    (exam,) = gather_exams(codes, VOCAB, [2], examples=4, window=6)
    judge, sample = ModelJudge(local, Notebook(tmp_path / "answers.jsonl")), exam.positives[0]
    levels = judge.simulate(2, "cat", sample)
    messages = prompts.levels_prompt("cat", sample.tokens)

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    given = ids("\n\n".join(m["content"] for m in messages[:-1]) + "\n\nAnswer:")
    for token, level in zip(sample.tokens, levels, strict=True):
        given += ids(f"{token}\t")
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([given])).logits[0, -1].double()
        p = torch.softmax(logits[[ids(str(d))[-1] for d in range(10)]], -1)
        assert level == pytest.approx(float(p @ torch.arange(10.0, dtype=torch.float64)), abs=2e-3)
        given += ids("unknown\n")
    said = judge.fits(2, "cat", exam.fuzzing())
    assert len(said) == len(exam.fuzzing()) and set(said) <= {True, False}
    kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [k["answer"] == "yes" for k in kept if k["kind"] == "yes"] == said
