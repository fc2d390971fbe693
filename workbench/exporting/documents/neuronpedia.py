"""Latents in Neuronpedia's feature schema.

Two shapes of the same numbers. ``batch`` is what Neuronpedia's importer reads (SAEDashboard's
``NeuronpediaDashboardBatch``: keys ``feature_index``, ``neg_str`` …, activations with ``bin_min``, ``bin_max``,
``bin_contains``, ``qualifying_token_index``). ``feature`` is what its interface answers for one feature (``modelId``,
``layer``, ``index``, activations with ``maxValue``, ``binMin`` …, explanations). What the records do not hold
(correlated neurons, the histogram of all logits, the decoder vector) is an empty list, never a zero. Bars of a
histogram and their values are parallel lists.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from workbench.markup.text import valid
from workbench.results.records import LatentRecords

_SITE = re.compile(r"L(\d+)(TC|[RAMS])")
_SET = {"R": "res", "A": "att", "M": "mlp", "TC": "transcoder", "S": "mixer"}
_QUANTILES = ("q4", "q3", "q2", "q1")
_EMPTY = (
    "neuron_alignment_indices",
    "neuron_alignment_values",
    "neuron_alignment_l1",
    "correlated_neurons_indices",
    "correlated_neurons_l1",
    "correlated_neurons_pearson",
    "correlated_features_indices",
    "correlated_features_l1",
    "correlated_features_pearson",
    "logits_hist_data_bar_heights",
    "logits_hist_data_bar_values",
    "decoder_weights_dist",
)


def place(records: LatentRecords) -> dict[str, Any]:
    """``model_id``, ``layer``, ``sae_set``, ``sae_id_suffix`` and the source id ``<layer>-<set>[__suffix]`` of a
    dictionary.
    """
    meta = records.metadata
    site = _SITE.fullmatch(str(meta.get("site", "")))
    width = re.search(r"-(\d+x)", records.id)
    seed = re.search(r"\.(s\d+)$", records.id)
    name = "-".join(["workbench", _SET[site[2]] if site else "sae", *([width[1]] if width else [])])
    suffix = "-".join(str(p) for p in (meta.get("revision"), seed[1] if seed else None) if p) or None
    layer = int(site[1]) if site else 0
    source = f"{layer}-{name}" + (f"__{suffix}" if suffix else "")
    return {
        "model_id": str(meta.get("model", records.id)),
        "layer": layer,
        "sae_set": name,
        "sae_id_suffix": suffix,
        "source": source,
    }


def batch(records: LatentRecords, latents: list[int], contexts: int) -> dict[str, Any]:
    """Latents of one dictionary as an importable batch."""
    where = place(records)
    features = [dashboard(records, i, contexts) for i in latents]
    return {k: where[k] for k in ("model_id", "layer", "sae_set", "sae_id_suffix")} | {"features": features}


def dashboard(records: LatentRecords, latent: int, contexts: int) -> dict[str, Any]:
    """One latent as a ``NeuronpediaDashboardFeature``."""
    return {
        "feature_index": latent,
        **{k: [] for k in _EMPTY},
        **_logits(records, latent),
        **_frequencies(records, latent),
        "n_prompts_total": int(records.metadata.get("n_sequences", 0)),
        "n_tokens_in_prompt": int(records.metadata.get("ctx", 0)),
        "dataset": str(records.metadata.get("text", "")),
        "activations": _activations(records, latent, contexts),
        "vector": [],
    }


def feature(records: LatentRecords, latent: int, contexts: int) -> dict[str, Any]:
    """One latent as Neuronpedia's interface answers it: ``GET /api/feature/<model>/<source>/<index>``."""
    where, row, meta = place(records), records.row(latent), records.metadata
    near = records.neighbours(latent) or []
    key = {"modelId": where["model_id"], "layer": where["source"], "index": str(latent)}
    label = row.get("label")
    explanations = [] if not isinstance(label, str) else [_explanation(key, label, row)]
    return {
        **key,
        "sourceSetName": where["sae_set"],
        "hookName": str(meta.get("hook", "")),
        "maxActApprox": _round(row.get("max", 0.0)),
        "hasVector": False,
        "vector": [],
        "topkCosSimIndices": [i for i, _ in near],
        "topkCosSimValues": [_round(v) for _, v in near],
        **{k: [] for k in _EMPTY},
        **_logits(records, latent),
        **_frequencies(records, latent),
        "activations": [_answer(a, key) for a in _activations(records, latent, contexts)],
        "explanations": explanations,
    }


