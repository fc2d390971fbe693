"""The splice: what is kept is kept to the bit, what is dropped is dropped, an edit moves exactly what it names."""

import pytest
import torch

from sae.errors import ConfigError, UsageError
from tests.workbench.fakes import FakeBridge, FakeDictionary, Identity
from workbench.analysis.splice import Constant, ablate, clamp, splice, steer

HOOK = "blocks.0.hook_resid_post"
TOKENS = torch.randint(1, 50, (3, 12), generator=torch.Generator().manual_seed(0))


def residual(model, hook=HOOK):
    caught = []
    with model.hooks([(hook, lambda x, hook: caught.append(x))]):
        model(TOKENS)
    return caught[0]


def test_keeping_the_error_without_an_edit_changes_no_bit():
    model, dictionary = FakeBridge(), FakeDictionary()
    with splice(model, {HOOK: dictionary}, keep_error=True, record=True) as spliced:
        assert torch.equal(model(TOKENS), FakeBridge()(TOKENS))
    assert spliced.seen[HOOK].values.shape == (3, 12, 4)
    assert model.hook_dict[HOOK] == [], "hooks are gone afterwards"


def test_dropping_the_error_puts_in_the_reconstruction_and_leaves_bos():
    model, dictionary = FakeBridge(), FakeDictionary()
    x = residual(model)
    with splice(model, {HOOK: dictionary}, keep_error=False):
        y = residual(model)
    torch.testing.assert_close(y[:, 1:], dictionary.decode(dictionary.encode(x))[:, 1:])
    assert torch.equal(y[:, :1], x[:, :1])
    with splice(model, {HOOK: dictionary}, keep_error=False, first_position=0):
        torch.testing.assert_close(residual(model), dictionary.decode(dictionary.encode(x)))


def test_a_perfect_dictionary_changes_nothing():
    model = FakeBridge()
    clean = model(TOKENS)
    with splice(model, {HOOK: Identity(), "blocks.1.hook_resid_post": Identity()}, keep_error=False):
        torch.testing.assert_close(model(TOKENS), clean, atol=1e-4, rtol=1e-4)


def test_steering_adds_multiples_of_the_decoder_direction_to_the_true_residual():
    model, dictionary = FakeBridge(), FakeDictionary()
    x = residual(model)
    with splice(model, {HOOK: dictionary}, steer({5: 2.5, 9: -1.0}), keep_error=True):
        y = residual(model)
    want = (2.5 * dictionary.W_dec[5] - dictionary.W_dec[9]).expand(3, 11, -1)
    torch.testing.assert_close(y[:, 1:] - x[:, 1:], want, atol=1e-4, rtol=1e-4)
    assert torch.equal(y[:, 0], x[:, 0])


def test_ablating_a_latent_removes_its_contribution_and_nothing_else():
    model, dictionary = FakeBridge(), FakeDictionary()
    x = residual(model)
    f = dictionary.encode(x)
    latent = int((f[:, 1:] > 0).sum((0, 1)).argmax())
    with splice(model, {HOOK: dictionary}, ablate([latent]), keep_error=True):
        y = residual(model)
    torch.testing.assert_close(
        (x - y)[:, 1:], (f[..., latent : latent + 1] * dictionary.W_dec[latent])[:, 1:], atol=1e-5, rtol=1e-4
    )
    with splice(model, {HOOK: dictionary}, clamp([latent], 3.0), keep_error=True):
        y = residual(model)
    torch.testing.assert_close(
        (y - x)[:, 1:], ((3.0 - f[..., latent : latent + 1]) * dictionary.W_dec[latent])[:, 1:], atol=1e-5, rtol=1e-4
    )


def test_a_transcoder_reads_one_hook_and_writes_another():
    model, dictionary = FakeBridge(), FakeDictionary()
    dictionary.metadata = {"hook_name_out": "blocks.0.hook_mlp_out"}
    read = residual(model, "blocks.0.hook_mlp_in")
    with splice(model, {"blocks.0.hook_mlp_in": dictionary}, keep_error=False, record=True) as spliced:
        wrote = residual(model, "blocks.0.hook_mlp_out")
        assert torch.equal(residual(model, "blocks.0.hook_mlp_in"), read)
    torch.testing.assert_close(wrote[:, 1:], dictionary.decode(dictionary.encode(read))[:, 1:])
    seen = spliced.seen["blocks.0.hook_mlp_in"]
    assert torch.equal(seen.x, read) and torch.equal(seen.target, residual(model, "blocks.0.hook_mlp_out"))


def test_gradients_flow_through_an_edit():
    model, dictionary = FakeBridge(), FakeDictionary()
    amount = torch.zeros((), requires_grad=True)

    def edit(codes, hook):
        return codes + amount * torch.nn.functional.one_hot(torch.tensor(7), codes.shape[-1])

    with splice(model, {HOOK: dictionary}, edit, keep_error=True):
        model(TOKENS)[0, -1, 3].backward()
    with torch.no_grad():
        outs = []
        for sign in (1e-2, -1e-2):
            with splice(model, {HOOK: dictionary}, steer({7: sign}), keep_error=True):
                outs.append(model(TOKENS)[0, -1, 3])
    assert amount.grad is not None and amount.grad.abs() > 1e-3
    assert float(amount.grad) == pytest.approx(float(outs[0] - outs[1]) / 2e-2, rel=2e-2)


def test_what_does_not_fit_is_named():
    model = FakeBridge()
    with (
        pytest.raises(UsageError, match=r"no hook 'blocks\.9\.hook_resid_post'"),
        splice(model, {"blocks.9.hook_resid_post": Identity()}, keep_error=True),
    ):
        pass
    with pytest.raises(ConfigError, match="width 3"), splice(model, {HOOK: Constant(torch.zeros(3))}, keep_error=False):
        model(TOKENS)
    with (
        pytest.raises(ConfigError, match="the edit at"),
        splice(model, {HOOK: Identity()}, lambda f, hook: f[..., :2], keep_error=True),
    ):
        model(TOKENS)
    assert model.hook_dict[HOOK] == []
