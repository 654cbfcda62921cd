"""The types of tensors that are written here: ggml's numbers, sizes, and how values are encoded.

Each encodes as llama.cpp's converter does, bit by bit; values that a type can't hold are an `EncodingError`.
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
class TensorType:
    """A type of values in a GGUF."""

    ggml: int  # ggml's number of the type
    file: int  # ggml's number of a file whose matrices have it
    block: int  # values that are encoded together
    block_bytes: int
    encode: Callable[[np.ndarray], np.ndarray]  # values, float32 or float16 → their bytes as an array

    def compute_bytes(self, shape: Sequence[int]) -> int:
        """The bytes of a tensor of this shape."""
        return prod(shape) // self.block * self.block_bytes


def _encode_f32(values: np.ndarray) -> np.ndarray:
    encoded = np.ascontiguousarray(values, "<f4")
    _check_finite(encoded)
    return encoded


def _encode_f16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        encoded = np.ascontiguousarray(values, "<f2")
    _check_exponents(encoded.view(np.uint16), 0x7C00, values, "float16")
    return encoded


def _encode_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    rounded = bits >> 16
    rounded &= 1  # to the even one where both are as near
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    encoded = rounded.astype("<u2")
    _check_exponents(encoded, 0x7F80, values, "bfloat16")
    return encoded


def _encode_q8_0(values: np.ndarray) -> np.ndarray:
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


def _check_exponents(bits: np.ndarray, exponent: int, values: np.ndarray, kind: str) -> None:
    """Raise EncodingError where all bits of an exponent are set: in infinity and NaN."""
    if ((bits & exponent) == exponent).any():
        _check_finite(values)
        raise EncodingError(f"holds values beyond {kind}")


# The recipe's gguf.outtype → the type.
TENSOR_TYPES = {
    "f16": TensorType(1, 1, 1, 2, _encode_f16),
    "bf16": TensorType(30, 32, 1, 2, _encode_bf16),
    "f32": TensorType(0, 0, 1, 4, _encode_f32),
    "q8_0": TensorType(8, 7, Q8_BLOCK, Q8_BLOCK + 2, _encode_q8_0),
}


def choose_tensor_type(outtype: str, shape: Sequence[int], in_float32: bool) -> TensorType:
    """Choose a tensor's type in a file of `outtype`; rows that are no whole blocks stay in 16 bits."""
    if in_float32:
        return TENSOR_TYPES["f32"]
    wanted = TENSOR_TYPES[outtype]
    return TENSOR_TYPES["f16"] if shape[-1] % wanted.block else wanted
