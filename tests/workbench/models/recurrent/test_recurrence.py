"""Every kind of recurrent layer: logits are Hugging Face's, states those of a plain recurrence in double precision, and
an edit at any hook goes on from there.
"""

from typing import Any

import pytest
import torch

from sae.errors import UsageError
from tests.workbench.models.zoo import random_model
from workbench.models.load import bridge, load_model
from workbench.models.mamba import repair_mamba
from workbench.models.recurrent import hooks as hooks_module
from workbench.models.recurrent import open_scan as scan_module
from workbench.models.recurrent import recurrent_layers, states_at
from workbench.models.recurrent.algebra import (
    attention,
    half_life,
    received,
    received_and_survival,
    states_after,
    survival,
)
from workbench.models.recurrent.kind import activate

KINDS = {  # architecture of the zoo -> its recurrent layers
    "mamba": {0: "Mamba", 1: "Mamba", 2: "Mamba"},
    "falcon_mamba": {0: "Mamba", 1: "Mamba", 2: "Mamba"},
    "jamba": {0: "Mamba", 2: "Mamba"},
    "mamba2": {0: "Mamba-2", 1: "Mamba-2", 2: "Mamba-2"},
    "bamba": {0: "Mamba-2", 1: "Mamba-2", 3: "Mamba-2"},
    "zamba2": {0: "Mamba-2", 1: "Mamba-2", 2: "Mamba-2", 3: "Mamba-2"},
    "nemotron_h": {0: "Mamba-2"},
    "falcon_h1": {0: "Mamba-2", 1: "Mamba-2", 2: "Mamba-2"},
    "qwen3_next": {0: "gated delta net", 1: "gated delta net", 2: "gated delta net"},
    "qwen3_5": {0: "gated delta net", 1: "gated delta net", 2: "gated delta net"},
    "olmo_hybrid": {0: "gated delta net", 1: "gated delta net", 2: "gated delta net"},
    "lfm2": {0: "short convolution", 2: "short convolution"},
}
ONE_OF_EACH = ("mamba", "mamba2", "qwen3_5")
SMALL = ("conv_in", "conv", "read", "write_key", "write_value", "decay", "y")
LARGE = ("write", "state")
T = 21


@pytest.fixture(scope="module")
def made():
    """name -> (Hugging Face's model, bridge, its recurrent layers), made once."""
    have = {}

    def make(name):
        if name not in have:
            model = bridge(repair_mamba(random_model(name)), name=name)
            have[name] = (random_model(name), model, recurrent_layers(model))
        return have[name]

    return make


def tokens(n: int = 2) -> torch.Tensor:
    return torch.randint(1, 500, (n, T), generator=torch.Generator().manual_seed(1))


def seen(model, layers, names, *edits):
    """{(layer, name): value}, and the logits."""
    got, at = {}, {layer.hook(n): (layer.index, n) for layer in layers for n in names}
    keep = [(h, lambda v, hook: got.update({at[hook.name]: v.detach().clone()})) for h in at]
    with torch.no_grad(), model.hooks(fwd_hooks=[*edits, *keep]):
        return got, model(tokens(), use_cache=False)


