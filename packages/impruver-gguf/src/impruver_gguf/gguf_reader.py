"""Read the types and shapes of the tensors in a GGUF file from its header."""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from impruver_core.errors import ImpruverError

VALUE_BYTES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)  # by GGUF's number of a value's type
STRING, ARRAY = 8, 9
MOST_DIMENSIONS = 4  # llama.cpp's own limit
FIRST_KEY = 24  # bytes before it
read_length = struct.Struct("<Q").unpack_from


class TensorInfo(NamedTuple):
    """A tensor in a GGUF file: its name, its shape with the row's size first, its type such as `Q4_K`."""

    name: str
    shape: tuple[int, ...]
    type: str


def read_tensor_infos(path: Path) -> Iterator[TensorInfo]:
    """Yield each tensor of a GGUF file; nothing for a file that is none, ImpruverError for a header that lies."""
    try:
        yield from _read_tensor_infos(path)
    except (struct.error, IndexError, OverflowError, RecursionError):
        raise ImpruverError(f"{path}: no GGUF file (its header can't be read); copy it again") from None


def _read_tensor_infos(path: Path) -> Iterator[TensorInfo]:
    import gguf

    types = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    if path.stat().st_size < FIRST_KEY:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"GGUF":
            return
        tensors, keys = struct.unpack_from("<QQ", content, 8)
        position = FIRST_KEY
        for _ in range(keys):
            position = _skip_text(content, position)
            (kind,) = struct.unpack_from("<I", content, position)
            position = _skip_value(content, position + 4, kind)
        for _ in range(tensors):
            start, position = position + 8, _skip_text(content, position)
            name = content[start:position].decode("utf-8", "replace")
            (dimensions,) = struct.unpack_from("<I", content, position)
            if dimensions > MOST_DIMENSIONS:
                raise IndexError(dimensions)
            *shape, kind = struct.unpack_from(f"<{dimensions}QI", content, position + 4)
            position += 4 + 8 * dimensions + 4 + 8
            yield TensorInfo(name, tuple(shape), types.get(kind, f"type {kind}"))


def _skip_text(content: mmap.mmap, position: int) -> int:
    return position + 8 + read_length(content, position)[0]


def _skip_value(content: mmap.mmap, position: int, kind: int) -> int:
    if kind == STRING:
        return _skip_text(content, position)
    if kind != ARRAY:
        return position + VALUE_BYTES[kind]
    inner, count = struct.unpack_from("<IQ", content, position)
    position += 12
    if inner not in (STRING, ARRAY):
        return position + VALUE_BYTES[inner] * count
    if inner == STRING:  # a vocabulary: no call for each of its texts
        for _ in range(count):
            position += 8 + read_length(content, position)[0]
        return position
    for _ in range(count):
        position = _skip_value(content, position, inner)
    return position
