"""Add what PEFT trained to a weight, some rows at a time, in the order in which torch and PEFT round.

    LoRA    W' = W + (B @ A) * scaling      scaling = alpha / r, for rsLoRA alpha / sqrt(r)
    DoRA    W'' = W' * m / ||W'||           the weights of each output are brought to the length m that was trained

Shapes: W (outputs, inputs), A (r, inputs), B (outputs, r), m (outputs,). Embeddings and GPT-2's Conv1D hold their W
transposed, as (inputs, outputs); the update is then (B @ A).T.

One output with three inputs, r = 2, alpha = 4 (scaling 2, for rsLoRA 2.83), all in float32:

    A, rank 0              [ 0.10  0.20  0.30 ]
    A, rank 1              [ 1.00  0.00 -1.00 ]
    B                      [ 0.50  0.25 ]
    0.50 * rank 0          [ 0.05  0.10  0.15 ]   rounded to float32
    + 0.25 * rank 1        [ 0.30  0.10 -0.10 ]   a fused multiply-add: the sum is rounded, the product is not
    * 2                    [ 0.60  0.20 -0.20 ]   rounded
    + W [ 1  2  3 ]        [ 1.60  2.20  2.80 ]   rounded: W'; to 16 bits it is rounded once, as the GGUF is written
    * m / ||W'||           [ 3.20  4.40  5.60 ]   DoRA with m = 7.81, since sqrt(1.6**2 + 2.2**2 + 2.8**2) = 3.90

B @ A is summed rank after rank as torch does on a CPU with AVX2. numpy's BLAS rounds other sums at the borders of its
tiles; where an update is far larger than what is left of a weight, that is several steps of float16.

Most values come out of BLAS as the same 16 bits all the same, and that can be shown: whatever the order of a sum of r
products, it is within r * u * sum(|b_k| |a_k|) of the exact one (u = 2**-24, the most that a float32 is rounded by;
Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Where both ends of that interval round to the same 16
bits, the sum in torch's order does, too. The few others are summed in torch's order.
"""

from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np

from impruver_gguf.weights.lazy_tensor import LazyTensor, Rounding, RoundingReader

BLOCK_VALUES = 1 << 15  # what fits a core's cache
LANES = 8  # in which torch sums the squares of a row
UNIT = np.float32(2**-24)  # u
FURTHER_ROUNDINGS = 4  # of the scaling, of adding to the weight, of the interval itself
SMALLEST = np.float32(2**-126)  # below it a float32 is rounded by more than its u-th part
FEW = 16  # where more than one value in so many is summed again, all are


