"""Write a GGUF file: its header, then the tensors, some rows at a time: read, encoded, written.

Values are encoded as llama.cpp does, bit by bit. Several threads read and encode ahead of the one that writes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from impruver_core.cli.console import open_progress
from impruver_core.errors import CheckFailedError
from impruver_core.system import available_cpus

from impruver_gguf.weights.lazy_tensor import CHUNK_VALUES, LazyTensor, Tensors

ALIGNMENT = 32  # GGUF's default
VALUES_AHEAD = 16 * CHUNK_VALUES  # values read and encoded that are not yet written
WORKERS = 8  # more would wait for the disk
Q8_BLOCK = 32  # values that share a scale


class EncodingError(ValueError):
    """What is wrong with the values of a tensor."""


@dataclass(frozen=True)
class TensorType:
    """A type of values in a GGUF."""

    ggml: int  # ggml's number of the type
    file: int  # ggml's number of a file whose matrices have it
    block: int  # values that are encoded together
    block_bytes: int
    encode: Callable[[np.ndarray], np.ndarray]  # values, float32 or float16 → their bytes as an array

    def compute_bytes(self, shape: Sequence[int]) -> int:
        """The bytes of a tensor of this shape."""
        return prod(shape) // self.block * self.block_bytes


def _encode_f32(values: np.ndarray) -> np.ndarray:
    encoded = np.ascontiguousarray(values, "<f4")
    _check_finite(encoded)
    return encoded


def _encode_f16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        encoded = np.ascontiguousarray(values, "<f2")
    _check_exponents(encoded.view(np.uint16), 0x7C00, values, "float16")
    return encoded


def _encode_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    rounded = bits >> 16
    rounded &= 1  # to the even one where both are as near
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    encoded = rounded.astype("<u2")
    _check_exponents(encoded, 0x7F80, values, "bfloat16")
    return encoded


def _encode_q8_0(values: np.ndarray) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    _check_finite(values)
    with np.errstate(over="ignore"):
        blocks = quants.quantize(np.ascontiguousarray(values, "<f4"), GGMLQuantizationType.Q8_0)
    scales = blocks.reshape(-1, Q8_BLOCK + 2)[:, :2].copy().view(np.uint16)
    _check_exponents(scales, 0x7C00, values, "q8_0")
    return blocks


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise EncodingError("holds NaN or infinity")


def _check_exponents(bits: np.ndarray, exponent: int, values: np.ndarray, kind: str) -> None:
    """Raise EncodingError where all bits of an exponent are set: in infinity and NaN."""
    if ((bits & exponent) == exponent).any():
        _check_finite(values)
        raise EncodingError(f"holds values beyond {kind}")


# The recipe's gguf.outtype → the type.
TENSOR_TYPES = {
    "f16": TensorType(1, 1, 1, 2, _encode_f16),
    "bf16": TensorType(30, 32, 1, 2, _encode_bf16),
    "f32": TensorType(0, 0, 1, 4, _encode_f32),
    "q8_0": TensorType(8, 7, Q8_BLOCK, Q8_BLOCK + 2, _encode_q8_0),
}


def choose_tensor_types(tensors: Tensors, outtype: str) -> dict[str, TensorType]:
    """Choose the type of each tensor in a file of `outtype`, as llama.cpp does.

    Vectors, norms and GPT-2's positions stay in 32 bits, rows that are no whole blocks in 16.
    """
    wanted, types = TENSOR_TYPES[outtype], {}
    for name, tensor in tensors.items():
        if len(tensor.shape) <= 1 or name.endswith("_norm.weight") or name == "position_embd.weight":
            types[name] = TENSOR_TYPES["f32"]
        else:
            types[name] = TENSOR_TYPES["f16"] if tensor.shape[-1] % wanted.block else wanted
    return types


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file holds: its header, and the tensors with their types."""

    header: bytes
    tensors: Tensors
    types: Mapping[str, TensorType]

    @property
    def size(self) -> int:
        """The bytes of the file."""
        sizes = (self.types[name].compute_bytes(tensor.shape) for name, tensor in self.tensors.items())
        return _pad(len(self.header)) + sum(map(_pad, sizes))


class TensorSlice(NamedTuple):
    """Some rows of a tensor, and the type that they are encoded in."""

    name: str
    tensor: LazyTensor
    type: TensorType
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return (self.stop - self.start) * prod(self.tensor.shape[1:])


def write_gguf(path: Path, content: GgufContent) -> None:
    """Write the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for data in _generate_bytes(content, "tensors written"):
            file.write(data)


def is_same_gguf(path: Path, content: GgufContent) -> bool:
    """Whether `write_gguf` would write what stands at `path`, byte for byte."""
    if path.stat().st_size != content.size:
        return False
    with path.open("rb") as file, closing(_generate_bytes(content, "tensors compared")) as expected:
        return all(file.read(len(data)) == data for data in expected)


def _generate_bytes(content: GgufContent, doing: str) -> Iterator[bytes | memoryview]:
    with open_progress(len(content.tensors), doing) as bar:
        yield content.header.ljust(_pad(len(content.header)), b"\0")
        for rows, data in encode_tensors(content.tensors, content.types):
            yield data.data.cast("B")
            if rows.stop == rows.tensor.row_count:
                size = rows.type.compute_bytes(rows.tensor.shape)
                yield bytes(_pad(size) - size)
                bar.update(1)


def encode_tensors(tensors: Tensors, types: Mapping[str, TensorType]) -> Iterator[tuple[TensorSlice, np.ndarray]]:
    """Yield all tensors slice by slice, in their order, with the encoded values.

    CheckFailedError where values are no numbers, or beyond what the type holds.
    """
    slices = (
        TensorSlice(name, tensors[name], types[name], *rows) for name in tensors for rows in tensors[name].split()
    )
    waiting, ahead = deque(), 0
    with ThreadPoolExecutor(min(WORKERS, available_cpus())) as pool:
        try:
            for rows in slices:
                while waiting and (ahead + rows.size > VALUES_AHEAD or len(waiting) > 4 * WORKERS):
                    ahead -= waiting[0][0].size
                    yield waiting[0][0], waiting.popleft()[1].result()
                waiting.append((rows, pool.submit(_encode_slice, rows)))
                ahead += rows.size
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()


def _encode_slice(rows: TensorSlice) -> np.ndarray:
    try:
        return rows.type.encode(rows.tensor.read(rows.start, rows.stop))
    except EncodingError as error:
        raise CheckFailedError(f"{rows.name} {error}: no GGUF is written") from None


def _pad(size: int) -> int:
    return size + -size % ALIGNMENT
