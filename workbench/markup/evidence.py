"""A latent's card of evidence as HTML: every number beside chance and what it rests on."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from typing import Any

from workbench.markup.glossary import badge, term
from workbench.markup.tables import table
from workbench.markup.tags import div, span
from workbench.markup.tokens import escape, number
from workbench.results.trust import FIELDS, WELL, Field

Link = Callable[[int], str]
Partner = Callable[[str, int], str]  # (dictionary, latent) -> markup


def card_html(card: Mapping[str, Any], about: Mapping[str, Any], *, link: Link, partner: Partner) -> str:
    """The card of one latent.

    Args:
        card: its row (:meth:`workbench.results.trust.Trust.card`). about: the result's metadata. link: markup of
            another latent of the same dictionary; partner: of a latent of another one.
    """
    rows = [_row(f, card, about, partner) for f in FIELDS]
    notes = [
        n
        for n in (_detector(card), _instead(card, link), _siblings(card, link), _rule(card), _effect(card, about))
        if n
    ]
    return div(
        "wb-evidence",
        _head(card, about),
        table(["evidence", "here", "chance", "n"], rows, numeric=frozenset({1, 2, 3})),
        *(div("d", note) for note in notes),
    )


def _head(card: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """The word with its score, or why there is none."""
    word, score = card.get("word"), card.get("score")
    if word is None or score is None:
        few = (card.get("n_fired") or 0) < int(about.get("min_firings") or 0)
        why = (
            f"It fires on {card.get('n_fired') or 0:,} of {int(about.get('n_tokens') or 0):,} held-out tokens, too few"
            " to match it."
            if few
            else "No word: what the score rests on was not computed."
        )
        return div("d", why)
    css = "good" if word == WELL else ""
    said = f"{100 * score:.0f} of 100 latents with such numbers stand for one planted feature, where the truth is known"
    return div("v", badge("support", escape(word), css), span("d", said))


def _row(f: Field, card: Mapping[str, Any], about: Mapping[str, Any], partner: Partner) -> list[str]:
    name = term(f.name, said=f"{f.meaning}. {f.trap}.", page="explanation/evidence.html")
    value, n = card.get(f.value), card.get(f.n)
    if value is None:
        why = (about.get("missing") or {}).get(f.needs)
        said = f"not computed: {why}" if why else "not computed: nothing to measure it on"
        return [name, f'<span title="{html.escape(said)}">–</span>', "–", "–" if n is None else f"{n:,}"]
    chance = card.get(f.chance) if f.chance else 0.5
    other = (about.get("others") or {}).get(f.needs)
    who = card.get(f"{f.needs}_partner")
    if other and who is not None and who >= 0:
        name += f" {span('d', partner(str(other), int(who)))}"
    css = _mark(f, float(value), chance, card.get(f"{f.needs}_found"))
    shown = f'<b class="{css}">{number(value)}</b>' if css else f"<b>{number(value)}</b>"
    against = f'<span title="{html.escape(f.against)}">{number(chance)}</span>'
    return [name, shown, against, f'<span title="{html.escape(f.unit)}">{"–" if n is None else f"{n:,}"}</span>']


def _mark(f: Field, value: float, chance: float | None, found: bool | None) -> str:
    """Colour of a number: on the good side of chance, or on the other; of a match, whether it counts as found."""
    if chance is None:
        return ""
    above = value > chance if found is None else bool(found)
    return "good" if above != f.low_is_good else "bad" if f.low_is_good else ""


def _detector(card: Mapping[str, Any]) -> str:
    if not card.get("untrained_found"):
        return ""
    return "<b>Token detector</b>: the untrained model has it too, so it says which tokens stand here and little more."


def _instead(card: Mapping[str, Any], link: Link) -> str:
    who, tokens = card.get("takers") or [], card.get("taker_tokens") or []
    if not who:
        return ""
    named = ", ".join(f"{link(int(i))} ({n:,})" for i, n in zip(who, tokens, strict=False))
    return f"Fires in its place: {named}; tokens in brackets, of {card.get('should') or 0:,} on which it should."


def _siblings(card: Mapping[str, Any], link: Link) -> str:
    n, ids = card.get("siblings") or 0, card.get("sibling_ids") or []
    if not n:
        return ""
    named = ", ".join(f"{link(int(i))} ({c:.2f})" for i, c in zip(ids, card.get("sibling_cosines") or [], strict=False))
    more = f" and {n - len(ids):,} more" if n > len(ids) else ""
    return f"Nearer in direction than chance, so perhaps split: {named}{more}."


def _rule(card: Mapping[str, Any]) -> str:
    if card.get("rule") is None or card.get("label_f1") is None:
        return ""
    two = f"precision {number(card.get('label_precision'))}, recall {number(card.get('label_recall'))}"
    hard = f"on near misses {number(card.get('label_hard_precision'))} and {number(card.get('label_hard_recall'))}"
    return f"Its rule is <i>{escape(card['rule'])}</i>: {two}; {hard}."


def _effect(card: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    low, high, rank = (card.get(f"effect_{k}") for k in ("low", "high", "rank"))
    if card.get("effect") is None:
        return ""
    parts = [f"Effect in nats, 95 % [{number(low)}, {number(high)}]" if low is not None else ""]
    parts += [f"above {100 * rank:.0f} % of its peers" if rank is not None else ""]
    if card.get("effect_alone") is not None:
        parts += [f"ablated alone on {card['effect_alone_n']} of the tokens: {number(card['effect_alone'])}"]
    agreement = about.get("agreement") or {}
    if agreement.get("value") is not None:
        parts += [
            f"many latents are ablated in one pass, which agrees with one at a time at r = {agreement['value']:.2f}"
            f" (n = {agreement['n']:,})"
        ]
    return "; ".join(p for p in parts if p) + "."
