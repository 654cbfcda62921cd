"""The quantization types that llama.cpp quantizes a file to, which a recipe calls levels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from impruver_core.errors import ImpruverError

FINE_TENSORS = ("token_embd.weight", "output.weight")  # llama.cpp gives these more bits


@dataclass(frozen=True)
class QuantType:
    """llama.cpp's number of a quantization type, and what it takes."""

    ftype: int
    bits: float  # per weight, about
    odd_bits: float  # the same where rows are no multiple of `block`
    block: int = 256  # values of a row that are quantized together
    falls_back: bool = True  # to another type for a tensor whose rows are no multiple of `block`


QUANT_TYPES = {
    "q8_0": QuantType(7, 8.5, 16.0, 32),
    "q6_k": QuantType(18, 6.6, 8.5),
    "q5_0": QuantType(8, 5.6, 16.0, 32),
    "q5_1": QuantType(9, 6.1, 16.0, 32),
    "q5_k_s": QuantType(16, 5.6, 6.6),
    "q5_k_m": QuantType(17, 5.8, 7.0),
    "q4_0": QuantType(2, 4.7, 16.0, 32),
    "q4_1": QuantType(3, 5.1, 16.0, 32),
    "q4_k_s": QuantType(14, 4.8, 5.8),
    "q4_k_m": QuantType(15, 5.0, 6.4),
    "q3_k_s": QuantType(11, 3.7, 4.8),
    "q3_k_m": QuantType(12, 4.1, 5.4),
    "q3_k_l": QuantType(13, 4.4, 5.6),
    "q2_k": QuantType(10, 3.4, 4.8),
    "q1_0": QuantType(40, 1.3, 4.8, 128, falls_back=False),
    "iq4_nl": QuantType(25, 4.8, 16.0, 32),
    "iq4_xs": QuantType(30, 4.6, 4.8),
    "iq3_s": QuantType(26, 3.6, 4.8),
    "iq3_m": QuantType(27, 3.9, 5.0),
    "tq1_0": QuantType(36, 2.0, 4.8),
    "tq2_0": QuantType(37, 2.3, 4.8),
    "mxfp4_moe": QuantType(38, 8.5, 16.0, 32),
    "iq1_s": QuantType(24, 2.1, 5.5),
    "iq1_m": QuantType(31, 2.2, 5.5),
    "iq2_xxs": QuantType(19, 2.5, 5.5),
    "iq2_xs": QuantType(20, 2.7, 5.5),
    "iq2_s": QuantType(28, 2.9, 5.5),
    "iq2_m": QuantType(29, 3.1, 5.5),
    "q2_k_s": QuantType(21, 3.2, 5.5),
    "iq3_xxs": QuantType(23, 3.5, 5.5),
    "iq3_xs": QuantType(22, 3.6, 5.5),
}
# Those that llama.cpp refuses without an importance matrix.
WITH_IMATRIX = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m", "q2_k_s", "iq3_xxs", "iq3_xs")
NOT_QUANTIZED = ("f16", "bf16", "f32")
DEFAULT_LEVELS = ("q8_0", "q5_0", "q4_0", "q4_k_m", "q2_k")


def check_rows_fit(level: str, shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ImpruverError for a tensor that a level can hold in no type."""
    block = QUANT_TYPES[level].block
    if QUANT_TYPES[level].falls_back:
        return
    for name, shape in shapes.items():
        if len(shape) > 1 and shape[-1] % block:
            raise ImpruverError(
                f"gguf.quantization_levels: {level} wants rows of a multiple of {block} values, and those of {name} "
                f"have {shape[-1]}; leave {level} out"
            )


def check_not_quantized(level: str, encodings: Mapping[str, str]) -> None:
    """Raise ImpruverError for a tensor that is quantized already, to another type than the level's."""
    for name, encoding in encodings.items():
        if level != f"{encoding}_moe":
            raise ImpruverError(
                f"gguf.quantization_levels: {level} can't be made, since {name} is in {encoding.upper()} already, and "
                f"llama.cpp quantizes nothing twice; {encoding}_moe leaves such tensors as they are, [] makes no level"
            )


def estimate_bytes(level: str, shapes: Mapping[str, Sequence[int]]) -> int:
    """Estimate the bytes of a file's tensors, rather too many than too few."""
    kind, total = QUANT_TYPES[level], 0.0
    for name, shape in shapes.items():
        bits = 32.0
        if len(shape) > 1:
            bits = kind.odd_bits if shape[-1] % kind.block else kind.bits
            bits = max(bits, 8.5) if name in FINE_TENSORS else bits
        total += prod(shape) * bits / 8
    return round(total)
