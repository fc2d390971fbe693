"""Loading: both architectures as bridges with Hugging Face's logits and firing hooks, and errors that name the nearest
valid thing.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae.errors import CorruptError, MissingError, UsageError
from workbench import load_model
from workbench.config import data_dir
from workbench.models import bundled, load_hf, load_tokenizer, model_id, resolve_revision, revisions, site_hooks, sites
from workbench.models.pretrain import PretrainRecipe, build_model, hf_config

ARCHITECTURES = ("gpt_neox", "mamba", "olmo_hybrid")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random model of each architecture as a model folder of two snapshots, without tokenizer."""
    out = {}
    for architecture in ARCHITECTURES:
        folder = tmp_path_factory.mktemp(architecture)
        config = hf_config(PretrainRecipe(name="x", architecture=architecture, steps=1, d_model=32, n_layers=2), 64)
        config.save_pretrained(folder)
        for step in (0, 8):
            (folder / f"step{step}").mkdir()
            weights = {n: p.detach().half() for n, p in build_model(config, seed=step).named_parameters()}
            save_file(weights, folder / f"step{step}" / "model.safetensors")
        out[architecture] = folder
    return out


def _ids(vocab: int) -> torch.Tensor:
    return torch.randint(1, vocab, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_hugging_faces_and_weights_are_raw(folders, architecture):
    model = load_model(folders[architecture])
    assert type(model).__name__ == "TransformerBridge" and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32} and model.cfg.dtype == torch.float32
    with torch.no_grad():
        reference = load_hf(folders[architecture])(input_ids=_ids(64), use_cache=False).logits
        assert torch.equal(model(_ids(64)), reference) or (model(_ids(64)) - reference).abs().max() < 1e-6
    saved = load_file(folders[architecture] / "step8" / "model.safetensors")
    embedding = next(v for k, v in saved.items() if "embed" in k)
    assert torch.equal(model.W_E, embedding.float())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_site_fires_with_its_width_and_edits_reach_the_logits(folders, architecture):
    model = load_model(folders[architecture], "step0")
    ids = _ids(64)
    with torch.no_grad():
        clean, cache = model.run_with_cache(ids)
        for site in sites(model):
            for hook in site_hooks(model, site):
                assert cache[hook].shape == (2, 17, 32), hook
            out = site_hooks(model, site)[1]
            changed = model.run_with_hooks(ids, fwd_hooks=[(out, lambda x, hook: x + 1.0)])
            assert not torch.allclose(changed, clean), f"an edit at {out} does nothing"


def test_every_hook_of_a_mamba_fires(folders):
    model = load_model(folders["mamba"])
    _, cache = model.run_with_cache(_ids(64))
    assert set(model.hook_dict) - set(cache.keys()) == set()
    assert {"blocks.1.mixer.conv1d.hook_out", "blocks.1.mixer.dt_proj.hook_out", "blocks.1.hook_resid_post"} <= set(
        cache.keys()
    )


def test_revisions_are_in_training_order_and_default_to_the_last(folders):
    folder = folders["gpt_neox"]
    assert (
        revisions(folder) == ["step0", "step8"]
        and resolve_revision(folder) == resolve_revision(folder, "final") == "step8"
    )
    with pytest.raises(MissingError, match=r"no revision 'step7' \(did you mean"):
        load_model(folder, "step7")


def test_missing_models_are_named_with_the_nearest(tmp_path):
    with pytest.raises(MissingError, match=r"did you mean 'mini-mamba'.*hf download mini-mamb"):
        load_model("mini-mamb")
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE=0 hf download nobody/nothing --revision step3"):
        load_model("nobody/nothing", "step3")
    with pytest.raises(MissingError, match="does not exist"):
        load_model(tmp_path / "absent")
    with pytest.raises(MissingError, match=r"no config\.json"):
        load_model(tmp_path)


