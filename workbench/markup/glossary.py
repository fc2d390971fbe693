"""What the field's words mean, in one sentence each: the only source of such lines.

Pages put them behind a dotted underline (:func:`term`), in prose and below every figure for its axes, and behind
headers of tables and names of numbers (:func:`meaning`); ``workbench VERB --help`` ends with those its text uses
(:func:`used_in`); the documentation lists them all, and every one of the pages is a link to its line there.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

GLOSSARY_PAGE = "glossary.html"
_LINKS: list[str] = []  # where the documentation lies for the pages of this process; empty: words are no links
_STANDING_ALONE: ContextVar[bool] = ContextVar("standing_alone", default=False)

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
    "activation": "How strongly a latent is on at a token; 0 where it is silent.",
    "massive": "A row longer than ten times the median of its site: a few such tokens hold much of all squared norm.",
    "fires": "A latent fires on a token where its activation is above zero.",
    "raises": "The next token that a latent's direction makes more likely, by what it adds to the logits.",
    "lowers": "The next token that a latent's direction makes less likely.",
    "context": "A piece of text around a token on which the latent was looked at.",
    "token": "A piece of text that the model reads as one: a word, a part of one, a sign.",
    "residual stream": "The list of numbers a Transformer or Mamba carries from layer to layer for each token.",
    "hook": "The name of a place in the model at which its numbers can be read or changed.",
    "sparse autoencoder": "A dictionary that rebuilds what it reads, with few latents on at a time (SAE).",
    "transcoder": "A dictionary that reads what goes into an MLP and rebuilds what comes out of it.",
    "state write": "What a recurrent layer adds to its state at a token: a key times a value.",
    "dictionary of writes": "A dictionary that rebuilds a recurrent layer's state writes; its latents are such, too.",
    "crosscoder": "A dictionary that reads several models or snapshots at once and shares its latents between them.",
    "Top-K": "The kind of dictionary that keeps the k largest activations of a token and sets the others to zero.",
    "store": "The activations of models on a text, kept on disk so that dictionaries can be trained on them.",
    "workspace": "The folder that holds all results; it can be copied.",
    "data version": "The first eight digits of a result's own digest; another number means other data.",
    "stale": "Made from something that has been made again since: right about what was there before.",
    "null": "What the same measurement gives where there is nothing to find.",
    "95 %": "The interval in which the true value lies in 95 of 100 such measurements.",
    "n": "How many cases the number rests on.",
    "p": "How often chance alone gives a value at least as large.",
    "verdict": "Whether the interval and the control support the statement, contradict it, or leave it open.",
    "given the token": "The correlation that is left when each latent's mean per token is taken away: shared use of"
    " context, not of the same word.",
    "same-token": "The correlation that is left when activations are exchanged among occurrences of the same token:"
    " what shared input alone gives.",
    "KL": "How far the probabilities of the next token move, in nats: 0 not at all.",
    "loss": "How surprised the model is by the next token, in nats: lower is better.",
    "influence": "The share of what reaches the outputs, along all paths, that goes through a node of a graph.",
    "replacement": "The share of a graph's paths from tokens to outputs that run through latents, not through what"
    " dictionaries miss.",
    "completeness": "The share of what enters a graph's nodes, weighed by influence, that comes from latents or tokens,"
    " not from what dictionaries miss.",
    "ablation": "Setting a part of the model to zero, or to its mean, to see what depends on it.",
    "induction": "Copying what followed the last time: after “A B … A”, expecting “B”.",
    "label": "A short text that says on what a latent fires, by a rule or a language model, with its score.",
}
READ_ON = {  # where the documentation says more than a line: the page below docs/
    "latent": "explanation/evidence.md",
    "dictionary": "explanation/topk.md",
    "EV": "explanation/numbers.md",
    "L0": "explanation/numbers.md",
    "density": "explanation/numbers.md",
    "dead": "explanation/numbers.md",
    "complexity": "explanation/numbers.md",
    "influence": "how-to/graph.md",
    "replacement": "how-to/graph.md",
    "completeness": "how-to/graph.md",
    "r": "explanation/mppc.md",
    "twin": "explanation/mppc.md",
    "MPPC": "explanation/mppc.md",
    "chance": "explanation/mppc.md",
    "null": "explanation/mppc.md",
    "given the token": "explanation/mppc.md",
    "same-token": "explanation/mppc.md",
    "emergence": "explanation/norms.md",
    "decoder norm": "explanation/norms.md",
    "snapshot": "how-to/evolve.md",
    "crosscoder": "explanation/norms.md",
    "transcoder": "how-to/transcoder.md",
    "token detector": "explanation/evidence.md",
    "absorbed": "explanation/evidence.md",
    "near miss": "explanation/evidence.md",
    "Top-K": "explanation/topk.md",
    "induction": "explanation/off-by-one.md",
    "Mamba": "explanation/off-by-one.md",
    "store": "how-to/harvest.md",
    "workspace": "how-to/keep.md",
    "data version": "how-to/stale.md",
    "stale": "how-to/stale.md",
    "verdict": "claims.md",
    "label": "how-to/label.md",
    "ablation": "how-to/intervene.md",
}
_PLACES = {  # another name a page gives to one of these
    "Complexity": "complexity",
    "Pearson r": "r",
    "Chance, 99 %": "chance",
    "chance 99 %": "chance",
    "null_q99": "chance",
    "chance, 99 %": "chance",
    "density %": "density",
    "dead %": "dead",
    "active per token (L0)": "L0",
    "Mean best r": "MPPC",
    "Mean max r": "MPPC",
    "max r": "MPPC",
    "maximal Pearson correlation r": "maximal correlation r",
    "mean r": "MPPC",
    "explained variance": "EV",
    "explained": "EV",
    "explained_variance": "EV",
    "promotes": "raises",
    "promoted_text": "raises",
    "loss recovered": "recovered",
    "ce_recovered": "recovered",
    "latents": "latent",
    "tokens": "token",
    "latents kept alone": "latents kept",
    "value": "measured value",
    "low": "95 %",
    "high": "95 %",
}
LABELS = {  # columns of tables, names of numbers, badges, and axes: what stands there
    "architecture": "how the model reads what came before: a Transformer by attention, a Mamba by a running state",
    "model": "the language model whose inner numbers are looked at",
    "third": "which third of the shared latents, by how much of their code the token leaves open",
    "share emerged": "share of the latents that have reached half of their largest value by this training step",
    "later, doublings of the step": "how far one model is behind another: 1 where it takes twice the training steps",
    "written at token": "the token at which something was put into the state, or at which attention's value stands",
    "read at token": "the token that takes something of what earlier ones have left",
    "share of what a position receives": "how much of all that it reads, by size, comes from what this token has left",
    "fall of the next token's log probability, nats": "what a prediction loses without what the token has left",
    "what is left of the write": "share of its size that has not decayed so many tokens later",
    "number": "a number that the program shows",
    "rows it stands on": "whether massive rows are among those it is computed on",
    "rows": "rows of activations: one for each token that counts",
    "of all squared norm": "their share of the squared lengths of all rows",
    "mostly at position": "where in the sequence most of them lie",
    "on tokens": "the tokens on which most of them lie",
    "EV without": "explained variance on the rows that are not massive",
    "prompts": "short texts made for one task, each with a right and a wrong next token",
    "fired on": "tokens on which the latent fires",
    "n_fired": "tokens on which the latent fires",
    "fires on": "its label, else the token on which it fires most",
    "peaks on": "the token on which the latent fires most",
    "peak token": "the token on which the latent fires most",
    "peak_text": "the token on which the latent fires most",
    "max": "the latent's largest activation",
    "mean": "mean activation over the tokens it fires on",
    "std": "spread of the activation over the tokens it fires on",
    "label score": "how well the label predicts held-out tokens; 1 is best, 0 a label that says nothing",
    "detection": "its label told which held-out excerpts hold a firing: balanced accuracy, 0.5 is chance",
    "near misses": "detection among silent excerpts that share most tokens with those it fires on; 0.5 is chance",
    "fuzzing": "its label told whether marked tokens are those it fires on: balanced accuracy, 0.5 is chance",
    "simulation": "correlation of activations guessed from its label with the true ones, over all tokens",
    "twin r": "correlation with the latent's best partner in another model",
    "atoms": "latents of a dictionary of writes, each a write itself",
    "atoms win": "share of firings at which an atom in a write's place leaves the model nearer its clean run than none",
    "strongest atoms": "atoms win, of firings at which the atom is the strongest of its write",
    "beats another atom": "share of firings at which it leaves the model nearer than another atom of its size does",
    "damage repaired": "share of what writing nothing costs, in nats, that the atom in its place saves",
    "closed form": "how much of the measured change of the logits its formula tells; later layers are not in it",
    "support": "of latents with such evidence, the share that is real where the truth is known",
    "seed r": "correlation with the latent's best partner in another seed",
    "untrained r": "correlation with its best partner in the untrained model: high for a detector of tokens",
    "born at step": "when the nearest crosscoder latent reaches half of its largest norm",
    "activations": "histogram of positive activations, log counts on a log grid",
    "nearest": "decoder cosine with its nearest neighbour",
    "cosine": "how much two directions point the same way: 1 the same, 0 unrelated",
    "weight": "what one unit of the first node's activation adds to the second",
    "partner": "number of the latent's best partner",
    "partner in": "dictionary of the partner",
    "best partner": "the latent of the other side with the largest r",
    "partner fires on": "label of the partner, else the token on which it fires most",
    "both fire": "tokens on which both latents fire",
    "n_cofire": "tokens on which both latents fire",
    "fired": "tokens on which the latent fires",
    "second best r": "correlation with the next best partner",
    "mutual": "each is the other's best partner",
    "each other's best": "whether each is the other's best partner",
    "matched": "latents whose best r is high and above chance",
    "emerges at step": "first snapshot with at least half of the largest decoder norm",
    "peaks at step": "snapshot with the largest decoder norm",
    "fades at step": "first snapshot after the peak below half of it",
    "lifespan": "share of the snapshots with more than half of the largest norm",
    "class": "there from the start, or emerging in training",
    "kind": "what the latent responds to, by rule",
    "norm over training": "decoder norm at every snapshot",
    "strongest context": "the held-out text on which the latent is strongest, shaded by its activation",
    "measured value": "what was measured",
    "effect": "the metric after the change minus before",
    "step": "training step of the model",
    "snapshots": "how many steps of training are looked at",
    "series": "which latents, or which control, are correlated with those of this side",
    "difference of mean r": "mean best r of the second series minus that of the first",
    "above chance": "latents whose best r is above what chance gives for their frequency",
    "order of baselines": "whether every series is more alike than the one that should be less",
    "median cosine": "middle of the cosines with each latent's nearest neighbour",
    "isotropic": "the same for directions drawn evenly: chance",
    "recovered": "how much of the damage of setting the site to zero the dictionary avoids: 1 all, 0 none",
    "δ loss": "loss with the reconstruction in place minus without, nats per token",
    "maximal correlation r": "of each latent with its best partner in the other dictionary; 1 together, 0 unrelated",
    "mean maximal correlation r": "mean over latents of r with the best partner; read it beside the controls",
    "activation where it fires": "how strongly the latent is on, where it is on at all",
    "cosine with the nearest other direction": "how close the nearest decoder direction is; chance is drawn beside it",
    "share of tokens on which a latent fires": "the latent's density, on a log axis",
    "tokens on which the latent fires": "how often the latent fires; rare ones reach high r by chance",
    "share of latents": "of those compared",
    "share": "of all that are counted",
    "share of matched latents": "of those whose best partner counts as a match",
    "latents that emerge": "latents that first reach the chosen share of their largest norm at this step",
    "decoder norm / its largest": "a latent's decoder norm relative to its largest over training",
    "direct logit effect per unit of activation": "what the latent's direction alone adds to a next token's score",
    "task metric": "how well the model does the task when latents are destroyed or kept",
    "latents destroyed": "how many latents, in the order of the ranking, are set to zero",
    "latents kept": "how many latents, in the order of the ranking, are left; all others are set to zero",
    "convolution tap": "how many tokens back the Mamba's convolution reads",
    "through": "the head, or the channel of the state, that it passes",
    "brings": "what all sources send to the node through it",
    "most from": "the token of the prompt at which it reads most",
    "query": "what the looking position holds",
    "adds": "what the pair adds to the score with which the head looks there",
    "next token": "a token that may follow the prompt",
    "points": "change of the token's probability, in percentage points",
    "output's logit, less the mean": "the output whose score over the mean of all is followed",
    "predicted": "the change that the graph's edges say",
    "measured": "the change that the model shows",
    "firing alone": "repaired by the partner's activation along the latent's own direction: what firing alike gives",
    "evidence": "what speaks for the latent, or against it",
    "here": "this latent's number",
    "repaired": "share of the ablation's damage that is gone with the partner in the latent's place",
    "another's partner": "the same with the partner of another latent as frequent: chance",
    "ceiling": "the same with the most that a replacement of this kind could repair",
    "of the ceiling": "repaired by partners, of what the ceiling repairs",
    "follows r": "rank correlation of the repaired share with r: whether latents that fire alike do alike",
    "… given the token": "the same with the correlation that is left once each latent's mean per token is taken away",
    "decoders carried": "how well the map between the two spaces carries decoder rows of pairs it did not see",
    "training step": "training step of the model",
    "value of the statistic": "what was measured, with its interval; the null stands beside it",
    "loss of the language model, nats": "how surprised the model is by the next token: lower is better",
    "mean decoder norm": "mean over latents of the length of the direction they write",
    "share of latents with at least r": "how many latents reach r with their best partner; higher: more alike",
    "mean maximal r": "mean over latents of r with the best partner within that layer",
    "log10 of the share of tokens it fires on": "density as a power of ten: -3 is one token in a thousand",
    "head": "an attention head of the layer",
    "layer": "which layer of the model, from 0",
    "log10 tokens": "how many tokens there are, as a power of ten",
    "unit of a claim": "in what the claim's effect and its control are measured; the caption says how",
    "effect, relative to the larger of effect and control": "1 is the larger of the two: claims in different units side"
    " by side",
    "claims": "how many statements have this verdict",
    "correlation of activity": "how alike the two latents are in when and how strongly they fire",
    "correlation of trajectories": "how alike the two latents' norms change over training",
    "correlation of effects": "how alike what the two latents do to the next token is",
    "share of the layer's own write profile": "how much of what the layer writes in all lies at that offset",
    "share of the rise, or accuracy": "0 at the first snapshot and 1 at the last; of copying, the share done right",
    "KL from the unchanged model, nats": "how far the next token's probabilities move from those without the change",
    "perplexity under the unchanged model": "how surprised the model without the change is by the text; 1 at best",
    "KL to unigram frequencies, nats": "how far predictions are from plain frequencies of tokens",
    "KL to bigrams, nats": "how far predictions are from what the token before alone says",
    "entropy H1": "how uncertain the next token is by plain frequencies of tokens, in nats",
    "entropy H2": "how uncertain the next token is where the token before is known, in nats",
    "feature dimensionality": "share of the space's dimensions that the latents use together; 1: all of them",
    "cosine with the next snapshot": "how much a latent's direction stays as it is until the next snapshot",
    "rank correlation": "whether what is larger in one is larger in the other: 1 always, 0 unrelated",
    "snapshots earlier": "how many snapshots before; negative: after",
    "area between the curves": "how much further the attribution's top latents move the metric than the control's",
    "median maximal r": "middle over latents of r with the best partner within that layer",
    "90 % quantile of maximal r": "the r with the best partner within that layer that 10 % of latents exceed",
    "share with r ≥ 0.5": "share of latents whose best partner within that layer has r of a half or more",
    "largest activation": "the strongest the latent was on any token",
    "position: token": "where in the sequence, and on which token",
    "share of all squared norm": "their share of the squared lengths of all rows",
    "score": "how well the label tells where the latent fires; the caption says what chance is",
    "rank in its write (1: strongest)": "by strength among the atoms of that write",
    "share of firings nearer to the clean run than with nothing written": "a half is no better than writing nothing",
    "r given the token": "the correlation that is left when each latent's mean per token is taken away",
    "cosine of mapped decoder rows": "how well the map carries the latent's direction onto its partner's",
    "share of the ablation's damage repaired": "1: as if nothing was taken away; 0: as bad as with the latent removed",
    "correlation, cosine or share": "each number in its own measure; all lie between 0 and 1 or -1 and 1",
    "delta LM loss (nats)": "loss with the reconstruction in place minus without, per token",
    "dead latents (share)": "latents that never fired on the tokens that were looked at, of all",
}
_AXES = {  # labels that name a model, a metric or a latent
    r"token offset from .+": "how many tokens after the marked token of the prompt: 0 is the token itself, 1 the next",
    r"written at offset from .+": "at which token after the marked one the value is written into the state",
    r"tokens by which .+ is read later": "the second model read so many tokens later than the first",
    r"added to .+ at every position": "how much of the latents' directions is added; 0 changes nothing",
    r"logit of “.+” less the mean": "that token's score over the mean of all tokens' scores",
    r"probability of “.+”": "how likely the model finds that token next",
    r"decoder norm, .+": "the length of the direction a latent writes, on the scale that is named",
    r"layer of .+": "which layer of that model, from 0",
    r"activation of .+": "how strongly that latent is on at the token",
    r"change of .+": "the metric after the change minus before",
    r"Δ .+": "the metric after the change minus before",
    r"r \(left: .+\)": "mean best r of the latents of each side",
}


def _entry(label: str) -> str | None:
    """The key under which a word, a column, the name of a number or an axis is explained."""
    plain = " ".join(label.split())
    for key in (plain, _PLACES.get(plain, ""), plain.lower(), _PLACES.get(plain.lower(), "")):
        if key in TERMS or key in LABELS:
            return key
    return next((pattern for pattern in _AXES if re.fullmatch(pattern, plain)), None)


def meaning(label: str) -> str | None:
    """The one line that explains a word, a column, the name of a number or an axis; None where there is none."""
    key = _entry(label)
    return None if key is None else TERMS.get(key) or LABELS.get(key) or _AXES[key]


def anchor(label: str) -> str | None:
    """Where that line stands on the glossary's page; None where there is none."""
    key = _entry(label)
    if key is None:
        return None
    if key in _AXES:
        return "axes-that-name-something"
    return ("word-" if key in TERMS else "column-") + re.sub(r"\W+", "-", key.lower()).strip("-")


