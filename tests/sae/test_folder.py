"""A dictionary on disk is the dictionary that was trained, and a damaged folder is an error that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sae import TopKConfig, TopKSAE, Trainer, load
from sae import folder as sae_folder
from sae.errors import ConfigError, CorruptError, MissingError


@pytest.fixture(scope="module")
def trained() -> Trainer:
    x = torch.randn(256, 12, generator=torch.Generator().manual_seed(0)) * 40 + 100
    trainer = Trainer(TopKConfig(d_in=12, d_sae=48, k=5))
    for _ in range(10):
        trainer.step(x)
    trainer.model.metadata = {"model_name": "mini", "hook_name": "blocks.0.hook_resid_post", "seed": 0}
    return trainer


def raw_rows(n: int = 200) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(1)) * 40 + 100


def test_print_says_sizes_and_activation(trained: Trainer) -> None:
    d = trained.dictionary()
    assert repr(d).startswith(f"TopKSAE(d_in={d.d_in}, d_sae={d.d_sae}, activation=TopK(k={d.k}")


def test_raw_rows_in_and_out_after_saving(trained: Trainer, tmp_path: Path) -> None:
    sae, x = trained.dictionary(), raw_rows()
    assert sae.save(tmp_path / "a") == tmp_path / "a"
    loaded = TopKSAE.load(tmp_path / "a")
    assert torch.equal(loaded(x), sae(x))
    torch.testing.assert_close(loaded(x), trained.model(x), rtol=1e-4, atol=1e-3)
    trained.model.save(tmp_path / "b")  # a model with a scale is folded on the way
    assert torch.equal(load(tmp_path / "b")(x), sae(x))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert loaded.metadata["hook_name"] == "blocks.0.hook_resid_post"
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_folder_is_saelens_layout(trained: Trainer, tmp_path: Path) -> None:
    sae = trained.dictionary()
    sae.save(tmp_path / "a")
    cfg = json.loads((tmp_path / "a/cfg.json").read_text())
    assert {
        k: cfg[k]
        for k in ("architecture", "d_in", "d_sae", "k", "dtype", "apply_b_dec_to_input", "normalize_activations")
    } == {
        "architecture": "topk",
        "d_in": 12,
        "d_sae": 48,
        "k": 5,
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
    }
    assert cfg["metadata"]["kind"] == "sae"
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    tensors = sae_folder.read_tensors(tmp_path / "a/sae_weights.safetensors")
    x = raw_rows()
    pre = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]  # what SAELens computes
    top = pre.topk(5, dim=1)
    f = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(f @ tensors["W_dec"] + tensors["b_dec"], sae(x), rtol=1e-4, atol=1e-3)


def test_saelens_loads_it(trained: Trainer, tmp_path: Path) -> None:
    sae_lens = pytest.importorskip(
        "sae_lens", reason="SAELens is not installed; its reading of the folder is checked by formula above"
    )
    sae, x = trained.dictionary(), raw_rows()
    sae.save(tmp_path / "a")
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path / "a"))
    torch.testing.assert_close(theirs(x), sae(x), rtol=1e-4, atol=1e-3)


def test_weights_are_separate(trained: Trainer) -> None:
    sae = trained.dictionary()
    before = sae.W_enc.clone()
    with torch.no_grad():
        sae.W_dec.zero_()
    assert torch.equal(sae.W_enc, before)
    assert trained.model.dec_FD.abs().sum() > 0


def test_saving_over_a_folder_replaces_both_files(trained: Trainer, tmp_path: Path) -> None:
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    TopKSAE(12, 48, 5).save(tmp_path / "a")
    trained.dictionary().save(tmp_path / "a")
    assert torch.equal(load(tmp_path / "a")(raw_rows()), trained.dictionary()(raw_rows()))
    assert (tmp_path / "a/checkpoints").is_dir()


def test_a_save_that_does_not_read_back_is_refused(
    trained: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = sae_folder.tensors_of
    monkeypatch.setattr(sae_folder, "tensors_of", lambda sae: {**honest(sae), "b_enc": honest(sae)["b_enc"] - 300})
    with pytest.raises(CorruptError, match="gives other outputs"):
        trained.dictionary().save(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def _edit(folder: Path, **changes: object) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | changes))


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"d_sae": 47}, "cfg.json says"),
        ({"k": 49}, "k = 49"),
        ({"architecture": "gated"}, "'gated'"),
        ({"k": None}, "whole numbers"),
        ({"metadata": 3}, "not the configuration"),
    ],
)
def test_configs_that_contradict_the_tensors(
    trained: Trainer, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    trained.dictionary().save(tmp_path / "a")
    _edit(tmp_path / "a", **changes)
    with pytest.raises(CorruptError, match=message):
        load(tmp_path / "a")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated_weights(trained: Trainer, tmp_path: Path, length: int) -> None:
    trained.dictionary().save(tmp_path / "a")
    path = tmp_path / "a/sae_weights.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptError, match="not a whole safetensors file"):
        load(tmp_path / "a")


def test_missing_files_and_wrong_widths(trained: Trainer, tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        load(tmp_path / "nowhere")
    trained.dictionary().save(tmp_path / "a")
    (tmp_path / "a/sae_weights.safetensors").unlink()
    with pytest.raises(MissingError):
        load(tmp_path / "a")
    with pytest.raises(ConfigError, match="rows have width 13, this dictionary expects 12"):
        trained.dictionary()(torch.zeros(2, 13))


def test_nan_weights_are_refused(trained: Trainer, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    trained.dictionary().save(tmp_path / "a")
    path = tmp_path / "a/sae_weights.safetensors"
    tensors = load_file(path)
    tensors["b_dec"][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(CorruptError, match="b_dec holds NaN"):
        load(tmp_path / "a")