def test_broken_weights_are_refused(folders, tmp_path):
    for name, damage in (("cut", lambda b: b[: len(b) // 2]), ("empty", lambda b: b"")):
        folder = tmp_path / name
        shutil.copytree(folders["mamba"], folder)
        path = folder / "step8" / "model.safetensors"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(CorruptError, match=r"model\.safetensors"):
            load_model(folder)
    folder = tmp_path / "other"
    shutil.copytree(folders["mamba"], folder)
    shutil.copy(folders["gpt_neox"] / "step8" / "model.safetensors", folder / "step8" / "model.safetensors")
    with pytest.raises(CorruptError, match="does not fit"):
        load_model(folder)


def test_a_folder_saved_by_hugging_face_loads_without_tokenizer(folders, tmp_path):
    load_hf(folders["mamba"]).save_pretrained(tmp_path / "saved")
    model = load_model(tmp_path / "saved")
    assert model.tokenizer is None and revisions(tmp_path / "saved") == []
    with torch.no_grad():
        assert torch.allclose(model(_ids(64)), load_model(folders["mamba"])(_ids(64)), atol=1e-6)
    with pytest.raises(MissingError, match="no tokenizer"):
        load_tokenizer(tmp_path / "saved")


def test_a_tokenizer_of_another_kind_is_used_as_it_is(folders, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    shutil.copytree(folders["gpt_neox"], tmp_path / "m")
    other = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    other.save(str(tmp_path / "m" / "tokenizer.json"))
    assert load_tokenizer(tmp_path / "m")("b a c")["input_ids"] == [1, 0, 2]
    assert load_model(tmp_path / "m").tokenizer is not None


def test_loading_leaves_the_global_random_state_alone(folders):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load_model(folders["gpt_neox"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_model_ids(folders, tmp_path):
    assert model_id("EleutherAI/pythia-160m") == "pythia-160m" and model_id("mini-mamba") == "mini-mamba"
    assert model_id(str(folders["mamba"])) == folders["mamba"].name


@pytest.mark.parametrize("name", ["mini-pythia", "mini-mamba", "mini-hybrid"])
def test_bundled_models_load_and_put_bos_first(name):
    assert name in bundled() and {"step0", "step512"} <= set(revisions(name))
    model = load_model(name, "step512")
    tokens = model.to_tokens("class Parser:")
    assert tokens[0, 0] == 0 and model.to_string(tokens[0, 1:]) == "class Parser:"
    assert model.cfg.n_layers >= 3 and model.cfg.d_vocab == len(load_tokenizer(name)) == 512
    with torch.no_grad():
        assert torch.isfinite(model(tokens)).all()
    assert (data_dir() / "models" / name / "step512" / "model.safetensors").stat().st_size < 2_000_000


def _trainer_folder(folder):
    """What a trainer leaves: the final weights in the folder itself, earlier ones in checkpoint-*."""
    from tests.workbench.models.zoo import random_model, save

    save("llama_gqa", folder)
    for seed, step in ((1, 500), (2, 1000)):
        random_model("llama_gqa", seed).save_pretrained(folder / f"checkpoint-{step}")
    return folder


def test_a_trainers_folder_loads_the_weights_in_its_root(tmp_path):
    from tests.workbench.models.zoo import random_model

    folder = _trainer_folder(tmp_path / "run")
    assert revisions(folder) == ["checkpoint-500", "checkpoint-1000"] and resolve_revision(folder) is None
    for revision, seed in ((None, 0), ("final", 0), ("checkpoint-500", 1), ("checkpoint-1000", 2)):
        with torch.no_grad():
            ours = load_model(folder, revision)(_ids(500), use_cache=False)
            theirs = random_model("llama_gqa", seed)(_ids(500)).logits
        assert torch.allclose(ours, theirs, atol=1e-5), revision
    for name in ("model.safetensors", "config.json"):  # only checkpoints: the last by number, not by name
        (folder / name).rename(tmp_path / name)
    shutil.copy(tmp_path / "config.json", folder / "config.json")
    assert resolve_revision(folder) == "checkpoint-1000"


def test_prompts_begin_as_harvested_windows_do(tmp_path):
    from tests.workbench.models.zoo import save
    from workbench.corpus import bos_id

    for name in ("gpt_neox", "qwen3", "llama_gqa"):  # whose adapters disagree
        model = load_model(save(name, tmp_path / name))
        assert int(model.to_tokens("def f(x)")[0, 0]) == bos_id(model.tokenizer) == 0


def test_a_tokenizer_without_special_tokens_gets_none(tmp_path):
    from tests.workbench.models.zoo import save

    folder = save("llama_gqa", tmp_path / "none")
    config = json.loads((folder / "tokenizer.json").read_text())
    config["added_tokens"], config["post_processor"] = [], None
    (folder / "tokenizer.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    model = load_model(folder)
    assert model.tokenizer.bos_token_id is None and int(model.to_tokens("def f(x)").max()) < 512


def test_models_with_other_tokenizers_are_named(tmp_path):
    from tests.workbench.models.zoo import save
    from workbench.models.same_tokens import check_same_tokens

    folder = save("llama_gqa", tmp_path / "other")
    config = json.loads((folder / "tokenizer.json").read_text())
    vocab = config["model"]["vocab"]
    one, two = list(vocab)[300:302]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    check_same_tokens([("mini-pythia", "step0"), (str(folder), None)], "no reason")
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"mini-pythia and .*other have different tokenizers.*: no ids in common"):
        check_same_tokens([("mini-pythia", None), (str(folder), None)], "no ids in common")


@pytest.mark.parametrize("name", ["falcon_40b_like", "granitemoehybrid", "gemma3n"])
def test_a_bridge_that_does_not_work_is_refused_in_one_line(tmp_path, name):
    from tests.workbench.models.zoo import save

    with pytest.raises(UsageError, match="TransformerLens") as refused:
        load_model(save(name, tmp_path / name))
    assert "\n" not in str(refused.value) and "ForCausalLM" in str(refused.value)


def test_a_bridge_that_computes_something_else_is_refused(monkeypatch):
    from tests.workbench.models.zoo import random_model
    from workbench.models import few_logits, load

    hf_model = random_model("llama_gqa")
    true = few_logits.few_logits
    monkeypatch.setattr(few_logits, "few_logits", lambda model: true(model) + (model is hf_model))
    with pytest.raises(UsageError, match="its logits are not those of transformers"):
        load.bridge(hf_model)


@pytest.mark.parametrize("name", ["mini-pythia", "mini-hybrid"])
def test_norms_skip_what_nobody_hears_and_are_the_same_bit_for_bit(name):
    from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

    model = load_model(name)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, NormalizationBridge)}
    assert norms and all("forward" in vars(m) for m in norms.values())
    tokens = torch.arange(3, 35)[None]
    hook = next(n for n in model.hook_dict if n.endswith("hook_scale"))
    with torch.inference_mode():
        quiet = model(tokens, return_type="logits")
        seen = []
        heard = model.run_with_hooks(
            tokens, return_type="logits", fwd_hooks=[(hook, lambda value, hook: seen.append(value.clone()))]
        )
        edited = model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(hook, lambda value, hook: 2 * value)])
        for norm in norms.values():
            del vars(norm)["forward"]
        theirs = model(tokens, return_type="logits")
    assert torch.equal(quiet, theirs) and torch.equal(heard, theirs)
    assert len(seen) == 1 and float(seen[0].min()) > 0, "a hook on the scale still sees it"
    assert not torch.allclose(edited, theirs), "and an edit of it is still felt"
