"""Write a GGUF file: its header, then the tensors, some rows at a time: read, encoded, written.

Several threads read and encode ahead of the one that writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
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

from impruver_gguf.architectures.registry import is_stored_in_float32
from impruver_gguf.conversion.tensor_types import EncodingError, TensorType, choose_tensor_type
from impruver_gguf.weights.lazy_tensor import CHUNK_VALUES, LazyTensor

ALIGNMENT = 32  # GGUF's default
VALUES_AHEAD = 16 * CHUNK_VALUES  # values read and encoded that are not yet written
WORKERS = 8  # more would wait for the disk


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file holds: its header, and the tensors with their types."""

    header: bytes
    tensors: Mapping[str, LazyTensor]
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


def choose_tensor_types(tensors: Mapping[str, LazyTensor], outtype: str) -> dict[str, TensorType]:
    """Choose the type of each tensor in a file of `outtype`."""
    return {
        name: choose_tensor_type(outtype, tensor.shape, is_stored_in_float32(name, tensor))
        for name, tensor in tensors.items()
    }


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


def encode_tensors(
    tensors: Mapping[str, LazyTensor], types: Mapping[str, TensorType]
) -> Iterator[tuple[TensorSlice, np.ndarray]]:
    """Yield all tensors slice by slice, in their order, with the encoded values.

    CheckFailedError where values are no numbers, or beyond what the type holds.
    """
    slices = (
        TensorSlice(name, tensor, types[name], *rows)
        for name, tensor in tensors.items()
        for rows in tensor.split_rows()
    )
    waiting: deque = deque()
    ahead = 0
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
