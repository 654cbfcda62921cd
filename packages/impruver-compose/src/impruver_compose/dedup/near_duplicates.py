"""Finds what is said twice: exactly, or nearly by MinHash, every candidate verified against the row that is kept."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from impruver_compose.dedup.minhash import choose_bands, compute_band_keys, compute_jaccard, compute_shingles
from impruver_compose.storage.corpus import Corpus


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
    exact = _find_exact(corpus)
    if method == "exact":
        return exact
    left = corpus.said_size > 0
    left[[duplicate.number for duplicate in exact]] = False
    return sorted([*exact, *_find_near(corpus, left, threshold, num_perm)])


def find_leaks(corpus: Corpus, train: list[int], val: list[int], threshold: float, num_perm: int) -> list[Duplicate]:
    """The conversations of val that are, by the search of `find_duplicates`, near-duplicates of one in train."""
    side = np.zeros(len(corpus), np.int8)
    side[train], side[val] = 1, 2
    left = (side > 0) & (corpus.said_size > 0)
    kept_in: dict[int, list[int]] = defaultdict(list)
    shared = list(_find_shared_buckets(corpus, left, threshold, num_perm))
    for number, buckets in shared:
        if side[number] == 1:
            for bucket in buckets:
                kept_in[bucket].append(number)
    matches = (_find_first_match(corpus, n, buckets, kept_in, threshold) for n, buckets in shared if side[n] == 2)
    return [match for match in matches if match is not None]


def _find_exact(corpus: Corpus) -> list[Duplicate]:
    first: dict[bytes, int] = {}
    kept = (first.setdefault(digest, number) for number, digest in enumerate(corpus.exact.tolist()))
    return [Duplicate(number, other, 1.0, True) for number, other in enumerate(kept) if other != number]


def _find_near(corpus: Corpus, left: np.ndarray, threshold: float, num_perm: int) -> Iterator[Duplicate]:
    kept_in: dict[int, list[int]] = defaultdict(list)  # bucket -> conversations kept
    for number, buckets in _find_shared_buckets(corpus, left, threshold, num_perm):
        match = _find_first_match(corpus, number, buckets, kept_in, threshold)
        if match is not None:
            yield match
            continue
        for bucket in buckets:
            kept_in[bucket].append(number)


def _find_first_match(corpus: Corpus, number: int, buckets: list[int], kept_in, threshold: float) -> Duplicate | None:
    """The first conversation in these buckets that is as similar as `threshold` says."""
    candidates = sorted({other for bucket in buckets for other in kept_in.get(bucket, ())})
    own = compute_shingles(corpus.read_compared_ids(number)) if candidates else None
    for other in candidates:
        similarity = compute_jaccard(own, compute_shingles(corpus.read_compared_ids(other)))
        if similarity >= threshold:
            return Duplicate(number, other, round(similarity, 4), False)
    return None


def _find_shared_buckets(
    corpus: Corpus, left: np.ndarray, threshold: float, num_perm: int
) -> list[tuple[int, list[int]]]:
    """(conversation, buckets that it shares with another) of those in `left`, in order.

    Alone in all of its buckets, a conversation is no candidate.
    """
    count, width = choose_bands(threshold, num_perm)
    numbers = np.flatnonzero(left)
    if not len(numbers):
        return []
    keys = np.concatenate(
        [compute_band_keys(shard.read_signatures(), count, width) for _, shard in corpus.open_shards()]
    )[numbers]
    shared: dict[int, list[int]] = defaultdict(list)
    base = 0
    for band in range(count):
        _, inverse, sizes = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        for at in np.flatnonzero(sizes[inverse] > 1):
            shared[int(numbers[at])].append(base + int(inverse[at]))
        base += len(sizes)
    return sorted(shared.items())