def plain_states(values: dict, index: int) -> torch.Tensor:
    """The recurrence in double precision, entry by entry, of the factors that the hooks show."""
    k, v, decay = (values[index, n].double() for n in ("write_key", "write_value", "decay"))
    state, out = torch.zeros(k.shape[0], *k.shape[2:], v.shape[-1], dtype=torch.float64), []
    for t in range(k.shape[1]):
        state = decay[:, t] * state
        if (index, "erase_key") in values:
            c, e = values[index, "erase_key"][:, t].double(), values[index, "erase_strength"][:, t].double()
            for b in range(len(state)):
                for h in range(state.shape[1]):
                    state[b, h] = state[b, h] - e[b, h] * c[b, h][:, None] * (c[b, h] @ state[b, h])[None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append(state)
    return torch.stack(out, 1)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_logits_are_hugging_faces_and_states_a_plain_recurrences(made, name) -> None:
    hf, model, layers = made(name)
    assert {layer.index: layer.kind for layer in layers} == KINDS[name]
    with torch.no_grad():
        want = hf(tokens()).logits
        torch.testing.assert_close(model(tokens(), use_cache=False), want, atol=2e-5, rtol=1e-4)
    erase = ("erase_key", "erase_strength") if layers[0].erases else ()
    values, logits = seen(model, layers, (*SMALL, *LARGE, *erase))
    torch.testing.assert_close(logits, want, atol=2e-5, rtol=1e-4)  # the open scan
    for layer in layers:
        at = layer.index
        state, write = values[at, "state"], values[at, "write"]
        assert state.shape == (2, T, layer.heads, layer.keys, layer.values) == write.shape
        plain = plain_states(values, at)
        torch.testing.assert_close(state.double(), plain, atol=1e-6, rtol=1e-5)
        y = torch.einsum("bthk,bthkv->bthv", values[at, "read"].double(), plain)
        torch.testing.assert_close(values[at, "y"].double(), y, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(write, values[at, "write_key"][..., None] * values[at, "write_value"][..., None, :])


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.filterwarnings("ignore")
def test_an_edit_goes_on_from_there(made, name) -> None:
    _, model, layers = made(name)
    layer = layers[0]
    clean, _ = seen(model, [layer], ("write", "state", *SMALL))
    names = [*SMALL, *LARGE, *(("erase_key", "erase_strength") if layer.erases else ())]
    for edited in names:

        def edit(value, hook):
            value = value.clone()
            value[:, 8] *= 0.3
            return value

        _, logits = seen(model, [], (), (layer.hook(edited), lambda v, hook: v.clone()))  # the same scan
        _, changed = seen(model, [], (), (layer.hook(edited), edit))
        assert torch.equal(changed[:, :8], logits[:, :8]), edited
        moved = (changed[:, 8:] - logits[:, 8:]).abs().amax((0, 2))
        assert moved.gt(1e-7).all(), edited
    at = layer.index

    def set_state(value, hook):
        value[:, 5] = 2.0  # in place on purpose
        return value

    after, _ = seen(model, [layer], ("carried",), (layer.hook("state"), set_state))
    got, was = after[at, "carried"], clean[at, "state"]
    torch.testing.assert_close(got[:, :5], was[:, :5])
    assert (got[:, 5] == 2.0).all() and not torch.allclose(got[:, 6], was[:, 6])


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.filterwarnings("ignore")
def test_an_edited_state_is_carried_on_as_the_recurrence_says(made, name) -> None:
    """S_6 after S_5 was set: decay, erase, write at 6 of the set one."""
    _, model, layers = made(name)
    layer, erase = layers[0], ("erase_key", "erase_strength") if layers[0].erases else ()
    clean, _ = seen(model, [layer], (*SMALL, *erase))
    got = {}

    def set_state(value, hook):
        value = value.clone()
        value[:, 5] = 2.0
        return value

    edits = [(layer.hook("state"), set_state), (layer.hook("state"), lambda v, hook: got.setdefault("asked", v))]
    read = seen(model, [layer], ("y",), *edits)[0][layer.index, "y"]
    at = layer.index
    state = torch.full((2, layer.heads, layer.keys, layer.values), 2.0)
    state = clean[at, "decay"][:, 6] * state
    if erase:
        c, e = clean[at, "erase_key"][:, 6], clean[at, "erase_strength"][:, 6]
        state = state - (e[..., None] * c)[..., None] * torch.einsum("bhk,bhkv->bhv", c, state)[:, :, None]
    state = state + clean[at, "write_key"][:, 6, :, :, None] * clean[at, "write_value"][:, 6, :, None]
    want = torch.einsum("bhk,bhkv->bhv", clean[at, "read"][:, 6], state)
    torch.testing.assert_close(read[:, 6], want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.filterwarnings("ignore")
def test_blocks_bound_what_is_held_and_edits_in_them_go_on(made, name, monkeypatch) -> None:
    _, model, layers = made(name)
    layer, sizes = layers[1], []
    whole, _ = seen(model, [layer], ("state",))
    positions = torch.tensor([[0, 7, 20], [3, 3, 19]])
    got = states_at(model, layer, tokens(), positions, size=4)
    torch.testing.assert_close(got, whole[layer.index, "state"][torch.arange(2)[:, None], positions])

    def zero(start, states):
        sizes.append(states.shape[1])
        if start == 8:
            states[:, 1] = 0
            return states
        return None

    def same(value, hook):
        value = value.clone()
        value[:, 9] = 0
        return value

    with layer.in_blocks(zero, 4):
        _, blockwise = seen(model, [], ())
    _, at_once = seen(model, [], (), (layer.hook("state"), same))
    torch.testing.assert_close(blockwise, at_once)
    assert max(sizes) == 4 and sum(sizes) == T
    monkeypatch.setattr(scan_module, "MOST_BYTES", 1000)
    with pytest.raises(UsageError, match="GiB, more than"):
        seen(model, [layer], ("state",))
    with layer.in_blocks(zero, 4):
        seen(model, [], ())  # blocks are not refused


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.filterwarnings("ignore")
def test_sums_over_writes_are_exact(made, name) -> None:
    _, model, layers = made(name)
    layer = layers[-1]
    got = {}
    hooks = [
        (layer.hook("conv"), lambda v, hook: got.update(conv=v)),
        (layer.hook("y"), lambda v, hook: got.update(y=v)),
    ]
    hooks += [(f"{layer.path}.hook_in", lambda v, hook: got.update(x=v))]
    hooks += [(layer.hook("state"), lambda v, hook: got.update(state=v.clone()))]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(tokens(), use_cache=False)
    with torch.no_grad():
        f = layer.factors_of(got["x"], got["conv"])
        for at in (0, 7, T - 1):
            torch.testing.assert_close(received(f, at).sum(1), got["y"][:, at], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            states_after(f, torch.tensor([[0, 20], [4, 9]])),
            got["state"][torch.arange(2)[:, None], torch.tensor([[0, 20], [4, 9]])],
        )
        maps = attention(f)
        assert maps.shape == (2, T, T) and bool((maps.triu(1) == 0).all()) and float(maps.diagonal(0, 1, 2).min()) > 0
        left = survival(f, longest=6)
        reads, lives = received_and_survival(f)
        for at in (0, 7, T - 1):
            torch.testing.assert_close(reads[:, at], received(f, at), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(lives[:, :, :7], left, equal_nan=True)
    assert left.shape == (2, T, 7) and bool((left[:, :, 0] - 1).abs().max() < 1e-5)
    assert bool(left[:, -3:, 3:].isnan().all()) and not bool(left[:, :-6].isnan().any())
    # brute force: the write at 4 alone, carried by the model itself
    alone = {}

    def only(value, hook):
        value = torch.zeros_like(value)
        value[:, 4] = f.write_key[:, 4, :, :, None] * f.write_value[:, 4, :, None]
        return value

    with (
        torch.no_grad(),
        model.hooks(
            fwd_hooks=[(layer.hook("write"), only), (layer.hook("state"), lambda v, hook: alone.update(s=v.clone()))]
        ),
    ):
        model(tokens(), use_cache=False)
    size = alone["s"].square().sum((2, 3, 4)).sqrt()
    torch.testing.assert_close(left[:, 4], size[:, 4:11] / size[:, 4:5], atol=1e-5, rtol=1e-4)
    lives = half_life(left)
    assert lives.shape == (2, T) and bool(((lives > 0) | lives.isnan()).all())


@pytest.mark.filterwarnings("ignore")
def test_closed_scans_run_unless_a_hook_asks(made, monkeypatch) -> None:
    from workbench.models.recurrent import hooks

    _, model, layers = made("qwen3_5")
    monkeypatch.setattr(hooks, "open_scan", lambda *a: pytest.fail("open scan used"))
    seen(model, layers, ("conv_in", "conv", "read", "write_key", "write_value", "y"))  # reading factors costs nothing
    with pytest.raises(pytest.fail.Exception):
        seen(model, layers[:1], (), (layers[0].hook("write_key"), lambda v, hook: v * 1.0))
    with pytest.raises(UsageError, match="no hook 'erase_key'"):
        made("mamba")[2][0].hook("erase_key")


@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
@pytest.mark.parametrize("name", ("write_key", "write_value", "read"))
def test_an_edit_in_place_is_an_edit(name: str, mode: Any) -> None:
    """The usual idiom of hooks, ``value[:, i] = 0; return value``, does what an edited copy does."""
    model = load_model("mini-mamba")
    layer = recurrent_layers(model)[1]
    tokens = torch.arange(1, 13)[None]

    def in_place(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value[:, 5] = 0
        return value

    def copied(value: torch.Tensor, hook: Any) -> torch.Tensor:
        return in_place(value.clone(), hook)

    with mode():
        usual = model(tokens, return_type="logits")
        one, other = (
            model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(layer.hook(name), edit)])
            for edit in (in_place, copied)
        )
    torch.testing.assert_close(one, other)
    assert float((one - usual).abs().max()) > 1e-3


HELD = ("strength", "log_decay", "read", "write_key", "erase_key", "erase_strength", "gain")


@pytest.mark.parametrize("name", ["jamba", "bamba", "qwen3_5", "olmo_hybrid", "lfm2", "nemotron_h"])
@pytest.mark.filterwarnings("ignore")
def test_a_layer_is_linear_in_what_its_convolution_gives_when_its_factors_are_held(made, name) -> None:
    """Held at one text's values, the layer's output on another text is an affine map of what its convolution gives,
    and the hooks that hold change nothing on the text they come from.
    """
    _, model, layers = made(name)
    layer = layers[0]
    names = [layer.hook(n) for n in HELD if f"hook_{n}" in layer.component.recurrence._modules]
    first, other = torch.randint(1, 500, (2, 1, T), generator=torch.Generator().manual_seed(5))
    kept, plain = {}, {}

    def keep(into, name):
        return lambda v, hook: into.update({name: v.detach().clone()})

    with torch.no_grad():
        with model.hooks(fwd_hooks=[(n, keep(kept, n)) for n in [*names, layer.branch, layer.hook("conv")]]):
            clean = model(first, use_cache=False)
        hold = [(n, lambda v, hook: kept[hook.name]) for n in names]
        with model.hooks(fwd_hooks=hold):
            torch.testing.assert_close(model(first, use_cache=False), clean, atol=2e-5, rtol=1e-4)
        with model.hooks(fwd_hooks=[(layer.hook("conv"), keep(plain, "conv"))]):
            model(other, use_cache=False)
        outs = []
        act = layer.component.original_component
        behind = (lambda v: activate(act, v)) if layer.kind != "short convolution" else (lambda v: v)
        start, end = behind(kept[layer.hook("conv")]), behind(plain["conv"])
        for share in (0.0, 0.5, 1.0):  # of the way from one text's content to the other's, behind the nonlinearity
            seen = {}

            def mixed(mixer, v, share=share):
                return start + share * (end - start)

            with pytest.MonkeyPatch.context() as patch, model.hooks(fwd_hooks=[*hold, (layer.branch, keep(seen, "y"))]):
                patch.setattr(hooks_module, "activate", lambda m, v: mixed(m, v) if m is act else activate(m, v))
                model(first, use_cache=False)
            outs.append(seen["y"])
        torch.testing.assert_close(outs[0], kept[layer.branch], atol=2e-5, rtol=1e-4)
        assert (outs[2] - outs[0]).abs().max() > 1e-3
        torch.testing.assert_close(outs[1], (outs[0] + outs[2]) / 2, atol=2e-5, rtol=1e-4)
