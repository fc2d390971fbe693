"""Site names and the hooks they stand for, on layers of every kind."""

import pytest
import torch

from sae.errors import UsageError
from tests.workbench.models.zoo import random_model
from workbench.activations.harvesting.forward import capture, resolve_hooks
from workbench.models.anatomy import anatomy_of
from workbench.models.head import probe_tokens
from workbench.models.load import bridge
from workbench.models.mamba import repair_mamba
from workbench.models.sites import (
    hooks_of,
    is_write,
    pair_site,
    parse_site,
    site_hooks,
    site_of,
    sites,
    transcoder_site,
    write_site,
    write_sites,
)

KINDS = {  # model -> the kinds of sites of its layers
    "gpt2": ["R A M TC"] * 3,
    "falcon_7b_like": ["R A M TC"] * 3,  # one norm for both branches
    "olmo2": ["R A M TC"] * 3,  # norms after the branches
    "gemma2": ["R A M TC"] * 3,  # norms before and after
    "granite": ["R A M TC"] * 3,  # branches are multiplied as they are added
    "mamba": ["R S"] * 3,
    "bamba": ["R M TC S", "R M TC S", "R A M TC", "R M TC S"],
    "falcon_h1": ["R A M TC S"] * 3,  # attention and a state mixer side by side
    "nemotron_h": ["R S", "R S", "R A", "R S"],  # one branch a block
    "zamba2": ["R S"] * 4,  # what its shared attention writes goes into the mixer
    "opt_350m_like": ["R"] * 3,  # a norm after every sum: nothing is added to the stream as it is
    "rwkv": ["R", "R M TC S", "R M TC S"],
}


@pytest.fixture(scope="module")
def loaded():
    models = {}
    return lambda name: models.setdefault(name, bridge(repair_mamba(random_model(name))))


@pytest.mark.parametrize("name", KINDS)
def test_sites_are_what_the_layers_have_and_branches_add_up(loaded, name):
    model = loaded(name)
    layers = anatomy_of(model).layers
    assert sites(model) == [f"L{i}{kind}" for i, kinds in enumerate(KINDS[name]) for kind in kinds.split()]
    tokens = probe_tokens(model)
    hooks = {h for site in sites(model) for h in site_hooks(model, site)}
    with torch.no_grad():
        _, cache = model.run_with_cache(
            tokens, use_cache=False, names_filter=[*hooks, *(f"blocks.{i}.hook_resid_pre" for i in range(len(layers)))]
        )
    for i, layer in enumerate(layers):
        branches = [cache[layer.sites[k][1]] for k in ("A", "M", "S") if k in layer.sites]
        for kind, (into, out) in layer.sites.items():
            assert cache[into].shape == cache[out].shape == (*tokens.shape, 48)
            assert site_of(out) == f"L{i}{kind}".replace("TC", "M") and (into == out) == (kind != "TC")
            assert kind != "TC" or transcoder_site(into, out) == f"L{i}TC"
        if branches:
            added = cache[f"blocks.{i}.hook_resid_post"] - cache[f"blocks.{i}.hook_resid_pre"]
            torch.testing.assert_close(sum(branches) * layer.factor, added, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", ["R2", "L2", "L2X", "l2R", "L-1R", ""])
def test_not_a_site(site):
    with pytest.raises(UsageError, match="not a site"):
        parse_site(site)


def test_a_site_the_model_lacks_says_what_the_layer_is(loaded):
    with pytest.raises(UsageError, match=r"it has 4 layers \(did you mean 'L2A'"):
        site_hooks(loaded("bamba"), "L9A")
    with pytest.raises(UsageError, match=r"no site 'L0A': layer 0 is Mamba-2, with the sites L0R, L0M, L0TC, L0S"):
        site_hooks(loaded("bamba"), "L0A")
    with pytest.raises(UsageError, match="not the output hook"):
        site_of("blocks.0.ln1.hook_scale")
    assert hooks_of("L2R") == ("blocks.2.hook_resid_post",) * 2


@pytest.mark.parametrize(
    ("name", "held", "patched"),
    [
        ("llama_gqa", "", ""),
        ("gemma2", "", ""),
        ("mamba", "", "it has no attention"),
        ("gptj", "edits at attn.hook_pattern are not felt", "edits at attn.hook_pattern are not felt"),
        ("olmo", "TransformerLens fails where hooks are edited", "TransformerLens fails where hooks are edited"),
        ("mamba2", "", "it has no attention"),
        ("qwen3_5", "", "it has no attention"),
        ("zamba2", "what its attention writes goes into its other mixer", "it has no attention"),
        ("gpt_oss", "", "its pattern is not the softmax of its scores"),
        ("deepseek_v3", "", "its queries, keys and values are not one row per head"),
        ("recurrent_gemma", "TransformerLens does not show its parts", "it has no attention"),
    ],
)
def test_what_cannot_be_held_or_patched_has_a_reason(loaded, name, held, patched):
    anatomy = anatomy_of(loaded(name))
    for said, expected in ((anatomy.why_not_held(), held), (anatomy.why_not_patched(), patched)):
        assert expected in said and bool(expected) == bool(said)


def test_heads_and_neurons_are_counted_where_they_are(loaded):
    at = anatomy_of(loaded("llama_gqa")).layers[0]
    assert (at.kind, at.heads, at.kv_heads, at.neurons) == ("attention", 6, 2, ("blocks.0.mlp.hook_post",))
    assert anatomy_of(loaded("mixtral")).layers[0].neurons == ()  # every token meets other experts
    assert anatomy_of(loaded("bamba")).describe() == "Mamba-2 (layers 0, 1, 3) and attention (layer 2)"


@pytest.mark.parametrize(("name", "layers"), [("mamba", [0, 1, 2]), ("mamba2", [0, 1, 2]), ("olmo_hybrid", [0, 1, 2])])
def test_sites_of_writes_are_the_keys_and_values_of_recurrent_layers(loaded, name, layers):
    model = loaded(name)
    assert list(write_sites(model)) == [f"L{i}W" for i in layers]
    key, value = site_hooks(model, "L1W")
    assert write_site(key, value) == pair_site(key, value) == "L1W" and site_of(key) == site_of(value) == "L1W"
    assert is_write(key) and is_write(value) and write_site(value, key) is None
    assert write_site(key, value.replace("blocks.1", "blocks.2")) is None and transcoder_site(key, value) is None
    tokens = probe_tokens(model)
    seen = capture(model, tokens, [key, value])
    assert seen[key].shape[:2] == seen[value].shape[:2] == tokens.shape
    assert list(resolve_hooks(model, ["L1W"], {})) == [key, value]
    assert len(resolve_hooks(model, ["*W"], {})) == 2 * len(layers)
    assert not any(is_write(h) for h in resolve_hooks(model, ["*"], {}))  # no part of the stream
    with pytest.raises(UsageError, match=r"writes are at L0W, L1W, L2W"):
        site_hooks(model, "L3W")
    with pytest.raises(UsageError, match="depend on the kind of layer"):
        hooks_of("L1W")


def test_a_transformer_writes_into_no_state(loaded):
    with pytest.raises(UsageError, match="none of its layers has a state"):
        site_hooks(loaded("gpt2"), "L0W")
