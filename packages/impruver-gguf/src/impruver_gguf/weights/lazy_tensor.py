"""Tensors that are read when they are needed, some rows at a time: from safetensors files, in the file's precision.

numpy has no bfloat16: such values are read as uint16 and shifted into the upper half of a float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import read_safetensors_header, read_weight_map, refuse_pickled_weights

CHUNK_VALUES = 1 << 19  # values read, merged or encoded at once
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}
PACKED = ("_proj_blocks", "_proj_scales")  # how the names of gpt-oss's experts end that are no numbers but bytes
OTHER_DTYPE = "give the model in 16 bits that it was made from"
Rounding = Callable[[np.ndarray], np.ndarray]  # float32 values → rounded to those of another type, monotonically


@dataclass(frozen=True)
class RoundingReader:
    """A reader of rows that has a cheaper way to values that are rounded; what takes its place in a tensor has none."""

    read: Callable[[int, int], np.ndarray]
    read_rounded: Callable[[Rounding, int, int], np.ndarray]

    def __call__(self, start: int, stop: int) -> np.ndarray:
        """Read rows as they are."""
        return self.read(start, stop)


@dataclass(frozen=True)
class LazyTensor:
    """A shape and a reader of rows: no tensor need be in memory as a whole.

    A row is what the last dimension spans, in a stack of matrices too; each value of a vector is a row, and a scalar
    is one. `read(start, stop)` gives rows as float32 or float16, of shape `(stop - start, row_size)`; values of a
    vector as `(stop - start,)`. With an `encoding` (ggml's name of a type) it gives their bytes in that one instead.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    rows_at_once: int = 1  # rows that are best read together, from a multiple of as many: some cost as much as all
    encoding: str | None = None
    dtype: str = ""  # of the file that holds it, as safetensors names it; empty for what is computed

    @property
    def row_count(self) -> int:
        """How many rows it has."""
        return prod(self.shape) if len(self.shape) < 2 else prod(self.shape[:-1])

    @property
    def row_size(self) -> int:
        """How many values a row has."""
        return self.shape[-1] if len(self.shape) > 1 else 1

    def split(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of the chunks of rows that are worked on at once."""
        groups = CHUNK_VALUES // max(1, self.row_size * self.rows_at_once)
        step = max(1, groups) * self.rows_at_once
        yield from ((start, min(start + step, self.row_count)) for start in range(0, self.row_count, step))

    def read_float32(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read some rows, or all of them, as float32."""
        return self.read(start, self.row_count if stop is None else stop).astype(np.float32, copy=False)


Tensors = Mapping[str, LazyTensor]  # by name


def as_float32(tensor: LazyTensor) -> LazyTensor:
    """Make a tensor that reads as float32, so that results computed from it are not rounded to 16 bits in between."""
    return replace(tensor, read=tensor.read_float32)


def reshape_tensor(tensor: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    """Make a tensor of the same values in another shape, whose rows are one or several of the old ones."""
    reshaped = LazyTensor(shape, tensor.read)
    old_rows = tensor.row_count // reshaped.row_count

    def read(start: int, stop: int) -> np.ndarray:
        return tensor.read(start * old_rows, stop * old_rows).reshape(stop - start, reshaped.row_size)

    return replace(reshaped, read=read, rows_at_once=-(-tensor.rows_at_once // old_rows))


def stack_tensors(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Stack tensors of the same shape: `(len(parts), *shape)`."""
    rows = parts[0].row_count

    def read(start: int, stop: int) -> np.ndarray:
        pieces = [
            parts[number].read(max(start - number * rows, 0), min(stop - number * rows, rows))
            for number in range(start // rows, -(-stop // rows))
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return LazyTensor((len(parts), *parts[0].shape), read, parts[0].rows_at_once)


def slice_matrices(stack: LazyTensor, first: int, last: int) -> LazyTensor:
    """Slice a matrix, or each of a stack (count, rows, columns): its rows from `first` to before `last`."""
    *count, rows, columns = stack.shape
    height = last - first

    def read(start: int, stop: int) -> np.ndarray:
        pieces = []
        while start < stop:
            number, row = divmod(start, height)
            length = min(stop - start, height - row)
            offset = number * rows + first + row
            pieces.append(stack.read(offset, offset + length))
            start += length
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    return LazyTensor((*count, height, columns), read, height if stack.rows_at_once > 1 else 1)


def transpose_matrices(stack: LazyTensor) -> LazyTensor:
    """Make a stack (count, rows, columns) of the same matrices transposed, each of which is read as a whole."""
    count, rows, columns = stack.shape

    def read(start: int, stop: int) -> np.ndarray:
        first, last = start // columns, -(-stop // columns)
        matrices = stack.read(first * rows, last * rows).reshape(last - first, rows, columns).swapaxes(1, 2)
        return matrices.reshape(-1, rows)[start - first * columns : stop - first * columns]

    return LazyTensor((count, columns, rows), read, columns)


def select_rows(tensor: LazyTensor, rows: np.ndarray) -> LazyTensor:
    """Make a tensor of some rows of another in this order; neighbours are read at once."""

    together = tensor.rows_at_once > 1

    def read(start: int, stop: int) -> np.ndarray:
        if together:
            return tensor.read(0, tensor.row_count)[rows[start:stop]]
        runs = np.split(rows[start:stop], np.flatnonzero(np.diff(rows[start:stop]) != 1) + 1)
        return np.concatenate([tensor.read(int(run[0]), int(run[-1]) + 1) for run in runs])

    return LazyTensor((len(rows), *tensor.shape[1:]), read, len(rows) if together else 1)


def add_one(tensor: LazyTensor) -> LazyTensor:
    """Make a tensor whose values are larger by one, in their precision."""

    def read(start: int, stop: int) -> np.ndarray:
        values = tensor.read(start, stop)
        return values + values.dtype.type(1)

    return LazyTensor(tensor.shape, read, tensor.rows_at_once)


def has_same_values(one: LazyTensor, other: LazyTensor) -> bool:
    """Compare two tensors chunk by chunk."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(*rows), other.read(*rows)) for rows in one.split())


def read_safetensors(path: Path, advice: str = OTHER_DTYPE) -> dict[str, LazyTensor]:
    """Read a safetensors file's header: its tensors, sorted by name; ImpruverError for a broken or cut-off file.

    `advice` says what to do where tensors have 4 or 8 bits.
    """
    tensors = {}
    for name, (dtype, shape, start, stop) in read_safetensors_header(path).items():
        if dtype not in DTYPE_BYTES or (dtype == "U8" and not name.endswith(PACKED)):
            raise ImpruverError(f"{path}: {name} holds {dtype}, which is neither fp32, fp16 nor bf16: {advice}")
        if stop - start != prod(shape) * DTYPE_BYTES[dtype]:
            raise ImpruverError(f"{path}: {name} does not hold what its shape {list(shape)} says")
        encoding, read = "bytes" if dtype == "U8" else None, partial(_read_rows, path, dtype, shape, start)
        tensors[name] = LazyTensor(shape, read, encoding=encoding, dtype=dtype)
    return tensors


def _read_rows(path: Path, dtype: str, shape: tuple[int, ...], offset: int, start: int, stop: int) -> np.ndarray:
    stored = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}[dtype]
    row_shape = shape[-1:] if len(shape) > 1 else ()
    row_values = prod(row_shape)
    offset += start * row_values * DTYPE_BYTES[dtype]
    values = np.fromfile(path, dtype=stored, count=(stop - start) * row_values, offset=offset)
    values = values.reshape((stop - start, *row_shape) if shape else ())
    if dtype != "BF16":
        return values
    bits = values.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def read_weights(folder: Path, advice: str = OTHER_DTYPE) -> dict[str, LazyTensor]:
    """Read all tensors of a model's safetensors files, one file or the shards that the index names; {} without any.

    ImpruverError where two files hold the same tensor, where the index names what is not there, for pickles, and with
    `advice` for tensors in 4 or 8 bits.
    """
    index = folder / "model.safetensors.index.json"
    weight_map = read_weight_map(index) if index.is_file() else {}
    present = {path.name for path in folder.glob("model*.safetensors") if path.is_file()}
    names = sorted(set(weight_map.values()) or present)
    if not names:
        refuse_pickled_weights(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ImpruverError(f"{folder}: {', '.join(missing)} is not there, but {index.name} names it")
    if weight_map and "model.safetensors" in present - set(names):
        raise ImpruverError(
            f"{folder}: model.safetensors and the files that {index.name} names are two models; move one away"
        )
    tensors: dict[str, LazyTensor] = {}
    for name in names:
        shard = read_safetensors(folder / name, advice)
        duplicates = sorted(tensors.keys() & shard.keys())
        if duplicates:
            raise ImpruverError(
                f"{folder / name}: holds {duplicates[0]}, as another file does; move away what is too many"
            )
        tensors |= shard
    lost = sorted(weight_map.keys() - tensors.keys())
    if lost:
        raise ImpruverError(f"{folder}: {lost[0]} is in none of the files, but {index.name} names it")
    return tensors
