"""Finds what is said twice: exactly, or nearly by MinHash, every candidate verified against the row that is kept."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from impruver_compose.minhash import band_keys, bands, signature
from impruver_compose.shingles import jaccard, shingles
from impruver_compose.spool import Corpus


class Duplicate(NamedTuple):
    """Conversation `number` repeats `kept`, by its number in the corpus."""

    number: int
    kept: int
    similarity: float
    exact: bool


def find_duplicates(corpus: Corpus, method: str, threshold: float, num_perm: int) -> list[Duplicate]:
    """The conversations to drop, in order; the first of each in the recipe's order is kept."""
    if method == "none":
        return []
    exact = _exact(corpus)
    if method == "exact":
        return exact
    gone = {duplicate.number for duplicate in exact}
    left = [number for number in range(len(corpus.origins)) if number not in gone]
    return sorted(exact + _near(corpus, left, threshold, num_perm))


def _exact(corpus: Corpus) -> list[Duplicate]:
    first: dict[bytes, int] = {}
    found = []
    for number, digest in enumerate(corpus.exact):
        kept = first.setdefault(digest, number)
        if kept != number:
            found.append(Duplicate(number, kept, 1.0, True))
    return found


def _near(corpus: Corpus, numbers: list[int], threshold: float, num_perm: int) -> list[Duplicate]:
    numbers = [number for number in numbers if len(corpus.said[number])]
    if not numbers:
        return []
    signatures = np.stack([signature(shingles(corpus.said_ids(number)), num_perm) for number in numbers])
    shared = _shared_buckets(signatures, *bands(threshold, num_perm))
    kept_in: dict[int, list[int]] = defaultdict(list)  # bucket -> positions kept
    found = []
    for position, buckets in sorted(shared.items()):
        candidates = sorted({other for bucket in buckets for other in kept_in[bucket]})
        match = _first_match(corpus, numbers, position, candidates, threshold)
        if match is not None:
            found.append(match)
            continue
        for bucket in buckets:
            kept_in[bucket].append(position)
    return found


def _first_match(corpus, numbers, position, candidates, threshold) -> Duplicate | None:
    own = shingles(corpus.said_ids(numbers[position])) if candidates else None
    for other in candidates:
        similarity = jaccard(own, shingles(corpus.said_ids(numbers[other])))
        if similarity >= threshold:
            return Duplicate(numbers[position], numbers[other], round(similarity, 4), False)
    return None


def _shared_buckets(signatures: np.ndarray, count: int, width: int) -> dict[int, list[int]]:
    """Position -> the buckets that it shares with another; alone in all of its buckets, a row is no candidate."""
    shared: dict[int, list[int]] = defaultdict(list)
    base = 0
    for keys in band_keys(signatures, count, width):
        _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        for position in np.flatnonzero(sizes[inverse] > 1):
            shared[int(position)].append(base + int(inverse[position]))
        base += len(sizes)
    return shared
