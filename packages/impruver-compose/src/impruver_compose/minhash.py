"""MinHash signatures and bands, in bulk: datasketch's permutations and its choice of bands.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3.
"""

from functools import lru_cache

import numpy as np

WEIGHTS = (0.05, 0.95)  # of false positives and negatives; every candidate is verified, so missed ones cost more

HIGHEST = 0.95  # beyond it MinHashLSH finds no bands

CHUNK = 1 << 14  # shingles permuted at once: a book has millions


@lru_cache(maxsize=8)
def permutations(num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """The (a, b) of datasketch's affine32 permutations for its default seed, uint32 of shape (num_perm,)."""
    from datasketch import MinHash

    a, b = MinHash(num_perm, hashfunc=int, scheme="affine32").permutations
    return a, b


@lru_cache(maxsize=8)
def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows of a band) that datasketch's MinHashLSH picks; above 0.95 those for 0.95."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=min(threshold, HIGHEST), num_perm=num_perm, weights=WEIGHTS)
    return index.b, index.r


def signature(hashes: np.ndarray, num_perm: int) -> np.ndarray:
    """The MinHash of a set of 64-bit shingles by their lower 32 bits: uint32 of shape (num_perm,).

    Equal to `MinHash(num_perm, hashfunc=int)` of datasketch, fed the same 32-bit hashes.
    """
    a, b = permutations(num_perm)
    lowest = np.full(num_perm, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(hashes), CHUNK):
        mixed = _fmix32(hashes[start : start + CHUNK].astype(np.uint32))
        with np.errstate(over="ignore"):
            np.minimum(lowest, (mixed[:, None] * a + b).min(axis=0), out=lowest)
    return lowest


def _fmix32(hashes: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        hashes = hashes ^ (hashes >> np.uint32(16))
        hashes = hashes * np.uint32(0x85EBCA6B)
        hashes = hashes ^ (hashes >> np.uint32(13))
        hashes = hashes * np.uint32(0xC2B2AE35)
        return hashes ^ (hashes >> np.uint32(16))


def band_keys(signatures: np.ndarray, count: int, width: int) -> list[np.ndarray]:
    """For each band, (rows,) fixed-width byte keys: equal where two signatures agree in the whole band."""
    keys = []
    for band in range(count):
        part = np.ascontiguousarray(signatures[:, band * width : (band + 1) * width])
        keys.append(part.view(np.dtype((np.void, part.dtype.itemsize * width))).ravel())
    return keys
