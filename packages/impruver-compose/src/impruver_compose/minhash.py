"""MinHash signatures and bands, in bulk: datasketch's permutations and its choice of bands.

Broder, "On the resemblance and containment of documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining of
Massive Datasets", chapter 3.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from impruver_compose.shingles import FMIX32, PRIME, mixed, shingles_of_all

WEIGHTS = (0.05, 0.95)  # of false positives and negatives; every candidate is verified, so missed ones cost more

HIGHEST = 0.95  # beyond it MinHashLSH finds no bands


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


def signatures(texts: Sequence[np.ndarray], num_perm: int) -> np.ndarray:
    """The MinHashes of texts (uint32 ids) by the lower 32 bits of their shingles: uint32 of shape (texts, num_perm).

    Equal to `MinHash(num_perm, hashfunc=int)` of datasketch, fed the same 32-bit hashes; of an empty text zeros.
    """
    found = np.zeros((len(texts), num_perm), np.uint32)
    full = [at for at, ids in enumerate(texts) if len(ids)]
    if not full:
        return found
    hashes, starts = shingles_of_all([texts[at] for at in full])
    scattered = mixed(hashes.astype(np.uint32), FMIX32)
    permuted = np.empty_like(scattered)
    for number, (a, b) in enumerate(zip(*permutations(num_perm), strict=True)):
        np.multiply(scattered, a, out=permuted)
        np.add(permuted, b, out=permuted)
        found[full, number] = np.minimum.reduceat(permuted, starts)
    return found


def band_keys(signatures: np.ndarray, count: int, width: int) -> np.ndarray:
    """uint64 of shape (rows, bands): equal where two signatures agree in the whole band, else all but never."""
    parts = signatures[:, : count * width].reshape(len(signatures), count, width)
    keys = np.full(parts.shape[:2], np.uint64(width))
    for at in range(width):
        keys = mixed(keys * PRIME + parts[:, :, at])
    return keys
