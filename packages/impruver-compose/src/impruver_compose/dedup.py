"""Exact and near-duplicate search by MinHash; each candidate is verified against the conversation that is kept.

Signatures and LSH bands use the permutations and the choice of bands of datasketch: Broder, "On the resemblance and
containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from impruver_compose.storage import Corpus

N = 5  # tokens of a shingle
PRIME = np.uint64(0x9E3779B97F4A7C15)
FMIX32 = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))  # shifts and factors of MurmurHash3
FMIX64 = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53))
WEIGHTS = (0.05, 0.95)  # of false positives and negatives; every candidate is verified, so missed ones cost more
HIGHEST = 0.95  # above it MinHashLSH finds no bands


def compute_shingles(ids: np.ndarray) -> np.ndarray:
    """Computes the sorted distinct hashes (uint64) of the 5-grams of `ids` (uint32); a shorter text is one shingle."""
    width = min(N, len(ids))
    return np.unique(_hash_ngrams(ids, width)) if width else np.zeros(0, np.uint64)


def compute_all_shingles(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Computes the shingles (uint64) of texts that are not empty, repeated ones too, and where each text's begin."""
    lengths = np.array([len(text) for text in texts])
    counts = np.maximum(lengths - N + 1, 1)
    starts = np.cumsum(counts) - counts
    hashes = np.empty(counts.sum(), np.uint64)
    long = np.flatnonzero(lengths >= N)
    if len(long):
        ngrams = _hash_ngrams(np.concatenate([texts[number] for number in long]), N)
        within = np.ones(len(ngrams), bool)  # not those across the end of a text
        ends = np.cumsum(lengths[long])[:-1]
        for back in range(1, N):
            within[ends - back] = False
        of_long = np.ones(len(hashes), bool)
        of_long[starts[lengths < N]] = False
        hashes[of_long] = ngrams[within]
    for number in np.flatnonzero(lengths < N):
        hashes[starts[number]] = _hash_ngrams(texts[number], len(texts[number]))[0]
    return hashes, starts


def _hash_ngrams(ids: np.ndarray, width: int) -> np.ndarray:
    ids = ids.astype(np.uint64) + np.uint64(1)
    hashes = np.full(len(ids) - width + 1, np.uint64(width))
    for offset in range(width):
        hashes = mix_hashes(hashes * PRIME + ids[offset : offset + len(hashes)])
    return hashes


def mix_hashes(hashes: np.ndarray, steps: Sequence[tuple[int, int]] = FMIX64) -> np.ndarray:
    """Applies MurmurHash3's finalizer to uint64, or with FMIX32 to uint32: a bijection in which each bit counts."""
    for shift, factor in steps:
        hashes = (hashes ^ (hashes >> shift)) * factor
    return hashes ^ (hashes >> steps[0][0])


def compute_jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Computes the Jaccard similarity of two sets of shingles, sorted and distinct; 1.0 for two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


@lru_cache(maxsize=8)
def get_permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a and b of datasketch's affine32 permutations for its default seed, uint32 (num_perm,)."""
    from datasketch import MinHash

    a, b = MinHash(num_perm, hashfunc=int, scheme="affine32").permutations
    return a, b


@lru_cache(maxsize=8)
def choose_bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Chooses the number of bands and of rows in a band as datasketch's MinHashLSH does; above 0.95 as for 0.95."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=min(threshold, HIGHEST), num_perm=num_perm, weights=WEIGHTS)
    return index.b, index.r


def compute_signatures(texts: Sequence[np.ndarray], num_perm: int) -> np.ndarray:
    """Computes the MinHash signatures of texts (uint32 ids): uint32 (texts, num_perm), zeros for an empty text.

    Equal to datasketch's `MinHash(num_perm, hashfunc=int)`, fed the lower 32 bits of the shingles' hashes.
    """
    signatures = np.zeros((len(texts), num_perm), np.uint32)
    filled = [number for number, ids in enumerate(texts) if len(ids)]
    if not filled:
        return signatures
    hashes, starts = compute_all_shingles([texts[number] for number in filled])
    mixed = mix_hashes(hashes.astype(np.uint32), FMIX32)
    permuted = np.empty_like(mixed)
    least = np.empty((num_perm, len(filled)), np.uint32)
    for column, a, b in zip(least, *get_permutations(num_perm), strict=True):
        np.multiply(mixed, a, out=permuted)
        np.add(permuted, b, out=permuted)
        np.minimum.reduceat(permuted, starts, out=column)
    signatures[filled] = least.T
    return signatures


def compute_band_keys(signatures: np.ndarray, bands: int, width: int) -> np.ndarray:
    """Computes uint64 keys (signatures, bands), equal where two signatures agree in a whole band, else almost never."""
    parts = signatures[:, : bands * width].reshape(len(signatures), bands, width)
    keys = np.full(parts.shape[:2], np.uint64(width))
    for column in range(width):
        keys = mix_hashes(keys * PRIME + parts[:, :, column])
    return keys


class Duplicate(NamedTuple):
    """Conversation `number` repeats the conversation `kept`, both by their number in the corpus."""

    number: int
    kept: int
    similarity: float
    exact: bool


def find_duplicates(
    corpus: Corpus, numbers: Sequence[int], method: str, threshold: float, num_perm: int
) -> list[Duplicate]:
    """Finds which of the conversations `numbers` to drop; of those that repeat one another the first there is kept."""
    if method == "none":
        return []
    first: dict[bytes, int] = {}
    digests = corpus.digest.tolist()
    firsts = [(number, first.setdefault(digests[number], number)) for number in numbers]
    exact = [Duplicate(number, other, 1.0, True) for number, other in firsts if other != number]
    if method == "exact":
        return sorted(exact)
    rank = np.full(len(corpus), -1)
    rank[list(numbers)] = np.arange(len(numbers))
    candidates = (rank >= 0) & (corpus.compared_size > 0)
    candidates[[duplicate.number for duplicate in exact]] = False
    return sorted([*exact, *_find_near(corpus, candidates, rank.tolist(), threshold, num_perm)])


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
    matches = (
        _find_first_match(corpus, n, sorted({other for bucket in buckets for other in members[bucket]}), threshold)
        for n, buckets in shared
        if side[n] == 2
    )
    return [match for match in matches if match is not None]


def _find_near(
    corpus: Corpus, candidates: np.ndarray, rank: Sequence[int], threshold: float, num_perm: int
) -> Iterator[Duplicate]:
    """Finds near-duplicates; `rank` is the place of each conversation in the order in which they are judged."""
    members: dict[int, list[int]] = defaultdict(list)  # of a bucket: the conversations that are kept
    shared = _find_shared_buckets(corpus, candidates, threshold, num_perm)
    for number, buckets in sorted(shared, key=lambda each: rank[each[0]]):
        others = sorted({other for bucket in buckets for other in members[bucket]}, key=rank.__getitem__)
        match = _find_first_match(corpus, number, others, threshold)
        if match is not None:
            yield match
            continue
        for bucket in buckets:
            members[bucket].append(number)


def _find_first_match(corpus: Corpus, number: int, candidates: Sequence[int], threshold: float) -> Duplicate | None:
    """Finds the first of the candidates that is at least as similar as `threshold`."""
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
