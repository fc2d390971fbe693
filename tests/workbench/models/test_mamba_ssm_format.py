"""Checkpoints in mamba_ssm's layout: written, read back equal, and refused when they do not fit."""

import json

import pytest
import torch

from sae.errors import CorruptError, UntrustedFile, UsageError
from tests.workbench.bridges import tiny, tokens
from workbench.models import load_model
from workbench.models.mamba_ssm_format import export_mamba_ssm, import_mamba_ssm, is_mamba_ssm_folder


@torch.no_grad()
@pytest.mark.parametrize(
    "overrides", [{}, {"conv_kernel": 3, "expand": 3, "use_bias": True, "tie_word_embeddings": False}]
)
def test_round_trip_gives_the_same_logits(tmp_path, overrides) -> None:
    model = tiny("mamba", **overrides)
    folder = export_mamba_ssm(model, tmp_path / "m")
    assert is_mamba_ssm_folder(folder)
    names = set(torch.load(folder / "pytorch_model.bin", weights_only=True))
    assert {
        "backbone.embedding.weight",
        "backbone.layers.0.mixer.A_log",
        "backbone.norm_f.weight",
        "lm_head.weight",
    } <= names
    assert torch.equal(import_mamba_ssm(folder)(tokens()).logits, model(tokens()).logits)
    torch.testing.assert_close(load_model(folder)(tokens()), model(tokens()).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_padded_vocabulary_and_defaults_of_the_original_package_are_understood(tmp_path) -> None:
    model = tiny("mamba", vocab_size=56, time_step_rank=1, state_size=16)
    folder = export_mamba_ssm(model, tmp_path / "m")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del tensors["lm_head.weight"]  # tied
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps({"d_model": 16, "n_layer": 2, "vocab_size": 50, "pad_vocab_size_multiple": 8})
    )
    assert torch.equal(import_mamba_ssm(folder)(tokens()).logits, model(tokens()).logits)


def test_what_does_not_fit_is_refused(tmp_path) -> None:
    folder = export_mamba_ssm(tiny("mamba"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "d_model": 24}))
    with pytest.raises(CorruptError, match="size mismatch"):
        import_mamba_ssm(folder)
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm": False}))
    with pytest.raises(UsageError, match="rms_norm"):
        import_mamba_ssm(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    with pytest.raises(UntrustedFile, match="neither a torch archive nor a pickle"):
        import_mamba_ssm(folder)
    with pytest.raises(UsageError, match="mamba2"):
        export_mamba_ssm(tiny("mamba2"), tmp_path / "n")
