"""A weight with what peft trained in it, row by row, in the order in which torch and peft round.

As peft: W + (B @ A) * scaling, transposed for layers that hold their weights the other way round (GPT-2's Conv1D,
embeddings); DoRA scales what comes out, so that each output has the length that was trained.

B @ A is summed rank after rank, each step a fused multiply-add. numpy's BLAS rounds other sums at the borders of its
tiles, and all of them on processors without such steps; where an update is many times larger than what is left of a
weight, that is several steps of float16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

from impruver_gguf.weights.lazy_tensor import Tensor

BLOCK = 1 << 15  # values at a time: what fits a core's cache


LANES = 8  # in which torch sums the squares of a row


def with_lora(weight: Tensor, a: Tensor, b: Tensor, scaling: float, transposed: bool) -> Tensor:
    """W + (B @ A) * scaling; `transposed` where W is held as inputs x outputs."""
    turned = once(lambda: np.ascontiguousarray(a.float32().T))

    def rows(start: int, stop: int) -> np.ndarray:
        if transposed:
            values = _product(turned()[start:stop], b.float32().T)
        else:
            values = _product(b.float32(start, stop), a.float32())
        values *= np.float32(scaling)
        values += weight.rows(start, stop)
        return values

    return Tensor(weight.shape, rows)


def _product(b: np.ndarray, a: np.ndarray) -> np.ndarray:
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


def with_magnitude(changed: Tensor, magnitude: Tensor, transposed: bool) -> Tensor:
    """DoRA: the weights that go to each output brought to the length `magnitude`."""
    factors = once(lambda: magnitude.float32() / _column_norms(changed))

    def rows(start: int, stop: int) -> np.ndarray:
        values = changed.float32(start, stop)
        if transposed:
            values *= factors()
        else:
            values *= (magnitude.float32(start, stop) / _row_norms(values))[:, None]
        return values

    return Tensor(changed.shape, rows)


def with_bias(bias: Tensor, update: Tensor, scaling: float) -> Tensor:
    """A bias that LoRA trained with B."""

    def rows(start: int, stop: int) -> np.ndarray:
        return bias.float32(start, stop) + update.float32(start, stop) * np.float32(scaling)

    return Tensor(bias.shape, rows)


def with_rows(weight: Tensor, trained: Tensor, indices: Sequence[int]) -> Tensor:
    """An embedding with the rows of some tokens, which may come after those that it has."""
    places, count = np.array(indices, int), max([weight.count - 1, *indices]) + 1
    order = np.argsort(places)

    def rows(start: int, stop: int) -> np.ndarray:
        values = np.empty((stop - start, *weight.shape[1:]), np.float32)
        known = max(start, min(stop, weight.count))
        if known > start:
            values[: known - start] = weight.rows(start, known)
        for index in order[slice(*np.searchsorted(places[order], (start, stop)))]:
            values[places[index] - start] = trained.rows(index, index + 1)[0]
        return values

    return Tensor((count, *weight.shape[1:]), rows)


def _row_norms(values: np.ndarray) -> np.ndarray:
    """As torch sums along a row: eight sums side by side, these one after another, then what is left over."""
    squares = values * values
    whole = values.shape[1] // LANES * LANES
    lanes = np.add.reduce(squares[:, :whole].reshape(len(values), -1, LANES), axis=1)
    total = np.zeros(len(values), np.float32) if whole == 0 else lanes[:, 0].copy()
    for lane in lanes.T[1:] if whole else ():
        total += lane
    for rest in values.T[whole:].astype(np.float64):
        total = (rest * rest + total).astype(np.float32)
    return np.sqrt(total)


def _column_norms(tensor: Tensor) -> np.ndarray:
    """As torch sums down the columns: row after row."""
    total = np.zeros(tensor.shape[1], np.float32)
    for start, stop in tensor.pieces():
        values = tensor.float32(start, stop)
        total = np.add.reduce(np.vstack([total, values * values]), axis=0)
    return np.sqrt(total)


def once(make: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """What several threads ask for, made by the first of them."""
    lock, made = Lock(), []

    def have() -> np.ndarray:
        with lock:
            if not made:
                made.append(make())
        return made[0]

    return have
