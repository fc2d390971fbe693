"""Batched patches equal one patched forward pass each; direct paths equal a forward pass with
everything else frozen.
"""

import numpy as np
import pytest
import torch

from sae.errors import UsageError
from tests.workbench.bridges import bridge, tiny
from workbench.analysis.circuits.effects import answer_metrics, interval, locate_peak, share_of, tidy
from workbench.analysis.circuits.heads import head_to_head, head_to_logit, measure, read_profile
from workbench.analysis.circuits.patching import Patch, hook_of, patch_effects
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task

SITES = {
    "neox": ("resid", "z", "q", "k", "v", "attn", "mlp"),
    "mamba": ("resid", "mixer", "conv_in", "x", "dt", "B", "C", "decay", "write", "h", "y", "gate"),
    "mamba2": ("resid", "mixer", "conv_in"),
}
P, T = 6, 20


@pytest.fixture(scope="module")
def prompts():
    return make_prompts(read_task("induction"), P, vocab_size=100, length=T)


@pytest.fixture(scope="module")
def models():
    return {kind: bridge(tiny(kind, vocab_size=100, scale=0.4)) for kind in SITES}


def logit_diff(logits: torch.Tensor, prompts) -> np.ndarray:
    rows = np.arange(P)
    return (logits[rows, prompts.answer] - logits[rows, prompts.wrong]).double().numpy()


@torch.no_grad()
@pytest.mark.parametrize("kind", SITES)
def test_batched_patches_equal_single_forward_passes(models, prompts, kind: str) -> None:
    model = models[kind]
    patches = [
        Patch(site, layer, position, unit)
        for site in SITES[kind]
        for layer, position, unit in [(0, "B", None), (1, "last", None), (0, "B+1", 1), (1, "A", (1, 3)), (1, "B+1", 0)]
        if site != "resid" or unit is None
    ]
    got = patch_effects(model, prompts, patches, metrics=("logit_diff", "kl"), batch_rows=5)
    clean = model(torch.as_tensor(prompts.clean))[:, -1]
    for j, patch in enumerate(patches):
        hook, position_axis, _ = hook_of(model, patch.site, patch.layer)
        _, cache = model.run_with_cache(torch.as_tensor(prompts.corrupt), names_filter=hook)
        at = prompts.position(patch.position)
        unit = (
            slice(*patch.unit) if isinstance(patch.unit, tuple) else slice(None) if patch.unit is None else patch.unit
        )

        def edit(value, hook, source=cache[hook], axis=position_axis, at=at, unit=unit):
            value = value.clone()
            for i in range(P):
                value[i].movedim(axis - 1, 0)[at[i], unit] = source[i].movedim(axis - 1, 0)[at[i], unit]
            return value

        patched = model.run_with_hooks(torch.as_tensor(prompts.clean), fwd_hooks=[(hook, edit)])[:, -1]
        want = logit_diff(patched, prompts) - logit_diff(clean, prompts)
        np.testing.assert_allclose(got["logit_diff"][:, j], want, atol=2e-5, err_msg=str(patch))
    assert np.abs(got["logit_diff"]).max() > 1e-3 and (got["kl"] >= 0).all()


@torch.no_grad()
def test_sources_and_directions(models, prompts) -> None:
    model, patch = models["neox"], Patch("resid", 0, "B")
    whole = patch_effects(model, prompts, [patch], metrics=("logit_diff",))["logit_diff"][:, 0]
    clean, corrupt = (logit_diff(model(torch.as_tensor(t))[:, -1], prompts) for t in (prompts.clean, prompts.corrupt))
    # only B differs, and the residual stream at B before layer 1 is all later layers know of it, but for layer 0's own
    # reading
    back = patch_effects(model, prompts, [patch], direction="denoise", metrics=("logit_diff",))["logit_diff"][:, 0]
    assert np.abs(whole + back).max() < np.abs(corrupt - clean).max()
    everything = patch_effects(model, prompts, [Patch("resid", 1, "last")], metrics=("logit_diff",))["logit_diff"][:, 0]
    np.testing.assert_allclose(everything, corrupt - clean, atol=1e-5)
    for source in ("zero", "mean", "resample", "control"):
        assert np.isfinite(patch_effects(model, prompts, [Patch("z", 0, "last", 1)], source=source)["prob"]).all()
    outside = patch_effects(model, prompts, [Patch("resid", 0, "last+3")], metrics=("kl",))["kl"]
    assert np.isnan(outside).all()
    with pytest.raises(UsageError, match="denois"):
        patch_effects(model, prompts, [patch], source="zero", direction="denoise")
    with pytest.raises(UsageError, match="offers the sites resid, attn"):
        patch_effects(model, prompts, [Patch("h", 0, "B")])
    with pytest.raises(UsageError, match="logit_diff"):
        patch_effects(model, prompts, [patch], metrics=("logit_dif",))


