"""Writes a GGUF file tensor by tensor: each is loaded, rounded, written and forgotten."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from impruver_core.cli.console import progress
from impruver_core.errors import CheckFailed

from impruver_gguf.architectures import is_float32
from impruver_gguf.tensors import Tensor

HEADER_ROOM = 32 << 20  # the vocabulary and its merges


def write_gguf(path: Path, architecture: str, tensors: dict[str, Tensor], metadata: Callable[[Any], None]) -> None:
    """An f16 file at `path`; `metadata(writer)` adds all that stands before the tensors."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(None, architecture)
    try:
        for name, tensor in tensors.items():
            kind = np.dtype(_type_of(name, tensor))
            writer.add_tensor_info(name, tensor.shape, kind, prod(tensor.shape) * kind.itemsize)
        metadata(writer)
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with progress(None, len(tensors), "tensors written") as bar:
            for name, tensor in tensors.items():
                writer.write_tensor_data(rounded(name, tensor, _type_of(name, tensor)))
                bar.update(1)
    finally:
        writer.close()


def size_of(tensors: dict[str, Tensor]) -> int:
    """The bytes of the f16 file, and a little more."""
    sizes = (prod(tensor.shape) * np.dtype(_type_of(name, tensor)).itemsize for name, tensor in tensors.items())
    return sum(sizes) + HEADER_ROOM


def _type_of(name: str, tensor: Tensor) -> type:
    return np.float32 if is_float32(name, tensor) else np.float16


def rounded(name: str, tensor: Tensor, kind: type) -> np.ndarray:
    """The values in `kind`, row after row; CheckFailed where they are no numbers or do not fit."""
    values = tensor.load()
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, kind)
    if not np.isfinite(narrow).all():
        what = "holds values beyond float16" if np.isfinite(values).all() else "holds NaN or infinity"
        raise CheckFailed(f"{name} {what}: no GGUF is written")
    return narrow
