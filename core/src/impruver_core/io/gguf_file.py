"""GGUF files, read without llama.cpp: what the header says, held against the bytes that are there.

The format (ggml's docs/gguf.md): `GGUF`, a version, how many tensors and keys there are; the keys, each with its type
and value; the tensors, each with its name, shape, type and place; then their data, each padded to a multiple of the
alignment. Each byte of it belongs to one tensor or is padding: a file with others, or with an overlap, is refused.
"""

import mmap
import struct
from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite, prod
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import check_no_lfs_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
VALUE_TYPES = {  # number → name and struct format
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "B"),
    8: ("text", ""),
    9: ("list", ""),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
BOOL, TEXT, LIST = 7, 8, 9
# Number → name, values in a block and bytes of a block. A type that is newer than these can't be measured, and is
# refused: the installed llama.cpp would not know it, either.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
MOST_HEADER_BYTES = 64 << 20  # Gemma's, with 262,144 tokens, takes 8 MB
MOST_KEYS, MOST_TENSORS = 4096, 16384  # llama.cpp compares each name with all before it
MOST_DIMENSIONS = 4  # ggml's own limits
LONGEST_NAME = 63
LONGEST_KEY = 1000  # bytes
ALIGNMENT, MOST_ALIGNMENT = 32, 1 << 16
ALIGNMENT_KEY, SPLIT_KEY = "general.alignment", "split.count"
COPY_AGAIN = "copy or download it again"

read_length = struct.Struct("<Q").unpack_from


class GgufValue(NamedTuple):
    """A key's value with the name of its type; of a list, that of its items, and `value` where it was asked for."""

    type: str
    value: Any
    count: int | None = None  # of a list's items


class GgufTensor(NamedTuple):
    """A tensor in a GGUF file: its name, its shape with the row's size first, its type such as `Q4_K`."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself."""

    values: dict[str, GgufValue]
    tensors: list[GgufTensor]
    data_start: int  # bytes before the first tensor's data


class _HeaderError(Exception):
    """What is wrong with a header."""