@torch.no_grad()
@pytest.mark.parametrize("parallel", [True, False])
def test_head_to_logit_equals_freezing_all_other_heads(prompts, parallel: bool) -> None:
    model = bridge(tiny("neox", vocab_size=100, scale=0.4, use_parallel_residual=parallel, num_hidden_layers=3))
    paths = FrozenPaths(model, Tail(model, prompts.clean))
    got = head_to_logit(model, prompts, paths, metrics=("logit_diff",))["logit_diff"]
    _, clean = model.run_with_cache(torch.as_tensor(prompts.clean))
    _, other = model.run_with_cache(torch.as_tensor(prompts.control))
    for layer in range(3):
        for head in range(2):
            z = {l: clean[f"blocks.{l}.attn.hook_z"].clone() for l in range(3)}
            z[layer][:, -1, head] = other[f"blocks.{layer}.attn.hook_z"][:, -1, head]
            hooks = [(f"blocks.{l}.attn.hook_z", lambda v, hook, l=l, z=z: z[l]) for l in range(3)]
            want = logit_diff(model.run_with_hooks(torch.as_tensor(prompts.clean), fwd_hooks=hooks)[:, -1], prompts)
            np.testing.assert_allclose(got[:, layer, head], want - logit_diff(paths.tail.logits, prompts), atol=2e-5)
    assert np.abs(got).max() > 1e-3


