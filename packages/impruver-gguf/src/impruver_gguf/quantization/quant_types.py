"""The levels that llama.cpp quantizes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from impruver_core.errors import ImpruverError


@dataclass(frozen=True)
class Level:
    """llama.cpp's number of a level; bits a weight, and where rows are no multiple of `block` values."""

    ftype: int
    bits: float
    odd_bits: float
    block: int = 256
    falls_back: bool = True  # to another type for a tensor whose rows are no multiple of `block`


# Those that need no importance matrix.
LEVELS = {
    "q8_0": Level(7, 8.5, 16.0, 32),
    "q6_k": Level(18, 6.6, 8.5),
    "q5_0": Level(8, 5.6, 16.0, 32),
    "q5_1": Level(9, 6.1, 16.0, 32),
    "q5_k_s": Level(16, 5.6, 6.6),
    "q5_k_m": Level(17, 5.8, 7.0),
    "q4_0": Level(2, 4.7, 16.0, 32),
    "q4_1": Level(3, 5.1, 16.0, 32),
    "q4_k_s": Level(14, 4.8, 5.8),
    "q4_k_m": Level(15, 5.0, 6.4),
    "q3_k_s": Level(11, 3.7, 4.8),
    "q3_k_m": Level(12, 4.1, 5.4),
    "q3_k_l": Level(13, 4.4, 5.6),
    "q2_k": Level(10, 3.4, 4.8),
    "q1_0": Level(40, 1.3, 4.8, 128, falls_back=False),
    "iq4_nl": Level(25, 4.8, 16.0, 32),
    "iq4_xs": Level(30, 4.6, 4.8),
    "iq3_s": Level(26, 3.6, 4.8),
    "iq3_m": Level(27, 3.9, 5.0),
    "tq1_0": Level(36, 2.0, 4.8),
    "tq2_0": Level(37, 2.3, 4.8),
    "mxfp4_moe": Level(38, 8.5, 16.0, 32),
}


WITH_IMATRIX = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "iq3_xxs", "iq3_xs", "q2_k_s")


NOT_QUANTIZED = ("f16", "bf16", "f32")


DEFAULT_LEVELS = ("q8_0", "q5_0", "q4_0", "q4_k_m", "q2_k")


def check_fits(level: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """ImpruverError for a tensor that a level can't hold in any type."""
    block = LEVELS[level].block
    if LEVELS[level].falls_back:
        return
    for name, shape in shapes.items():
        if len(shape) > 1 and shape[-1] % block:
            raise ImpruverError(
                f"gguf.quantization_levels: {level} wants rows of a multiple of {block} values, and those of {name} "
                f"have {shape[-1]}; leave {level} out"
            )
