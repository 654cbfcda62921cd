"""What stands in a GGUF file before its tensors, as bytes.

gguf's writer keeps and packs it; long lists (tokens, scores, merges) are packed here at once, which takes it a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np

from impruver_gguf.encode import Encoding
from impruver_gguf.tensors import Tensor


def header_of(
    architecture: str, tensors: dict[str, Tensor], types: dict[str, Encoding], metadata: Callable[[Any], None]
) -> bytes:
    """All that stands before the tensors; `metadata(writer)` adds what is known of the model."""
    import gguf
    from gguf.gguf_writer import WriterState

    class Writer(gguf.GGUFWriter):
        def _pack_val(self, val: Any, vtype: gguf.GGUFValueType, add_vtype: bool, sub_type: Any = None) -> bytes:
            if vtype is not gguf.GGUFValueType.ARRAY:
                return super()._pack_val(val, vtype, add_vtype, sub_type)
            kind = sub_type or gguf.GGUFValueType.get_type(val[0])
            head = struct.pack("<IIQ", vtype, kind, len(val))
            if kind is gguf.GGUFValueType.STRING:
                return head + _texts(val)
            return head + struct.pack(f"<{len(val)}{self._simple_value_packing[kind]}", *val)

    writer = Writer(None, architecture)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(types[name].ggml)
        writer.add_tensor_info(name, tensor.shape, np.dtype("f4"), types[name].bytes_of(tensor.shape), kind)
    metadata(writer)
    file = BytesIO()
    writer.fout, writer.state = [file], WriterState.EMPTY  # as if it had opened a file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return file.getvalue()


def _texts(texts: Sequence[str]) -> bytes:
    encoded = [text.encode("utf-8") for text in texts]
    lengths = [len(text).to_bytes(8, "little") for text in encoded]
    return b"".join(chain.from_iterable(zip(lengths, encoded, strict=True)))
