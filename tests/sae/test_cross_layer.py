"""Cross-layer transcoders: read and written in circuit-tracer's layout, and sets of transcoders for it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.errors import CorruptError, MissingError, UsageError
from sae.formats import read, read_cross_layer, write_cross_layer, write_transcoder_set
from sae.formats.parity import compare_expected

GOLDEN = Path(__file__).parent / "golden"
KINDS = ("clt-relu", "clt-jumprelu", "clt-relu-bfloat16")


@pytest.fixture(params=KINDS)
def folder(request):
    return GOLDEN / f"circuit-tracer-0.5.0-{request.param}"


def test_the_library_s_own_numbers_and_the_files_it_would_write(folder, tmp_path):
    found = compare_expected(folder)
    assert found.ok, found
    clt = read_cross_layer(folder)
    assert clt.n_layers == 3 and clt.metadata["model_name"] == "meta-llama/Llama-3.2-1B"
    back = write_cross_layer(clt, tmp_path / "out")
    for file in folder.glob("W_*.safetensors"):
        theirs, ours = load_file(file), load_file(back / file.name)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[k], ours[k]) and theirs[k].dtype == ours[k].dtype for k in theirs)
    assert torch.equal(read_cross_layer(back).W_enc, clt.W_enc)


def test_a_layer_s_latents_are_those_of_the_whole(folder):
    clt, x = read_cross_layer(folder), torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    f = clt.encode(x)
    for i in range(3):
        form = clt.layer(i)
        torch.testing.assert_close(form.encode(x[i]), f[i])
        assert form.metadata["hook_name"] == f"blocks.{i}.hook_resid_mid" and form.dtype == clt.dtype
        assert form.metadata["cross_layer"] == {"layer": i, "n_layers": 3}
    torch.testing.assert_close(clt.layer(0).decode(f[0]), clt.decode(f)[0])  # nothing writes before the first
    with pytest.raises(UsageError, match="layer 3 is not"):
        clt.layer(3)


def test_what_it_writes_is_the_sum_of_this_layer_and_those_before(folder):
    clt = read_cross_layer(folder)
    f = torch.zeros(3, 1, 12)
    f[1, 0, 4] = 2.0
    y = clt.decode(f) - clt.b_dec[:, None]
    assert not y[0].any()
    for m in (1, 2):
        torch.testing.assert_close(y[m, 0], 2 * clt.W_dec[1][4, m - 1])


def test_it_is_refused_as_a_dictionary_of_one_place_by_name(folder):
    with pytest.raises(CorruptError, match=r"cross-layer transcoder.*read_cross_layer"):
        read(folder)


def test_a_broken_folder_is_refused_by_name(tmp_path):
    def copy(name):
        return shutil.copytree(GOLDEN / "circuit-tracer-0.5.0-clt-jumprelu", tmp_path / name)

    lost = copy("lost")
    (lost / "W_dec_1.safetensors").unlink()
    with pytest.raises(CorruptError, match=r"W_dec_1\.safetensors missing"):
        read_cross_layer(lost)
    mixed = copy("mixed")
    part = load_file(mixed / "W_enc_2.safetensors")
    del part["threshold_2"]
    save_file(part, mixed / "W_enc_2.safetensors")
    with pytest.raises(CorruptError, match="threshold_2 missing"):
        read_cross_layer(mixed)
    turned = copy("turned")
    part = load_file(turned / "W_dec_1.safetensors")
    save_file({"W_dec_1": part["W_dec_1"].transpose(1, 2).contiguous()}, turned / "W_dec_1.safetensors")
    with pytest.raises(CorruptError, match=r"W_dec_1 has shape \(12, 6, 2\)"):
        read_cross_layer(turned)
    skip = copy("skip")
    part = load_file(skip / "W_enc_0.safetensors")
    save_file(part | {"W_skip_0": torch.ones(6, 6)}, skip / "W_enc_0.safetensors")
    with pytest.raises(CorruptError, match="'W_skip_0'"):
        read_cross_layer(skip)
    below = copy("below")
    part = load_file(below / "W_enc_1.safetensors")
    save_file(part | {"threshold_1": part["threshold_1"] - 9}, below / "W_enc_1.safetensors")
    with pytest.raises(CorruptError, match="thresholds are below zero"):
        read_cross_layer(below)
    wrong = copy("wrong")
    text = (wrong / "config.yaml").read_text()
    (wrong / "config.yaml").write_text(text + "gain: 2\n")
    with pytest.raises(CorruptError, match="'gain' = 2"):
        read_cross_layer(wrong)
    (wrong / "config.yaml").unlink()
    with pytest.raises(MissingError, match=r"config\.yaml"):
        read_cross_layer(wrong)


def test_a_set_of_transcoders_is_read_back_layer_by_layer(tmp_path):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    for kind in ("relu", "skip", "jumprelu"):
        form = read(GOLDEN / f"circuit-tracer-0.5.0-{kind}")
        hooks = [
            {"hook_name": f"blocks.{i}.mlp.hook_in", "hook_name_out": f"blocks.{i}.hook_mlp_out"} for i in range(2)
        ]
        at = [replace(form, metadata=form.metadata | h) for h in hooks]
        out = write_transcoder_set(at, tmp_path / kind)
        for i in range(2):
            back = read(out / f"layer_{i}.safetensors")
            assert back.metadata["hook_name"] == f"blocks.{i}.mlp.hook_in" and back.act == form.act
            torch.testing.assert_close(back.decode(back.encode(x), x), form.decode(form.encode(x), x))
    with pytest.raises(UsageError, match=r"number 1 is at blocks\.0"):
        write_transcoder_set([at[0], at[0]], tmp_path / "twice")
    with pytest.raises(UsageError, match=r"no place for k.*to_jumprelu"):
        write_transcoder_set([replace(at[0], act="topk", k=2, threshold=None)], tmp_path / "topk")
    assert not (tmp_path / "topk").exists()


GEMMA = ("gemma-scope-2-clt", "gemma-scope-2-clt-affine", "gemma-scope-2-clt-affine-bfloat16")


@pytest.mark.parametrize("name", GEMMA)
def test_gemma_scope_2_as_circuit_tracer_s_own_loader_reads_it(name, tmp_path):
    found = compare_expected(GOLDEN / name)
    assert found.ok, found
    at = tmp_path / "gemma-scope-2-1b-it" / "clt"
    at.mkdir(parents=True)
    clt = read_cross_layer(shutil.copytree(GOLDEN / name, at / f"width_16k_{name}"))
    about = clt.layer(2).metadata
    assert about["model_name"] == "google/gemma-3-1b-it" and about["imported_from"] == "Gemma Scope 2"
    assert about["hf_hook_name"] == "model.layers.2.pre_feedforward_layernorm.output" and about["prepend_bos"]
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    f = clt.encode(x)
    if clt.W_skip is None:
        torch.testing.assert_close(clt.layer(0).decode(f[0]), clt.decode(f)[0])
        return
    torch.testing.assert_close(clt.layer(0).decode(f[0], x[0]), clt.decode(f, x)[0])
    with pytest.raises(UsageError, match="give the rows"):
        clt.decode(f)
    with pytest.raises(UsageError, match="no place"):
        write_cross_layer(clt, tmp_path / "out")


def test_gemma_scope_2_files_that_say_something_else_are_refused_by_name(tmp_path):
    def copy(to, name="gemma-scope-2-clt"):
        return Path(shutil.copytree(GOLDEN / name, tmp_path / to))

    def change(folder, layer, edit):
        part = load_file(folder / f"params_layer_{layer}.safetensors")
        save_file({k: v.clone() for k, v in edit(part).items()}, folder / f"params_layer_{layer}.safetensors")

    lost = copy("lost")
    (lost / "params_layer_1.safetensors").unlink()
    with pytest.raises(CorruptError, match=r"params_layer_1\.safetensors missing|params_layer_2"):
        read_cross_layer(lost)
    back = copy("crosscoder")
    change(back, 2, lambda p: p | {"w_dec": p["w_dec"] + 1})
    with pytest.raises(CorruptError, match="crosscoder"):
        read_cross_layer(back)
    renamed = copy("width_16k", "gemma-scope-2-clt-affine")
    with pytest.raises(CorruptError, match="affine_skip_connection, and neither"):
        read_cross_layer(renamed)
    (renamed / "config.json").write_text('{"affine_connection": true, "num_layers": 3, "width": 12}')
    assert read_cross_layer(renamed).W_skip is not None
    (renamed / "config.json").write_text('{"affine_connection": true, "num_layers": 4}')
    with pytest.raises(CorruptError, match="num_layers = 4"):
        read_cross_layer(renamed)
    (renamed / "config.json").write_text('{"affine_connection": true, "gain": 2}')
    with pytest.raises(CorruptError, match="'gain' = 2"):
        read_cross_layer(renamed)
    short = copy("width_1k_affine", "gemma-scope-2-clt-affine")
    change(short, 1, lambda p: {k: v for k, v in p.items() if k != "affine_skip_connection"})
    with pytest.raises(CorruptError, match="affine_skip_connection missing"):
        read_cross_layer(short)
