"""GGUF files: the model that was written is the model that is loaded, to the last token; what would be read in part is
refused in one line.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sae.errors import CorruptError, MissingError, UsageError
from workbench.models import load_hf, load_model, load_tokenizer, model_id
from workbench.models import packaged as packaged_models
from workbench.models.gguf import gguf_folder
from workbench.models.load import find_folder
from workbench.models.packaged import PACKAGED, is_installed, packaged_folder

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
TEXT = ["x  =  2024 + 12", " the cat,  3 dogs", "a\n\n  b 7\tc", "don't  99 bottles"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache of the tests' own, so that nothing converted before counts."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def vocabulary():
    """A tokenizer that splits digits one by one, and then as GPT-2 does (SmolLM's rule)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def original(vocabulary):
    """A small random Llama with grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary.get_vocab_size(),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=5000.0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers.": "blk.",
}


def write(path, model, tokenizer, *, quantised=False, pre="smollm", settings=None, extra=None, without=None):
    """``model`` as llama.cpp's converter writes it: its names, and rotary pairs side by side within a head."""
    c = model.config
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(c.max_position_embeddings)
    out.add_block_count(c.num_hidden_layers)
    out.add_embedding_length(c.hidden_size)
    out.add_feed_forward_length(c.intermediate_size)
    out.add_head_count(c.num_attention_heads)
    out.add_head_count_kv(c.num_key_value_heads)
    out.add_layer_norm_rms_eps(c.rms_norm_eps)
    out.add_rope_freq_base(5000.0)
    out.add_rope_dimension_count(c.head_dim)
    for key, value in (settings or {}).items():
        out.add_float32(key, value)
    raw = json.loads(tokenizer.to_str())["model"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list(sorted(raw["vocab"], key=raw["vocab"].get))
    out.add_token_types([3, 3] + [1] * (len(raw["vocab"]) - 2))
    out.add_token_merges([" ".join(m) for m in raw["merges"]])
    out.add_bos_token_id(0)
    out.add_eos_token_id(1)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" or name == without:
            continue
        value = tensor.numpy()
        for heads, part in ((c.num_attention_heads, "q_proj"), (c.num_key_value_heads, "k_proj")):
            if part in name:
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        if quantised and value.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            out.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            out.add_tensor(name, np.ascontiguousarray(value))
    for name, value in (extra or {}).items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def ids():
    return torch.randint(2, 250, (2, 19), generator=torch.Generator().manual_seed(0))


def test_the_model_that_was_written_is_the_model_that_is_loaded(tmp_path, original, vocabulary):
    file = write(tmp_path / "small.gguf", original, vocabulary)
    with torch.no_grad():
        expected = original(input_ids=ids(), use_cache=False).logits
        assert (load_hf(file)(input_ids=ids(), use_cache=False).logits - expected).abs().max() < 1e-5
        assert (load_model(file)(ids()) - expected).abs().max() < 1e-5
    assert model_id(str(file)) == "small"


def test_quantised_weights_are_what_the_format_says(tmp_path, original, vocabulary):
    file = write(tmp_path / "small.gguf", original, vocabulary, quantised=True)
    expected = original.model.layers[1].mlp.up_proj.weight.numpy(force=True)
    kind = gguf.GGMLQuantizationType.Q8_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
    assert np.array_equal(load_hf(file).model.layers[1].mlp.up_proj.weight.numpy(force=True), expected)


def test_text_is_split_as_the_model_was_trained(tmp_path, original, vocabulary):
    tokenizer = load_tokenizer(write(tmp_path / "small.gguf", original, vocabulary))
    for text in TEXT:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == vocabulary.encode(text).ids
        assert tokenizer.decode(vocabulary.encode(text).ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 1, vocabulary.get_vocab_size())


def test_a_tokenizer_beside_the_file_is_taken(tmp_path, original, vocabulary):
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    file = write(tmp_path / "small.gguf", original, vocabulary, pre="a-new-one")
    assert load_tokenizer(file)(TEXT[0], add_special_tokens=False)["input_ids"] == vocabulary.encode(TEXT[0]).ids


def test_a_file_is_converted_once_and_again_where_the_copy_is_damaged(tmp_path, original, vocabulary):
    file = write(tmp_path / "small.gguf", original, vocabulary)
    folder = gguf_folder(file)
    weights = folder / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert gguf_folder(file) == folder and weights.stat().st_mtime_ns == made
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert gguf_folder(file) == folder
    with torch.no_grad():
        assert (load_model(file)(ids()) - original(input_ids=ids()).logits).abs().max() < 1e-5
    write(file, original, vocabulary, quantised=True)
    assert gguf_folder(file) != folder, "another file of the same name is another model"


@pytest.mark.parametrize(
    "options, says",
    [
        ({"settings": {"llama.rope.scaling.factor": 8.0}}, r"llama\.rope\.scaling\.factor = 8\.0"),
        ({"extra": {"rope_freqs.weight": np.ones(8, np.float32)}}, r"tensor rope_freqs\.weight"),
        ({"without": "model.layers.1.mlp.up_proj.weight"}, r"lacks model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"pre": "a-new-one"}, "splits text by 'a-new-one'"),
    ],
)
def test_what_would_be_read_in_part_is_refused(tmp_path, original, vocabulary, options, says):
    file = write(tmp_path / "small.gguf", original, vocabulary, **options)
    with pytest.raises(UsageError, match=says):
        load_model(file)


def test_files_that_are_not_gguf_are_refused(tmp_path, original, vocabulary):
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(CorruptError, match="not a GGUF file"):
        load_model(tmp_path / "text.gguf")
    file = write(tmp_path / "small.gguf", original, vocabulary)
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(CorruptError, match="damaged"):
        load_model(file)
    other = gguf.GGUFWriter(tmp_path / "other.gguf", "unheard-of")
    other.write_header_to_file()
    other.write_kv_data_to_file()
    other.write_tensors_to_file()
    other.close()
    with pytest.raises(UsageError, match="architecture 'unheard-of'"):
        load_model(tmp_path / "other.gguf")


def test_a_packaged_model_is_found_checked_and_converted(tmp_path, original, vocabulary, monkeypatch):
    """The parts of one file in two packages, one of which another version changed."""
    from sae.files import sha256_file

    whole = write(tmp_path / "whole.gguf", original, vocabulary)
    content = whole.read_bytes()
    for i, part in enumerate((content[:5000], content[5000:])):
        (tmp_path / f"tiny_model_part{i}").mkdir()
        (tmp_path / f"tiny_model_part{i}" / "part").write_bytes(part)
    about = packaged_models.PackagedModel(
        title="Tiny",
        license="none",
        parts=(("tiny_model_part0", "part"), ("tiny_model_part1", "part")),
        sha256=sha256_file(whole),
        install="pip install tiny-model",
    )
    monkeypatch.setitem(PACKAGED, "tiny", about)
    packaged_models._part_files.cache_clear()
    assert not is_installed("tiny")
    with pytest.raises(MissingError, match=r"'tiny'.*pip install tiny-model"):
        load_model("tiny")

    monkeypatch.syspath_prepend(tmp_path)
    packaged_models._part_files.cache_clear()
    assert is_installed("tiny")
    (tmp_path / "tiny_model_part1" / "part").write_bytes(content[5000:-1] + b"x")
    with pytest.raises(CorruptError, match="digest"):
        load_model("tiny")
    (tmp_path / "tiny_model_part1" / "part").write_bytes(content[5000:])
    with torch.no_grad():
        assert (load_model("tiny")(ids()) - original(input_ids=ids()).logits).abs().max() < 1e-5
    (tmp_path / "tiny_model_part1" / "part").unlink()
    packaged_models._part_files.cache_clear()
    assert is_installed("tiny") and find_folder("tiny") == packaged_folder("tiny"), "the copy does not need the package"
