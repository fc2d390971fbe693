"""Typos in recipes are errors that name the key, its nearest valid neighbour and the file."""

from __future__ import annotations

import pytest

from sae.errors import ConfigError, MissingError
from sae.strict import StrictConfig, nearest, parse_config, read_config


class Inner(StrictConfig):
    learning_rate: float = 1e-3


class Outer(StrictConfig):
    name: str = "x"
    inner: Inner = Inner()


def test_unknown_key_names_nearest_and_file(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("[inner]\nlerning_rate = 3.0\n")
    with pytest.raises(ConfigError) as e:
        read_config(Outer, path)
    assert "'inner.lerning_rate'" in str(e.value) and "'learning_rate'" in str(e.value) and str(path) in str(e.value)
    assert e.value.exit_code == 2


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError) as e:
        parse_config(Outer, {"nam": "y", "inner": {"learning_rate": "fast"}}, where="here")
    assert "'nam'" in str(e.value) and "learning_rate = 'fast'" in str(e.value)


def test_not_toml_and_missing(tmp_path):
    (tmp_path / "bad.toml").write_text("a = [1,\n")
    with pytest.raises(ConfigError, match=r"bad\.toml"):
        read_config(Outer, tmp_path / "bad.toml")
    with pytest.raises(MissingError):
        read_config(Outer, tmp_path / "none.toml")


def test_configs_are_frozen():
    with pytest.raises(ValueError):
        Outer().name = "y"


def test_a_far_word_gets_few_names_each_once():
    few, many = ["alpha", "beta", "beta"], [f"figure-{i}" for i in range(60)] + ["mppc-of-layers"] * 2
    assert nearest("zzz", few) == "valid: alpha, beta"
    hint = nearest("mppc", many)
    assert hint.startswith("nearest of 61: mppc-of-layers, figure-") and hint.count(",") == 5
    assert nearest("figure-1x", many) == "did you mean 'figure-1'?"