def words() -> list[str]:
    """Every word, column and axis that has a line."""
    return [*TERMS, *LABELS]


def pattern_lines() -> list[tuple[str, str]]:
    """Axes that name a model, a metric or a latent, with … in its place, and what they mean."""
    return [(re.sub(r"\.\+", "…", p).replace("\\", ""), line) for p, line in _AXES.items()]


def used_in(text: str) -> list[tuple[str, str]]:
    """Words of the glossary that a text uses, with their lines, in the order in which they first stand in it."""
    found = []
    for word, line in TERMS.items():
        plain = word if word[0].isupper() or len(word) < 3 else f"(?i:{word})"
        if len(word) > 1 and (at := re.search(rf"(?<![\w`-]){plain}(?:s|ies)?(?![\w`-])", text)):
            found.append((at.start(), word, line))
    return [(word, line) for _, word, line in sorted(found)]


def link_to(site: str) -> None:
    """From now on words of this process's pages are links into the documentation at this address."""
    _LINKS[:] = [site]


@contextmanager
def standing_alone() -> Iterator[None]:
    """Inside, words are no links: what is written here is read where the documentation does not lie beside it."""
    token = _STANDING_ALONE.set(True)
    try:
        yield
    finally:
        _STANDING_ALONE.reset(token)


def explained_at(label: str, page: str = "") -> str | None:
    """Address of a word's line in the documentation, or of ``page``; None where it has none, or words are no links."""
    found = page or ((at := anchor(label)) and f"{GLOSSARY_PAGE}#{at}")
    return f"{_LINKS[0]}{found}" if found and _LINKS and not _STANDING_ALONE.get() else None


