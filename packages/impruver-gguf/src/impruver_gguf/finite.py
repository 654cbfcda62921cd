"""Which tensor of a GGUF holds what is no number, once llama.cpp said that one does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

FOUND = re.compile(r"found (?:nan|inf) value")  # ggml's words
PIECE = 1 << 22  # bytes looked at together


def not_finite(path: Path) -> str | None:
    """The first tensor's name; None where all are numbers."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    for tensor in GGUFReader(path).tensors:
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        step = max(1, PIECE // max(1, rows[:1].nbytes))
        for start in range(0, len(rows), step):
            if not np.isfinite(dequantize(rows[start : start + step], tensor.tensor_type)).all():
                return tensor.name
    return None
