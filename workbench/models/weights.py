"""Digests of a model's weights: what a result that read a model names as its input."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sae.errors import MismatchError, MissingError
from sae.files import sha256_json
from workbench.models.digests import folder_digest
from workbench.models.load import find_folder, model_id, resolve_revision
from workbench.provenance import Input


def weights_of_files(name: str, revision: str | None) -> str | None:
    """Digest of a model folder's configuration and weights at a revision, without loading them; None for hub models."""
    folder = find_folder(name)
    if folder is None:
        return None
    return folder_digest(folder, resolve_revision(name, revision))


def weights_of_model(model: Any) -> str:
    """Digest of a loaded model's parameters and buffers by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(np.ascontiguousarray(value.detach().float().cpu().numpy()).tobytes())
    return digest.hexdigest()


def model_inputs(models: Iterable[tuple[str, str | None]]) -> list[Input]:
    """Models at their revisions as inputs of a result, each once: ``mini-pythia@step512`` with the digest of its
    weights, a hub model with that of its commit. One that is not at hand is left out.
    """
    found = {}
    for name, revision in models:
        digest = _digest_of(name, revision)
        if digest is not None:
            id = f"{model_id(name)}@{revision}" if revision else model_id(name)
            found[id] = Input(kind="models", id=id, digest=digest)
    return list(found.values())


def _digest_of(name: str, revision: str | None) -> str | None:
    try:
        return weights_of_files(name, revision) or _commit_of(name, revision)
    except (MissingError, MismatchError):  # what needs the model says so; what does not, does without
        return None


def _commit_of(name: str, revision: str | None) -> str | None:
    """Digest of the commit that a hub model's name means in the local cache; None where it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return sha256_json([name, Path(cached).parent.name]) if isinstance(cached, str) else None
