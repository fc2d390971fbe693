"""Evaluation against plain dense formulas on all scored tokens."""

import numpy as np
import pytest
import torch

from sae.errors import UsageError
from tests.workbench.fakes import FakeBridge, FakeDictionary, Identity
from workbench.analysis.evaluation.evaluate import decoder_statistics, density_quantiles, evaluate_in_model
from workbench.analysis.splice import splice
from workbench.stats import ratio_estimates, wilson

HOOK = "blocks.0.hook_resid_post"
TOKENS = np.random.default_rng(0).integers(1, 50, (30, 18))


@pytest.fixture(scope="module")
def result():
    return evaluate_in_model(FakeBridge(), FakeDictionary(), HOOK, TOKENS, batch=7, n_bands=4)


def dense():
    """x, y and the three losses per token, computed without any of the product's code but the splice."""
    model, dictionary, tokens = FakeBridge(), FakeDictionary(), torch.from_numpy(TOKENS)
    caught = []
    with model.hooks([(HOOK, lambda x, hook: caught.append(x))]):
        clean = model(tokens)
    with splice(model, {HOOK: dictionary}, keep_error=False):
        approximate = model(tokens)
    x = caught[0][:, 1:-1].double()
    f = dictionary.encode(caught[0])[:, 1:-1]
    y = dictionary.decode(f).double()
    ce = [
        torch.nn.functional.cross_entropy(out[:, 1:-1].reshape(-1, 50), tokens[:, 2:].reshape(-1)).item()
        for out in (clean, approximate)
    ]
    p, q = (out[:, 1:-1].double().log_softmax(-1) for out in (clean, approximate))
    return x, y, f, ce, (p.exp() * (p - q)).sum(-1).mean().item()


def test_numbers_equal_their_definitions(result):
    x, y, f, (ce, ce_spliced), kl = dense()
    centred = (x - x.mean((0, 1))).square().sum()
    got = {k: e.value for k, e in result.estimates.items()}
    want = {
        "fvu": ((x - y).square().sum() / centred).item(),
        "ev": 1 - ((x - y).square().sum() / centred).item(),
        "ev_uncentred": 1 - ((x - y).square().sum() / x.square().sum()).item(),
        "l0": (f > 0).sum(-1).double().mean().item(),
        "ce_original": ce,
        "ce_spliced": ce_spliced,
        "delta_ce": ce_spliced - ce,
        "kl": kl,
        "dead_share": (f.reshape(-1, 48).sum(0) == 0).double().mean().item(),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-8), name
    assert got["ce_recovered_zero"] == pytest.approx((got["ce_zero"] - ce_spliced) / (got["ce_zero"] - ce), rel=1e-5)
    assert all(e.n == 30 * 16 for k, e in result.estimates.items() if not k.endswith("share"))
    np.testing.assert_array_equal(result.n_fired, (f > 0).sum((0, 1)).numpy())


def test_intervals_contain_the_value_and_narrow_with_more_sequences(result):
    for name, e in result.estimates.items():
        assert e.low <= e.value <= e.high, name
    few = evaluate_in_model(FakeBridge(), FakeDictionary(), HOOK, TOKENS[:6], n_bands=1).estimates["delta_ce"]
    many = result.estimates["delta_ce"]
    assert 0 < many.high - many.low < few.high - few.low


def test_bands_cover_every_scored_position_once(result):
    bands = result.bands[result.bands["metric"] == "delta_ce"]
    assert bands["first_position"].tolist() == [1, 5, 9, 13] and bands["last_position"].tolist() == [4, 8, 12, 16]
    assert (bands["value"] * bands["n"]).sum() / bands["n"].sum() == pytest.approx(result.estimates["delta_ce"].value)


def test_a_perfect_dictionary_recovers_everything():
    got = evaluate_in_model(FakeBridge(), Identity(), HOOK, TOKENS[:8]).estimates
    assert got["ev"].value == pytest.approx(1, abs=1e-9)
    assert got["ce_recovered_zero"].value == pytest.approx(1, abs=1e-5) and got[
        "ce_recovered_mean"
    ].value == pytest.approx(1, abs=1e-5)
    assert abs(got["kl"].value) < 1e-6


def test_the_mean_as_dictionary_explains_nothing_and_recovers_nothing():
    """A dictionary without latents whose bias is the mean is mean-ablation itself."""
    x, *_ = dense()
    dictionary = FakeDictionary()
    dictionary.b_enc -= 1e6
    dictionary.b_dec = x.mean((0, 1)).float()
    got = evaluate_in_model(FakeBridge(), dictionary, HOOK, TOKENS).estimates
    assert got["ev"].value == pytest.approx(0, abs=1e-6) and got["ce_recovered_mean"].value == pytest.approx(
        0, abs=1e-5
    )
    assert got["l0"].value == 0 and got["dead_share"].value == 1


