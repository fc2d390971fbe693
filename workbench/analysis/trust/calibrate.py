"""Does the combined score tell planted latents from junk, and does it mean what it says?

Dictionaries with more latents than they need are trained, two seeds each, on worlds of planted features
(:mod:`sae.worlds`). A latent is *planted* where its activations follow one planted feature with a correlation of at
least ``PLANTED``, else *junk*: a mixture, a half of a split, a latent for what others left over. The score is fitted on
some worlds and read on others, whose seeds and sizes no setting was chosen on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from sae.worlds import World, WorldConfig
from sae.worlds.benchmark import Budget, Pool, config_of, trained
from workbench.analysis.latents.encoded import from_rows
from workbench.analysis.trust.directions import absorption, agreement
from workbench.analysis.trust.found import found_again
from workbench.analysis.trust.score import FEATURES, Weights, features_of, word_of
from workbench.results.trust import MIXED, WEAK, WELL
from workbench.stats import interval95

PLANTED = 0.7
ROWS, GROUP = 20_000, 100  # scored rows, and how many stand for a sequence
MIN_FIRINGS = 20


@dataclass(frozen=True)
class Setting:
    """A world of ``features`` in ``width`` dimensions, ``roots`` trees, and a dictionary of ``latents``, ``k`` on."""

    features: int
    width: int
    roots: int
    latents: int
    k: int
    steps: int = 400

    @property
    def name(self) -> str:
        """As a table calls it."""
        trees = f", {self.roots} trees" if self.roots else ""
        return f"{self.features} features in {self.width} dimensions{trees}; {self.latents} latents, k = {self.k}"


FIT = (Setting(128, 64, 0, 256, 8), Setting(128, 64, 0, 512, 8), Setting(256, 64, 2, 512, 10))
HELD_OUT = (Setting(128, 64, 0, 384, 8), Setting(192, 64, 1, 512, 10), Setting(256, 96, 2, 512, 10))


def evidence(setting: Setting, seed: int) -> pd.DataFrame:
    """One row per latent that fires at least ``MIN_FIRINGS`` times: the columns of a card that a world has, and
    ``planted``.
    """
    s = setting
    config = {"n_features": s.features, "width": s.width, "roots": s.roots, "p_max": 0.1, "p_min": 0.005}
    world = World(WorldConfig(**config, seed=seed, depth=2 if s.roots else 3))  # type: ignore[arg-type]
    budget = Budget(latents=s.latents, k=s.k, steps=s.steps, seeds=1)
    pool = Pool.drawn(world, budget, seed)
    made = [trained(config_of("topk", "few-steps", s.width, budget, n), pool)[0] for n in (0, 1)]
    x, planted = world.sample(ROWS, torch.Generator().manual_seed(1_000_003 + seed))
    seq = np.arange(ROWS) // GROUP
    codes = [_codes(dictionary, x, seq) for dictionary in made]
    own = found_again(codes[0], codes[1], seq, min_firings=MIN_FIRINGS, seed=seed)
    cosine, chance = agreement(made[0])
    a = absorption(made[0], codes[0], lambda at: x[at], seed=seed)
    table = pd.DataFrame(
        {
            "seed_r": own.r,
            "seed_chance": own.chance,
            "agreement": cosine,
            "agreement_chance": chance,
            "absorbed_share": a.absorbed / np.maximum(a.should, 1),
            "planted": follows(codes[0], planted.numpy()) >= PLANTED,
        }
    )
    return table[np.isfinite(table["seed_r"])].reset_index(drop=True)


def follows(codes: sp.csr_array, planted: np.ndarray) -> np.ndarray:
    """[F] largest Pearson correlation of each latent's activations with the size of a planted feature [N, G]; 0 where
    one of them is constant.
    """

    def standard(values: np.ndarray) -> np.ndarray:
        centred = values - values.mean(0)
        length = np.linalg.norm(centred, axis=0)
        return centred / np.where(length > 1e-9, length, np.inf)

    r = standard(codes.toarray().astype(np.float64)).T @ standard(planted.astype(np.float64))
    return np.asarray(r.max(1))


def _codes(dictionary: Any, x: torch.Tensor, seq: np.ndarray) -> sp.csr_array:
    with torch.inference_mode():
        values, indices = dictionary.encode_sparse(x)
    found = from_rows(int(dictionary.W_dec.shape[0]), seq, seq, seq, values.numpy(), indices.numpy())
    return sp.csr_array(found.matrix().tocsr())


def gathered(settings: tuple[Setting, ...], seeds: tuple[int, ...], done: Callable[[str], None]) -> pd.DataFrame:
    """:func:`evidence` of every setting and seed, one under the other; ``done`` hears of each."""
    parts = []
    for setting in settings:
        for seed in seeds:
            parts.append(evidence(setting, seed).assign(setting=setting.name, seed=seed))
            done(f"{setting.name}, world {seed}")
    return pd.concat(parts, ignore_index=True)


def fit(table: pd.DataFrame) -> Weights:
    """Logistic weights of the features, every world's latents counting the same."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000).fit(features_of(table), table["planted"])
    return Weights(float(model.intercept_[0]), dict(zip(FEATURES, map(float, model.coef_[0]), strict=True)))


