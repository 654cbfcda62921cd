"""The words by which texts are compared: case, punctuation and spellings of one character make no difference."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from impruver_compose.decontamination import words
from impruver_compose.decontamination.words import list_message_texts, locate_words, split_long_text, split_words

SAME = {
    "case": ("The OLD bridge", "the old BRIDGE"),
    "punctuation": ('"Don\'t," she said: *no*.', "dont she said no"),
    "blanks": ("a\tb\n\n c\u00a0d", "a b c d"),
    "Cyrillic": ("Столица ИНДИИ — Нью-Дели.", "столица индии ньюдели"),
    "composed and not": ("ещё йод", unicodedata.normalize("NFD", "ЕЩЁ ЙОД")),
    "marks of stress": ("за\u0301мок на горе\u0301", "замок на горе"),
    "folding": ("STRASSE Ῥόδος", "straße ῬΌΔΟΣ"),
    "wide and joined letters": ("ＡＢＣ ﬁne", "abc fine"),
    "invisible characters": ("in\u00advis\u200bible", "invisible"),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_words(case):
    one, other = SAME[case]
    assert split_words(one) == split_words(other)
    assert len(split_words(one)) > 0


def test_other_words_stay_apart():
    assert split_words("мой") != split_words("мои")
    assert split_words("a b") != split_words("ab")


def test_characters_of_scripts_without_blanks_are_words():
    assert split_words("法国的首都, Paris!") == ["法", "国", "的", "首", "都", "paris"]


@settings(deadline=None, database=None)
@given(st.text(max_size=60), st.integers(1, 20))
def test_pieces_have_the_words_of_the_whole(text, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "PIECE", size)
        pieces = list(split_long_text(text))
    assert "".join(pieces) == text
    assert [word for piece in pieces for word in split_words(piece)] == split_words(text)


@settings(deadline=None, database=None)
@given(st.text(st.characters(codec="ascii"), max_size=60))
def test_ascii_is_split_as_any_text(text):
    assert split_words(text) == [word for word in split_words(f"{text} ж") if word != "ж"]


def test_all_that_a_message_says_is_a_text():
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "one "}, "two", {"type": "json", "json": {"a": "six"}}],
        "reasoning_content": "three",
        "tool_calls": [{"function": {"name": "f", "arguments": '{"q":"four five"}'}}],
    }
    assert {"one two", "six", "three", "four five"} <= {*list_message_texts(message)}


def test_words_are_located_in_the_text_as_it_was_written():
    text = "So: WHERE, is it?"
    start, stop = locate_words(text, ["where", "is"], 3)
    assert text[start:stop] == "WHERE, is it?"
    assert locate_words(text, ["where", "it"], 2) is None
