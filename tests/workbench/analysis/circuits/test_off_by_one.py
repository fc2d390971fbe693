"""The write profile finds a known write where it is, equals a forward pass with all else frozen, and avoids the two
slips of the original notebook.
"""

import numpy as np
import pytest
import torch

from tests.workbench.bridges import bridge, tiny
from tests.workbench.handmade import VOCAB, storing_mamba
from workbench.analysis.circuits.effects import locate_peak
from workbench.analysis.circuits.hidden_attention import hidden_attention, last_reads
from workbench.analysis.circuits.off_by_one import channel_effects, conv_profile, write_profile, write_terms
from workbench.analysis.circuits.paths import FrozenPaths
from workbench.analysis.circuits.states import state_to_logit, y_to_logit
from workbench.analysis.circuits.tail import Tail
from workbench.analysis.circuits.tasks import make_prompts, read_task

P, T = 5, 20
LABELS = ["B-2", "B-1", "B", "B+1", "B+2", "B+3"]


@pytest.fixture(scope="module", params=["mamba", "falcon"])
def random_model(request):
    """Large random weights, so that decays differ strongly between positions and runs."""
    model = bridge(tiny(request.param, vocab_size=100, scale=0.7, num_hidden_layers=3, hidden_size=12))
    prompts = make_prompts(read_task("induction"), P, vocab_size=100, length=T)
    return model, prompts, FrozenPaths(model, Tail(model, prompts.clean))


def logit_diff(logits: torch.Tensor, prompts) -> np.ndarray:
    rows = np.arange(len(prompts))
    return (logits[rows, prompts.answer] - logits[rows, prompts.wrong]).double().numpy()


def frozen_forward(model, prompts, layer: int, edits: list) -> np.ndarray:
    """Effect of edits inside one mixer when its output changes at the last position only and other layers' last states
    stay clean.
    """
    _, clean = model.run_with_cache(torch.as_tensor(prompts.clean))
    base = logit_diff(model(torch.as_tensor(prompts.clean))[:, -1], prompts)

    def only_last(v, hook):
        kept = clean[f"blocks.{layer}.mixer.hook_out"].clone()
        kept[:, -1] = v[:, -1]
        return kept

    def clean_state(v, hook, l):
        v = v.clone()
        v[:, :, -1] = clean[f"blocks.{l}.mixer.hook_ssm_state"][:, :, -1]
        return v

    hooks = [*edits, (f"blocks.{layer}.mixer.hook_out", only_last)]
    hooks += [
        (f"blocks.{l}.mixer.hook_ssm_state", lambda v, hook, l=l: clean_state(v, hook, l))
        for l in range(len(model.blocks))
        if l != layer
    ]
    return logit_diff(model.run_with_hooks(torch.as_tensor(prompts.clean), fwd_hooks=hooks)[:, -1], prompts) - base


def put(at: np.ndarray, source: torch.Tensor):
    def edit(v, hook):
        v = v.clone()
        v[np.arange(P), at] = source[np.arange(P), at]
        return v

    return edit


@torch.no_grad()
def test_write_profile_equals_patching_decay_and_write_at_one_position(random_model) -> None:
    model, prompts, paths = random_model
    got = write_profile(model, prompts, paths, LABELS, metrics=("logit_diff",))["logit_diff"]
    _, other = model.run_with_cache(torch.as_tensor(prompts.corrupt))
    for layer in range(3):
        for o, label in enumerate(LABELS):
            at = prompts.position(label)
            edits = [
                (f"blocks.{layer}.mixer.hook_{k}", put(at, other[f"blocks.{layer}.mixer.hook_{k}"]))
                for k in ("decay", "write")
            ]
            np.testing.assert_allclose(
                got[:, layer, o], frozen_forward(model, prompts, layer, edits), atol=1e-4, rtol=1e-3
            )
    assert np.abs(got).max() > 0.01