def term(word: str, text: str | None = None, *, said: str = "", page: str = "") -> str:
    """A word as HTML with its meaning on hover, touch and focus, and a link to it where there is a site; a word without
    an entry stays as it is. ``said`` and ``page``: another line than the glossary's, and the page that says more.
    """
    line = said or meaning(word)
    shown = html.escape(text if text is not None else word)
    if line is None:
        return shown
    tip = f'class="wb-term" data-tip="{html.escape(line)}"'
    if (there := explained_at(word, page)) is None:
        return f'<span {tip} tabindex="0">{shown}</span>'
    return f'<a {tip} href="{html.escape(there)}" target="_blank">{shown}</a>'


def header(name: str) -> str:
    """A column's name as HTML: a link to its line where there is a site, else as it is."""
    shown = html.escape(name)
    there = explained_at(name)
    return shown if there is None else f'<a class="wb-said" href="{html.escape(there)}" target="_blank">{shown}</a>'


def badge(word: str, text_html: str, css: str = "") -> str:
    """A badge as HTML, with the meaning of ``word`` on hover, and a link to it where there is a site."""
    line, there = meaning(word), explained_at(word)
    attrs = f'class="{f"wb-badge {css}".rstrip()}"' + (f' title="{html.escape(line)}"' if line else "")
    if there is None:
        return f"<span {attrs}>{text_html}</span>"
    return f'<a {attrs} href="{html.escape(there)}" target="_blank">{text_html}</a>'
