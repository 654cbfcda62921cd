"""B @ A in float32, summed as torch sums it on a CPU: rank after rank, each step a fused multiply-add.

numpy's BLAS rounds other sums at the borders of its tiles, and all of them on processors without such steps; where an
update is many times larger than what is left of a weight, that is several steps of float16.
"""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 15  # values at a time: what fits a core's cache


def product(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """b @ a; a float64 holds the product of two float32 exactly, so only the sum is rounded."""
    result = np.zeros((b.shape[0], a.shape[1]), np.float32)
    columns, ranks = b.T.astype(np.float64), a.astype(np.float64)
    rows = max(1, BLOCK // a.shape[1])
    for start in range(0, b.shape[0], rows):
        total = result[start : start + rows]
        step = np.empty(total.shape, np.float64)
        for column, rank in zip(columns, ranks, strict=True):
            np.multiply(column[start : start + rows, None], rank, out=step)
            step += total
            total[...] = step
    return result