@torch.no_grad()
def test_the_decay_of_the_position_itself_is_replaced_and_not_the_next_one(random_model) -> None:
    """First slip: Ā of p + 1 in the patched branch. Here the two differ, and the profile agrees with p."""
    model, prompts, paths = random_model
    _, other = model.run_with_cache(torch.as_tensor(prompts.corrupt))
    at, name = prompts.position("B+1"), "blocks.1.mixer.hook_"
    got = write_profile(model, prompts, paths, ["B+1"], metrics=("logit_diff",))["logit_diff"][:, 1, 0]
    write = (name + "write", put(at, other[name + "write"]))

    def slipped(v, hook):
        v = v.clone()
        v[np.arange(P), at] = other[name + "decay"][np.arange(P), at + 1]
        return v

    right = frozen_forward(model, prompts, 1, [write, (name + "decay", put(at, other[name + "decay"]))])
    wrong = frozen_forward(model, prompts, 1, [write, (name + "decay", slipped)])
    assert np.abs(right - wrong).max() > 1e-3  # the test would see the slip
    np.testing.assert_allclose(got, right, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_each_convolution_tap_is_corrupted_alone(random_model) -> None:
    """Second slip: convolution caches changed in place, which made effects cumulative.

    One tap at a time, in any order, from clean windows.
    """
    model, prompts, paths = random_model
    got = conv_profile(model, prompts, paths, LABELS, metrics=("logit_diff",))["logit_diff"]
    _, clean = model.run_with_cache(torch.as_tensor(prompts.clean))
    _, other = model.run_with_cache(torch.as_tensor(prompts.corrupt))
    name, at = "blocks.1.mixer.conv1d.hook_", prompts.position("B+2")
    u, new = clean[name + "in"], other[name + "in"]
    weight = model.blocks[1].mixer.original_component.conv1d.weight[:, 0]
    effects = []
    for tap in range(4):

        def one_tap(v, hook, tap=tap):
            v = v.clone()
            for i in range(P):
                v[i, :, at[i]] += weight[:, 3 - tap] * (new - u)[i, :, at[i] - tap]
            return v

        effects.append(frozen_forward(model, prompts, 1, [(name + "out", one_tap)]))
        np.testing.assert_allclose(got[:, 1, 4, tap], effects[-1], atol=1e-4, rtol=1e-3)
    assert len({np.round(e, 6).tobytes() for e in effects}) > 1
    terms = write_terms(model, prompts, LABELS)[1]
    forwards, backwards = terms.y_changes(range(4)), terms.y_changes([3, 2, 1, 0]).flip(2)
    assert torch.equal(forwards, backwards)


@torch.no_grad()
def test_state_and_y_to_logit_equal_a_frozen_forward(random_model) -> None:
    model, prompts, paths = random_model
    state = state_to_logit(model, prompts, paths, metrics=("logit_diff",))["logit_diff"]
    y = y_to_logit(model, prompts, paths, metrics=("logit_diff",))["logit_diff"]
    _, corrupt = model.run_with_cache(torch.as_tensor(prompts.corrupt))
    _, control = model.run_with_cache(torch.as_tensor(prompts.control))
    for layer in range(3):
        hook = f"blocks.{layer}.mixer.hook_"
        edit = [(hook + "h", put(np.full(P, T - 2), corrupt[hook + "h"]))]  # propagates into the last state
        np.testing.assert_allclose(state[:, layer], frozen_forward(model, prompts, layer, edit), atol=1e-4, rtol=1e-3)
        edit = [(hook + "y", put(np.full(P, T - 1), control[hook + "y"]))]
        np.testing.assert_allclose(y[:, layer], frozen_forward(model, prompts, layer, edit), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("offset", [0, 1, 2])
def test_a_write_made_by_hand_is_found_at_its_offset(offset: int) -> None:
    model = bridge(storing_mamba(offset))
    prompts = make_prompts(read_task("induction"), 8, vocab_size=VOCAB, length=12)
    paths = FrozenPaths(model, Tail(model, prompts.clean))
    assert (paths.tail.logits.argmax(1).numpy() == prompts.answer).all()
    profile = write_profile(model, prompts, paths, LABELS)
    peak = locate_peak(profile["logit_diff"])
    assert peak.index == (0, LABELS.index("B") + offset)
    assert peak.share.value > 0.999 and peak.same == 1.0 and peak.effect.high < -1
    taps = locate_peak(conv_profile(model, prompts, paths, LABELS)["logit_diff"])
    assert taps.index == (*peak.index, offset) and taps.share.value > 0.999  # the tap that reads B's own position
    np.testing.assert_allclose(
        state_to_logit(model, prompts, paths)["prob"][:, 0], profile["prob"][:, 0, 2 + offset], atol=1e-6
    )
    reads = last_reads(model, prompts.clean)[:, 0]
    at = prompts.marks["B"] + offset
    assert (reads.argmax(1) == at).all()
    channels = channel_effects(model, prompts, paths, 0, LABELS[2 + offset])
    assert channels.exact[:, -1] == pytest.approx(profile["logit_diff"][:, 0, 2 + offset], abs=1e-4)
    assert set(channels.order[:8].tolist()) <= set(range(16))  # value channels only
    strongest = np.abs(channels.channels).argmax(1)
    assert ((strongest == prompts.answer) | (strongest == prompts.wrong)).all()
    np.testing.assert_allclose(channels.states.sum(-1), channels.channels, atol=1e-5)


def attention_of(dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """α [T,T,D] of a Mamba, α_ij = C_i (∏_{k=j+1..i} Ā_k) Δ_j B_j, by its definition (arXiv 2403.01590)."""
    T, D = dt.shape
    out = dt.new_zeros(T, T, D)
    carried = dt.new_zeros(T, D, A.shape[1])
    for i in range(T):
        carried[:i] *= torch.exp(dt[i, :, None] * A)
        carried[i] = dt[i, :, None] * B[i]
        out[i, : i + 1] = carried[: i + 1] @ C[i]
    return out


@torch.no_grad()
def test_hidden_attention_gives_back_y(random_model) -> None:
    model, prompts, _ = random_model
    _, cache = model.run_with_cache(torch.as_tensor(prompts.clean))
    x, dt, B, C, y = (cache[f"blocks.1.mixer.hook_{k}"] for k in ("x", "dt", "B", "C", "y"))
    rates = -torch.exp(model.blocks[1].mixer.original_component.A_log)
    alpha = attention_of(dt[2], rates, B[2], C[2])
    torch.testing.assert_close(torch.einsum("ijd,jd->id", alpha, x[2]), y[2], atol=1e-4, rtol=1e-3)
    assert (alpha.triu(1).permute(2, 0, 1).triu(1) == 0).all()
    maps = hidden_attention(model, prompts.clean[:3])
    np.testing.assert_allclose(maps[2, 1], alpha.abs().mean(-1).numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        last_reads(model, prompts.clean)[2, 1], (alpha[-1] * x[2]).abs().mean(-1).numpy(), rtol=1e-3, atol=1e-6
    )
