"""Exact and near-duplicate search; each candidate is verified against the conversation that is kept."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from impruver_compose.dedup.minhash import choose_bands, compute_band_keys, compute_jaccard, compute_shingles
from impruver_compose.storage.corpus import Corpus


class Duplicate(NamedTuple):
    """Conversation `number` repeats the conversation `kept`, both by their number in the corpus."""

    number: int
    kept: int
    similarity: float
    exact: bool


def find_duplicates(corpus: Corpus, method: str, threshold: float, num_perm: int) -> list[Duplicate]:
    """Finds the conversations to drop, in order; of those that repeat one another the first is kept."""
    if method == "none":
        return []
    exact = _find_exact(corpus)
    if method == "exact":
        return exact
    candidates = corpus.compared_size > 0
    candidates[[duplicate.number for duplicate in exact]] = False
    return sorted([*exact, *_find_near(corpus, candidates, threshold, num_perm)])


def find_leaks(corpus: Corpus, train: list[int], val: list[int], threshold: float, num_perm: int) -> list[Duplicate]:
    """Finds the conversations of val that have a near-duplicate in train."""
    side = np.zeros(len(corpus), np.int8)
    side[train], side[val] = 1, 2
    shared = _find_shared_buckets(corpus, (side > 0) & (corpus.compared_size > 0), threshold, num_perm)
    members: dict[int, list[int]] = defaultdict(list)
    for number, buckets in shared:
        if side[number] == 1:
            for bucket in buckets:
                members[bucket].append(number)
    matches = (_find_first_match(corpus, n, buckets, members, threshold) for n, buckets in shared if side[n] == 2)
    return [match for match in matches if match is not None]


def _find_exact(corpus: Corpus) -> list[Duplicate]:
    first: dict[bytes, int] = {}
    firsts = (first.setdefault(digest, number) for number, digest in enumerate(corpus.digest.tolist()))
    return [Duplicate(number, other, 1.0, True) for number, other in enumerate(firsts) if other != number]


def _find_near(corpus: Corpus, candidates: np.ndarray, threshold: float, num_perm: int) -> Iterator[Duplicate]:
    members: dict[int, list[int]] = defaultdict(list)  # of a bucket: the conversations that are kept
    for number, buckets in _find_shared_buckets(corpus, candidates, threshold, num_perm):
        match = _find_first_match(corpus, number, buckets, members, threshold)
        if match is not None:
            yield match
            continue
        for bucket in buckets:
            members[bucket].append(number)


def _find_first_match(
    corpus: Corpus, number: int, buckets: list[int], members: Mapping[int, list[int]], threshold: float
) -> Duplicate | None:
    """Finds the first member of these buckets that is at least as similar as `threshold`."""
    candidates = sorted({other for bucket in buckets for other in members.get(bucket, ())})
    own = compute_shingles(corpus.read_compared_ids(number)) if candidates else None
    for other in candidates:
        similarity = compute_jaccard(own, compute_shingles(corpus.read_compared_ids(other)))
        if similarity >= threshold:
            return Duplicate(number, other, round(similarity, 4), False)
    return None


def _find_shared_buckets(
    corpus: Corpus, candidates: np.ndarray, threshold: float, num_perm: int
) -> list[tuple[int, list[int]]]:
    """Lists the candidates (a bool for each conversation) that share LSH buckets with others, each with those."""
    bands, width = choose_bands(threshold, num_perm)
    numbers = np.flatnonzero(candidates)
    if not len(numbers):
        return []
    all_keys = [compute_band_keys(shard.read_signatures(), bands, width) for shard in corpus.open_shards()]
    keys = np.concatenate(all_keys)[numbers]
    shared: dict[int, list[int]] = defaultdict(list)
    base = 0
    for band in range(bands):
        _, inverse, sizes = np.unique(keys[:, band], return_inverse=True, return_counts=True)
        for position in np.flatnonzero(sizes[inverse] > 1):
            shared[int(numbers[position])].append(base + int(inverse[position]))
        base += len(sizes)
    return sorted(shared.items())
