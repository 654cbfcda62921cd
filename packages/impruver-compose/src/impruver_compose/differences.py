"""Two texts side by side: where they differ, and of what is the same enough to know the place."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

WORD = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|\w+|[^\w\s])|\s+")  # with the blanks before it
MOST = 1500  # words compared of a text
LONGEST, SHOWN = 160, 60  # words: a longer stretch that is the same keeps so many at its ends
Span = tuple[str, str]


def differences(left: str, right: str) -> tuple[list[Span], list[Span]]:
    """Both as spans: "" the same, "differs", and "left_out" for what is told in place of a text."""
    words = [WORD.findall(text[: MOST * 100]) for text in (left, right)]
    one, other = (each[:MOST] for each in words)
    spans: tuple[list[Span], list[Span]] = ([], [])
    for tag, start, end, other_start, other_end in SequenceMatcher(None, one, other).get_opcodes():
        for side, stretch in zip(spans, (one[start:end], other[other_start:other_end]), strict=True):
            side.extend(_same(stretch) if tag == "equal" else [("".join(stretch), "differs")] if stretch else [])
    for side, text, seen in zip(spans, (left, right), (one, other), strict=True):
        more = len(text) - sum(map(len, seen))
        if more:
            side.append((f"… {more:,} more characters", "left_out"))
    return spans


def _same(words: Sequence[str]) -> list[Span]:
    if len(words) <= LONGEST:
        return [("".join(words), "")]
    told = f" … {len(words) - 2 * SHOWN:,} words, the same on both sides … "
    return [("".join(words[:SHOWN]), ""), (told, "left_out"), ("".join(words[-SHOWN:]), "")]
