"""Other libraries' dictionaries give the numbers those libraries give."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.errors import CorruptError
from sae.formats.libraries import detect, read

GOLDEN = Path(__file__).parent / "golden"
FOLDERS = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir() and (p / "expected.safetensors").exists())
# half precision: within its rounding, test_format_tables; cross-layer transcoders: test_cross_layer
EXACT = [n for n in FOLDERS if not n.endswith("float16") and "-clt" not in n]


@pytest.mark.parametrize("name", EXACT)
def test_golden_files_give_the_library_s_own_numbers(name):
    """Latents may differ by the decoder norm that the normal form folds away; reconstructions may not differ at all."""
    want = load_file(GOLDEN / name / "expected.safetensors")
    form = read(GOLDEN / name)
    f = form.encode(want["x"])
    torch.testing.assert_close(form.decode(f, want["x"]), want["y"], atol=2e-6, rtol=1e-5)
    assert torch.equal(f > 1e-6, want["f"] > 1e-6)
    ratio = (f / want["f"]).nan_to_num(0).amax(0)
    torch.testing.assert_close(f, want["f"] * torch.where(ratio > 0, ratio, 1), atol=2e-6, rtol=1e-5)


def test_detection_names_the_library():
    libraries = {
        "saelens": "saelens",
        "sparsify": "sparsify",
        "eleuther": "sparsify",
        "dl": "dictionary-learning",
        "circuit": "circuit-tracer",
        "gemma-scope-1": "gemma-scope",
        "gemma-scope-2": "gemma-scope-2",
        "goodfire": "goodfire",
        "llamascopium": "openmoss",
        "lm-saes": "llama-scope",
    }
    for name in (n for n in FOLDERS if "-clt" not in n):
        (library,) = (found for prefix, found in libraries.items() if name.startswith(f"{prefix}-"))
        assert detect(GOLDEN / name) == library, name


def test_unknown_folder_says_what_is_expected(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CorruptError, match=r"found: weights\.bin.*cfg\.json"):
        read(tmp_path)


def llama_scope_folder(folder, act="jumprelu"):
    g = torch.Generator().manual_seed(0)
    d, f = 6, 24
    t = {"encoder.weight": torch.randn(f, d, generator=g), "decoder.weight": torch.randn(d, f, generator=g) / 2}
    t |= {"encoder.bias": torch.randn(f, generator=g) / 4, "decoder.bias": torch.randn(d, generator=g)}
    (folder / "checkpoints").mkdir(parents=True)
    save_file({k: v.bfloat16() for k, v in t.items()}, folder / "checkpoints" / "final.safetensors")
    cfg = {
        "d_model": d,
        "d_sae": f,
        "act_fn": act,
        "top_k": 5,
        "jump_relu_threshold": 0.7 if act == "jumprelu" else None,
    }
    cfg |= {"dataset_average_activation_norm": {"in": 20.0, "out": 5.0}, "norm_activation": "dataset-wise"}
    cfg |= {
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "sparsity_include_decoder_norm": act != "jumprelu",
    }
    (folder / "hyperparams.json").write_text(json.dumps(cfg))
    return {k: v.bfloat16().float() for k, v in t.items()}, cfg


@pytest.mark.parametrize("act", ["jumprelu", "topk"])
def test_llama_scope_folds_scales_and_thresholds(tmp_path, act):
    """Against the definition: scale the input, encode, threshold in units of raw rows, decode, unscale."""
    t, cfg = llama_scope_folder(tmp_path / "L15R-8x", act)
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(2)) * 8
    s_in, s_out = math.sqrt(6) / 20, math.sqrt(6) / 5
    z = x * s_in @ t["encoder.weight"].T + t["encoder.bias"]
    if act == "jumprelu":
        f = z * (z / s_in > cfg["jump_relu_threshold"])
    else:
        norm = t["decoder.weight"].norm(dim=0)
        kept = (z.relu() * norm).topk(5, dim=-1).indices
        f = torch.zeros_like(z).scatter(-1, kept, z.relu().gather(-1, kept))
    y = (f @ t["decoder.weight"].T + t["decoder.bias"]) / s_out
    form = read(tmp_path / "L15R-8x")
    assert torch.equal(form.encode(x) > 0, f > 0) and 0 < (f > 0).float().mean() < 1
    torch.testing.assert_close(form.decode(form.encode(x)), y, atol=1e-4, rtol=1e-5)


def test_openmoss_jumprelu_thresholds_follow_the_scale(tmp_path):
    g = torch.Generator().manual_seed(0)
    t = {
        "W_E": torch.randn(6, 24, generator=g),
        "W_D": torch.randn(24, 6, generator=g),
        "b_E": torch.randn(24, generator=g) / 4,
        "b_D": torch.randn(6, generator=g),
    }
    t |= {
        "activation_function.log_jumprelu_threshold": torch.rand(24, generator=g).log(),
        "dataset_average_activation_norm.h": torch.tensor(20.0),
    }
    save_file(t, tmp_path / "sae_weights.safetensors")
    cfg = {
        "sae_type": "sae",
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "hook_point_in": "h",
        "hook_point_out": "h",
    }
    (tmp_path / "config.json").write_text(json.dumps(cfg))
    x = torch.randn(64, 6, generator=g) * 8
    s, n = math.sqrt(6) / 20, t["W_D"].norm(dim=1)
    z = x * s @ t["W_E"] + t["b_E"]
    f = z * ((z * n) > t["activation_function.log_jumprelu_threshold"].exp())
    form = read(tmp_path)
    assert detect(tmp_path) == "openmoss" and torch.equal(form.encode(x) > 0, f > 0)
    torch.testing.assert_close(form.decode(form.encode(x)), (f @ t["W_D"] + t["b_D"]) / s, atol=1e-4, rtol=1e-5)


def broken_copy(tmp_path, name):
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def test_config_that_contradicts_its_tensors(tmp_path):
    for name, file, key in (("saelens-topk", "cfg.json", "d_sae"), ("sparsify-sae", "cfg.json", "num_latents")):
        folder = broken_copy(tmp_path, name)
        cfg = json.loads((folder / file).read_text()) | {key: 99}
        (folder / file).write_text(json.dumps(cfg))
        with pytest.raises(CorruptError, match="99"):
            read(folder)
    folder = broken_copy(tmp_path, "dl-topk")
    cfg = json.loads((folder / "config.json").read_text())
    cfg["trainer"]["dict_size"] = 99
    (folder / "config.json").write_text(json.dumps(cfg))
    with pytest.raises(CorruptError, match="99"):
        read(folder)


def test_unknown_architecture_is_named(tmp_path):
    folder = broken_copy(tmp_path, "saelens-topk")
    cfg = json.loads((folder / "cfg.json").read_text()) | {"architecture": "temporal"}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(CorruptError, match="'temporal'"):
        read(folder)


def test_a_threshold_below_zero_without_a_relu_is_refused(tmp_path):
    """circuit-tracer's JumpReLU would let latents below zero pass; read as ours they would vanish."""
    folder = broken_copy(tmp_path, "circuit-tracer-0.5.0-jumprelu")
    (file,) = folder.glob("layer_*")
    t = load_file(file)
    gate = "activation_function.threshold"
    save_file(t | {gate: t[gate] - t[gate].max()}, file)
    with pytest.raises(CorruptError, match="thresholds are below zero"):
        read(folder)


def test_a_scale_is_folded_into_a_skip_connection_too():
    form = read(GOLDEN / "saelens-6.54.12-skip-transcoder")
    x = load_file(GOLDEN / "saelens-6.54.12-skip-transcoder" / "expected.safetensors")["x"]
    folded = form.with_scales(2.0, 5.0)
    want = form.decode(form.encode(2 * x), 2 * x) / 5
    torch.testing.assert_close(folded.decode(folded.encode(x), x), want)
