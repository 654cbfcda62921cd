"""Writes a GGUF file: its header, then the tensors, some rows at a time: read, encoded, written.

Several threads read and encode ahead of the one that writes.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from impruver_core.cli.console import open_progress
from impruver_core.errors import CheckFailedError

from impruver_gguf.architectures.registry import is_float32
from impruver_gguf.conversion.tensor_types import Encoding, EncodingError, encoding_of
from impruver_gguf.weights.lazy_tensor import PIECE, Tensor

ALIGNMENT = 32  # GGUF's default


AHEAD = 16 * PIECE  # values read and encoded that are not yet written


WORKERS = 8  # more would wait for the disk


class Piece(NamedTuple):
    """Some rows of a tensor."""

    name: str
    tensor: Tensor
    encoding: Encoding
    start: int
    stop: int

    @property
    def values(self) -> int:
        """How many there are."""
        return (self.stop - self.start) * prod(self.tensor.shape[1:])


def encodings(tensors: Mapping[str, Tensor], outtype: str) -> dict[str, Encoding]:
    """The type of each tensor in a file of `outtype`."""
    return {name: encoding_of(outtype, tensor.shape, is_float32(name, tensor)) for name, tensor in tensors.items()}


def write_gguf(path: Path, header: bytes, tensors: dict[str, Tensor], types: dict[str, Encoding]) -> None:
    """The file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for part in _content(header, tensors, types, "tensors written"):
            file.write(part)


def is_gguf(path: Path, header: bytes, tensors: dict[str, Tensor], types: dict[str, Encoding]) -> bool:
    """Whether that is what stands at `path`, byte for byte."""
    if path.stat().st_size != size_of(header, tensors, types):
        return False
    with path.open("rb") as file:
        content = _content(header, tensors, types, "tensors compared")
        with closing(content):
            return all(file.read(len(part)) == part for part in content)


def _content(
    header: bytes, tensors: dict[str, Tensor], types: dict[str, Encoding], doing: str
) -> Iterator[bytes | memoryview]:
    with open_progress(len(tensors), doing) as bar:
        yield header.ljust(_padded(len(header)), b"\0")
        for piece, data in encoded(tensors, types):
            yield data.data.cast("B")
            if piece.stop == piece.tensor.count:
                size = piece.encoding.bytes_of(piece.tensor.shape)
                yield bytes(_padded(size) - size)
                bar.update(1)


def encoded(tensors: Mapping[str, Tensor], types: Mapping[str, Encoding]) -> Iterator[tuple[Piece, np.ndarray]]:
    """All tensors piece by piece, in their order; CheckFailed where values are no numbers or do not fit."""
    pieces = (Piece(name, tensor, types[name], *rows) for name, tensor in tensors.items() for rows in tensor.pieces())
    waiting: deque = deque()
    ahead = 0
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        try:
            for piece in pieces:
                while waiting and (ahead + piece.values > AHEAD or len(waiting) > 4 * WORKERS):
                    ahead -= waiting[0][0].values
                    yield waiting[0][0], waiting.popleft()[1].result()
                waiting.append((piece, pool.submit(_encode, piece)))
                ahead += piece.values
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        finally:
            for _, data in waiting:
                data.cancel()


def _encode(piece: Piece) -> np.ndarray:
    try:
        return piece.encoding.encode(piece.tensor.rows(piece.start, piece.stop))
    except EncodingError as error:
        raise CheckFailedError(f"{piece.name} {error}: no GGUF is written") from None


def size_of(header: bytes, tensors: dict[str, Tensor], types: dict[str, Encoding]) -> int:
    """The bytes of the file."""
    sizes = (types[name].bytes_of(tensor.shape) for name, tensor in tensors.items())
    return _padded(len(header)) + sum(map(_padded, sizes))


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def header_of(
    architecture: str, tensors: dict[str, Tensor], types: dict[str, Encoding], metadata: Callable[[Any], None]
) -> bytes:
    """All that stands before the tensors, as gguf-py writes it; `metadata(writer)` adds what is known of the model."""
    import gguf

    writer = gguf.GGUFWriter(None, architecture)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(types[name].ggml)
        writer.add_tensor_info(name, tensor.shape, np.dtype("f4"), types[name].bytes_of(tensor.shape), kind)
    metadata(writer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()
