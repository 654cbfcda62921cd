"""Tensors that are read when they are needed, some rows at a time: from safetensors files, in the file's precision.

numpy has no bfloat16: such values are read as uint16 and shifted into the upper half of a float32.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import read_safetensors_header, read_weight_map, refuse_pickled_weights

CHUNK_VALUES = 1 << 19  # values read, merged or encoded at once
DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
OTHER_DTYPE = "give the model in 16 bits that it was made from"


@dataclass(frozen=True)
class LazyTensor:
    """A shape and a reader of rows: no tensor need be in memory as a whole.

    `read(start, stop)` gives rows as float32 or float16, of shape `(stop - start, *shape[1:])`; a scalar is one row.
    """

    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray]
    at_once: bool = False  # reading some rows costs as much as reading all of them
    dtype: str = ""  # of the file that holds it, as safetensors names it; empty for what is computed

    @property
    def row_count(self) -> int:
        """The size of the first dimension; each value of a vector is a row."""
        return self.shape[0] if self.shape else 1

    def split(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of the chunks of rows that are worked on at once."""
        step = self.row_count if self.at_once else max(1, CHUNK_VALUES // max(1, prod(self.shape[1:])))
        yield from ((start, min(start + step, self.row_count)) for start in range(0, self.row_count, step))

    def read_float32(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read some rows, or all of them, as float32."""
        return self.read(start, self.row_count if stop is None else stop).astype(np.float32, copy=False)


Tensors = Mapping[str, LazyTensor]  # by name


def as_float32(tensor: LazyTensor) -> LazyTensor:
    """Make a tensor that reads as float32, so that results computed from it are not rounded to 16 bits in between."""
    return replace(tensor, read=tensor.read_float32)


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
        if dtype not in DTYPE_BYTES:
            raise ImpruverError(f"{path}: {name} holds {dtype}, which is neither fp32, fp16 nor bf16: {advice}")
        if stop - start != prod(shape) * DTYPE_BYTES[dtype]:
            raise ImpruverError(f"{path}: {name} does not hold what its shape {list(shape)} says")
        tensors[name] = LazyTensor(shape, partial(_read_rows, path, dtype, shape, start), dtype=dtype)
    return tensors


def _read_rows(path: Path, dtype: str, shape: tuple[int, ...], offset: int, start: int, stop: int) -> np.ndarray:
    stored, row_values = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[dtype], prod(shape[1:])
    offset += start * row_values * DTYPE_BYTES[dtype]
    values = np.fromfile(path, dtype=stored, count=(stop - start) * row_values, offset=offset)
    values = values.reshape((stop - start, *shape[1:]) if shape else ())
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