@torch.no_grad()
def test_read_profile_equals_patching_keys_and_values_with_the_rest_frozen(models, prompts) -> None:
    model = models["neox"]
    paths = FrozenPaths(model, Tail(model, prompts.clean))
    got = read_profile(model, prompts, paths, ["B", "B+1", "last+1"], metrics=("logit_diff",))["logit_diff"]
    assert np.isnan(got[..., 2]).all() and np.isfinite(got[..., :2]).all()
    _, clean = model.run_with_cache(torch.as_tensor(prompts.clean))
    _, other = model.run_with_cache(torch.as_tensor(prompts.corrupt))
    at, rows = prompts.position("B+1"), np.arange(P)
    for layer in range(2):
        for head in range(2):
            hooks = []
            for name in "kv":
                value = clean[f"blocks.{layer}.attn.hook_{name}"].clone()
                value[rows, at, head] = other[f"blocks.{layer}.attn.hook_{name}"][rows, at, head]
                hooks.append((f"blocks.{layer}.attn.hook_{name}", lambda v, hook, value=value: value))
            for l in range(2):

                def freeze(v, hook, l=l, layer=layer, head=head):
                    kept = clean[f"blocks.{l}.attn.hook_z"].clone()
                    if l == layer:
                        kept[:, -1, head] = v[:, -1, head]
                    return kept

                hooks.append((f"blocks.{l}.attn.hook_z", freeze))
            want = logit_diff(model.run_with_hooks(torch.as_tensor(prompts.clean), fwd_hooks=hooks)[:, -1], prompts)
            np.testing.assert_allclose(got[:, layer, head, 1], want - logit_diff(paths.tail.logits, prompts), atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("inputs", ["kv", "q"])
def test_head_to_head_equals_sending_to_one_input_of_one_head(models, prompts, inputs: str) -> None:
    model, position = models["neox"], "B" if inputs == "kv" else "last"
    paths = FrozenPaths(model, Tail(model, prompts.clean))
    got = head_to_head(model, prompts, paths, (1, 1), inputs=inputs, position=position, metrics=("logit_diff",))[
        "logit_diff"
    ]
    _, clean = model.run_with_cache(torch.as_tensor(prompts.clean))
    _, other = model.run_with_cache(torch.as_tensor(prompts.control))
    at, rows = prompts.position(position), np.arange(P)
    for head in range(2):
        z = clean["blocks.0.attn.hook_z"].clone()
        z[rows, at, head] = other["blocks.0.attn.hook_z"][rows, at, head]
        sent = {}
        hooks = [("blocks.0.attn.hook_z", lambda v, hook, z=z: z)]
        hooks += [
            (f"blocks.1.attn.hook_{c}", lambda v, hook, c=c, sent=sent: sent.update({c: v.clone()})) for c in inputs
        ]
        model.run_with_hooks(torch.as_tensor(prompts.clean), fwd_hooks=hooks)

        def receive(v, hook, name, sent=sent):
            v = v.clone()
            v[rows, at, 1] = sent[name][rows, at, 1]
            return v

        hooks = [(f"blocks.1.attn.hook_{c}", lambda v, hook, c=c: receive(v, hook, c)) for c in inputs]
        want = logit_diff(model.run_with_hooks(torch.as_tensor(prompts.clean), fwd_hooks=hooks)[:, -1], prompts)
        np.testing.assert_allclose(got[:, 0, head], want - logit_diff(paths.tail.logits, prompts), atol=2e-5)
    with pytest.raises(UsageError, match="layer 0"):
        head_to_head(model, prompts, paths, (0, 0))


def test_paths_by_name_differ_and_metrics_are_what_they_say(models, prompts) -> None:
    model = models["neox"]
    paths = FrozenPaths(model, Tail(model, prompts.clean))
    rows, delta = torch.arange(P), torch.randn(P, 16, generator=torch.Generator().manual_seed(0))
    direct, residual = (
        measure(paths, prompts, [(0, delta, rows)], path, ("logit",))[0]["logit"] for path in ("direct", "residual")
    )
    assert np.abs(direct - residual).max() > 1e-3  # the MLP of layer 1 follows on the direct path only
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    clean = torch.tensor([[1.0, 0.5, 0.0]])
    got = answer_metrics(logits, torch.tensor([0]), torch.tensor([2]), clean)
    p, q = clean.softmax(-1)[0], logits.softmax(-1)[0]
    want = {"logit_diff": 3.0, "logit": 2.0, "prob": float(q[0]), "kl": float((p * (p / q).log()).sum())}
    assert {k: float(v[0]) for k, v in got.items()} == pytest.approx(want, abs=1e-6)


def test_tables_carry_n_and_intervals() -> None:
    values = np.random.default_rng(0).normal(1.0, 2.0, (400, 2, 3))
    values[:100, 0, 0] = np.nan
    values[:, 1, 2] = np.nan
    table = tidy(values, {"layer": [0, 1], "offset": [-1, 0, 1]}, site="h")
    assert len(table) == 5 and set(table.columns) == {"layer", "offset", "effect", "low", "high", "n", "site"}
    assert table.n.tolist() == [300, 400, 400, 400, 400]
    low, high = interval(values[:, :, 1])
    assert np.allclose((high - low) / 2, 1.96 * 2.0 / 20, rtol=0.2)  # 1.96 σ / √n
    assert ((table.low < table.effect) & (table.effect < table.high)).all()
    values[:, 1, 1] -= 6
    peak = locate_peak(values)
    assert peak.index == (1, 1) and peak.same == 1.0 and peak.effect.low < peak.effect.value < peak.effect.high < 0
    assert peak.share.value == pytest.approx(5 / (5 + 4), abs=0.05) and peak.effect.n == 400


def drawn_profile(rng: np.random.Generator, noise: float) -> np.ndarray:
    """32 prompts of 48 cells: effects of -10 and -1 on average, and 46 of nothing but noise.

    The true share of the first is 10/11.
    """
    means, sd = np.zeros(48), np.full(48, noise)
    means[:2], sd[:2] = (-10, -1), (5, 1)
    return rng.normal(means, sd, (32, 48))


def test_the_interval_of_a_share_holds_the_share_and_mostly_the_truth() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(100):
        share = share_of(drawn_profile(rng, 0.05), [0])
        assert share.low is not None and share.low <= share.value <= share.high <= 1
        held += share.low <= 10 / 11 <= share.high
    assert held >= 85  # a percentile interval of the absolute means holds it 38 times of 100


def test_noise_in_empty_cells_does_not_push_the_interval_below_the_share() -> None:
    values = drawn_profile(np.random.default_rng(1), 0.4)
    values[:, 1] = 0
    share = share_of(values, [0])
    flat = np.abs(np.stack([values[np.random.default_rng(i).integers(0, 32, 32)].mean(0) for i in range(500)]))
    assert (
        np.quantile(flat[:, 0] / flat.sum(1), 0.975) < share.value <= share.high
    )  # what resampled absolute means would have said
    assert share_of(np.zeros((8, 3)), [0]).low is None
    assert share_of(values, range(48)).value == pytest.approx(1)
