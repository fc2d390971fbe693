"""Every quantity of a Mamba mixer is hooked, correct and editable; the bridge's logits are Hugging Face's."""

import pytest
import torch

from tests.workbench.bridges import bridge, tiny, tokens

KINDS = ["mamba", "falcon", "mamba2"]


@pytest.fixture(scope="module")
def mamba():
    return bridge(tiny("mamba"))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_every_hook(kind: str, padded: bool) -> None:
    hf = tiny(kind)
    mask = torch.ones(3, 21, dtype=torch.long)
    if padded:
        mask[1, :7] = 0
    want = hf(tokens(), attention_mask=mask).logits
    model = bridge(hf)
    torch.testing.assert_close(model(tokens(), attention_mask=mask), want, atol=1e-5, rtol=1e-5)
    logits, cache = model.run_with_cache(tokens(), attention_mask=mask)  # all hooks on: the open scan
    torch.testing.assert_close(logits, want, atol=1e-5, rtol=1e-5)
    opt_in = {"hook_ssm_write", "hook_ssm_state"} if kind == "mamba2" else set()
    silent = {name for name in model.hook_dict if name not in cache and name.split(".")[-1] not in opt_in}
    assert silent == set()


@torch.no_grad()
def test_hooked_quantities_obey_the_definitions(mamba) -> None:
    _, cache = mamba.run_with_cache(tokens())
    at = {
        name: cache[f"blocks.1.mixer.{name}"]
        for name in ("conv1d.hook_in", "conv1d.hook_out", "dt_proj.hook_out", "out_proj.hook_in")
    }
    x, dt, B, C, decay, write, h, y, gate = (
        cache[f"blocks.1.mixer.hook_{n}"] for n in ("x", "dt", "B", "C", "decay", "write", "h", "y", "gate")
    )
    silu, mixer = torch.nn.functional.silu, mamba.blocks[1].mixer
    torch.testing.assert_close(x, silu(at["conv1d.hook_out"][..., :21]).transpose(1, 2))
    torch.testing.assert_close(dt, torch.nn.functional.softplus(at["dt_proj.hook_out"]))
    torch.testing.assert_close(decay, torch.exp(-torch.exp(mixer.A_log) * dt[..., None]))
    torch.testing.assert_close(write, torch.einsum("bld,bld,bln->bldn", dt, x, B))
    torch.testing.assert_close(h[:, 1:], decay[:, 1:] * h[:, :-1] + write[:, 1:])
    torch.testing.assert_close(y, torch.einsum("bldn,bln->bld", h, C))
    torch.testing.assert_close(at["out_proj.hook_in"], (y + x * mixer.D) * silu(gate))
    torch.testing.assert_close(cache["blocks.1.mixer.hook_ssm_state"].transpose(1, 2), h)


def linear_recurrence(decay: torch.Tensor, write: torch.Tensor) -> torch.Tensor:
    """h_t = decay_t h_{t-1} + write_t along axis 1."""
    h = [write[:, 0]]
    for t in range(1, write.shape[1]):
        h.append(decay[:, t] * h[-1] + write[:, t])
    return torch.stack(h, 1)


@torch.no_grad()
def test_the_open_scan_runs_only_when_a_hook_asks(mamba, monkeypatch) -> None:
    from workbench.models.recurrent import hooks

    monkeypatch.setattr(hooks, "open_scan", lambda *a: pytest.fail("open scan used"))
    mamba.run_with_cache(tokens(), names_filter=lambda name: name.endswith(("hook_x", "hook_y", "hook_out", "hook_dt")))
    monkeypatch.undo()
    _, cache = mamba.run_with_cache(tokens(), names_filter="blocks.0.mixer.hook_h")
    assert cache["blocks.0.mixer.hook_h"].shape == (3, 21, 32, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["x", "dt", "B", "C", "y", "gate", "decay", "write", "h"])
