"""What the field's words mean, in one sentence each, behind a dotted underline wherever one is met."""

from __future__ import annotations

import html

TERMS = {
    "latent": "One direction a dictionary has learnt, meant to stand for one thing the model knows; it fires on some"
    " tokens and is silent on the others.",
    "dictionary": "A sparse autoencoder or crosscoder: it writes a model's inner state as a sum of a few of its"
    " latents.",
    "site": "The place in the model whose activations a dictionary reads, such as the residual stream after layer 2.",
    "L0": "How many latents fire on a token, on average.",
    "EV": "Explained variance: the share of the activations' variance that the dictionary reproduces, 1 at best.",
    "dead": "A latent that never fired on the tokens that were looked at.",
    "density": "The share of tokens on which a latent fires.",
    "r": "Pearson correlation of two latents' activations over the same tokens: 1 together, 0 unrelated.",
    "twin": "The latent of another model whose activations go most closely with this one's on the same text.",
    "snapshot": "The model as it was at one step of its training.",
    "emergence": "The first snapshot at which a latent has reached half of its largest decoder norm.",
    "complexity": "The share of a latent's variance that the token and the one before it do not explain.",
    "skew": "Whether large activations are rarer (positive) or more common (negative) than small ones.",
    "kurtosis": "How much of the spread comes from few extreme activations; 3 for a bell curve.",
    "logit": "The model's score for a next token before probabilities are made of them.",
    "Mamba": "An architecture that reads text with a running state where a Transformer looks back by attention.",
    "MPPC": "Maximal pairwise Pearson correlation: r of a latent with its best partner in the other model.",
    "near miss": "A token on which the latent stays silent although it came close to firing.",
    "decoder norm": "The length of the direction a latent writes.",
    "token detector": "A latent that a dictionary of the untrained model has too: it says which token stands here.",
    "absorbed": "Silent where its direction is in the activation, because another latent carries it there.",
    "chance": "The r that 99 of 100 unrelated latents of the same frequency stay below.",
}
_PLACES = {
    "Density": "density",
    "Skew": "skew",
    "Kurtosis": "kurtosis",
    "Decoder norm": "decoder norm",
    "Complexity": "complexity",
    "Pearson r": "r",
    "Chance, 99 %": "chance",
    "Mean best r": "MPPC",
}


def term(word: str, text: str | None = None) -> str:
    """A word as HTML with its meaning on hover, touch and focus; a word without an entry stays as it is."""
    meaning = TERMS.get(word) or TERMS.get(_PLACES.get(word, ""))
    shown = html.escape(text if text is not None else word)
    if meaning is None:
        return shown
    return f'<span class="wb-term" tabindex="0" data-tip="{html.escape(meaning)}">{shown}</span>'
