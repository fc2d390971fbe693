"""Transplants between models whose relation is known: one is the other in a rotated basis, so every latent has a twin;
one pair fires alike and writes something else.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from transformers import MambaForCausalLM
from typer.testing import CliRunner

from sae import TopKSAE
from sae.errors import MismatchError, MissingError, UsageError
from tests.workbench.analysis.comparison.test_compare import save, workspace  # noqa: F401
from tests.workbench.bridges import bridge, tiny, tokens
from workbench import transplant
from workbench.activations.harvesting.forward import capture
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.splice import ablate, splice
from workbench.analysis.transplant.maps import fit_map, same_space, unit
from workbench.analysis.transplant.measure import Downstream, fitted, operate
from workbench.analysis.transplant.pairs import Pairs, SharedCodes, pairs_of
from workbench.analysis.transplant.run import TransplantRecipe, chosen_pairs, frame_of, row_of, surgery_of
from workbench.analysis.transplant.tables import arm_numbers, spearman, tables_of
from workbench.cli import app
from workbench.results.transplants import REPAIRS, TransplantRecords

D, F, K, HOOK = 16, 64, 6, "blocks.0.hook_resid_post"
FALSE = 5  # latent whose partner fires exactly alike and writes across it


def rotated(model: MambaForCausalLM, q: torch.Tensor) -> MambaForCausalLM:
    """The same function in another basis of the residual stream: x' = x q."""
    with torch.no_grad():
        model.backbone.embeddings.weight.copy_(model.backbone.embeddings.weight @ q)
        model.lm_head.weight.copy_(model.lm_head.weight @ q)
        for layer in model.backbone.layers:
            layer.mixer.in_proj.weight.copy_(layer.mixer.in_proj.weight @ q)
            layer.mixer.out_proj.weight.copy_(q.T @ layer.mixer.out_proj.weight)
    return model


def plain_mamba() -> MambaForCausalLM:
    model = tiny("mamba", scale=0.3, tie_word_embeddings=False)
    with torch.no_grad():
        for norm in (model.backbone.norm_f, *(layer.norm for layer in model.backbone.layers)):
            norm.weight.fill_(1.0)  # so that the norm does not know the basis
    return model


def dictionary(directions: torch.Tensor) -> TopKSAE:
    made = TopKSAE(D, F, K)
    with torch.no_grad():
        made.enc_FD.copy_(directions)
        made.dec_FD.copy_(directions)
        made.b_dec.zero_()
    return made


@pytest.fixture(scope="module")
def twins():
    """(models, dictionaries, codes) of A and B; A's latent 5 writes across B's."""
    g = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(D, D, generator=g))[0]
    models = bridge(rotated(plain_mamba(), q)), bridge(plain_mamba())
    text = tokens(120, 24)
    assert torch.allclose(models[0](text), models[1](text), atol=1e-4)
    rows = torch.nn.functional.normalize(torch.randn(F, D, generator=g), dim=1)
    a, b = dictionary(rows @ q), dictionary(rows)
    across = torch.randn(D, generator=g)
    across -= (across @ rows[FALSE]) * rows[FALSE]
    with torch.no_grad():
        a.dec_FD[FALSE] = torch.nn.functional.normalize(across, dim=0) @ q
    made = {}
    for name, model, sae in (("a", models[0], a), ("b", models[1], b)):
        with torch.no_grad():
            values, indices = sae.encode_sparse(capture(model, text, [HOOK])[HOOK][:, 1:].flatten(0, 1))
        dense = torch.zeros(len(values), F).scatter_(1, indices, values)
        made[name] = sp.csc_array(dense.numpy())
    seq, pos = np.repeat(np.arange(120), 23), np.tile(np.arange(1, 24), 120)
    codes = SharedCodes(text.numpy(), seq, pos, text.numpy()[seq, pos], made)
    return models, (a, b), codes


