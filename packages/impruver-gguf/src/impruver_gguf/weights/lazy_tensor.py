"""Tensors that are read when they are needed: safetensors files, each value in the file's own 16 or 32 bits.

numpy has no bf16: such values are read as uint16 and shifted into the upper half of a float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np

PIECE = 1 << 19  # values worked on at once


@dataclass(frozen=True)
class Tensor:
    """A shape, and what reads some of its rows (from, to) as float32 or float16: no tensor need be whole in memory.

    `at_once` tells that reading some rows takes as long as reading all.
    """

    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    at_once: bool = False

    @property
    def count(self) -> int:
        """How many rows there are; the values of a vector are its rows."""
        return self.shape[0] if self.shape else 1

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Its rows (from, to), so many at a time as are worked on at once."""
        step = self.count if self.at_once else max(1, PIECE // max(1, prod(self.shape[1:])))
        yield from ((start, min(start + step, self.count)) for start in range(0, self.count, step))

    def float32(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The values as float32, of all rows or some."""
        return self.rows(start, self.count if stop is None else stop).astype(np.float32, copy=False)


def wide(tensor: Tensor) -> Tensor:
    """Read as float32: what is computed with it is not rounded to 16 bits in between."""
    return replace(tensor, rows=tensor.float32)


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two matrices hold the same, some rows at a time."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.rows(*part), other.rows(*part)) for part in one.pieces())
