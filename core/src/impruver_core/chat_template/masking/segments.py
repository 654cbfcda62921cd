"""Token rows as people read them: the text of each run of learned and of other tokens."""

from collections.abc import Callable, Sequence
from itertools import groupby
from os.path import commonprefix

from impruver_core.labels import IGNORE_INDEX

TORN = "\ufffd"  # what a decoder writes for bytes that are no character
BYTES = 4  # of the longest character: a token each at most


def decode_segments(tokenizer, input_ids: Sequence[int], labels: Sequence[int]) -> list[tuple[str, bool]]:
    """(text, learned) of each run of tokens, special tokens as text; joined they are what all tokens say.

    A character whose tokens stand on both sides of a border goes to the later run, whole.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.backend_tokenizer.decode(list(input_ids[start:end]), skip_special_tokens=False)

    everything, found = decode(0, len(input_ids)), []
    start, told = 0, 0
    window, before, clean = 0, 0, True  # each run is decoded behind the one before: alone it would lose a blank
    for learned, run in groupby(label != IGNORE_INDEX for label in labels):
        end = start + sum(1 for _ in run)
        text = decode(window, end)
        rest = everything[before : before + len(text)]
        whole = before + len(commonprefix([rest, _untorn(decode, window, end, text)]))  # noqa: RUF071 (no paths)
        whole = len(everything) if end == len(labels) else max(whole, told)
        if whole > told:
            found.append((everything[told:whole], learned))
        ends_clean = rest == text and not text.endswith(TORN)
        if clean and ends_clean:
            window, before = start, whole - len(decode(start, end))
        start, told, clean = end, whole, ends_clean
    return found


def _untorn(decode: Callable[[int, int], str], start: int, end: int, text: str) -> str:
    """The text of start..end up to its last whole character."""
    if not text.endswith(TORN):
        return text
    shorter = (decode(start, max(start, end - back)) for back in range(1, BYTES))
    return max((each.rstrip(TORN) for each in (text, *shorter)), key=len)