def test_an_edit_at_a_position_changes_that_and_later_logits_only(mamba, name: str) -> None:
    clean = mamba.run_with_hooks(tokens(), fwd_hooks=[(f"blocks.0.mixer.hook_{name}", lambda v, hook: None)])

    def edit(value: torch.Tensor, hook: object) -> torch.Tensor:
        value = value.clone()
        value[:, 8] *= 0.3
        return value

    edited = mamba.run_with_hooks(tokens(), fwd_hooks=[(f"blocks.0.mixer.hook_{name}", edit)])
    assert torch.equal(edited[:, :8], clean[:, :8])
    assert (edited[:, 8:] - clean[:, 8:]).abs().amax((0, 2)).gt(1e-7).all()


@torch.no_grad()
def test_edits_of_writes_and_states_propagate_and_read_outs_do_not(mamba) -> None:
    hook = "blocks.0.mixer.hook_"

    def run(name: str, edit) -> torch.Tensor:
        seen = {}
        hooks = [(hook + name, edit), (hook + "ssm_state", lambda v, hook: seen.update(h=v.transpose(1, 2).clone()))]
        mamba.run_with_hooks(tokens(), fwd_hooks=hooks)
        return seen["h"]

    _, cache = mamba.run_with_cache(tokens(), names_filter=lambda n: n.startswith("blocks.0.mixer"))
    decay, write, h = (cache[hook + n] for n in ("decay", "write", "h"))

    def zero_write(v: torch.Tensor, hook: object) -> torch.Tensor:
        v[:, 5] = 0  # in place on purpose
        return v

    changed = write.clone()
    changed[:, 5] = 0
    torch.testing.assert_close(run("write", zero_write), linear_recurrence(decay, changed))

    def set_state(v: torch.Tensor, hook: object) -> torch.Tensor:
        v[:, 5] = 7.0
        return v

    got = run("h", set_state)
    torch.testing.assert_close(got[:, :5], h[:, :5])
    assert (got[:, 5] == 7.0).all()
    torch.testing.assert_close(got[:, 6], decay[:, 6] * 7.0 + write[:, 6])
    torch.testing.assert_close(got[:, -1] - h[:, -1], decay[:, 6:].prod(1) * (7.0 - h[:, 5]), atol=1e-5, rtol=1e-4)


def test_gradients_through_the_open_scan_equal_the_fast_one(mamba) -> None:
    grads = []
    for hooks in (
        [],
        [("blocks.0.mixer.hook_h", lambda v, hook: None), ("blocks.1.mixer.hook_write", lambda v, hook: None)],
    ):
        mamba.zero_grad()
        mamba.run_with_hooks(tokens(), fwd_hooks=hooks).square().mean().backward()
        grads.append([p.grad.clone() for p in mamba.original_model.parameters()])
    for fast, open_ in zip(*grads, strict=True):
        torch.testing.assert_close(open_, fast, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["mini-mamba", "mini-mamba-s1"])
def test_bundled_weights_give_the_logits_of_the_reference_model(name: str) -> None:
    """Against Hugging Face's own model and its sequential scan."""
    from safetensors.torch import load_file
    from transformers import MambaConfig, MambaForCausalLM

    from workbench.config import data_dir
    from workbench.models import load_model
    from workbench.models.load import resolve_revision

    folder = data_dir() / "models" / name
    reference = MambaForCausalLM(MambaConfig.from_pretrained(folder)).eval()
    weights = load_file(folder / resolve_revision(name, None) / "model.safetensors")
    missing = reference.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight", "backbone.embeddings.weight"}
    reference.tie_weights()
    model = load_model(name)
    tokens = torch.randint(1, 1000, (2, 24), generator=torch.Generator().manual_seed(0)) % model.cfg.d_vocab
    tokens[:, 0] = 0
    with torch.no_grad():
        ours, theirs = model(tokens), reference(input_ids=tokens).logits
    # logits reach 18: the reference's own single-precision rounding there is 1.6e-5
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