def read_gguf_header(path: Path, lists: Collection[str] = ()) -> GgufHeader:
    """The header of a GGUF file; ImpruverError where it, or what it says of the rest of the file, can't be true.

    `lists`: keys of those lists whose items are wanted: numbers as a tuple, texts as a list of bytes.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                check_no_lfs_pointer(path)
                raise _HeaderError("it does not begin with GGUF")
            with mmap.mmap(file.fileno(), min(size, MOST_HEADER_BYTES), access=mmap.ACCESS_READ) as content:
                header, padding = _HeaderReader(content, size, lists).read()
            for start, stop in padding:
                file.seek(start)
                if file.read(stop - start).strip(b"\0"):
                    raise _HeaderError(f"there are bytes at {start:,} which are no tensor's")
    except _HeaderError as fault:
        raise ImpruverError(f"{path}: no GGUF file: {fault}; {COPY_AGAIN}") from None
    except (struct.error, IndexError, OverflowError):  # a place beyond the end
        limit = f", or takes more than {MOST_HEADER_BYTES:,} bytes" if size > MOST_HEADER_BYTES else ""
        raise ImpruverError(f"{path}: no GGUF file: its header is cut off{limit}; {COPY_AGAIN}") from None
    return header


def read_gguf_parts(path: Path, lists: Collection[str] = ()) -> list[GgufHeader]:
    """The header of a GGUF file, and of those with the other parts where it is the first of several."""
    header = read_gguf_header(path, lists)
    count = header.values.get(SPLIT_KEY, GgufValue("", 1)).value
    ending = f"-00001-of-{count:05}.gguf" if isinstance(count, int) and count > 1 else ""
    parts, stem = [header], path.name.removesuffix(ending)
    for number in range(2, count + 1) if stem != path.name else ():  # llama.cpp refuses other names
        part = path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf")
        if not part.is_file():
            raise ImpruverError(f"{path}: {part.name}, one of its {count:,} parts, is not beside it; copy it there")
        parts.append(read_gguf_header(part))
    return parts


class _HeaderReader:
    """Reads a header from its beginning; `position` is where it has come to."""

    def __init__(self, content: mmap.mmap, size: int, lists: Collection[str]):
        self.content, self.size, self.lists = content, size, lists
        self.position = len(MAGIC)

    def read(self) -> tuple[GgufHeader, list[tuple[int, int]]]:
        """The header, and from where to where there is padding."""
        (version,) = self._unpack("I")
        if version not in VERSIONS:
            big_endian = version and not version & 0xFFFF
            raise _HeaderError(
                "it is for machines of the other byte order" if big_endian else f"its version is {version}, not 2 or 3"
            )
        tensor_count, key_count = self._unpack("QQ")
        for count, most, what in ((key_count, MOST_KEYS, "keys"), (tensor_count, MOST_TENSORS, "tensors")):
            if count > most:
                raise _HeaderError(f"it counts {count:,} {what}, more than any that is one")
        values: dict[str, GgufValue] = {}
        for _ in range(key_count):
            key = self._read_name("a key", LONGEST_KEY)
            if key in values:
                raise _HeaderError(f"{key} stands there twice")
            values[key] = self._read_value(key)
        alignment = _get_alignment(values)
        tensors, padding, start = {}, [], 0  # `start` counts from where the data begins
        for _ in range(tensor_count):
            tensor, offset, length = self._read_tensor()
            if tensor.name in tensors:
                raise _HeaderError(f"the tensor {tensor.name} stands there twice")
            if offset != start:
                what = "overlaps the tensor before it" if offset < start else "has bytes before it that are no tensor's"
                raise _HeaderError(f"{tensor.name} {what} (it begins at {offset:,}, and should at {start:,})")
            tensors[tensor.name] = tensor
            padding.append((start + length, start + length + -length % alignment))
            start = padding[-1][1]
        return self._check_end(values, [*tensors.values()], padding, alignment)

    def _check_end(
        self, values: dict[str, GgufValue], tensors: list[GgufTensor], padding: list[tuple[int, int]], alignment: int
    ) -> tuple[GgufHeader, list[tuple[int, int]]]:
        """The header with where its data begins, if the file ends where the last tensor does, padded or not."""
        header_end = self.position
        data = header_end + -header_end % alignment
        padding = [(header_end, data), *((data + start, data + stop) for start, stop in padding)]
        needed, end = padding[-1]
        cut_off = next((t.name for t, (stop, _) in zip(tensors, padding[1:], strict=True) if stop > self.size), None)
        if cut_off is not None:
            raise _HeaderError(f"it is cut off within {cut_off}, at {self.size:,} of {needed:,} bytes")
        if self.size > end:
            raise _HeaderError(f"{self.size - end:,} bytes follow its end")
        padding = [(start, stop) for start, stop in padding if start < stop]
        return GgufHeader(values, tensors, data), padding

    def _unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.content, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return values

    def _read_text(self) -> bytes:
        (length,) = self._unpack("Q")
        start, self.position = self.position, self.position + length
        if self.position > len(self.content):
            raise IndexError(self.position)
        return self.content[start : self.position]

    def _read_name(self, what: str, longest: int) -> str:
        """A key, or a tensor's name: without a NUL, at which one reader ends it and another does not, and its like."""
        name = self._read_text()
        if not 0 < len(name) <= longest:
            raise _HeaderError(f"{what} has a name of {len(name):,} bytes")
        text = name.decode(errors="replace")
        if not text.isprintable() or "\ufffd" in text:
            raise _HeaderError(f"the name of {what} is no text ({name[:LONGEST_NAME]!r})")
        return text

    def _read_value(self, key: str) -> GgufValue:
        (kind,) = self._unpack("I")
        if kind == LIST:
            return self._read_list(key)
        name, layout = _get_value_type(key, kind)
        if kind == TEXT:
            try:
                return GgufValue(name, self._read_text().decode())
            except UnicodeDecodeError:
                raise _HeaderError(f"the text of {key} is not UTF-8") from None
        (value,) = self._unpack(layout)
        if kind == BOOL and value > 1:
            raise _HeaderError(f"{key} is neither true nor false, but {value}")
        if isinstance(value, float) and not isfinite(value):
            raise _HeaderError(f"{key} is {value}")
        return GgufValue(name, bool(value) if kind == BOOL else value)

    def _read_list(self, key: str) -> GgufValue:
        kind, count = self._unpack("IQ")
        if kind == LIST:  # llama.cpp reads none, and no exporter writes one
            raise _HeaderError(f"{key} is a list of lists")
        name, layout = _get_value_type(key, kind)
        if kind == TEXT:
            return GgufValue(name, self._read_texts(count, key in self.lists), count)
        length = struct.calcsize(f"<{layout}") * count
        start, self.position = self.position, self.position + length
        if self.position > len(self.content):
            raise IndexError(self.position)
        if kind == BOOL and self.content[start : self.position].strip(b"\0\1"):
            raise _HeaderError(f"{key} has items that are neither true nor false")
        value = struct.unpack_from(f"<{count}{layout}", self.content, start) if key in self.lists else None
        return GgufValue(name, value, count)

    def _read_texts(self, count: int, wanted: bool) -> list[bytes] | None:
        """The texts of a list if they are wanted; a vocabulary has 150,000, so no call of ours for each."""
        if 8 * count > len(self.content):
            raise IndexError(count)
        content, position, texts = self.content, self.position, None
        if wanted:
            texts = [
                content[position + 8 : (position := position + 8 + read_length(content, position)[0])]
                for _ in range(count)
            ]
        else:
            for _ in range(count):
                position += 8 + read_length(content, position)[0]
        if position > len(content):
            raise IndexError(position)
        self.position = position
        return texts

    def _read_tensor(self) -> tuple[GgufTensor, int, int]:
        """A tensor, where in the data it begins, and how many bytes it has."""
        name = self._read_name("a tensor", LONGEST_NAME)
        (dimensions,) = self._unpack("I")
        if not 0 < dimensions <= MOST_DIMENSIONS:
            raise _HeaderError(f"{name} has {dimensions} dimensions, not 1 to {MOST_DIMENSIONS}")
        *shape, kind, offset = self._unpack(f"{dimensions}QIQ")
        if 0 in shape:
            raise _HeaderError(f"{name} is {shape}: it has no values")
        if kind not in TENSOR_TYPES:
            raise _HeaderError(f"{name} has the type {kind}, which this version does not know")
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if shape[0] % block:
            raise _HeaderError(f"{name} has rows of {shape[0]:,} values, and {type_name} takes multiples of {block}")
        return GgufTensor(name, tuple(shape), type_name), offset, prod(shape) // block * block_bytes


def _get_value_type(key: str, kind: int) -> tuple[str, str]:
    if kind not in VALUE_TYPES:
        raise _HeaderError(f"{key} has the type {kind}, which GGUF does not have")
    return VALUE_TYPES[kind]


def _get_alignment(values: dict[str, GgufValue]) -> int:
    name, alignment, count = values.get(ALIGNMENT_KEY, GgufValue("uint32", ALIGNMENT))
    if name != "uint32" or count is not None or not 0 < alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
        raise _HeaderError(f"{ALIGNMENT_KEY} is no power of two up to {MOST_ALIGNMENT:,}, or no uint32")
    return alignment
