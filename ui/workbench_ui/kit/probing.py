"""Models and dictionaries for the text probe, loaded on first use and kept; torch is imported inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from workbench_ui.kit import data
from workbench_ui.kit.index import Dictionary

if TYPE_CHECKING:
    from workbench.analysis.evaluation.probe import Probe, Steered


@dataclass(frozen=True)
class Probed:
    """A probe, and how many latents its dictionary has."""

    probe: Probe
    n_latents: int


@dataclass(frozen=True)
class Usual:
    """What the records know of a latent: its largest activation (0 where unknown) and the token on
    which it fires most.
    """

    maximum: float = 0.0
    peak: str | None = None


def run_probe(d: Dictionary, text: str) -> Probed:
    """The dictionary on a text.

    Raises:
        UserError: the model or dictionary cannot be loaded, or the text is empty.
    """
    from workbench.analysis.evaluation.probe import probe

    planned, dictionary = _dictionary(str(data.workspace_folder()), d.id, d.version)
    found = probe(_model(planned.model_name, planned.revision), dictionary, planned, text)
    return Probed(found, int(dictionary.W_dec.shape[0]))


def usual(d: Dictionary, latent: int) -> Usual:
    """What is known of a latent beyond this text."""
    records = data.records(d)
    if records is None or not 0 <= latent < len(records):
        return Usual()
    row = records.row(latent)
    peak = row.get("peak_text")
    return Usual(float(row.get("max") or 0.0), peak if isinstance(peak, str) else None)


def run_push(d: Dictionary, text: str, latent: int, amount: float) -> Steered:
    """The next-token distribution with one latent pushed."""
    from workbench.analysis.evaluation.probe import push

    planned, dictionary = _dictionary(str(data.workspace_folder()), d.id, d.version)
    return push(_model(planned.model_name, planned.revision), dictionary, planned, text, latent, amount)


@st.cache_resource(show_spinner="loading the language model …", max_entries=3)
def _model(name: str, revision: str | None) -> Any:
    from workbench.models import load_model

    return load_model(name, revision=revision)


@st.cache_resource(show_spinner="loading the dictionary …", max_entries=6)
def _dictionary(root: str, id: str, version: str) -> tuple[Any, Any]:
    from workbench.dictionaries.reference import find_dictionary
    from workbench.workspace import Workspace

    planned = find_dictionary(Workspace(root, create=False), id)
    return planned, planned.load()