def _explanation(key: dict[str, str], label: str, row: dict[str, Any]) -> dict[str, Any]:
    source = row.get("label_source")
    scored = isinstance(row.get("label_score"), float)
    return {
        **key,
        "description": valid(label),
        "typeName": f"workbench-{source}" if source else "workbench",
        "explanationModelName": str(source) if source else None,
        "scores": [{"explanationScoreTypeName": "workbench", "value": _round(row["label_score"])}] if scored else [],
    }


def _round(value: float) -> float:
    """Seven significant digits: float32, and nothing after it."""
    return float(f"{float(value):.7g}")


def _logits(records: LatentRecords, latent: int) -> dict[str, Any]:
    effects = records.logits(latent)
    out: dict[str, Any] = {}
    for key, side in (("neg", effects.suppressed if effects else []), ("pos", effects.promoted if effects else [])):
        out[f"{key}_str"] = [valid(t) for _, t, _ in side]
        out[f"{key}_values"] = [_round(v) for _, _, v in side]
    return out


def _frequencies(records: LatentRecords, latent: int) -> dict[str, Any]:
    """The bars that hold anything, at the geometric middle of their bins."""
    h = records.histogram(latent)
    counts, edges = np.asarray(h.counts, np.int64), np.asarray(h.edges, np.float64)
    used = np.flatnonzero(counts)
    bars = range(int(used[0]), int(used[-1]) + 1) if len(used) else range(0)
    return {
        "frac_nonzero": _round(h.n / h.n_tokens) if h.n_tokens else 0.0,
        "freq_hist_data_bar_values": [_round(np.sqrt(edges[j] * edges[j + 1])) for j in bars],
        "freq_hist_data_bar_heights": [int(counts[j]) for j in bars],
    }


def _activations(records: LatentRecords, latent: int, contexts: int) -> list[dict[str, Any]]:
    """Top contexts (bin -1), then the quantiles of the activation mass; a bin's limits are those of the contexts shown
    from it.
    """
    fired = sum(records.available(latent, g) for g in _QUANTILES if g in records.groups)
    out = []
    for group in ("top", *_QUANTILES):
        if group not in records.groups:
            continue
        found = records.contexts(latent, group, contexts)
        values = [c.value for c in found]
        low, high, share = (
            (min(values), max(values), records.available(latent, group) / max(1, fired)) if values else (0.0, 0.0, 0.0)
        )
        bin = {"bin_min": _round(low), "bin_max": _round(high), "bin_contains": _round(share)}
        if group == "top":
            bin |= {"bin_min": -1, "bin_contains": -1}
        out += [
            bin
            | {
                "tokens": [valid(t) for t in c.tokens],
                "values": [_round(v) for v in c.acts],
                "qualifying_token_index": c.peak,
            }
            for c in found
        ]
    return out


def _answer(a: dict[str, Any], key: dict[str, str]) -> dict[str, Any]:
    """One activation as the interface names its parts."""
    values = a["values"]
    return {
        **key,
        "tokens": a["tokens"],
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": values.index(max(values)),
        "minValue": min(values),
        "binMin": a["bin_min"],
        "binMax": a["bin_max"],
        "binContains": a["bin_contains"],
        "qualifyingTokenIndex": a["qualifying_token_index"],
    }
