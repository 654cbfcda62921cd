"""The ledger: a line for every row and conversation that was dropped, in the order of the data."""

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from impruver_compose.corpus import Corpus


class DroppedGroup(NamedTuple):
    """Conversations that were dropped for one reason.

    `describe` makes of a position in `numbers` what its line has besides where it comes from and the reason.
    """

    reason: str
    numbers: np.ndarray  # int64, ascending
    describe: Callable[[int], dict[str, Any]]


class Ledger(NamedTuple):
    """The lines of the ledger, to be written once, and how many they are."""

    lines: Iterator[dict[str, Any]]
    count: int


def iterate_ledger(corpus: Corpus, groups: Sequence[DroppedGroup]) -> Iterator[dict[str, Any]]:
    """Iterates over the ledger's lines: what was dropped before conversations were chosen, and these groups."""
    for index, shard, first, stop in corpus.list_shards():
        lines = [
            _build_line(corpus, index, row, part or 0, reason, {"detail": detail})
            for row, part, reason, detail in shard.dropped
        ]
        for group in groups:
            for position in range(*np.searchsorted(group.numbers, [first, stop]).tolist()):
                number = group.numbers[position]
                place = int(corpus.row[number]), int(corpus.part[number])
                lines.append(_build_line(corpus, index, *place, group.reason, group.describe(position)))
        yield from sorted(lines, key=itemgetter("row", "part"))


def _build_line(corpus: Corpus, index: int, row: int, part: int, reason: str, more: dict[str, Any]) -> dict[str, Any]:
    line = {"dataset": corpus.names[index], "dataset_index": index, "row": row, "part": part, "reason": reason}
    return line | {"detail": ""} | more
