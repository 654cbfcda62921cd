"""Tokens to text: no half characters, the pieces together are the whole, ends of turn that are texts."""

import random

import pytest
from impruver_chat.generation.detokenizer import StopCriteria, StreamingDetokenizer, make_stop_criteria

TEXT = "Привет, 世界! 👩‍👩‍👧 naïve — 12,5 €\n"


def stream(pieces, stops):
    """Feeds pieces of bytes as tokens 0, 1, …; (what was emitted, the whole, stopped)."""
    out = []
    text = StreamingDetokenizer(
        lambda ids: b"".join(pieces[n] for n in ids).decode("utf-8", "replace"), stops, out.append
    )
    for number in range(len(pieces)):
        text.add_token(number)
    whole = text.finish()
    return out, whole, text.stopped


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_whole_characters_and_join_to_the_text(seed):
    chance = random.Random(seed)
    data, pieces = TEXT.encode() * 3, []
    while data:
        size = chance.randint(1, 6)
        pieces.append(data[:size])
        data = data[size:]
    out, whole, stopped = stream(pieces, StopCriteria(frozenset()))
    assert "".join(out) == whole == TEXT * 3
    assert "�" not in whole
    assert not stopped
    assert len(out) > 20


def test_an_answer_cut_off_within_a_character_ends_before_it():
    assert stream([b"a", "я".encode()[:1]], StopCriteria(frozenset()))[1] == "a"


def test_a_stop_token_ends_and_what_follows_is_ignored():
    assert stream([b"a", b"b", b"<end>", b"c"], StopCriteria(frozenset({2}))) == (["a", "b"], "ab", True)


@pytest.mark.parametrize(
    ("pieces", "emitted"),
    [
        ([b"yes", b"\n#", b"## User", b"no"], "yes"),
        ([b"yes\n### User no"], "yes"),
        ([b"yes\n", b"##", b" none"], "yes\n## none"),
        ([b"yes\n##"], "yes\n##"),
        ([b"a\n###", b" Us", b"e"], "a\n### Use"),
    ],
)
def test_a_stop_text_over_several_tokens_is_never_shown(pieces, emitted):
    out, whole, stopped = stream(pieces, StopCriteria(frozenset(), ("\n### User",)))
    assert "".join(out) == whole == emitted
    assert stopped == (b"User" in b"".join(pieces))


def test_ends_of_turn_are_tokens_where_there_are_such():
    assert make_stop_criteria(["<|end|>", "\n###", ""], [2, None], {"<|end|>": 6}.get) == StopCriteria(
        frozenset({2, 6}), ("\n###",)
    )


def test_sentencepiece_blanks_survive():
    words = ["▁Hello", "▁there", ",", "▁you"]
    out = []
    text = StreamingDetokenizer(
        lambda ids: "".join(words[n] for n in ids).replace("▁", " ")[1:], StopCriteria(frozenset()), out.append
    )
    for number in range(4):
        text.add_token(number)
    assert text.finish() == "".join(out) == "Hello there, you"