def transplanted(twins, recipe, mapped=None):
    models, (a, b), codes = twins
    pairs = pairs_of(codes, "a", "b", min_firings=10)
    rows = [d.W_dec.detach().double().numpy() for d in (a, b)]
    mapped = mapped or fit_map(rows[0], rows[1], pairs.partner, pairs.latent, pairs.r >= 0.5)
    pool = np.flatnonzero(codes.halves == 1)
    chosen = chosen_pairs(pairs, recipe)
    made = [surgery_of(codes, ("a", "b"), pairs, k, rows[1], mapped, None, pool, recipe) for k in chosen.tolist()]
    sums = operate(models[1], b, (HOOK, HOOK), codes.tokens, codes.is_row, row_of(codes), made)
    return pairs, mapped, frame_of(pairs, chosen, made, mapped, rows[1], sums), sums


def test_twins_repair_and_a_false_match_does_not_although_both_have_r_1(twins):
    pairs, mapped, frame, _ = transplanted(twins, TransplantRecipe(below=0, sequences=16))
    assert (pairs.r > 0.999).all() and (pairs.latent == pairs.partner).all() and len(pairs) >= 40
    frame = frame.set_index("latent")
    true, false = frame.drop(FALSE), frame.loc[FALSE]
    measured = true[true["transplant"].notna()]
    assert len(measured) >= 40
    assert (measured["transplant"] >= 0.95 * measured["ceiling"]).all() and (measured["ceiling"] > 0.9).all()
    assert false["r"] > 0.999 and false["transplant"] <= 0.1 and false["activation"] > 0.99
    assert false["ceiling"] > 0.9  # the map could have carried the right answer
    assert measured["other"].median() < 0.1 and measured["random"].median() < 0.1
    assert (measured["transplant_low"] <= measured["transplant"]).all()
    assert mapped.cosine > 0.9 and mapped.ridge is not None


def test_the_ablation_is_the_splices_own(twins):
    """KL of the arm ``ablated``, one latent and one sequence at a time, against splice() with the latent at zero."""
    models, (_, b), codes = twins
    _, _, frame, sums = transplanted(twins, TransplantRecipe(below=0, latents=6, sequences=4))
    for n in range(len(sums.surgery)):
        latent = int(frame["latent"][sums.surgery[n]])
        ids = torch.from_numpy(codes.tokens[[sums.sequence[n]]]).long()
        with torch.no_grad():
            clean = models[1](ids).log_softmax(-1)
            with splice(models[1], {HOOK: b}, ablate([latent]), keep_error=True):
                after = models[1](ids).log_softmax(-1)
        kl = (clean.exp() * (clean - after)).sum(-1)[0, 1:-1].sum()
        assert sums.kl["ablated"][n] == pytest.approx(float(kl), abs=2e-5)
        following = ids[0, 2:]
        loss = -(after - clean)[0, 1:-1].gather(-1, following[:, None]).sum()
        assert sums.nll["ablated"][n] == pytest.approx(float(loss), abs=1e-4)


def test_latents_of_one_batch_do_not_touch_each_other(twins):
    """All surgeries at once and one at a time give the same sums."""
    models, (_, b), codes = twins
    pairs = pairs_of(codes, "a", "b", min_firings=10)
    recipe, pool = TransplantRecipe(below=0, latents=3, sequences=4), np.flatnonzero(codes.halves == 1)
    rows = [d.W_dec.detach().double().numpy() for d in twins[1]]
    mapped = fit_map(rows[0], rows[1], pairs.partner, pairs.latent, pairs.r >= 0.5)
    made = [
        surgery_of(codes, ("a", "b"), pairs, k, rows[1], mapped, None, pool, recipe)
        for k in chosen_pairs(pairs, recipe).tolist()
    ]
    where = (models[1], b, (HOOK, HOOK), codes.tokens, codes.is_row, row_of(codes))
    together = operate(*where, made)
    for k, one in enumerate(made):
        alone = operate(*where, [one])
        for arm in together.kl:
            np.testing.assert_allclose(together.kl[arm][together.surgery == k], alone.kl[arm], atol=2e-5)


