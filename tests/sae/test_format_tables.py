"""Every key and tensor of a foreign file is used, known to be harmless, or refused by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.errors import CorruptError
from sae.formats import read, to_dictionary
from sae.formats.model_kwargs import read_model_kwargs
from tests.sae.test_formats import FOLDERS, GOLDEN

CONFIG = {"saelens": "cfg.json", "sparsify": "cfg.json", "dl": "config.json"}


def copy(name, tmp_path):
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def edit(path, drop=(), **values):
    cfg = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in cfg.items() if k not in drop} | values))


def flat(folder, **values):
    """The same dictionary as a release between 3 and 5 writes it."""
    edit(
        folder / "cfg.json",
        drop=("k", "rescale_acts_by_decoder_norm", "metadata", "reshape_activations", "architecture"),
        **{
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 3},
            "model_name": "pythia-70m",
            "hook_name": "blocks.1.hook_resid_post",
            "finetuning_scaling_factor": False,
        }
        | values,
    )


@pytest.mark.parametrize("name", FOLDERS)
def test_a_key_or_tensor_nobody_knows_is_named(name, tmp_path):
    folder = copy(name, tmp_path)
    file = folder / CONFIG.get(name.split("-")[0], "config.json")
    if not file.exists() or name.split("-")[0] not in CONFIG:
        pytest.skip("a layout of its own, tested beside its reader")
    edit(file, input_gain=3.0)
    with pytest.raises(CorruptError, match="'input_gain' = 3"):
        read(folder)
    weights = next((p for p in folder.glob("*.safetensors") if p.name != "expected.safetensors"), None)
    if weights is not None:
        again = copy(name, tmp_path / "again")
        save_file(load_file(weights) | {"gain": torch.ones(3)}, again / weights.name)
        with pytest.raises(CorruptError, match="'gain'"):
            read(again)


@pytest.mark.parametrize("architecture", ["standard", "topk", None])
def test_old_saelens_top_k_keeps_its_k(tmp_path, architecture):
    folder = copy("saelens-topk-plain", tmp_path)
    flat(folder, **({"architecture": architecture} if architecture else {}))
    want = load_file(folder / "expected.safetensors")
    form = read(folder)
    assert form.act == "topk" and form.k == 3
    torch.testing.assert_close(form.encode(want["x"]), want["f"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"activation_fn_str": "tanh-relu", "activation_fn_kwargs": {}}, "tanh-relu"),
        ({"activation_fn_str": "relu"}, "k = 3"),
        ({"architecture": "gated"}, "'gated'"),
        ({"architecture": "topk", "activation_fn_str": "relu", "activation_fn_kwargs": {}}, "'topk'"),
        ({"activation_fn_kwargs": {"k": 3, "postact_fn": "x"}}, "postact_fn"),
        ({"hook_head_index": 3}, "single head"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"normalize_activations": True}, "activation_scaler.json"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input = 'false'"),
    ],
)
def test_values_of_old_saelens_that_are_not_read(tmp_path, values, said):
    folder = copy("saelens-topk-plain", tmp_path)
    flat(folder, **values)
    with pytest.raises(CorruptError, match=said):
        read(folder)


@pytest.mark.parametrize("age", ["6", "5"])
def test_the_scale_beside_a_checkpoint_is_folded(tmp_path, age):
    folder = copy("saelens-topk-plain", tmp_path)
    edit(folder / "cfg.json", normalize_activations="expected_average_only_in")
    with pytest.raises(CorruptError, match="activation_scaler"):
        read(folder)
    if age == "6":
        (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.25, "has_whitening": false}')
    else:
        state = {"n_dataset_processed": torch.tensor(7), "estimated_norm_scaling_factor": torch.tensor(0.25)}
        save_file(state, folder / "activations_store_state.safetensors")
    x = load_file(folder / "expected.safetensors")["x"]
    theirs, ours = read(GOLDEN / "saelens-topk-plain"), read(folder)
    want = theirs.decode(theirs.encode(0.25 * x)) / 0.25
    torch.testing.assert_close(ours.decode(ours.encode(x)), want, atol=1e-5, rtol=1e-5)
    edit(folder / "cfg.json", normalize_activations="none")
    if age == "6":
        with pytest.raises(CorruptError, match="one of them is wrong"):
            read(folder)


def test_whitening_is_folded(tmp_path):
    folder = copy("saelens-standard", tmp_path)
    edit(folder / "cfg.json", normalize_activations="covariance_whitening")
    (folder / "activation_scaler.json").write_text('{"scaling_factor": null, "has_whitening": true}')
    g = torch.Generator().manual_seed(0)
    mean, matrix = torch.randn(6, generator=g).double(), torch.randn(6, 6, generator=g).double()
    tensors = {"mean": mean, "matrix": matrix, "inverse_matrix": matrix.inverse().contiguous()}
    save_file(tensors, folder / "activation_whitening.safetensors")
    x = load_file(folder / "expected.safetensors")["x"].double()
    theirs, ours = read(GOLDEN / "saelens-standard"), read(folder)
    z = ((x - mean) @ matrix).float()
    want = theirs.decode(theirs.encode(z)).double() @ matrix.inverse() + mean
    torch.testing.assert_close(ours.decode(ours.encode(x.float())), want.float(), atol=1e-4, rtol=1e-4)


def test_a_missing_rescale_is_only_false_before_it_existed(tmp_path):
    folder = copy("saelens-topk", tmp_path)
    edit(folder / "cfg.json", drop=("rescale_acts_by_decoder_norm",))
    with pytest.raises(CorruptError, match="rescale_acts_by_decoder_norm"):
        read(folder)
    edit(folder / "cfg.json", metadata={"sae_lens_version": "6.5.0"})
    assert read(folder).act == "topk"
    edit(folder / "cfg.json", metadata={"sae_lens_version": "7.0.0"})
    with pytest.raises(CorruptError, match=r"7\.0\.0"):
        read(folder)


def test_a_scaling_factor_that_its_release_always_wrote_is_not_read_as_ones(tmp_path):
    """SAELens 0.5 to 2 save it with every dictionary; only folders older than its entries do without."""
    folder = copy("saelens-2.1.3-finetuned", tmp_path)
    weights = load_file(folder / "sae_weights.safetensors")
    save_file({k: v for k, v in weights.items() if k != "scaling_factor"}, folder / "sae_weights.safetensors")
    with pytest.raises(CorruptError, match="scaling_factor missing"):
        read(folder)
    later = ("finetuning_tokens", "finetuning_method", "sae_lens_version", "sae_lens_training_version")
    edit(folder / "cfg.json", drop=later)
    assert read(folder).act == "relu"


def test_sparsify_s_earlier_ages(tmp_path):
    folder = copy("sparsify-sae", tmp_path)
    edit(folder / "cfg.json", drop=("activation", "transcode", "skip_connection", "num_latents"), signed=False)
    want = load_file(folder / "expected.safetensors")
    torch.testing.assert_close(read(folder).decode(want["f"]), want["y"], atol=1e-5, rtol=1e-5)
    edit(folder / "cfg.json", signed=True)
    with pytest.raises(CorruptError, match="signed = True"):
        read(folder)
    edit(folder / "cfg.json", signed=False, skip_connection=True)
    with pytest.raises(CorruptError, match="skip_connection"):
        read(folder)


HOOK = "blocks.1.hook_resid_post"


def test_what_the_model_was_loaded_with():
    assert read_model_kwargs({}, HOOK, "gpt2", "x") == ({}, False)
    kept, centred = read_model_kwargs({"center_writing_weights": True, "dtype": "float16"}, HOOK, "gpt2", "x")
    assert centred and kept["centred_input"]
    assert not read_model_kwargs({"center_writing_weights": True}, HOOK, "google/gemma-2-2b", "x")[1]
    assert not read_model_kwargs({"center_writing_weights": True}, "blocks.1.attn.hook_z", "gpt2", "x")[1]
    assert read_model_kwargs({"checkpoint_value": 512}, HOOK, "pythia-70m", "x")[0]["revision"] == "step512"
    assert read_model_kwargs({"checkpoint_index": 9}, HOOK, "pythia-70m", "x")[0]["revision"] == "step256"
    assert read_model_kwargs({"fold_ln": True}, HOOK, "gpt2", "x") == (
        {"model_from_pretrained_kwargs": {"fold_ln": True}},
        False,
    )
    for kwargs in (
        {"fold_ln": True, "hook": "blocks.1.attn.hook_z"},
        {"fold_value_biases": True, "hook": "blocks.1.attn.hook_z"},
        {"quantize": 4},
        {"checkpoint_index": 3, "model": "stanford-gpt2"},
        {"center_writing_weights": True, "model": "house-brand-7b"},
        {"center_writing_weights": True, "hook": None},
    ):
        hook, model = kwargs.pop("hook", HOOK), kwargs.pop("model", "gpt2")
        with pytest.raises(CorruptError, match=next(iter(kwargs))):
            read_model_kwargs(kwargs, hook, model, "x")


def test_centring_is_folded_exactly(tmp_path):
    folder = copy("saelens-topk-plain", tmp_path)
    meta = {"model_name": "gpt2-small", "hook_name": HOOK, "sae_lens_version": "6.54.12"}
    edit(folder / "cfg.json", metadata=meta | {"model_from_pretrained_kwargs": {"center_writing_weights": True}})
    x = load_file(folder / "expected.safetensors")["x"]
    theirs, ours = read(GOLDEN / "saelens-topk-plain"), read(folder)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(ours.encode(x), theirs.encode(centred), atol=1e-5, rtol=1e-5)
    dictionary = to_dictionary(ours)
    torch.testing.assert_close(dictionary(x), theirs.decode(theirs.encode(centred)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["saelens-topk", "saelens-jumprelu", "sparsify-transcoder"])
def test_half_precision_comes_and_goes_as_it_was(tmp_path, name, dtype):
    import sae

    folder = copy(name, tmp_path)
    weights = next(p for p in folder.glob("sae*.safetensors"))
    save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights)
    form = read(folder)
    assert form.dtype == dtype and form.W_enc.dtype == torch.float32
    ours = to_dictionary(form)
    ours.save(tmp_path / "ours")
    assert {t.dtype for t in load_file(tmp_path / "ours" / "sae_weights.safetensors").values()} == {dtype}
    x = load_file(folder / "expected.safetensors")["x"]
    again = sae.load(tmp_path / "ours")
    values, indices = again.encode_sparse(x)
    assert values.dtype == dtype and indices.shape == values.shape
    want = form.decode(form.encode(x), x)
    assert (again.float()(x) - want).norm() / want.norm() < 16 * torch.finfo(dtype).eps
