"""What deduplication finds: pairs of a conversation to drop and the one that is kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Duplicate(NamedTuple):
    """Conversation `number` repeats the conversation `kept`, both by their number in the corpus."""

    number: int
    kept: int
    similarity: float
    exact: bool


@dataclass(frozen=True)
class Duplicates:
    """Duplicates as columns, (duplicates,), sorted by the number of the conversation to drop."""

    number: np.ndarray  # int64
    kept: np.ndarray  # int64
    similarity: np.ndarray  # float64, with four decimal places
    exact: np.ndarray  # bool

    def __len__(self) -> int:
        return len(self.number)

    def get(self, position: int) -> Duplicate:
        """Returns the duplicate at a position."""
        number, kept, similarity, exact = (values[position].item() for values in vars(self).values())
        return Duplicate(number, kept, similarity, exact)


def build_duplicates(
    number: np.ndarray, kept: np.ndarray, similarity: np.ndarray | float = 1.0, exact: bool = True
) -> Duplicates:
    """Builds duplicates of columns that may be in any order, all of them exact, or near with their similarity."""
    order = np.argsort(number)
    similarity = np.broadcast_to(np.float64(similarity), len(number))
    return Duplicates(number[order], kept[order], similarity[order], np.full(len(number), exact))


def join_duplicates(parts: Iterable[Duplicates]) -> Duplicates:
    """Joins duplicates, no conversation of which is in two of the parts."""
    columns = [np.concatenate(values) for values in zip(*(vars(part).values() for part in parts), strict=True)]
    order = np.argsort(columns[0])
    return Duplicates(*(values[order] for values in columns))
