"""Which claims answer for which rows: the findings of the three papers that can be tried in miniature, and what they
left open.

A row stands for one finding as a paper reports it, or one question its reviewers asked. Every claim belongs to at least
one row and every row has at least one claim; a row that the bundled models cannot carry has claims that say so when
they run.
"""

from __future__ import annotations

ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "llama-scope": {
        "Top-K over L1 at equal L0: explained variance and loss": ("topk-frontier", "topk-frontier-loss"),
        "wider is better, cheaper, and fires more rarely": ("wider-better", "wider-cheaper", "wider-rarer"),
        "decoder-norm selection against unit norms": ("norm-selection",),
        "K-annealing": ("k-annealing", "k-annealing-error"),
        "Top-K to JumpReLU": ("jumprelu-conversion",),
        "folding changes nothing": ("folding",),
        "longer contexts": ("longer-context",),
        "a fine-tuned model": ("fine-tuned",),
        "geometry: Top-K and L1 find the same directions": ("geometry",),
    },
    "universality": {
        "order of similarity: random, neurons, architectures, model seed, SAE seed": (
            "neurons-above-chance",
            "latents-above-neurons",
            "architecture-below-seed",
            "model-seed-below-sae-seed",
            "very-similar-share",
        ),
        "complexity against similarity": ("complexity",),
        "monosemanticity against similarity": ("monosemanticity",),
        "similar latents at similar depth": ("depth",),
        "induction in the Transformer": ("transformer-induction",),
        "induction in the Mamba: few layers": ("mamba-few-layers",),
        "the write profile: off by one": ("off-by-one", "off-by-one-relay"),
        "the role of the convolution": ("convolution-carries", "convolution-needed"),
        "open: chance per firing frequency": ("chance-by-frequency",),
        "open: dictionaries of untrained models": ("training-matters",),
        "open: alignment of the two models' tokens": ("alignment",),
        "open: what partners do in each other's place": (
            "transplant-repairs",
            "correlation-foretells-transplants",
            "given-token-foretells-better",
        ),
        "open: off by one over seeds": ("off-by-one-seeds",),
        "open: off by one over convolution widths": ("off-by-one-widths",),
        "open: size of the state": ("state-size",),
        "open: depth of the Mamba": ("layers-needed",),
        "open: do similar latents do the same?": ("similar-latents-same-effects", "similarity-tells-effects"),
        "open: is off by one a law, or one relay of several?": ("off-by-one-law", "offset-follows-the-tap"),
        "open: when in training does similarity arise?": ("similarity-comes-with-copying",),
        "open: which concepts come first in which architecture?": (
            "same-order-in-training",
            "context-later-in-mamba",
        ),
    },
    "evolution": {
        "frontier against an SAE of the last snapshot": ("single-sae-gap",),
        "initialisation and emergent latents, two groups, a dip": (
            "initialisation-latents",
            "emergent-latents",
            "two-groups",
            "initialisation-dip",
        ),
        "the turning point": ("turning-point",),
        "the n-gram phase": (
            "n-gram-phase-ends",
            "unigram-before-bigram",
            "entropies-crossed-in-order",
            "n-grams-before-induction",
        ),
        "dimensionality compresses, then expands": ("dimensionality",),
        "order of the classes": (
            "token-before-previous-token",
            "previous-token-before-induction",
            "token-before-induction",
            "token-before-context",
            "induction-before-context",
        ),
        "complexity against time": ("complexity-and-emergence",),
        "attribution: few latents carry a task": ("attribution-faithful", "agreement-attribution-faithful"),
        "decoder norm against a linear probe": ("norm-tracks-probe",),
        "control: copies of one snapshot": ("same-snapshot-control",),
        "open: emergence without norms": ("norm-free-emergence", "emergent-norm-free"),
        "open: controls of the same size, frequency and magnitude": (
            "attribution-beats-frequency",
            "attribution-beats-magnitude",
        ),
        "open: does a skill follow its latents?": ("latents-precede-induction",),
        "open: logarithmic against linear axes": ("axes",),
        "open: is the turning point the warm-up's end?": ("warm-up",),
        "open: do trajectories belong to the model or to the crosscoder?": ("trajectories-of-the-model",),
        "open: is the order one run's or every run's?": (
            "unigram-before-bigram-over-runs",
            "n-grams-before-induction-over-runs",
            "previous-token-heads-first-over-runs",
        ),
        "open: retrained without one skill, do exactly the attributed latents vanish?": (
            "latents-vanish-without-the-skill",
        ),
    },
}
