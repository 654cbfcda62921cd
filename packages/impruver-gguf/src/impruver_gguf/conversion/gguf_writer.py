"""Write a GGUF file: its header, then the tensors, some rows at a time: read, encoded, written.

The header has names, hyperparameters and vocabulary in llama.cpp's order. Values are encoded as llama.cpp does, bit by
bit. Several threads read and encode ahead of the one that writes.
"""

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from impruver_core.cli.console import open_progress
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.json_schema import INDEX, NUMBER, TEXT, WHOLE, check_keys, list_of, read_json
from impruver_core.system import available_cpus

from impruver_gguf.architectures.registry import Architecture
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.weights.lazy_tensor import CHUNK_VALUES, LazyTensor, Rounding, RoundingReader, Tensors

ALIGNMENT = 32  # GGUF's default
VALUES_AHEAD = 16 * CHUNK_VALUES  # values read and encoded that are not yet written
WORKERS = 8  # more would wait for the disk
Q8_BLOCK = 32  # values that share a scale
# How the names of matrices end that stay in 32 bits in any file.
IN_32_BITS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_inp_shexp.weight",
    "conv1d.weight",
    "shortconv.conv.weight",
    "position_embd.weight",
)
SAMPLING_KEYS = {  # those of generation_config.json that GGUF has a place for
    "sequence": TEXT,
    **dict.fromkeys(("top_k", "mirostat", "penalty_last_n"), WHOLE),
    **dict.fromkeys(("temperature", "top_p", "min_p", "xtc_probability", "xtc_threshold"), NUMBER),
    **dict.fromkeys(("penalty_repeat", "mirostat_tau", "mirostat_eta"), NUMBER),
}
CARD_KEYS = {"STRING": TEXT, "ARRAY": list_of(TEXT), "UINT32": INDEX}  # by GGUF's type


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
    round: Rounding | None = None  # to values that `encode` does not round any more

    def compute_bytes(self, shape: Sequence[int]) -> int:
        """The bytes of a tensor of this shape."""
        return prod(shape) // self.block * self.block_bytes


def _encode_f32(values: np.ndarray) -> np.ndarray:
    encoded = np.ascontiguousarray(values, "<f4")
    _check_finite(encoded)
    return encoded


def _round_f16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, "<f2")


def _encode_f16(values: np.ndarray) -> np.ndarray:
    encoded = _round_f16(values)
    _check_exponents(encoded.view(np.uint16), 0x7C00, values, "float16")
    return encoded


def _round_bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, "<f4").view(np.uint32)
    rounded = bits >> 16
    rounded &= 1  # to the even one where both are as near
    rounded += 0x7FFF
    rounded *= (bits & 0x7F800000) != 0x7F800000  # NaN and infinity stay what they are
    rounded += bits
    rounded &= 0xFFFF0000
    return rounded.view(np.float32)


def _encode_bf16(values: np.ndarray) -> np.ndarray:
    encoded = (_round_bf16(values).view(np.uint32) >> 16).astype("<u2")
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
    "f16": TensorType(1, 1, 1, 2, _encode_f16, _round_f16),
    "bf16": TensorType(30, 32, 1, 2, _encode_bf16, _round_bf16),
    "f32": TensorType(0, 0, 1, 4, _encode_f32),
    "q8_0": TensorType(8, 7, Q8_BLOCK, Q8_BLOCK + 2, _encode_q8_0),
}
# What a tensor's rows may be encoded in before they are read.
ENCODED_TYPES = {"mxfp4": TensorType(39, 38, 32, 17, np.ascontiguousarray)}


def choose_tensor_types(tensors: Tensors, outtype: str) -> dict[str, TensorType]:
    """Choose the type of each tensor in a file of `outtype`, as llama.cpp does.

    Vectors, what is no weight, norms, routers, convolutions and GPT-2's positions stay in 32 bits, rows that are no
    whole blocks in 16.
    """
    wanted, types = TENSOR_TYPES[outtype], {}
    for name, tensor in tensors.items():
        if tensor.encoding in ENCODED_TYPES:
            types[name] = ENCODED_TYPES[tensor.encoding]
        elif len(tensor.shape) <= 1 or not name.endswith(".weight") or name.endswith(IN_32_BITS):
            types[name] = TENSOR_TYPES["f32"]
        else:
            types[name] = TENSOR_TYPES["f16"] if tensor.shape[-1] % wanted.block else wanted
    return types


