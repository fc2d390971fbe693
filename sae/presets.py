"""Recipes by name, for given sizes: published ones, and our own for few steps.

``few-steps``: a Top-K dictionary in a few hundred steps. There the rate of least error is so high that Adam's noise
kills latents: a latent that seldom fires moves far at every firing, and the decoder bias shifts all pre-activations at
once. So the moments forget sooner, encoders are slower than decoders, and the bias is slower still
(``benchmarks/race.py`` has the figures, for 1,024 latents). BatchTopK, Matryoshka and JumpReLU take fewer rows for a
latent to count as dead, where d_sae / k is below 228: theirs must pass a threshold that no row lowers for them, and in
a short run AuxK came too late and revival never.

``faithful``: finds more of the features there are, at the same L0. A Matryoshka dictionary where no activation is
asked for; decoders learn twice as fast as with ``few-steps``, encoders as fast, and latents count as dead as soon for
every kind. It is the outcome of a search over rates, memories of Adam, AuxK, revival, annealing, starts and prefixes
(``python benchmarks/faithful.py --out DIR``; figures, on worlds that took no part: ``docs/benchmarks-faithful.md``).
L1 starts from short tied rows and has its gradient clipped to 1 / d: SAELens does so (it clips to 1, of errors that it
sums over d), and found more features at the same L0 until ours did; either alone was not enough.
Against ``few-steps`` of the same kind the gain is one of some hundred steps; at 1,000 what is left is that of the kind.
Not for much longer runs: there latents that are rare but right would be started anew.

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
NAMES = ("few-steps", "faithful", "llama-scope-paper", "llama-scope-code")
GATED = ("batchtopk", "matryoshka", "jumprelu")
# Firings of a latent that fires as often as the mean, in the rows after which a silent one counts as dead: 5,000 rows
# of 512 latents and k = 9, where that was found. From d_sae / k = 228 on it is the default's 20,000 rows.
_FIRINGS = 88
_FAITHFUL = _FEW_STEPS | {"details": {"encoder_rate": 0.3, "bias_rate": 0.1}}  # at twice the rate: encoders as before


def preset(
    name: str, *, d_in: int, d_sae: int, k: int, kind: str | None = None, transcoder: bool = False
) -> dict[str, Any]:
    """The fields of :class:`sae.SAEConfig` (or :class:`sae.TranscoderConfig`, whose encoders are not tied) that a
    recipe sets.

    Those of ``few-steps`` are fields of :class:`sae.TopKConfig` too. In the published ones K starts at no more than all
    latents and no less than ``k``.

    Args:
        kind: of the activation that is asked for beside the preset (:func:`kind_of`), None where none is; ``few-steps``
            is then for Top-K.

    Raises:
        ConfigError: no such preset (the nearest is named).
    """
    if name not in NAMES:
        raise ConfigError(f"preset {name!r} does not exist ({nearest(name, list(NAMES))})")
    if name in ("few-steps", "faithful"):
        ours = _ours(TopKConfig(d_in=d_in, d_sae=d_sae, k=k), name, kind)
        return merged(ours, _of_l1(d_in, transcoder)) if (name, kind) == ("faithful", "l1") else ours
    paper = name == "llama-scope-paper"
    start: dict[str, Any] = _START | {"norm": (2 * d_in / d_sae) ** 0.5 if paper else 0.5}
    start |= {"encoder": "fitted"} if transcoder else {}
    out = _LLAMA_SCOPE | {"start": start, "k_start": min(d_sae, max(k, d_in if paper else d_in // 2))}
    if paper:
        return out | {"beta2": 0.999, "warmup_steps": 10_000}
    details = {"end_factor": 0.01, "clip": 0.001, "error": "per-length"}
    return out | {"beta2": 0.9999, "warmup_steps": 5_000, "details": details}


def _ours(sizes: TopKConfig, name: str, kind: str | None) -> dict[str, Any]:
    """Of the two presets of ours."""
    rate = min(0.01, 2.5 * sizes.peak_lr)
    soon = {"dead_after": min(sizes.dead_after, _FIRINGS * sizes.d_sae // sizes.k)}
    if name == "few-steps":
        return _FEW_STEPS | {"lr": rate} | (soon if kind in GATED else {})
    return _FAITHFUL | {"lr": 2 * rate, "activation": {"kind": kind or "matryoshka"}} | soon


def _of_l1(d_in: int, transcoder: bool) -> dict[str, Any]:
    """What an L1 dictionary of ``faithful`` has of its own."""
    start = {"norm": 0.1} if transcoder else {"norm": 0.1, "encoder": "tied"}
    return {"start": start, "details": {"clip": 1 / d_in}}


def kind_of(own: dict[str, Any]) -> str | None:
    """The kind of activation that settings name themselves; None where they leave it to the preset or the default."""
    activation = own.get("activation")
    return activation.get("kind") if isinstance(activation, dict) else activation


def merged(published: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A preset under a user's own settings; tables are merged key by key, but for an ``activation`` that says its
    ``kind``, which is one choice. The name of the preset's own kind alone changes nothing.
    """
    out = dict(published)
    for key, value in own.items():
        below = out.get(key)
        if key == "activation" and isinstance(below, dict) and value == below.get("kind"):
            continue
        if isinstance(below, dict) and isinstance(value, dict) and not (key == "activation" and "kind" in value):
            value = {**below, **value}
        out[key] = value
    return out
