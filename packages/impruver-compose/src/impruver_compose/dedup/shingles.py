"""Shingles: the sets of 5-grams of tokens, hashed, by which conversations are compared."""

from collections.abc import Sequence

import numpy as np

N = 5  # tokens of a shingle
PRIME = np.uint64(0x9E3779B97F4A7C15)
FMIX32 = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))  # shifts and factors of MurmurHash3
FMIX64 = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53))


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
