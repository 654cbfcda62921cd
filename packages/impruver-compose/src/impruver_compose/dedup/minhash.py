"""MinHash signatures and bands, in bulk: datasketch's permutations and its choice of bands.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

N = 5


PRIME = np.uint64(0x9E3779B97F4A7C15)


FMIX32 = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))  # shifts and factors of MurmurHash3


FMIX64 = ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53))


def compute_shingles(ids: np.ndarray) -> np.ndarray:
    """Sorted distinct uint64 hashes of the 5-grams of `ids` (uint32); a text of fewer tokens is one shingle."""
    width = min(N, len(ids))
    return np.unique(_hash_ngrams(ids, width)) if width else np.zeros(0, np.uint64)


def compute_all_shingles(texts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(hashes, starts): the shingles of all `texts` one after another, repeated ones too, and where each begins.

    No text may be empty.
    """
    lengths = np.array([len(text) for text in texts])
    counts = np.maximum(lengths - N + 1, 1)
    starts = np.cumsum(counts) - counts
    hashes = np.empty(counts.sum(), np.uint64)
    long = np.flatnonzero(lengths >= N)
    if len(long):
        grams = _hash_ngrams(np.concatenate([texts[at] for at in long]), N)
        within = np.ones(len(grams), bool)  # not of the end of one text and the start of the next
        ends = np.cumsum(lengths[long])[:-1]
        for back in range(1, N):
            within[ends - back] = False
        places = np.ones(len(hashes), bool)
        places[starts[lengths < N]] = False
        hashes[places] = grams[within]
    for at in np.flatnonzero(lengths < N):
        hashes[starts[at]] = _hash_ngrams(texts[at], len(texts[at]))[0]
    return hashes, starts


def _hash_ngrams(ids: np.ndarray, width: int) -> np.ndarray:
    """uint64 hashes of each `width` neighbours."""
    ids = ids.astype(np.uint64) + np.uint64(1)
    hashes = np.full(len(ids) - width + 1, np.uint64(width))
    for offset in range(width):
        hashes = mix_hashes(hashes * PRIME + ids[offset : offset + len(hashes)])
    return hashes


def mix_hashes(hashes: np.ndarray, steps: Sequence[tuple[int, int]] = FMIX64) -> np.ndarray:
    """MurmurHash3's finalizer, for uint64 or with FMIX32 for uint32: a bijection, each bit counts in others."""
    for shift, factor in steps:
        hashes = (hashes ^ (hashes >> shift)) * factor
    return hashes ^ (hashes >> steps[0][0])


def compute_jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """The Jaccard similarity of two sets of shingles, sorted and distinct; 1.0 for two empty ones."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    union = len(one) + len(other) - shared
    return shared / union if union else 1.0


WEIGHTS = (0.05, 0.95)  # of false positives and negatives; every candidate is verified, so missed ones cost more


HIGHEST = 0.95  # beyond it MinHashLSH finds no bands


@lru_cache(maxsize=8)
def get_permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """The (a, b) of datasketch's affine32 permutations for its default seed, uint32 of shape (num_perm,)."""
    from datasketch import MinHash

    a, b = MinHash(num_perm, hashfunc=int, scheme="affine32").permutations
    return a, b


@lru_cache(maxsize=8)
def choose_bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows of a band) that datasketch's MinHashLSH picks; above 0.95 those for 0.95."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=min(threshold, HIGHEST), num_perm=num_perm, weights=WEIGHTS)
    return index.b, index.r


def compute_signatures(texts: Sequence[np.ndarray], num_perm: int) -> np.ndarray:
    """The MinHashes of texts (uint32 ids) by the lower 32 bits of their shingles: uint32 of shape (texts, num_perm).

    Equal to `MinHash(num_perm, hashfunc=int)` of datasketch, fed the same 32-bit hashes; of an empty text zeros.
    """
    found = np.zeros((len(texts), num_perm), np.uint32)
    full = [at for at, ids in enumerate(texts) if len(ids)]
    if not full:
        return found
    hashes, starts = compute_all_shingles([texts[at] for at in full])
    scattered = mix_hashes(hashes.astype(np.uint32), FMIX32)
    permuted = np.empty_like(scattered)
    for number, (a, b) in enumerate(zip(*get_permutations(num_perm), strict=True)):
        np.multiply(scattered, a, out=permuted)
        np.add(permuted, b, out=permuted)
        found[full, number] = np.minimum.reduceat(permuted, starts)
    return found


def compute_band_keys(signatures: np.ndarray, count: int, width: int) -> np.ndarray:
    """uint64 of shape (rows, bands): equal where two signatures agree in the whole band, else all but never."""
    parts = signatures[:, : count * width].reshape(len(signatures), count, width)
    keys = np.full(parts.shape[:2], np.uint64(width))
    for at in range(width):
        keys = mix_hashes(keys * PRIME + parts[:, :, at])
    return keys
