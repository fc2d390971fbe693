"""Names of places in other libraries, in the names of the models here."""

from __future__ import annotations

import json

import pytest
import torch

from sae.errors import UsageError
from workbench import load_model
from workbench.dictionaries.hooks import Hooks, dictionary_hooks

RESID, MLP, ATTN = "blocks.6.hook_resid_post", "blocks.6.hook_mlp_out", "blocks.6.hook_attn_out"
NORM, Z = "blocks.6.ln2.hook_out", "blocks.6.attn.hook_z"
GEMMA, PYTHIA = "google/gemma-2-2b", "EleutherAI/pythia-160m"

SAES = {  # what a dictionary of another library says of itself -> what it reads and reconstructs here
    "layers.6": RESID,
    "gpt_neox.layers.6": RESID,
    "transformer.h.6": RESID,
    "model.layers.6.output": RESID,
    "model.layers.6.input": "blocks.6.hook_resid_pre",
    "backbone.layers.6": RESID,
    "backbone.layers.6.mixer": "blocks.6.hook_mixer_out",
    "layers.6.mlp": MLP,
    "gpt_neox.layers.6.mlp": MLP,
    "model.layers.6.mlp.input": NORM,
    "layers.6.attention": ATTN,
    "h.6.attn": ATTN,
    "model.layers.6.self_attn": ATTN,
    "model.layers.6.self_attn.o_proj.input": Z,
    "h.6.mlp.act": "blocks.6.mlp.hook_post",
    "model.layers.6.pre_feedforward_layernorm.output": NORM,
    "model.layers.6.post_feedforward_layernorm.output": MLP,
    "resid_post_layer_6": RESID,
    "mlp_out_layer_6": MLP,
    "attn_out_layer_6": ATTN,
    "L6R": RESID,
    "model.embed_tokens": "hook_embed",
}
TRANSCODERS = {
    "layers.6.mlp": (NORM, MLP, "L6TC"),
    "gpt_neox.layers.6.mlp": (NORM, MLP, "L6TC"),
    "layers.6": ("blocks.6.hook_resid_pre", RESID, None),
    "layers.6.attention": ("blocks.6.ln1.hook_out", ATTN, None),
}
TRANSFORMER_LENS = {  # name in TransformerLens 1 to 3, model, weights folded -> here
    (RESID, PYTHIA, False): RESID,
    (Z, PYTHIA, False): Z,
    ("blocks.6.hook_resid_mid", GEMMA, False): "blocks.6.hook_resid_mid",
    ("blocks.6.mlp.hook_in", PYTHIA, False): NORM,
    ("blocks.6.hook_mlp_in", PYTHIA, False): "blocks.6.ln2.hook_in",
    ("blocks.6.mlp.hook_out", PYTHIA, False): MLP,
    ("blocks.6.ln2.hook_normalized", PYTHIA, False): NORM,
    ("blocks.6.ln2.hook_normalized", PYTHIA, True): "blocks.6.ln2.hook_normalized",
    ("blocks.6.ln2.hook_normalized", GEMMA, False): "blocks.6.ln2.hook_normalized",
    ("hook_embed", PYTHIA, False): "hook_embed",
}


@pytest.mark.parametrize("name", SAES)
def test_module_paths(name):
    found = dictionary_hooks({"hf_hook_name": name, "model_name": GEMMA if "feedforward" in name else PYTHIA})
    assert (found.read, found.write) == (SAES[name], SAES[name])
    assert dictionary_hooks({"hook_name": name, "model_name": PYTHIA}).read == SAES[name]


@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_reads_the_input_of_its_module(name):
    assert dictionary_hooks({"hf_hook_name": name, "kind": "transcoder"}) == Hooks(*TRANSCODERS[name])


@pytest.mark.parametrize("case", TRANSFORMER_LENS)
def test_transformer_lens_names(case):
    name, model, folded = case
    about = {"hook_name": name, "model_name": model, "model_from_pretrained_kwargs": {"fold_ln": folded}}
    assert dictionary_hooks(about).read == TRANSFORMER_LENS[case]


def test_both_ends_of_a_transcoder_and_which_name_wins():
    ours = {
        "kind": "transcoder",
        "hook_name": "blocks.6.ln2.hook_normalized",
        "hook_name_out": MLP,
        "model_name": PYTHIA,
    }
    assert dictionary_hooks(ours) == Hooks(NORM, MLP, "L6TC")
    gemma3 = {
        "kind": "transcoder",
        "model_name": "google/gemma-3-1b-pt",
        "hook_name": "blocks.6.hook_mlp_in",
        "hook_name_out": MLP,
        "hf_hook_name": "model.layers.6.pre_feedforward_layernorm.output",
        "hf_hook_name_out": "model.layers.6.post_feedforward_layernorm.output",
    }
    assert dictionary_hooks(gemma3) == Hooks(NORM, MLP, "L6TC")
    after = {"hf_hook_name": "model.layers.6.post_attention_layernorm"}
    assert dictionary_hooks(after | {"model_name": "meta-llama/Llama-3.1-8B"}).read == NORM
    assert dictionary_hooks(after | {"model_name": GEMMA}).read == ATTN
    assert dictionary_hooks({"site": "L6TC", "kind": "transcoder"}) == Hooks(NORM, MLP, "L6TC")


def test_what_no_table_knows():
    assert dictionary_hooks({"hf_hook_name": "lm_head"}) == Hooks(None, None, None)
    assert dictionary_hooks({}) == Hooks(None, None, None)
    assert dictionary_hooks({"hook_name": "blocks.6.hook_new"}) == Hooks("blocks.6.hook_new", "blocks.6.hook_new", None)


def test_a_norm_that_nobody_knows_is_refused_by_name(tmp_path):
    """Behind a gain or before it: a guess would be read without a word."""
    about = {"hook_name": "blocks.6.ln2.hook_normalized"}
    with pytest.raises(UsageError, match=r"'blocks.6.ln2.hook_normalized' of the model 'someone/mystery-7b'.*--hook"):
        dictionary_hooks(about | {"model_name": "someone/mystery-7b"})
    with pytest.raises(UsageError, match="a model without a name"):
        dictionary_hooks(about)
    folded = {"model_name": "someone/mystery-7b", "model_from_pretrained_kwargs": {"fold_ln": True}}
    assert dictionary_hooks(about | folded).read == about["hook_name"]
    for key, hook in (("rms_norm_eps", about["hook_name"]), ("layer_norm_epsilon", NORM)):
        folder = tmp_path / key
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({key: 1e-5}))
        assert dictionary_hooks(about | {"model_name": str(folder)}).read == hook


def test_the_names_fire_in_a_model_and_hold_what_the_table_says():
    model = load_model("mini-pythia")
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3, 4]]))
    for names in (SAES.values(), (h for pair in TRANSCODERS.values() for h in pair[:2]), TRANSFORMER_LENS.values()):
        for name in names:
            if "mixer" not in name and "resid_mid" not in name:
                assert name.replace("blocks.6", "blocks.1") in cache
    ln2 = model.blocks[1].ln2
    gained = cache["blocks.1.ln2.hook_normalized"] * ln2.weight + ln2.bias
    torch.testing.assert_close(gained, cache["blocks.1.ln2.hook_out"])
    torch.testing.assert_close(cache["blocks.1.mlp.hook_in"], cache["blocks.1.ln2.hook_out"])
