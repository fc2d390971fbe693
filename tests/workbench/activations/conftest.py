"""A complete small store, made once per session and copied for every test that harms it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.workbench.activations.small import make
from workbench.activations.disk import calls as disk


@pytest.fixture(scope="session")
def pristine(tmp_path_factory) -> Path:
    """The undisturbed store. Only read it."""
    return make(tmp_path_factory.mktemp("pristine") / "small")


@pytest.fixture
def store(pristine, tmp_path) -> Path:
    """A copy to harm."""
    return Path(shutil.copytree(pristine, tmp_path / "small"))


@pytest.fixture(autouse=True)
def _no_faults():
    """Faults of one test never reach the next."""
    yield
    disk.faults = disk.FaultPlan()
    disk.observer = None
