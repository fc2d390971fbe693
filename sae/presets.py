"""Recipes by name, for given sizes: published ones, and our own for few steps.

``few-steps``: a Top-K dictionary in a few hundred steps. There the rate of least error is so high that Adam's noise
kills latents: a latent that seldom fires moves far at every firing, and the decoder bias shifts all pre-activations at
once. So the moments forget sooner, encoders are slower than decoders, and the bias is slower still
(``benchmarks/race.py`` has the figures, for 1,024 latents).

Of published recipes, where paper and code of one work disagree there is a preset for each.

Llama Scope (arXiv 2410.20526): selection by z_i n_i with free decoder norms, no pre-encoder bias, scale sqrt(d) over
the mean norm of the rows, encoders tied at the start, K annealed over the first tenth of the steps, no AuxK.

================  ==========================  =============================
                  ``llama-scope-paper``       ``llama-scope-code``
================  ==========================  =============================
Adam betas        0.9, 0.999                  0.9, 0.9999
warm-up           10,000 steps                5,000 steps
decay to          0                           a hundredth of the peak
decoder norm      sqrt(2 / expansion)         0.5 at every width
K at the start    d                           d / 2
gradient clip     none                        0.001
error             squared, mean               squared, over each row's centred length
================  ==========================  =============================
"""

from __future__ import annotations

from typing import Any

from sae.config import TopKConfig
from sae.errors import ConfigError
from sae.strict import nearest

_LLAMA_SCOPE: dict[str, Any] = {
    "activation": {"kind": "norm-topk"},
    "lr": 8e-4,
    "decay_share": 0.2,
    "k_anneal_share": 0.1,
    "k_aux": 0,
    "revive": False,
}
_START = {"scaling": "mean-norm", "encoder": "tied", "bias": "zero", "pre_bias": False}
_FEW_STEPS: dict[str, Any] = {"beta1": 0.5, "beta2": 0.95, "details": {"encoder_rate": 0.6, "bias_rate": 0.1}}
NAMES = ("few-steps", "llama-scope-paper", "llama-scope-code")


def preset(name: str, *, d_in: int, d_sae: int, k: int, transcoder: bool = False) -> dict[str, Any]:
    """The fields of :class:`sae.SAEConfig` (or :class:`sae.TranscoderConfig`, whose encoders are not tied) that a
    recipe sets.

    Those of ``few-steps`` are fields of :class:`sae.TopKConfig` too. In the published ones K starts at no more than all
    latents and no less than ``k``.

    Raises:
        ConfigError: no such preset (the nearest is named).
    """
    if name not in NAMES:
        raise ConfigError(f"preset {name!r} does not exist ({nearest(name, list(NAMES))})")
    if name == "few-steps":
        return _FEW_STEPS | {"lr": min(0.01, 2.5 * TopKConfig(d_in=d_in, d_sae=d_sae, k=k).peak_lr)}
    paper = name == "llama-scope-paper"
    start: dict[str, Any] = _START | {"norm": (2 * d_in / d_sae) ** 0.5 if paper else 0.5}
    start |= {"encoder": "fitted"} if transcoder else {}
    out = _LLAMA_SCOPE | {"start": start, "k_start": min(d_sae, max(k, d_in if paper else d_in // 2))}
    if paper:
        return out | {"beta2": 0.999, "warmup_steps": 10_000}
    details = {"end_factor": 0.01, "clip": 0.001, "error": "per-length"}
    return out | {"beta2": 0.9999, "warmup_steps": 5_000, "details": details}


def merged(published: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A preset under a user's own settings; tables are merged key by key, but for an ``activation`` that says its
    ``kind``, which is one choice.
    """
    out = dict(published)
    for key, value in own.items():
        below = out.get(key)
        if isinstance(below, dict) and isinstance(value, dict) and not (key == "activation" and "kind" in value):
            value = {**below, **value}
        out[key] = value
    return out
