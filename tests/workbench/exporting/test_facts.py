"""Models without weights: the bundled table is right, and a hub cache with revisions is read offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from sae.errors import MissingError
from tests.workbench.bridges import tiny
from workbench.activations.harvesting.forward import resolve_hooks
from workbench.config import data_dir
from workbench.hub import fetch_command, known_hub_models
from workbench.models.facts import deepest_layer, meta_model, model_config, model_facts


@pytest.mark.parametrize("name", sorted(known_hub_models()))
def test_the_bundled_table_gives_the_published_parameter_counts(name):
    facts = model_facts(name)
    assert facts.parameters == known_hub_models()[name]["parameters"]
    assert sum(facts.layers) < facts.parameters <= facts.resident


def test_a_meta_model_has_the_real_models_hooks():
    model = meta_model("meta-llama/Llama-3.1-8B")
    assert all(p.is_meta for p in model.parameters())
    hooks = list(resolve_hooks(model, ["L7R", "L15TC"], {}))
    assert hooks == ["blocks.7.hook_resid_post", "blocks.15.ln2.hook_out", "blocks.15.hook_mlp_out"]
    assert deepest_layer(hooks) == 16 and deepest_layer(["hook_embed"]) == 0


def test_forward_flops_are_two_per_weight_and_attention():
    facts = model_facts("mini-pythia")
    whole = facts.forward_flops(64)
    assert whole == 2 * (sum(facts.layers) + facts.d_model * facts.vocab) + 4 * 64 * facts.d_model * facts.n_layers
    assert facts.forward_flops(64, layers=1) == 2 * facts.layers[0] + 4 * 64 * facts.d_model
    assert not any(model_facts("mini-mamba").attention)


def test_unknown_models_name_the_nearest_and_the_command():
    with pytest.raises(MissingError, match=r"pythia-160m.*hf download EleutherAI/pythia-161m"):
        model_config("EleutherAI/pythia-161m")
    assert fetch_command("meta-llama/Llama-3.1-8B").startswith("hf auth login && ")


def hub_cache(home, name: str, kind: str, files: dict[str, object], revisions: list[str]) -> None:
    """A Hugging Face cache as ``hf download`` leaves it: refs that point at snapshot folders."""
    root = home / "hub" / f"{kind}s--{name.replace('/', '--')}"
    for i, revision in enumerate(revisions):
        snapshot = root / "snapshots" / f"{i:040x}"
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(snapshot.name)
        for file, make in files.items():
            make(snapshot, i) if callable(make) else (snapshot / file).write_text(str(make))


def real_architecture(architecture: str):
    """A function that saves a tiny random model of an architecture, and the bundled tokenizer, into a
    folder; by seed.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    def save(folder, seed: int) -> None:
        if architecture == "llama":
            torch.manual_seed(seed)
            shape = {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 32,
            }
            model = LlamaForCausalLM(LlamaConfig(vocab_size=512, **shape))
        else:
            model = tiny(architecture, seed, vocab_size=512)
        model.save_pretrained(folder)
        shutil.copy(data_dir() / "tokenizer" / "tokenizer.json", folder / "tokenizer.json")
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|bos|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        assert AutoTokenizer.from_pretrained(folder).bos_token_id is not None

    return save


RECIPE = """
id = "hub"
hooks = ["L1R"]
n_seq = 12
ctx = 32
seqs_per_shard = 6
batch_size = 4
[corpus]
kind = "hub"
dataset = "some/texts"
packing = "documents"
"""


def test_models_of_real_architectures_and_revisions_are_harvested_from_a_hub_cache(tmp_path):
    home = tmp_path / "hf"
    hub_cache(home, "some/neox", "model", {"": real_architecture("neox")}, ["step0", "step512"])
    hub_cache(home, "state-spaces/mamba-tiny-hf", "model", {"": real_architecture("mamba")}, ["main"])
    hub_cache(home, "meta-llama/Llama-tiny", "model", {"": real_architecture("llama")}, ["main"])
    lines = "\n".join(
        json.dumps({"text": f"line {i}: " + "the old bridge over the river and the stone " * 6}) for i in range(40)
    )
    hub_cache(home, "some/texts", "dataset", {"train.jsonl": lines}, ["main"])
    sources = [
        ("some/neox", "step0"),
        ("some/neox", "step512"),
        ("state-spaces/mamba-tiny-hf", ""),
        ("meta-llama/Llama-tiny", ""),
    ]
    blocks = [f'[[sources]]\nmodel = "{m}"\n' + (f'revision = "{r}"\n' if r else "") for m, r in sources]
    (tmp_path / "r.toml").write_text(RECIPE + "\n".join(blocks))
    env = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(home / "datasets")}
    script = """
import json, sys
from workbench.activations import ActivationStore, HarvestRecipe, harvest
from workbench.config import read_recipe
from workbench.planning.dry_run import dry_harvest
from workbench.workspace import Workspace
recipe, ws = read_recipe(HarvestRecipe, sys.argv[1]), Workspace(sys.argv[2])
dry = dry_harvest(recipe, ws)
s = ActivationStore.open(harvest(recipe, ws))
x = [s.read(s.hooks[0], source=n) for n in s.sources]
same, commit = bool((x[0] == x[1]).all()), s.spec.plan["about"]["dataset_commit"]
print(json.dumps({"same": same, "rows": len(s), "commit": commit, "sources": s.sources, "missing": dry.missing}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "r.toml"), str(tmp_path / "ws")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "same": False,
        "rows": 12 * 31,
        "commit": f"{0:040x}",
        "sources": ["neox@step0", "neox@step512", "mamba-tiny-hf", "Llama-tiny"],
        "missing": [],
    }
