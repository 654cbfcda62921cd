"""Conversations whose digests are equal: exact duplicates, and those with the same prompt."""

import numpy as np

from impruver_compose.stages.large_arrays import ArrayStore

ROW_BYTES = 64  # of memory that sorting takes for each conversation


def find_first_equal(digests: np.ndarray, numbers: np.ndarray, arrays: ArrayStore) -> np.ndarray:
    """Finds the first of those conversations with an equal digest, for each of `numbers`, in their order.

    Digests that begin alike are looked at together, as many at once as memory allows.

    Args:
        digests: of all conversations, 16 bytes each, (conversations,).
        numbers: int64, (numbers,).

    Returns:
        Positions in `numbers`, int64 (numbers,): a conversation that repeats none has its own.
    """
    first = arrays.make(len(numbers), np.int64)
    words = digests.view(np.uint64).reshape(-1, 2)
    parts = -(-len(numbers) * ROW_BYTES // max(ROW_BYTES, arrays.limit))
    for part in range(parts):
        if parts == 1:
            positions = np.arange(len(numbers))
        else:  # the numbers of a part lie anywhere: a part is made of what the digests' own bytes say
            positions = np.flatnonzero(words[numbers, 0] % np.uint64(parts) == part)
        own = words[numbers[positions]]
        order = np.lexsort((own[:, 1], own[:, 0]))  # stable: equal ones stay in their order
        own = own[order]
        begins = np.ones(len(own), bool)
        begins[1:] = (own[1:] != own[:-1]).any(axis=1)
        first[positions[order]] = positions[order[np.flatnonzero(begins)]][np.cumsum(begins) - 1]
    return first
