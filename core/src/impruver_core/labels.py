"""Labels of token rows: which of their tokens a model is trained on, and a row as people read it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from os.path import commonprefix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRAINED_ROLES = ("assistant", "function_call")
IGNORE_INDEX = -100  # the label of a token that is not trained on; torch's cross entropy passes over it
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character
MOST_BYTES = 4  # of a character: a token each at most


def count_target_tokens(labels: Sequence[int]) -> int:
    """How many tokens of a row are trained on. The first never is: there is nothing to predict it from.

    `labels` are a list or an array.
    """
    if not len(labels):
        return 0
    if hasattr(labels, "count"):
        ignored = labels.count(IGNORE_INDEX)
    else:
        import numpy as np

        ignored = int(np.count_nonzero(labels == IGNORE_INDEX))
    return len(labels) - ignored - int(labels[0] != IGNORE_INDEX)


def find_target_positions(labels: Sequence[int]) -> list[int]:
    """The positions of a row's target tokens; the logits that predict the token at `position` are at `position - 1`."""
    return [position for position, label in enumerate(labels) if position and label != IGNORE_INDEX]


def decode_segments(
    tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int], labels: Sequence[int]
) -> list[tuple[str, bool]]:
    """(text, trained on) of each run of tokens, special tokens as text; joined they are the text of all tokens.

    A character whose tokens stand on both sides of a border goes to the later run, whole.
    """

    def decode(start: int, end: int) -> str:
        return tokenizer.backend_tokenizer.decode(list(input_ids[start:end]), skip_special_tokens=False)

    everything, segments = decode(0, len(input_ids)), []
    start, written = 0, 0  # the run's first token; characters of `everything` that are in a segment already
    window, before, clean = 0, 0, True  # each run is decoded behind the one before: alone it would lose a blank
    for trained, run in groupby(label != IGNORE_INDEX for label in labels):
        end = start + sum(1 for _ in run)
        text = decode(window, end)
        rest = everything[before : before + len(text)]
        agreed = commonprefix([rest, _cut_torn_character(decode, window, end, text)])  # noqa: RUF071 (no paths)
        stop = len(everything) if end == len(labels) else max(before + len(agreed), written)
        if stop > written:
            segments.append((everything[written:stop], trained))
        ends_clean = rest == text and not text.endswith(REPLACEMENT)
        if clean and ends_clean:
            window, before = start, stop - len(decode(start, end))
        start, written, clean = end, stop, ends_clean
    return segments


def _cut_torn_character(decode: Callable[[int, int], str], start: int, end: int, text: str) -> str:
    """The text of the tokens `start` to `end` up to its last whole character."""
    if not text.endswith(REPLACEMENT):
        return text
    shorter = (decode(start, max(start, end - back)) for back in range(1, MOST_BYTES))
    return max((each.rstrip(REPLACEMENT) for each in (text, *shorter)), key=len)
