"""Writes a GGUF file: its header first, in memory, then tensor by tensor: loaded, rounded, written and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from impruver_core.cli.console import progress
from impruver_core.errors import CheckFailed

from impruver_gguf.architectures import is_float32
from impruver_gguf.tensors import Tensor

ALIGNMENT = 32  # GGUF's default


def header_of(architecture: str, tensors: dict[str, Tensor], metadata: Callable[[Any], None]) -> bytes:
    """All that stands before the tensors of an f16 file; `metadata(writer)` adds what is known of the model."""
    import gguf
    from gguf.gguf_writer import WriterState

    writer = gguf.GGUFWriter(None, architecture)
    for name, tensor in tensors.items():
        writer.add_tensor_info(name, tensor.shape, _type_of(name, tensor), _bytes_of(name, tensor))
    metadata(writer)
    file = BytesIO()
    writer.fout, writer.state = [file], WriterState.EMPTY  # as if it had opened a file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return file.getvalue()


def write_gguf(path: Path, header: bytes, tensors: dict[str, Tensor]) -> None:
    """An f16 file at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, progress(None, len(tensors), "tensors written") as bar:
        file.write(header.ljust(_padded(len(header)), b"\0"))
        for name, tensor in tensors.items():
            values = rounded(name, tensor, _type_of(name, tensor))
            file.write(values.data)
            file.write(bytes(_padded(values.nbytes) - values.nbytes))
            bar.update(1)


def size_of(header: bytes, tensors: dict[str, Tensor]) -> int:
    """The bytes of the f16 file."""
    return sum(_padded(size) for size in (len(header), *(_bytes_of(*item) for item in tensors.items())))


def _padded(size: int) -> int:
    return size + -size % ALIGNMENT


def _bytes_of(name: str, tensor: Tensor) -> int:
    return prod(tensor.shape) * _type_of(name, tensor).itemsize


def _type_of(name: str, tensor: Tensor) -> np.dtype:
    return np.dtype("<f4" if is_float32(name, tensor) else "<f2")


def rounded(name: str, tensor: Tensor, kind: np.dtype | type) -> np.ndarray:
    """The values in `kind`, row after row; CheckFailed where they are no numbers or do not fit."""
    values = tensor.load()
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, kind)
    if not np.isfinite(narrow).all():
        what = "holds values beyond float16" if np.isfinite(values).all() else "holds NaN or infinity"
        raise CheckFailed(f"{name} {what}: no GGUF is written")
    return narrow