def add_lora(weight: LazyTensor, a: LazyTensor, b: LazyTensor, scaling: float, transposed: bool) -> LazyTensor:
    """Make W + (B @ A) * scaling, of W's shape; `transposed` where W is (inputs, outputs)."""
    a_transposed = compute_once(lambda: np.ascontiguousarray(a.read_float32().T))

    def read_factors(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        if transposed:
            return a_transposed()[start:stop], b.read_float32().T
        return b.read_float32(start, stop), a.read_float32()

    def read(start: int, stop: int) -> np.ndarray:
        values = _multiply(*read_factors(start, stop))
        values *= np.float32(scaling)
        values += weight.read(start, stop)
        return values

    def read_rounded(rounding: Rounding, start: int, stop: int) -> np.ndarray:
        factors = read_factors(start, stop)
        rounded = _add_rounded(*factors, weight.read_float32(start, stop), np.float32(scaling), rounding)
        return rounding(read(start, stop)) if rounded is None else rounded

    return LazyTensor(weight.shape, RoundingReader(read, read_rounded))


def _add_rounded(
    b: np.ndarray, a: np.ndarray, weight: np.ndarray, scaling: np.float32, rounding: Rounding
) -> np.ndarray | None:
    """Compute `rounding(weight + (b @ a) * scaling)` as if the product was summed rank after rank.

    Args:
        b: (rows, r), float32, as all.
        a: (r, columns).
        weight: (rows, columns).

    Returns:
        None where so many values would be summed again that it is better to sum all of them.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 is not written, as its writer tells
        values = b @ a
        values *= scaling
        values += weight
        # |b_i| |a_j| is at least the sum of the absolute products, by Cauchy and Schwarz. Twice: both sums are rounded.
        factor = 2 * (a.shape[0] + FURTHER_ROUNDINGS) * UNIT * abs(scaling)
        b_lengths = np.linalg.norm(b.astype(np.float64), axis=1) * factor  # squares would be beyond float32
        a_lengths = np.linalg.norm(a.astype(np.float64), axis=0)
        margin = np.multiply.outer(b_lengths.astype(np.float32), a_lengths.astype(np.float32))
        margin += np.abs(values) * (2 * FURTHER_ROUNDINGS * UNIT)
        margin += SMALLEST
        values -= margin
        lowest = rounding(values)
        margin *= 2
        values += margin
        unsigned = f"u{lowest.itemsize}"  # told apart by their bits, zeros by their signs
        unsure = np.flatnonzero(lowest.view(unsigned) != rounding(values).view(unsigned))
        if len(unsure) > values.size // FEW:
            return None
        rows, columns = np.divmod(unsure, values.shape[1])
        exact = _multiply_at(b, a, rows, columns)
        exact *= scaling
        exact += weight[rows, columns]
        lowest[rows, columns] = rounding(exact)
        return lowest


def _multiply_at(b: np.ndarray, a: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute what `_multiply` does for some values, those of (rows[i], columns[i]): as many."""
    total = np.zeros(len(rows), np.float32)
    for column, rank in zip(b.T, a.astype(np.float64), strict=True):
        total = (column[rows] * rank[columns] + total).astype(np.float32)
    return total


def _multiply(b: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Compute b @ a rank after rank; a float64 holds the product of two float32 exactly, so only sums are rounded."""
    result = np.zeros((b.shape[0], a.shape[1]), np.float32)
    columns, ranks = b.T.astype(np.float64), a.astype(np.float64)
    rows = max(1, BLOCK_VALUES // a.shape[1])
    for start in range(0, b.shape[0], rows):
        total = result[start : start + rows]
        step = np.empty(total.shape, np.float64)
        for column, rank in zip(columns, ranks, strict=True):
            np.multiply(column[start : start + rows, None], rank, out=step)
            step += total
            total[...] = step
    return result


def apply_dora_magnitude(updated: LazyTensor, magnitude: LazyTensor, transposed: bool) -> LazyTensor:
    """Make DoRA's weight from W + LoRA's update and the trained lengths (outputs,)."""
    factors = compute_once(lambda: magnitude.read_float32() / _compute_column_norms(updated))

    def read(start: int, stop: int) -> np.ndarray:
        values = updated.read_float32(start, stop)
        if transposed:
            values *= factors()
        else:
            values *= (magnitude.read_float32(start, stop) / _compute_row_norms(values))[:, None]
        return values

    return LazyTensor(updated.shape, read)


def add_bias_update(bias: LazyTensor, update: LazyTensor, scaling: float) -> LazyTensor:
    """Make the bias of a module whose B was trained with one (lora_bias)."""

    def read(start: int, stop: int) -> np.ndarray:
        return bias.read_float32(start, stop) + update.read_float32(start, stop) * np.float32(scaling)

    return LazyTensor(bias.shape, read)


def replace_rows(weight: LazyTensor, trained: LazyTensor, indices: Sequence[int]) -> LazyTensor:
    """Make an embedding whose rows `indices` are those of `trained`; they may lie beyond the end of `weight`."""
    positions, row_count = np.array(indices, int), max([weight.row_count - 1, *indices]) + 1
    order = np.argsort(positions)

    def read(start: int, stop: int) -> np.ndarray:
        values = np.empty((stop - start, *weight.shape[1:]), np.float32)
        end = max(start, min(stop, weight.row_count))
        if end > start:
            values[: end - start] = weight.read(start, end)
        for index in order[slice(*np.searchsorted(positions[order], (start, stop)))]:
            values[positions[index] - start] = trained.read(index, index + 1)[0]
        return values

    return LazyTensor((row_count, *weight.shape[1:]), read)


def _compute_row_norms(values: np.ndarray) -> np.ndarray:
    """The length of each row, summed as torch does: eight sums side by side, these one by one, then what is left."""
    squares = values * values
    even = values.shape[1] // LANES * LANES
    lanes = np.add.reduce(squares[:, :even].reshape(len(values), -1, LANES), axis=1)
    total = np.zeros(len(values), np.float32) if even == 0 else lanes[:, 0].copy()
    for lane in lanes.T[1:] if even else ():
        total += lane
    for rest in values.T[even:].astype(np.float64):
        total = (rest * rest + total).astype(np.float32)
    return np.sqrt(total)


def _compute_column_norms(tensor: LazyTensor) -> np.ndarray:
    """The length of each column, summed as torch does: row after row."""
    total = np.zeros(tensor.shape[1], np.float32)
    for start, stop in tensor.split():
        values = tensor.read_float32(start, stop)
        total = np.add.reduce(np.vstack([total, values * values]), axis=0)
    return np.sqrt(total)


def compute_once(compute: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Wrap a computation whose result several threads ask for: the first of them does it."""
    lock, results = Lock(), []

    def get() -> np.ndarray:
        with lock:
            if not results:
                results.append(compute())
        return results[0]

    return get
