"""First-order effects are the slope of exact patching, and where they choose, only the best is patched."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workbench.analysis.circuits import analyse as module
from workbench.analysis.circuits.analyse import analyse
from workbench.analysis.circuits.attribution import attribution, best, patch_flops
from workbench.analysis.circuits.heads import head_changes, head_outputs, head_to_head, measure_cells, read_changes
from workbench.analysis.circuits.patching import Patch, hook_of
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.slopes import path_slopes, sender_slopes, to_first_order
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task
from workbench.models import load_model
from workbench.run import Run

SITES = {"mini-pythia": {"resid": False, "z": True, "mlp": False}, "mini-mamba": {"mixer": False, "conv_in": False}}


@pytest.fixture(scope="module", params=list(SITES))
def case(request):
    model = load_model(request.param)
    task = read_task("induction")
    prompts = make_prompts(task, 9, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer, length=20)
    return request.param, model, prompts  # nine prompts: more than one chunk


def test_the_effect_is_the_slope_towards_the_corrupted_value(case):
    name, model, p = case
    labels, h = ["B", "last"], 1e-2
    every = range(len(model.blocks))
    found = attribution(model, p, {site: (every, by_unit) for site, by_unit in SITES[name].items()}, labels)
    rows = torch.arange(len(p))

    def difference(logits):
        return (logits[rows, -1, torch.as_tensor(p.answer)] - logits[rows, -1, torch.as_tensor(p.wrong)]).double()

    for site, by_unit in SITES[name].items():
        hook, axis, _ = hook_of(model, site, 1)
        other: list[torch.Tensor] = []
        with torch.no_grad(), model.hooks(fwd_hooks=[(hook, lambda v, hook, into=other: into.append(v.detach()))]):
            model(torch.as_tensor(p.corrupt))
        moved = {}
        for sign in (1, -1):

            def edit(v, hook, sign=sign, axis=axis, new=other[0], by_unit=by_unit):
                v = v.clone()
                at = torch.as_tensor(p.position("B"))
                view, target = v.movedim(axis, 1), new.movedim(axis, 1)
                unit = (slice(None),) if not by_unit else (2,)
                here = view[rows, at]
                change = sign * h * (target[rows, at] - here)
                here[(slice(None), *unit)] += change[(slice(None), *unit)]
                view[rows, at] = here
                return v

            with torch.no_grad(), model.hooks(fwd_hooks=[(hook, edit)]):
                moved[sign] = difference(model(torch.as_tensor(p.clean)))
        want = ((moved[1] - moved[-1]) / (2 * h)).numpy()
        got = found[site][:, 1, 2 if by_unit else 0, 0]
        assert np.abs(want).max() > 1e-4, site
        np.testing.assert_allclose(got, want, atol=0.03 * np.abs(want).max(), err_msg=site)


def test_the_best_cells_fit_the_limit_and_one_is_always_taken():
    effects = {"a": np.array([[[[3.0]], [[1.0]]]]), "b": np.array([[[[-2.0, np.nan]], [[0.5, 4.0]]]])}
    flops = {"a": np.array([10.0, 5.0]), "b": np.array([10.0, 5.0])}
    chosen = best(effects, flops, 15.0)  # 4 at b's second layer (5), then 3 at a's first (10)
    assert chosen["b"].tolist() == [[[False, False]], [[False, True]]] and chosen["a"].tolist() == [[[True]], [[False]]]
    assert sum(int(c.sum()) for c in best(effects, flops, 0.0).values()) == 1


def test_a_patch_costs_what_lies_behind_it(case):
    _, model, p = case
    first, last = (patch_flops(model, p, [Patch("resid", l, "last")]) for l in (0, len(model.blocks) - 1))
    assert first > last > 0


def test_a_large_model_is_ranked_first_and_says_what_it_will_take(case, monkeypatch):
    _, model, p = case
    whole = analyse(model, p, metrics=("logit_diff",))
    assert "attribution" not in set(whole.effects().analysis)
    one = patch_flops(model, p, [Patch("resid", 0, "last")])
    monkeypatch.setattr(module, "EXACT_FLOPS", 0.0)
    monkeypatch.setattr(module, "BEST_FLOPS", 6 * one)
    said: list[str] = []
    part = analyse(model, p, metrics=("logit_diff",), run=Run(say=said.append))
    assert "attribution ranks them" in said[0] and " min" in said[0]
    everything, some = whole.effects(), part.effects()
    keys = ["analysis", "source", "site", "layer", "unit", "position", "metric"]
    for kind in ("activation", "ablation"):
        a, b = (t[t.analysis == kind].set_index(keys).effect for t in (everything, some))
        assert 0 < len(b) < len(a)
        np.testing.assert_allclose(b, a[b.index], atol=1e-4)
    ranked = some[(some.analysis == "attribution") & (some.path == "total")]
    assert len(ranked) == len(everything[(everything.analysis == "activation")])
    if case[0] != "mini-pythia":
        return
    keys = [*keys, "receiver"]
    a, b = (t[t.analysis == "read_profile"].set_index(keys).effect for t in (everything, some))
    assert 0 < len(b) < len(a)
    np.testing.assert_allclose(b, a[b.index], atol=1e-4)
    peak, other = whole.numbers["read_peak"], part.numbers["read_peak"]
    assert {k: peak[k] for k in ("layer", "unit", "position")} == {k: other[k] for k in ("layer", "unit", "position")}
    assert other["share"]["value"] == pytest.approx(peak["share"]["value"], abs=0.1)  # the rest is known to first order


def test_first_order_path_effects_are_the_slope_of_exact_ones():
    model = load_model("mini-pythia")
    p = make_prompts(read_task("induction"), 9, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer, length=20)
    paths, labels, h = FrozenPaths(model, Tail(model, p.clean)), ["B", "last"], 1e-3
    changes = read_changes(model, p, labels)
    first = to_first_order(changes, path_slopes(paths, p))
    moved = [
        measure_cells(paths, p, [sign * h * c for c in changes], "direct", ("logit_diff",))["logit_diff"]
        for sign in (1, -1)
    ]
    want = (moved[0] - moved[1]) / (2 * h)
    np.testing.assert_allclose(first, want, atol=0.01 * np.abs(want).max())
    layer, head, _ = np.unravel_index(np.abs(first[:, 1:].mean(0)).argmax(), first[0, 1:].shape)
    receiver, step = (int(layer) + 1, int(head)), 0.05  # one whose inputs matter: effects are far above rounding
    for inputs, position in (("k", "B"), ("v", "B"), ("q", "last")):
        clean, other = (head_outputs(model, p, paths, version, position) for version in ("clean", "control"))
        changes = head_changes(model, p, paths, "control", position)[: receiver[0]]
        slopes = sender_slopes(model, p, paths, receiver, inputs=inputs, position=position)
        first, moved = to_first_order(changes, slopes), []
        key = (p.control.tobytes(), position)
        for sign in (1, -1):
            paths.head_outputs[key] = [a + sign * step * (b - a) for a, b in zip(clean, other, strict=True)]
            found = head_to_head(model, p, paths, receiver, inputs=inputs, position=position, metrics=("logit_diff",))
            moved.append(found["logit_diff"])
        paths.head_outputs[key] = other
        want = (moved[0] - moved[1]) / (2 * step)
        assert np.abs(want).max() > 1e-3
        np.testing.assert_allclose(first, want, atol=0.03 * np.abs(want).max() + 1e-4, err_msg=inputs)


def test_chosen_senders_and_cells_alone_are_measured():
    model = load_model("mini-pythia")
    p = make_prompts(read_task("induction"), 8, vocab_size=model.cfg.d_vocab, tokenizer=model.tokenizer, length=20)
    paths, receiver = FrozenPaths(model, Tail(model, p.clean)), (2, 1)
    chosen = np.zeros((2, model.cfg.n_heads), bool)
    chosen[1, 2] = chosen[1, 0] = True
    every, some = (
        head_to_head(model, p, paths, receiver, inputs="k", metrics=("logit_diff",), chosen=which)["logit_diff"]
        for which in (None, chosen)
    )
    assert np.array_equal(np.isfinite(some).all(0), chosen)
    np.testing.assert_allclose(some[:, chosen], every[:, chosen], atol=1e-5)
    changes = read_changes(model, p, ["B"])
    which = np.zeros((len(changes), model.cfg.n_heads, 1), bool)
    which[2, 1] = True
    cells = measure_cells(paths, p, changes, "direct", ("logit_diff",), which)["logit_diff"]
    full = measure_cells(paths, p, changes, "direct", ("logit_diff",))["logit_diff"]
    assert np.array_equal(np.isfinite(cells).all(0), which)
    np.testing.assert_allclose(cells[:, which], full[:, which], atol=1e-5)
