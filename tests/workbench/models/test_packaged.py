"""Real models of the package registry, where they are installed: Hugging Face's logits, and sentences they know."""

from __future__ import annotations

import gc

import pytest
import torch

from workbench.models import load_hf, load_model, load_tokenizer
from workbench.models.load import find_folder
from workbench.models.packaged import PACKAGED, is_installed

EXPECTED = {
    # name: layers, width, heads, kv heads, vocabulary; text, the next word and its least probability
    "smollm2-135m": ((30, 576, 9, 3, 49152), "The capital of France is", " Paris", 0.7),
    "gemma3-270m": ((18, 640, 4, 1, 262144), "Paris is the capital of", " France", 0.6),
}


@pytest.fixture(scope="module", params=sorted(PACKAGED))
def name(request):
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed: {PACKAGED[request.param].install}")
    yield request.param
    gc.collect()


def test_a_real_model_loads_with_hugging_faces_logits_and_knows_paris(name):
    sizes, text, word, least = EXPECTED[name]
    model, tokenizer = load_model(name), load_tokenizer(name)
    config = model.original_model.config
    assert sizes == (
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
    )
    tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        logits = model(tokens)
        reference = load_hf(name)(input_ids=tokens, use_cache=False).logits
    assert (logits - reference).abs().max() < 1e-4
    predicted = logits[0, -1].softmax(-1)
    assert tokenizer.decode(int(predicted.argmax())) == word and predicted.max() > least


def test_its_vocabulary_reads_text_back(name):
    tokenizer = load_tokenizer(name)
    for text in ("x  =  2024 + 12\n\n    return 3.14", "Ça va ? 你好 🙂", "  two spaces,\ttab"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_smollm2_splits_digits_one_by_one():
    if not is_installed("smollm2-135m"):
        pytest.skip("smollm2-135m is not installed")
    tokenizer = load_tokenizer("smollm2-135m")
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  =  2024")["input_ids"]) == ["a", "Ġ", "Ġ=", "ĠĠ", *"2024"]


def test_the_converted_folder_says_what_it_was_made_from(name):
    from sae.files import read_json

    about = read_json(find_folder(name) / "source.json")
    assert about["sha256"] == PACKAGED[name].sha256 and "model.safetensors" in about["files"]
