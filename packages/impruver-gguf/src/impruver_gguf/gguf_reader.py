"""Tensors whose rows a level's blocks do not fit, and what llama.cpp gave them instead."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)  # bytes of a value by GGUF's number of its type


STRING, ARRAY = 8, 9


HEADER = 24  # bytes before the first key


LENGTH = struct.Struct("<Q").unpack_from


def tensor_types(path: Path) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """(name, sizes with the row's first, type) of each tensor in a GGUF file; nothing for what is none."""
    import gguf

    names = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    if path.stat().st_size < HEADER:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"GGUF":
            return
        tensors, keys = struct.unpack_from("<QQ", content, 8)
        at = HEADER
        for _ in range(keys):
            at = _behind_text(content, at)
            (kind,) = struct.unpack_from("<I", content, at)
            at = _behind_value(content, at + 4, kind)
        for _ in range(tensors):
            start, at = at + 8, _behind_text(content, at)
            name = content[start:at].decode("utf-8", "replace")
            (count,) = struct.unpack_from("<I", content, at)
            *shape, kind = struct.unpack_from(f"<{count}QI", content, at + 4)
            at += 4 + 8 * count + 4 + 8
            yield name, tuple(shape), names.get(kind, f"type {kind}")


def _behind_text(content: mmap.mmap, at: int) -> int:
    return at + 8 + LENGTH(content, at)[0]


def _behind_value(content: mmap.mmap, at: int, kind: int) -> int:
    """Where a value ends; one of a list's is of `kind`."""
    if kind == STRING:
        return _behind_text(content, at)
    if kind != ARRAY:
        return at + SIZES[kind]
    inner, count = struct.unpack_from("<IQ", content, at)
    at += 12
    if inner not in (STRING, ARRAY):
        return at + SIZES[inner] * count
    if inner == STRING:  # a vocabulary: no call for each of its texts
        for _ in range(count):
            at += 8 + LENGTH(content, at)[0]
        return at
    for _ in range(count):
        at = _behind_value(content, at, inner)
    return at
