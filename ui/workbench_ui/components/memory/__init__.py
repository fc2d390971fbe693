"""What is written and read, in the browser: one text in up to two models, every layer and snapshot in one message.

Shares and survivals travel as uint8, effects as float32; tokens are made visible on the server and enter the page as
text nodes only.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import streamlit as st

from workbench.markup.tokens import visible
from workbench.results.states import States, half_lives
from workbench_ui.components import mount

WAYS = ("readers", "sources")


def side(result: States, text: int, name: str) -> dict[str, Any]:
    """Everything the browser needs of one model on one text."""
    share, effect = result.array(text, "share"), result.array(text, "effect").astype(np.float32)
    logprob, of_text = result.array(text, "logprob"), result.texts[text]
    survivals = [result.of_layer(text, k, "survival") for k in range(len(result.layers))]
    recurrent = any(x is not None for x in survivals)
    zero = np.zeros(share[:, 0].shape, np.float32)
    whole = np.stack([zero if x is None else x.astype(np.float32) for x in survivals], axis=1) if recurrent else None
    return {
        "name": name,
        "snapshots": [visible(s) for s in result.snapshot_names],
        "layers": [_layer(result, text, k, survivals[k]) for k in range(len(result.layers))],
        "share": _bytes(share),
        "effect": base64.b64encode(np.ascontiguousarray(effect, "<f4").tobytes()).decode(),
        "survival": None if whole is None else _bytes(np.nan_to_num(whole)),
        "top": float(np.nanmax(np.abs(effect))) if np.isfinite(effect).any() else 0.0,
        "predicted": [[visible(t) for t in of_snapshot] for of_snapshot in of_text["predicted"]],
        "probability": [[f"{np.exp(v):.2f}" for v in of_snapshot] for of_snapshot in logprob],
    }


def _layer(result: States, text: int, k: int, survival: np.ndarray | None) -> dict[str, Any]:
    about = result.layers[k]
    made: dict[str, Any] = {"name": f"layer {about['layer']} ({about['kind']})", "kind": about["kind"]}
    if survival is None:
        return made
    half = half_lives(survival.astype(np.float32))
    T = half.shape[-1]
    made["half"] = [
        [None if np.isnan(h) else int(min(h, T)) for h in of_snapshot] for of_snapshot in half
    ]  # T: to the end
    atoms = [of_snapshot[k] for of_snapshot in result.texts[text]["atoms"]]
    made["atoms"] = any(atoms)
    channels, weight = (result.of_layer(text, k, n) for n in ("channels", "weight"))
    assert channels is not None
    assert weight is not None
    # atoms at the snapshot a dictionary was trained at, channels at the others
    made["written"] = [
        [[f"#{i}" for i, _ in t] for t in a] if a else [[f"c{x}" for x in t] for t in c]
        for a, c in zip(atoms, channels, strict=True)
    ]
    made["amount"] = [
        [[f"({v:.2g})" for _, v in t] for t in a] if a else [[f"({100 * float(x):.0f} %)" for x in t] for t in w]
        for a, w in zip(atoms, weight, strict=True)
    ]
    return made


def _bytes(x: np.ndarray) -> str:
    return base64.b64encode(np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8).tobytes()).decode()


def message(sides: list[dict[str, Any]], tokens: list[str], at: dict[str, Any]) -> dict[str, Any]:
    """Both sides with the tokens they share, and where to begin: ``token``, ``depth``, ``snap``, ``way``."""
    return {"sides": sides, "tokens": [visible(t) for t in tokens], **at}


def memory(data: dict[str, Any], key: str, keep: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Mount the view; ``keep`` is told the token, layer, snapshot and way at which it was left."""

    def left() -> None:
        at = getattr(st.session_state.get(key), "left", None)
        if isinstance(at, dict):
            keep(at)

    mount("memory")(key=key, data=data, on_left_change=left)
