"""What a model is called goes by its record, not by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from workbench.results.family import UNKNOWN, family, family_of


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama", "num_attention_heads": 9}, "Transformer"),
        ({"model_type": "mamba", "state_size": 16}, "Mamba"),
        ({"model_type": "mamba2", "num_heads": 8}, "Mamba-2"),
        (
            {"model_type": "gemma3", "text_config": {"num_attention_heads": 4, "layer_types": ["sliding_attention"]}},
            "Transformer",
        ),
        ({"model_type": "qwen3_next", "num_attention_heads": 4, "layer_types": ["linear_attention"]}, "hybrid"),
        ({"model_type": "nemotron_h", "num_attention_heads": 4, "hybrid_override_pattern": "M-M*"}, "hybrid"),
        ({"model_type": "falcon_h1", "num_attention_heads": 4, "mamba_d_ssm": 64}, "hybrid"),
        ({"model_type": "rwkv", "attention_hidden_size": 64}, UNKNOWN),
        ({}, UNKNOWN),
    ],
)
def test_kinds_of_layer_decide(config: dict[str, Any], said: str) -> None:
    assert family(config) == said


def test_a_name_decides_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "mamba-like"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 4}))
    assert family_of(folder, {"model_type": "mamba"}, "mamba-like") == "Transformer"
    assert family_of(None, {}, "my-mamba") == UNKNOWN
    assert family_of(None, {}, "../mini-mamba") == UNKNOWN
    assert family_of(None, {"family": "hybrid"}, "away") == "hybrid"
    assert family_of(None, {}, "mini-mamba") == "Mamba"  # bundled
    assert family_of(None, {"bundled": "mini-pythia"}, "mine") == "Transformer"
    assert family_of(None, {}, "state-spaces/mamba-130m-hf") == "Mamba"  # the table of hub models
