"""A circuit written by hand is found: which head copies the previous token, which one completes the pattern, and where
it reads.
"""

import numpy as np
import pytest
import torch

from tests.workbench.bridges import bridge
from tests.workbench.handmade import VOCAB, induction_transformer
from workbench.analysis.circuits.effects import locate_peak
from workbench.analysis.circuits.heads import head_to_head, head_to_logit, read_profile
from workbench.analysis.circuits.induction import Found, attention_scores, by_attention, by_effect, score_table
from workbench.analysis.circuits.patching import Patch, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task

LABELS = ["B-2", "B-1", "B", "B+1", "B+2"]


@pytest.fixture(scope="module")
def circuit():
    model = bridge(induction_transformer())
    prompts = make_prompts(read_task("induction"), 12, vocab_size=VOCAB, length=13)
    return model, prompts, FrozenPaths(model, Tail(model, prompts.clean))


def test_the_hand_made_model_answers(circuit) -> None:
    _, prompts, paths = circuit
    assert (paths.tail.logits.argmax(1).numpy() == prompts.answer).all()


def test_both_criteria_find_the_two_heads(circuit) -> None:
    model, prompts, paths = circuit
    scores = attention_scores(model, prompts)
    reads = read_profile(model, prompts, paths, LABELS)["logit_diff"]
    assert by_attention(scores["induction"]) == [(1, 1)] == by_effect(reads[..., LABELS.index("B")])
    assert by_attention(scores["previous"]) == [(0, 0)]
    sent = head_to_head(model, prompts, paths, (1, 1), inputs="k", position="B")["logit_diff"]
    assert by_effect(sent) == [(0, 0)]
    nothing = head_to_head(model, prompts, paths, (1, 0), inputs="kv", position="B")["logit_diff"]
    assert np.abs(nothing).max() < 1e-4 and by_effect(nothing) == []
    peak = locate_peak(reads)
    assert peak.index == (1, 1, LABELS.index("B")) and peak.share.value > 0.999
    table = score_table(scores).set_index(["score", "layer", "unit"])
    assert table.loc[("induction", 1, 1)].value == pytest.approx(1, abs=1e-3) and (table.n == 12).all()


def test_direct_and_total_effects_of_the_hand_made_heads(circuit) -> None:
    model, prompts, paths = circuit
    direct = head_to_logit(model, prompts, paths)["logit_diff"].mean(0)
    assert (
        direct.argmin() == 4 and np.abs(np.delete(direct.ravel(), 4)).max() < 1e-4
    )  # L1H1 alone writes to the prediction
    patches = [Patch("z", l, "B", h) for l in (0, 1) for h in range(3)]
    total = patch_effects(model, prompts, patches, source="control")["logit_diff"].mean(0)
    assert total.argmin() == 0 and total[0] < -1 and np.abs(total[1:]).max() < 1e-5  # at B it is L0H0 that matters


def test_disagreement_is_said() -> None:
    assert Found("induction", [(1, 0)], [(1, 0)]).criteria_agree
    one = Found("induction", [(1, 0)], [(2, 3)])
    assert (
        not one.criteria_agree
        and one.sentence() == "Induction heads by attention: L1H0; by effect: L2H3. The criteria do not agree."
    )
    assert Found("previous-token", [], []).sentence() == "No previous-token head by either criterion."
    assert not Found("induction", [(1, 0)], []).criteria_agree
    uncertain = np.random.default_rng(0).normal(-0.1, 1, (10, 1, 2))
    assert by_effect(uncertain) == []  # the interval includes zero


@torch.no_grad()
def test_scores_are_read_off_the_pattern(circuit) -> None:
    model, prompts, _ = circuit
    _, cache = model.run_with_cache(torch.as_tensor(prompts.clean))
    scores = attention_scores(model, prompts)
    pattern = cache["blocks.1.attn.hook_pattern"][3, 2].double().numpy()
    assert scores["previous"][3, 1, 2] == pytest.approx(np.mean([pattern[t, t - 1] for t in range(2, 13)]))
    assert scores["duplicate"][3, 1, 2] == pytest.approx(pattern[-1, prompts.marks["A"][3]])
