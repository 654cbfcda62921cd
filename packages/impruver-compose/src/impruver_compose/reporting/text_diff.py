"""Differences of two texts, word by word; long stretches that are the same are shortened."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from os.path import commonprefix

from impruver_core.reporting.html import Span

WORD = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]")
MOST_WORDS = 5000  # that are compared one by one, between what both texts begin and end with
LONGEST_SAME, SHOWN_WORDS = 320, 120  # a longer stretch that is the same keeps so many words and blanks at its ends


def compare_texts(left: str, right: str) -> Iterator[tuple[str, str]]:
    """Splits both texts into pairs of pieces, equal or different ones; joined the pieces are the texts."""
    one, other = WORD.findall(left), WORD.findall(right)
    head = len(commonprefix([one, other]))  # noqa: RUF071 (no paths)
    tail = len(commonprefix([one[head:][::-1], other[head:][::-1]]))  # noqa: RUF071
    ends = len(one) - tail, len(other) - tail
    yield "".join(one[:head]), "".join(other[:head])
    one_middle, other_middle = one[head : ends[0]], other[head : ends[1]]
    if len(one_middle) + len(other_middle) > MOST_WORDS:
        yield "".join(one_middle), "".join(other_middle)
    else:
        matcher = SequenceMatcher(str.isspace, one_middle, other_middle)
        for _, start, stop, other_start, other_stop in matcher.get_opcodes():
            yield "".join(one_middle[start:stop]), "".join(other_middle[other_start:other_stop])
    yield "".join(one[ends[0] :]), "".join(other[ends[1] :])


def build_diff_spans(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """Builds the spans of both texts: "differs", "" for what is the same, "left_out" for the note in place of words."""
    sides = ([], [])
    for pieces in compare_texts(left, right):
        for spans, text in zip(sides, pieces, strict=True):
            spans.extend(_shorten(text) if pieces[0] == pieces[1] else [(text, "differs")])
    return tuple([span for span in spans if span[0]] for spans in sides)


def _shorten(text: str) -> list[Span]:
    words = WORD.findall(text)
    if len(words) <= LONGEST_SAME:
        return [(text, "")]
    left_out = sum(not word.isspace() for word in words[SHOWN_WORDS:-SHOWN_WORDS])
    note = f" … {left_out:,} words, the same on both sides … "
    return [("".join(words[:SHOWN_WORDS]), ""), (note, "left_out"), ("".join(words[-SHOWN_WORDS:]), "")]
