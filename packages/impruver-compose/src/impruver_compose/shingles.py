"""Texts as sets of 64-bit hashes of their 5-grams of tokens."""

import numpy as np

N = 5
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def shingles(ids: np.ndarray) -> np.ndarray:
    """Sorted distinct uint64 hashes of the 5-grams of `ids` (uint32); a text of fewer tokens is one shingle."""
    ids = ids.astype(np.uint64) + np.uint64(1)
    width = min(N, len(ids))
    if not width:
        return np.zeros(0, np.uint64)
    hashes = np.full(len(ids) - width + 1, np.uint64(width))
    with np.errstate(over="ignore"):
        for offset in range(width):
            hashes = _mixed(hashes * _PRIME + ids[offset : offset + len(hashes)])
    return np.unique(hashes)


def _mixed(hashes: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finalizer: a bijection that lets every bit count in every other."""
    hashes = hashes ^ (hashes >> np.uint64(33))
    hashes = hashes * np.uint64(0xFF51AFD7ED558CCD)
    hashes = hashes ^ (hashes >> np.uint64(33))
    hashes = hashes * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> np.uint64(33))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sets of shingles, sorted and distinct; 1.0 for two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0
