"""Readers of sparsify hook folders (``cfg.json`` + ``sae.safetensors``), formerly EleutherAI/sae.

Facts from the releases 1.0.0, 1.1.3 and 1.3.3 and from the history of the repository (``sae/config.py``,
``sae/sae.py``): ``signed`` from 2024-06 to 2024-08, ``num_latents`` from 2024-07, ``skip_connection`` from 2024-11,
``activation`` and ``transcode`` from 2025-02.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sae.errors import CorruptError
from sae.formats.layout import COUNT, FLAG, WHOLE, Layout, check_keys, check_tensors, names, only
from sae.formats.normal import NormalForm
from sae.formats.tensors import in_float32, read_config, read_safetensors

_BOTH = {"d_in": WHOLE, "expansion_factor": WHOLE, "k": WHOLE}
_HARMLESS = names("normalize_decoder multi_topk")  # what they did, the weights show
V1 = Layout(
    "sparsify",
    "0.1 to 1.3",
    "2025-02 to 2026-06",
    "cfg.json",
    ("topk", "transcoder", "skip transcoder"),
    used=_BOTH
    | {
        "activation": only("topk", why="groupmax has no place here"),
        "num_latents": COUNT,
        "skip_connection": FLAG,
        "transcode": FLAG,
    },
    harmless=_HARMLESS,
    refused=("groupmax",),
)
V0 = Layout(
    "EleutherAI sae",
    "before it was named sparsify",
    "2024-06 to 2025-02",
    "cfg.json",
    ("topk",),
    used=_BOTH
    | {
        "num_latents": COUNT.or_absent(),
        "signed": only(False, why="latents below zero have no place here").or_absent(),
        "skip_connection": only(
            False, why="that age does not say whether its input had the decoder's bias subtracted"
        ).or_absent(),
    },
    harmless=_HARMLESS,
    refused=("signed", "skip_connection"),
)
LAYOUTS = (V1, V0)


def read_sparsify(folder: Path) -> NormalForm:
    """A sparsify hook folder. ``num_latents: 0`` there means d_in × expansion_factor. A transcoder reads the input of
    the module its folder is named after, and its encoder's input keeps the decoder's bias.

    Raises:
        CorruptError: a key, value or tensor that is not known, named in the message.
    """
    where = str(folder)
    cfg = read_config(folder / "cfg.json")
    t, dtype = in_float32(read_safetensors(folder / "sae.safetensors"))
    layout = V1 if cfg.keys() & {"activation", "transcode"} else V0
    check_keys(cfg, layout, where)
    latents = cfg.get("num_latents") or cfg["d_in"] * cfg["expansion_factor"]
    d, f = cfg["d_in"], latents
    if "encoder.weight" in t and tuple(t["encoder.weight"].shape) != (f, d):
        raise CorruptError(
            f"{where}: cfg.json says {f} latents of width {d}; encoder.weight is {tuple(t['encoder.weight'].shape)}."
        )
    required: dict[str, tuple[int, ...] | None] = {"encoder.weight": (f, d), "encoder.bias": (f,)}
    required |= {"W_dec": (f, d), "b_dec": (d,)} | ({"W_skip": (d, d)} if cfg.get("skip_connection") else {})
    check_tensors(t, required, where, layout.name)
    transcoder = cfg.get("transcode", False)
    metadata: dict[str, Any] = {"imported_from": "sparsify", "hf_hook_name": folder.name, "original_cfg": cfg}
    form = NormalForm(
        "topk",
        t["encoder.weight"].t().contiguous(),
        t["encoder.bias"],
        t["W_dec"],
        t["b_dec"],
        k=cfg["k"],
        W_skip=t["W_skip"].t().contiguous() if "W_skip" in t else None,
        metadata=metadata | ({"kind": "transcoder"} if transcoder else {}),
    ).checked(where)
    return replace(form if transcoder else form.with_input_bias(form.b_dec), dtype=dtype)
