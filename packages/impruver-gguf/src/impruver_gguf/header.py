"""What stands in a GGUF file before its tensors, as bytes.

gguf's writer keeps it; long lists (tokens, scores, merges) are packed here at once, which takes it a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np

from impruver_gguf.encode import Encoding
from impruver_gguf.tensors import Tensor

NUMBERS = {  # GGUF's types → struct's
    "UINT8": "B",
    "INT8": "b",
    "UINT16": "H",
    "INT16": "h",
    "UINT32": "I",
    "INT32": "i",
    "UINT64": "Q",
    "INT64": "q",
    "FLOAT32": "f",
    "FLOAT64": "d",
    "BOOL": "?",
}


def header_of(
    architecture: str, tensors: dict[str, Tensor], types: dict[str, Encoding], metadata: Callable[[Any], None]
) -> bytes:
    """All that stands before the tensors; `metadata(writer)` adds what is known of the model."""
    import gguf
    from gguf.gguf_writer import WriterState

    writer = gguf.GGUFWriter(None, architecture)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(types[name].ggml)
        writer.add_tensor_info(name, tensor.shape, np.dtype("f4"), types[name].bytes_of(tensor.shape), kind)
    metadata(writer)
    file = BytesIO()
    writer.fout, writer.state = [file], WriterState.EMPTY  # as if it had opened a file
    writer.write_header_to_file()
    file.write(_pairs(writer.kv_data[0]))
    writer.state = WriterState.KV_DATA
    writer.write_ti_data_to_file()
    return file.getvalue()


def _pairs(pairs: Mapping[str, Any]) -> bytes:
    parts = []
    for key, entry in pairs.items():
        parts += [_texts([key]), struct.pack("<I", entry.type.value)]
        parts.append(_value(entry.value, entry.type, entry.sub_type))
    return b"".join(parts)


def _value(value: Any, kind: Any, of: Any) -> bytes:
    if kind.name == "STRING":
        return _texts([value])
    if kind.name == "ARRAY":
        of = of or type(kind).get_type(value[0])
        return struct.pack("<IQ", of.value, len(value)) + _items(value, of)
    return struct.pack(f"<{NUMBERS[kind.name]}", value)


def _items(values: Sequence[Any], kind: Any) -> bytes:
    if kind.name == "STRING":
        return _texts(values)
    if kind.name == "ARRAY":
        return b"".join(_value(value, kind, None) for value in values)
    return np.array(values, np.dtype(NUMBERS[kind.name]).newbyteorder("<")).tobytes()


def _texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode("utf-8") for text in texts]
    lengths = [len(text).to_bytes(8, "little") for text in encoded]
    return b"".join(chain.from_iterable(zip(lengths, encoded, strict=True)))
