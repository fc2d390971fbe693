"""Contexts longer than a model's positions are refused before any work, by learned and rotary positions alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae.errors import UsageError
from workbench import Workspace, load_model
from workbench.activations import HarvestRecipe, harvest
from workbench.corpus import TokenPlan
from workbench.models.facts import model_config
from workbench.models.limits import check_context, longest_context


def test_positions_are_read_from_the_configuration():
    assert longest_context(load_model("mini-pythia")) == longest_context(model_config("mini-pythia")) == 1024
    assert longest_context(load_model("mini-mamba")) is None  # the bridge's own number is made up
    check_context(model_config("mini-mamba"), 1 << 20, "x")


def test_learned_positions_end_in_one_line(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small = GPT2Config(vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(small).save_pretrained(tmp_path / "gpt2")
    tokens = np.random.default_rng(0).integers(1, 60, (8, 24)).astype(np.int32)
    plan = TokenPlan(tokens, np.arange(8, dtype=np.int32), np.zeros(8, np.uint8))
    values = {"id": "long", "hooks": ["L0R"], "n_seq": 8, "sources": [{"model": str(tmp_path / "gpt2")}]}
    with pytest.raises(UsageError, match=r"ctx = 24 is longer than the 16 positions of gpt2"):
        harvest(HarvestRecipe.model_validate({**values, "ctx": 24}), Workspace(tmp_path / "ws"), plan=plan)
    assert not (tmp_path / "ws" / "stores" / "long").exists()
    fits = TokenPlan(tokens[:, :16].copy(), plan.doc_ids, plan.kinds)
    harvest(HarvestRecipe.model_validate({**values, "ctx": 16}), Workspace(tmp_path / "ws"), plan=fits)
