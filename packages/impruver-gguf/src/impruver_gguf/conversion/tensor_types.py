"""The types of a GGUF's tensors that are written here: what they are called, how large they are, their bytes.

Each is what llama.cpp's converter writes, bit by bit; a value that a type can't hold is told by what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

Q8_BLOCK = 32  # values that share a scale


class EncodingError(ValueError):
    """What is wrong with the values of a tensor."""


@dataclass(frozen=True)
class Encoding:
    """ggml's numbers of a tensor's and a whole file's type; values and bytes of a block; values to bytes."""

    ggml: int
    file: int
    block: int
    size: int
    encode: Callable[[np.ndarray], np.ndarray]

    def bytes_of(self, shape: Sequence[int]) -> int:
        """The bytes of a tensor."""
        return prod(shape) // self.block * self.size


def _float32(values: np.ndarray) -> np.ndarray:
    wide = np.ascontiguousarray(values, "<f4")
    _check_finite(wide)
    return wide


def _float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, "<f2")
    _check_exponents(narrow.view(np.uint16), 0x7C00, values, "float16")
    return narrow


def _bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    rounded = bits >> 16
    rounded &= 1  # to the even one where both are as near
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    narrow = rounded.astype("<u2")
    _check_exponents(narrow, 0x7F80, values, "bfloat16")
    return narrow


def _q8_0(values: np.ndarray) -> np.ndarray:
    from gguf import GGMLQuantizationType, quants

    _check_finite(values)
    with np.errstate(over="ignore"):
        blocks = quants.quantize(np.ascontiguousarray(values, "<f4"), GGMLQuantizationType.Q8_0)
    scales = blocks.reshape(-1, Q8_BLOCK + 2)[:, :2].copy().view(np.uint16)
    _check_exponents(scales, 0x7C00, values, "q8_0")
    return blocks


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise EncodingError("holds NaN or infinity")


def _check_exponents(bits: np.ndarray, special: int, values: np.ndarray, kind: str) -> None:
    """Infinity and NaN have all bits of the exponent set."""
    if ((bits & special) == special).any():
        _check_finite(values)
        raise EncodingError(f"holds values beyond {kind}")


# What the recipe calls them → what they are.
ENCODINGS = {
    "f16": Encoding(1, 1, 1, 2, _float16),
    "bf16": Encoding(30, 32, 1, 2, _bfloat16),
    "f32": Encoding(0, 0, 1, 4, _float32),
    "q8_0": Encoding(8, 7, Q8_BLOCK, Q8_BLOCK + 2, _q8_0),
}


def encoding_of(outtype: str, shape: Sequence[int], in_float32: bool) -> Encoding:
    """A tensor's type in a file of `outtype`; rows that are no whole blocks stay in 16 bits."""
    if in_float32:
        return ENCODINGS["f32"]
    asked = ENCODINGS[outtype]
    return ENCODINGS["f16"] if shape[-1] % asked.block else asked