@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.0.mixer.hook_out"])
def test_a_change_at_any_place_is_what_a_hook_does(hook):
    model = bridge(tiny("mamba", scale=0.3))
    text, change = tokens(2, 12), 0.1 * torch.randn(2, 12, D, generator=torch.Generator().manual_seed(2))
    sae = dictionary(torch.nn.functional.normalize(torch.randn(F, D), dim=1))
    place = Downstream(model, sae, hook, hook, text, torch.ones(2, 12, dtype=torch.bool))
    with torch.no_grad(), model.hooks(fwd_hooks=[(hook, lambda value, hook: value + change)]):
        expected = model(text)
    torch.testing.assert_close(place.logits(torch.arange(2), change), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(place.clean, model(text), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(Tail(model, text).run(0, torch.arange(2), every=True)[:, -1], place.clean[:, -1])
    with pytest.raises(UsageError, match="ln_final"):
        Downstream(model, sae, hook, "ln_final.hook_out", text, torch.ones(2, 12, dtype=torch.bool))


def test_the_scale_is_least_squares_on_the_training_half_and_never_negative():
    f = sp.csc_array(np.array([[2.0], [0], [4], [9]]))
    g = sp.csc_array(np.array([[1.0], [1], [2], [0]]))
    training = np.array([True, True, True, False])
    row, along, across = np.array([3.0, 0]), np.array([0.6, 0.8]), np.array([-1.0, 0])
    made = fitted((f, 0), (g, 0), row, along, training)
    assert made.scale == pytest.approx(0.6 * 3 * (2 * 1 + 4 * 2) / (1 + 1 + 4))
    assert fitted((f, 0), (g, 0), row, across, training).scale == 0.0
    assert fitted((f, 0), (g, 0), row, along, np.zeros(4, bool)).scale == 0.0


def test_a_map_never_sees_the_pair_it_carries():
    """A pair whose answer is nonsense is carried as if it were not there: its image is that of the others' map."""
    rng = np.random.default_rng(0)
    a, q = unit(rng.standard_normal((60, 8))), np.linalg.qr(rng.standard_normal((8, 8)))[0]
    b = a @ q
    b[7] = unit(rng.standard_normal((1, 8)))[0]
    n = np.arange(60)
    found = fit_map(a, b, n, n, np.ones(60, bool))
    assert float(unit(found.images)[7] @ (a @ q)[7]) > 0.97 and found.n_pairs == 60
    assert np.abs(same_space(a, b).images - a).max() < 1e-12
    with pytest.raises(UsageError, match="12 matched pairs are too few"):
        fit_map(a, b, n, n, n < 12)


def test_what_cannot_be_measured_has_no_number(twins):
    _, _, _, sums = transplanted(twins, TransplantRecipe(below=0, latents=4, sequences=4))
    few = np.zeros(len(sums.surgery), bool)
    few[:3] = True
    assert np.isnan(arm_numbers(sums, few)["transplant"])
    for kl in sums.kl.values():
        kl[:] = 0.0
    nothing = arm_numbers(sums, np.ones(len(sums.surgery), bool))
    assert all(np.isnan(nothing[arm]) for arm in REPAIRS) and nothing["kl_ablated"] == 0.0
    assert np.isnan(arm_numbers(sums, sums.surgery == 0, without=["other"])["kl_other"])


def test_rank_correlation_and_curve_by_hand():
    x = np.arange(30.0)
    assert spearman(x, x**3)[0] == pytest.approx(1.0) and spearman(x, -x)[0] == pytest.approx(-1.0)
    assert np.isnan(spearman(x[:3], x[:3])[0]) and np.isnan(spearman(x, np.ones(30))[0])
    value, low, high = spearman(x, np.random.default_rng(1).standard_normal(30))
    assert low < 0 < high and low < value < high


def test_pairs_below_the_level_are_drawn_evenly_over_r():
    n = 100
    r = np.linspace(1, 0, n)
    pairs = Pairs(np.arange(n), np.arange(n), r, r, np.full(n, 50), np.full(n, -1))
    some = chosen_pairs(pairs, TransplantRecipe(below=5, latents=3))
    assert len(some) == 8 and r[some[0]] == 1 and r[some[2]] >= 0.5 > r[some[3]] and r[some[-1]] == 0
    assert len(chosen_pairs(pairs, TransplantRecipe(below=0))) == int((r >= 0.5).sum())


def test_the_verb_on_a_dictionary_and_its_permuted_copy(workspace):  # noqa: F811
    """Another seed that learnt the same latents in another order: one space, no map, everything is repaired."""
    pair = ("mini-pythia.L0R-1x.s1", "mini-pythia.L0R-1x")
    done = CliRunner().invoke(
        app, ["transplant", *pair, "-w", str(workspace.root), "--sequences", "4", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    measured = [p for p in found["pairs"] if p["repaired"] is not None]
    assert len(measured) >= 10 and min(p["repaired"] for p in measured) > 0.99
    assert min(p["r"] for p in measured) > 0.999 and found["metadata"]["map"]["ridge"] is None
    assert found["metadata"]["ceiling"] == "partner in mini-pythia.L0R-1x.s1" and found["share_of_ceiling"] > 0.99
    assert set(found["nulls"]) == {"other", "random"} and found["nulls"]["other"]["median"] < 0.5
    assert workspace.complete("matches", "__".join(pair))  # made on the way
    again = transplant(workspace, pair, sequences=4)
    assert again.version == found["version"]
    with pytest.raises(MismatchError, match="sequences"):
        transplant(workspace, pair, sequences=5)
    records = TransplantRecords.open(again.path)
    assert records.of(measured[0]["latent"], measured[0]["partner"])["transplant"] == measured[0]["repaired"]
    assert records.of(measured[0]["latent"], -5) is None


def test_what_cannot_be_transplanted_is_refused(workspace):  # noqa: F811
    with pytest.raises(UsageError, match="same dictionary"):
        transplant(workspace, ("mini-pythia.L0R-1x", "mini-pythia.L0R-1x"))
    with pytest.raises(MissingError, match="nowhere"):
        transplant(workspace, ("nowhere", "mini-pythia.L0R-1x"))
    with pytest.raises(UsageError, match="matched pairs are too few"):
        transplant(workspace, ("mini-pythia.L1R-1x", "mini-mamba.L1R-1x"), level=0.99)
    assert not workspace.complete("transplants", "mini-pythia.L1R-1x__mini-mamba.L1R-1x")


def test_tables_of_a_planted_relation():
    """Success that rises with r: the curve rises, the rank correlation is positive, the null's is not."""
    import pandas as pd

    rng = np.random.default_rng(0)
    r = rng.uniform(0, 1, 120)
    frame = pd.DataFrame({"latent": np.arange(120), "r": r, "r_given_token": r, "cosine": rng.uniform(0, 1, 120)})
    frame["n_tokens"], frame["kl_ablated"] = 100, 0.1
    for arm in REPAIRS:
        frame[arm] = r**2 if arm in ("transplant", "ceiling") else 0.05 * rng.standard_normal(120)
        frame[f"kl_{arm}"] = 0.1 * (1 - frame[arm])
    made, numbers = tables_of(frame, 0.5)
    curve = made["curve"]
    rising = curve[(curve["predictor"] == "r") & (curve["arm"] == "transplant")]
    assert rising["median"].is_monotonic_increasing and (rising["n"] == 20).all() and len(rising) == 6
    assert numbers["rank_correlation"]["r"]["low"] > 0.9 and numbers["matched"] == int((r >= 0.5).sum())
    null = made["order"].query("predictor == 'r' and arm == 'other'").iloc[0]
    assert null["low"] < 0 < null["high"]
    assert numbers["share_of_ceiling"] == pytest.approx(1.0)
    assert numbers["repaired"]["n"] == numbers["matched"] and isinstance(numbers["repaired"]["n"], int)
    pooled = made["summary"].set_index("arm").loc["transplant", "pooled"]
    assert pooled == pytest.approx(float((r[r >= 0.5] ** 2).mean()))