@dataclass(frozen=True)
class GgufContent:
    """What a GGUF file holds: its header, and the tensors with their types."""

    header: bytes
    tensors: Tensors
    types: Mapping[str, TensorType]

    @property
    def size(self) -> int:
        """The bytes of the file."""
        sizes = (self.types[name].compute_bytes(tensor.shape) for name, tensor in self.tensors.items())
        return _pad(len(self.header)) + sum(map(_pad, sizes))

    def write(self, path: Path) -> None:
        """Write the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for data in self._generate_bytes("tensors written"):
                file.write(data)

    def is_same(self, path: Path) -> bool:
        """Whether `write` would write what stands at `path`, byte for byte."""
        if path.stat().st_size != self.size:
            return False
        with path.open("rb") as file, closing(self._generate_bytes("tensors compared")) as expected:
            return all(file.read(len(data)) == data for data in expected)

    def _generate_bytes(self, doing: str) -> Iterator[bytes | memoryview]:
        with open_progress(len(self.tensors), doing) as bar:
            yield self.header.ljust(_pad(len(self.header)), b"\0")
            for rows, data in encode_tensors(self.tensors, self.types):
                yield data.data.cast("B")
                if rows.stop == rows.tensor.row_count:
                    size = rows.type.compute_bytes(rows.tensor.shape)
                    yield bytes(_pad(size) - size)
                    bar.update(1)


class TensorSlice(NamedTuple):
    """Some rows of a tensor, and the type that they are encoded in."""

    name: str
    tensor: LazyTensor
    type: TensorType
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many values it has."""
        return (self.stop - self.start) * self.tensor.row_size


def encode_tensors(tensors: Tensors, types: Mapping[str, TensorType]) -> Iterator[tuple[TensorSlice, np.ndarray]]:
    """Yield all tensors slice by slice, in their order, with the encoded values.

    CheckFailedError where values are no numbers, or beyond what the type holds.
    """
    slices = (
        TensorSlice(name, tensors[name], types[name], *rows) for name in tensors for rows in tensors[name].split()
    )
    waiting, ahead = deque(), 0
    with ThreadPoolExecutor(min(WORKERS, available_cpus())) as pool:
        try:
            for rows in slices:
                while waiting and (ahead + rows.size > VALUES_AHEAD or len(waiting) > 4 * WORKERS):
                    ahead -= waiting[0][0].size
                    yield waiting[0][0], waiting.popleft()[1].result()
                waiting.append((rows, pool.submit(_encode_slice, rows)))
                ahead += rows.size
            while waiting:
                yield waiting[0][0], waiting.popleft()[1].result()
        finally:
            for _, future in waiting:
                future.cancel()


def _encode_slice(rows: TensorSlice) -> np.ndarray:
    read, kind = rows.tensor.read, rows.type
    if kind.round and isinstance(read, RoundingReader):
        with suppress(EncodingError):  # told below, with the values before they were rounded
            return kind.encode(read.read_rounded(kind.round, rows.start, rows.stop))
    try:
        return kind.encode(read(rows.start, rows.stop))
    except EncodingError as error:
        raise CheckFailedError(f"{rows.name} {error}: nothing is written") from None


def _pad(size: int) -> int:
    return size + -size % ALIGNMENT


def build_header(
    architecture: Architecture,
    config: dict[str, Any],
    vocab: Vocabulary,
    folder: Path,
    tensors: Tensors,
    types: Mapping[str, TensorType],
    file_type: int,
) -> bytes:
    """Build all that stands before the tensors' data; `folder` has the model card, its name is the last resort."""
    writer = gguf.GGUFWriter(None, architecture.name)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType(types[name].ggml)
        writer.add_tensor_info(name, tensor.shape, np.dtype("f4"), types[name].compute_bytes(tensor.shape), kind)
    read_json(folder / "generation_config.json", SAMPLING_KEYS, missing_ok=True)  # gguf-py takes it as it comes
    architecture.set_leading_parameters(writer, config)
    _write_general(writer, folder)
    architecture.set_gguf_parameters(writer, config, file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    architecture.set_vocab(writer, config, vocab)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "header.gguf"
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        return path.read_bytes()


def _write_general(writer: gguf.GGUFWriter, folder: Path) -> None:
    """Write `general.*`: what README.md's front matter, config.json and the folder's name say of the model."""
    total, shared, expert, experts = writer.get_total_parameter_count()
    card = folder / "README.md"
    try:
        general = gguf.Metadata.load(None, folder, None, total)
        general.name = general.name or folder.name
        general.size_label = general.size_label or gguf.size_label(total, shared, expert, experts)
        writer.add_type(gguf.GGUFType.MODEL)
        general.set_gguf_meta_model(writer)
    except Exception as error:  # gguf takes the front matter as it comes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImpruverError(f"{card}: its front matter can't be read ({reason}); mend it, or move it away") from None
    entries = {key: entry for key, entry in writer.kv_data[0].items() if entry.type.name in CARD_KEYS}
    values = {key: entry.value for key, entry in entries.items()}
    check_keys(values, {key: CARD_KEYS[entry.type.name] for key, entry in entries.items()}, card)