def area(score: Any, planted: np.ndarray, *, resamples: int = 200, seed: int = 0) -> tuple[float, float, float]:
    """(AUROC, low, high): with a 95 % bootstrap over latents."""
    from sklearn.metrics import roc_auc_score

    score = np.asarray(score, np.float64)
    rng, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        at = rng.integers(0, len(score), len(score))
        if 0 < planted[at].sum() < len(at):
            draws.append(roc_auc_score(planted[at], score[at]))
    low, high = interval95(draws)
    return float(roc_auc_score(planted, score)), float(low), float(high)


def reliability(score: np.ndarray, planted: np.ndarray, bins: int = 5) -> pd.DataFrame:
    """Per fifth of the score: ``low``, ``high``, ``n``, mean ``score``, share ``planted`` with its Wilson interval."""
    from workbench.stats import wilson

    edges, rows = np.linspace(0, 1, bins + 1), []
    which = np.minimum((score * bins).astype(int), bins - 1)
    for b in range(bins):
        inside = which == b
        share = wilson(int(planted[inside].sum()), int(inside.sum()), "latents")
        said = float(score[inside].mean()) if inside.any() else float("nan")
        rows.append((edges[b], edges[b + 1], int(inside.sum()), said, share.value, share.low, share.high))
    return pd.DataFrame(rows, columns=["low", "high", "n", "score", "planted", "planted_low", "planted_high"])


def by_word(score: np.ndarray, planted: np.ndarray) -> dict[str, dict[str, Any]]:
    """Of the latents that each word is said of, the share that is planted, with its Wilson interval."""
    from workbench.stats import wilson

    words = np.array([word_of(s) for s in score.tolist()])
    said = {w: words == w for w in (WELL, MIXED, WEAK)}
    return {w: wilson(int(planted[at].sum()), int(at.sum()), "latents").as_dict() for w, at in said.items()}


FIT_SEEDS, HELD_OUT_SEEDS = (0, 1), (100, 101)


def runs(quick: bool) -> int:
    """How many worlds :func:`report` reads."""
    return 1 if quick else len(FIT) * len(FIT_SEEDS) + len(HELD_OUT) * len(HELD_OUT_SEEDS)