def test_bootstrap_interval_has_the_width_theory_gives():
    rng = np.random.default_rng(1)
    y = rng.normal(3, 1, 400)
    e = ratio_estimates({"y": y, "n": np.ones(400)}, {"mean": lambda t: t["y"] / t["n"]}, {"mean": (400, "sequences")})[
        "mean"
    ]
    assert e.high - e.low == pytest.approx(2 * 1.96 * y.std() / 20, rel=0.1)
    one = ratio_estimates(
        {"y": y[:1], "n": np.ones(1)}, {"mean": lambda t: t["y"] / t["n"]}, {"mean": (1, "sequences")}
    )["mean"]
    assert one.low is None and one.high is None, "one sequence has no interval"
    assert (
        wilson(0, 50, "latents").high == pytest.approx(0.0714, abs=1e-3)
        and wilson(0, 0, "latents").as_dict()["value"] is None
    )


def test_small_statistics_and_refusals():
    stats = decoder_statistics(Identity())
    assert stats["norm_min"] == stats["norm_max"] == 1 and stats["encoder_decoder_cosine_min"] == pytest.approx(1)
    q = density_quantiles(np.array([0, 10, 20, 30]), 100)
    assert q["q50"] == 0.2 and q["n_latents"] == 3
    with pytest.raises(UsageError, match=r"ctx >= 3, not \[4, 2\]"):
        evaluate_in_model(FakeBridge(), FakeDictionary(), HOOK, np.ones((4, 2)))


def test_slices_of_positions_give_what_all_at_once_gives():
    from workbench.analysis.evaluation.evaluate import token_scores

    g = torch.Generator().manual_seed(3)
    logits, other = (3 * torch.randn(4, 11, 37, generator=g) for _ in range(2))
    tokens = torch.randint(0, 37, (4, 11), generator=g)
    whole = token_scores(logits, tokens, other)
    p, q = (v[:, 1:-1].log_softmax(-1) for v in (other, logits))
    assert torch.equal(whole["nll"], -q.gather(-1, tokens[:, 2:, None])[..., 0])
    assert torch.equal(whole["kl"], (p.exp() * (p - q)).sum(-1))
    for positions in (1, 2, 5):  # 9 are scored: the last slice is a short one
        sliced = token_scores(logits, tokens, other, slice_bytes=positions * 4 * 4 * 37)
        assert all(torch.equal(sliced[k], whole[k]) for k in whole)


@pytest.mark.parametrize(("vocab", "ctx", "want"), [(512, 128, 16), (49_152, 512, 5), (262_144, 1024, 1)])
def test_logits_that_are_held_stay_within_their_bytes(vocab, ctx, want):
    from types import SimpleNamespace

    from workbench.analysis.evaluation.evaluate import sequences_at_once

    assert sequences_at_once(SimpleNamespace(cfg=SimpleNamespace(d_vocab=vocab)), ctx, 16) == want


def test_fewer_sequences_at_a_time_measure_the_same(result, monkeypatch):
    from workbench.analysis.evaluation import evaluate

    monkeypatch.setattr(evaluate, "sequences_at_once", lambda model, ctx, batch: 1)
    got = evaluate_in_model(FakeBridge(), FakeDictionary(), HOOK, TOKENS, batch=7, n_bands=4)
    for name, e in result.estimates.items():
        assert got.estimates[name].value == pytest.approx(e.value, rel=1e-5, abs=1e-7), name


def test_massive_tokens_are_apart_and_both_numbers_are_given(result):
    assert result.estimates["ev_inliers"].value == pytest.approx(result.estimates["ev"].value)
    assert result.estimates["massive_share"].value == 0

    class Massive(FakeBridge):
        """Token 7 stands in the residual stream with a thousand times its length."""

        def forward(self, tokens, return_type="logits"):
            self.long = tokens == 7
            return super().forward(tokens, return_type)

        def point(self, name, x):
            if name == HOOK:
                x = torch.where(self.long[..., None], 1000 * x, x)
            return super().point(name, x)

    model, dictionary = Massive(), FakeDictionary()
    got = evaluate_in_model(model, dictionary, HOOK, TOKENS, batch=7).estimates
    caught = []
    with model.hooks([(HOOK, lambda x, hook: caught.append(x))]):
        model(torch.from_numpy(TOKENS))
    x = caught[0][:, 1:-1]
    y = dictionary.decode(dictionary.encode(x))
    usual = torch.from_numpy(TOKENS)[:, 1:-1] != 7
    xs, ys = x[usual].double(), y[usual].double()
    ev = 1 - (xs - ys).square().sum() / (xs - xs.mean(0)).square().sum()
    assert got["ev_inliers"].value == pytest.approx(float(ev), rel=1e-5)
    assert abs(got["ev"].value - got["ev_inliers"].value) > 0.01
    assert got["ev_inliers"].n == int(usual.sum()) and got["ev"].n == usual.numel()
    assert got["massive_share"].value == pytest.approx(float((~usual).double().mean()))
    square = x.double().square().sum(-1)
    assert got["massive_square_share"].value == pytest.approx(float(square[~usual].sum() / square.sum()))
