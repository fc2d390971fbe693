"""Tokens as text: nothing a token holds can become markup, move its neighbours, or read as another token."""

from __future__ import annotations

import html
import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ui.synthetic import hostile_tokens
from workbench.markup.tokens import LEVELS, cell, chip, clip, escape, level, markdown, number, strip, visible

ANY = st.one_of(st.sampled_from(hostile_tokens()), st.text(st.characters(), max_size=30))


class Parsed(HTMLParser):
    """Tags and attributes of a fragment."""

    def __init__(self, markup: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@settings(max_examples=300, deadline=None)
@given(st.lists(ANY, min_size=1, max_size=12), st.data())
def test_strip_holds_only_our_own_tags(tokens: list[str], data: st.DataObject) -> None:
    acts = data.draw(
        st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=len(tokens), max_size=len(tokens))
    )
    peak = data.draw(st.integers(0, len(tokens) - 1))
    markup = strip(
        tokens, acts, data.draw(st.floats(0, 10)), peak=peak, window=data.draw(st.sampled_from([None, 2])), breaks=True
    )
    parsed = Parsed(markup)
    assert {t for t, _ in parsed.tags} <= {"div", "b", "br", "span"}
    assert {a for _, attrs in parsed.tags for a in attrs} <= {"class", "data-v", "data-x"}
    assert sum(t == "b" and "pk" in (a["class"] or "") for t, a in parsed.tags) == 1
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") for c in parsed.text)


@settings(max_examples=300, deadline=None)
@given(ANY)
def test_escape_round_trips_to_what_is_visible(token: str) -> None:
    assert html.unescape(escape(token)) == visible(token)
    assert not set(escape(token)) & set("<>\"'")


@pytest.mark.parametrize("token", hostile_tokens())
def test_hostile_tokens_in_every_sink(token: str) -> None:
    assert {t for t, _ in Parsed(chip(token)).tags} == {"span"}
    assert "\r" not in cell(token) and "\n" not in cell(token)
    text = markdown(token)
    assert not any(text.startswith(s) for s in ("[", "*", "<", "$", ":red", "!", "`", "#"))
    assert ":material/" not in text and ":red[" not in text


def test_signs_for_whitespace_and_direction() -> None:
    assert visible("\n\t\r") == "↵⇥␍"
    assert visible("\u202eab\u200b\x00") == "⟨U+202E⟩ab⟨U+200B⟩⟨U+0000⟩"
    assert visible(" naïve 日本") == " naïve 日本"
    assert (
        cell(" the") == "␣the"
        and cell("the") == "the"
        and cell("  ") == "␣␣"
        and cell("\n        x") == "↵        x"
        and cell("        ") == "␣×8"
    )


def test_runs_of_silence_are_one_text_node() -> None:
    markup = strip(["a"] * 500, [0.0] * 250 + [2.0] + [0.0] * 249, 4.0, peak=250, start=10)
    assert len(markup) < 800
    assert markup.count("<b") == 1 and 'data-v="2 · pos 260"' in markup


def test_window_keeps_the_peak() -> None:
    parsed = Parsed(strip([f"t{i} " for i in range(40)], [float(i == 20) for i in range(40)], 1.0, peak=20, window=3))
    assert parsed.text == "…t17 t18 t19 t20 t21 t22 t23 …"


def test_levels_cover_the_ramp() -> None:
    assert [level(v, 9.0) for v in (0.5, 1.5, 8.9, 9.0, 20.0)] == [0, 1, 8, LEVELS - 1, LEVELS - 1]
    assert level(1.0, 0.0) == 0 and level(float("nan"), 1.0) == 0 and level(float("inf"), 1.0) == 0


def test_numbers_say_when_they_are_absent() -> None:
    assert number(None) == "–" and number(float("nan")) == "–" and number(float("inf")) == "–"
    assert (
        number(0) == "0"
        and number(1234567) == "1,234,567"
        and number(0.12345) == "0.123"
        and number(1e-7) == "1.00e-07"
    )
    assert clip("abcdef", 4) == "abc…" and clip("abc", 4) == "abc"
