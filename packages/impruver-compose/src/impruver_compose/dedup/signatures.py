"""MinHash signatures and their LSH bands.

Both use the permutations and the choice of bands of datasketch: Broder, "On the resemblance and containment of
documents" (1997); banding as in Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", chapter 3.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from impruver_compose.dedup.shingles import FMIX32, PRIME, compute_all_shingles, mix_hashes

WEIGHTS = (0.05, 0.95)  # of false positives and negatives; every candidate is verified, so missed ones cost more
HIGHEST = 0.95  # above it MinHashLSH finds no bands


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
