"""Texts as sets of 64-bit hashes of their 5-grams of tokens."""

from collections.abc import Sequence

import numpy as np

N = 5
PRIME = np.uint64(0x9E3779B97F4A7C15)
FMIX32 = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))  # shifts and factors of MurmurHash3
FMIX64 = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53))


def shingles(ids: np.ndarray) -> np.ndarray:
    """Sorted distinct uint64 hashes of the 5-grams of `ids` (uint32); a text of fewer tokens is one shingle."""
    width = min(N, len(ids))
    return np.unique(_grams(ids, width)) if width else np.zeros(0, np.uint64)


def shingles_of_all(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, starts): the shingles of all `texts` one after another, repeated ones too, and where each begins.

    No text may be empty.
    """
    lengths = np.array([len(text) for text in texts])
    counts = np.maximum(lengths - N + 1, 1)
    starts = np.cumsum(counts) - counts
    hashes = np.empty(counts.sum(), np.uint64)
    long = np.flatnonzero(lengths >= N)
    if len(long):
        grams = _grams(np.concatenate([texts[at] for at in long]), N)
        within = np.ones(len(grams), bool)  # not of the end of one text and the start of the next
        ends = np.cumsum(lengths[long])[:-1]
        for back in range(1, N):
            within[ends - back] = False
        places = np.ones(len(hashes), bool)
        places[starts[lengths < N]] = False
        hashes[places] = grams[within]
    for at in np.flatnonzero(lengths < N):
        hashes[starts[at]] = _grams(texts[at], len(texts[at]))[0]
    return hashes, starts


def _grams(ids: np.ndarray, width: int) -> np.ndarray:
    """uint64 hashes of each `width` neighbours."""
    ids = ids.astype(np.uint64) + np.uint64(1)
    hashes = np.full(len(ids) - width + 1, np.uint64(width))
    for offset in range(width):
        hashes = mixed(hashes * PRIME + ids[offset : offset + len(hashes)])
    return hashes


def mixed(hashes: np.ndarray, steps: Sequence[tuple[int, int]] = FMIX64) -> np.ndarray:
    """MurmurHash3's finalizer, for uint64 or with FMIX32 for uint32: a bijection, each bit counts in others."""
    for shift, factor in steps:
        hashes = (hashes ^ (hashes >> shift)) * factor
    return hashes ^ (hashes >> steps[0][0])


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sets of shingles, sorted and distinct; 1.0 for two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0
