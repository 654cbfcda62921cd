"""Two texts side by side: where they differ, and of what is the same enough to know the place."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from os.path import commonprefix

WORD = re.compile(r"\s+|[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s]")


MOST = 5000  # words that are compared one by one, between the ends that are the same


LONGEST, SHOWN = 320, 120  # words and blanks: a longer stretch that is the same keeps so many at its ends


Span = tuple[str, str]


def split_into_pieces(left: str, right: str) -> Iterator[Span]:
    """Both texts in pieces, equal ones and unlike ones."""
    one, other = WORD.findall(left), WORD.findall(right)
    head = len(commonprefix([one, other]))  # noqa: RUF071 (no paths)
    tail = len(commonprefix([one[head:][::-1], other[head:][::-1]]))  # noqa: RUF071
    ends = len(one) - tail, len(other) - tail
    yield "".join(one[:head]), "".join(other[:head])
    unlike, apart = one[head : ends[0]], other[head : ends[1]]
    if len(unlike) + len(apart) > MOST:
        yield "".join(unlike), "".join(apart)
    else:
        for _, start, stop, from_, to in SequenceMatcher(str.isspace, unlike, apart).get_opcodes():
            yield "".join(unlike[start:stop]), "".join(apart[from_:to])
    yield "".join(one[ends[0] :]), "".join(other[ends[1] :])


def build_diff_spans(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """Both as spans: "" the same, "differs", and "left_out" for what is told in place of a text."""
    spans: tuple[list[Span], list[Span]] = ([], [])
    for piece in split_into_pieces(left, right):
        for side, text in zip(spans, piece, strict=True):
            side.extend(_abbreviate(text) if piece[0] == piece[1] else [(text, "differs")])
    return tuple([span for span in side if span[0]] for side in spans)


def _abbreviate(text: str) -> list[Span]:
    words = WORD.findall(text)
    if len(words) <= LONGEST:
        return [(text, "")]
    left_out = sum(not word.isspace() for word in words[SHOWN:-SHOWN])
    told = f" … {left_out:,} words, the same on both sides … "
    return [("".join(words[:SHOWN]), ""), (told, "left_out"), ("".join(words[-SHOWN:]), "")]