def report(*, quick: bool = False, done: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """What the score is worth: ``auroc`` with its interval, over all held-out worlds and in each, that of every feature
    alone, ``reliability`` per fifth of the score, and the ``weights`` in use beside those fitted anew.

    Args:
        quick: the weights in use on one held-out world; nothing is fitted.
    """
    from workbench.analysis.trust.score import WEIGHTS

    fitted = None if quick else fit(gathered(FIT, FIT_SEEDS, done))
    table = gathered(HELD_OUT[:1] if quick else HELD_OUT, HELD_OUT_SEEDS[: 1 if quick else None], done)
    planted = table["planted"].to_numpy()
    score = WEIGHTS.score(table)
    alone = {name: area(-table[name] if name == "absorbed_share" else table[name], planted) for name in FEATURES}
    worlds = [
        {
            "world": name,
            "seed": int(seed),
            "n": len(part),
            "planted": float(part["planted"].mean()),
            "auroc": area(WEIGHTS.score(part), part["planted"].to_numpy()),
        }
        for (name, seed), part in table.groupby(["setting", "seed"], sort=False)
    ]
    return {
        "benchmark": "trust",
        "quick": quick,
        "n": len(table),
        "planted": int(planted.sum()),
        "auroc": area(score, planted),
        "alone": alone,
        "worlds": worlds,
        "words": by_word(score, planted),
        "reliability": reliability(score, planted).replace({np.nan: None}).to_dict("records"),
        "weights": asdict(WEIGHTS),
        "fitted": None if fitted is None else asdict(fitted),
    }


def markdown(document: dict[str, Any]) -> str:
    """The report as a page of the documentation."""
    d = document

    def said(found: tuple[float, float, float]) -> str:
        return f"{found[0]:.3f} [{found[1]:.3f}, {found[2]:.3f}]"

    lines = [
        "# Does the score tell planted latents from junk?",
        "",
        "Written by `workbench benchmark trust --write FILE`. Dictionaries with more latents than they need, two seeds"
        " each, on worlds of planted features. A latent is *planted* where its activations follow one planted feature"
        f" with r of at least {PLANTED}, else *junk*. The weights were fitted on {len(FIT)} kinds of worlds with seeds"
        f" {', '.join(map(str, FIT_SEEDS))}; everything here is read on other kinds with seeds"
        f" {', '.join(map(str, HELD_OUT_SEEDS))}. What the score is made of, and what it does not know:"
        " [Evidence for a latent](explanation/evidence.md#one-word).",
        "",
        f"**AUROC {said(d['auroc'])}** over {d['n']:,} latents, {d['planted']:,} of them planted (95 % bootstrap over"
        " latents).",
        "",
        "| evidence alone | AUROC |",
        "|---|---|",
        *(f"| `{name}` | {said(found)} |" for name, found in d["alone"].items()),
        "",
        "| world and dictionary | seed | latents | planted | AUROC |",
        "|---|---|---|---|---|",
        *(
            f"| {w['world']} | {w['seed']} | {w['n']:,} | {w['planted']:.0%} | {said(w['auroc'])} |"
            for w in d["worlds"]
        ),
        "",
        "Calibration: of the latents that a word is said of, the share that is planted (Wilson, 95 %).",
        "",
        "| word | latents | planted |",
        "|---|---|---|",
        *(
            f"| {word} | {e['n']:,} | {said((e['value'], e['low'], e['high'])) if e['n'] else '–'} |"
            for word, e in d["words"].items()
        ),
        "",
        "Of the latents with a score in a fifth, the share that is planted (Wilson, 95 %).",
        "",
        "| score | latents | mean score | planted |",
        "|---|---|---|---|",
    ]
    for r in d["reliability"]:
        shares = "–" if not r["n"] else said((r["planted"], r["planted_low"], r["planted_high"]))
        mean = "–" if not r["n"] else f"{r['score']:.3f}"
        lines.append(f"| {r['low']:.1f}–{r['high']:.1f} | {r['n']:,} | {mean} | {shares} |")
    weights = d["weights"]
    lines += [
        "",
        f"Weights in use: intercept {weights['intercept']:.3f}, "
        + ", ".join(f"`{name}` {w:.3f}" for name, w in weights["features"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"
