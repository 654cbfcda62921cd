"""Quantize a GGUF file with an importance matrix, through ggml's `ggml_quantize_chunk`, as llama.cpp does.

    python -m impruver_gguf.quantization.matrix_quantizer SOURCE IMATRIX THREADS LEVEL TARGET

The library is xllamacpp's. A process of its own can be stopped at any time, and where ggml aborts nothing else ends.
"""

import ctypes
import struct
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_file import ALIGNMENT, TENSOR_TYPES, GgufTensor
from impruver_core.worker_process import claim_stdout

from impruver_gguf.quantization.imatrix_file import Imatrix, read_imatrix
from impruver_gguf.quantization.quant_types import QUANT_TYPES
from impruver_gguf.quantization.tensor_types import TYPE_NUMBERS, ModelSizes, choose_level_types, needs_matrix

PACKAGE = "xllamacpp"
EXTRA = 'pip install "impruver-gguf[imatrix]"'
CHUNK_VALUES = 1 << 20  # quantized at once by a thread
REPLACED = ("general.quantization_version", "general.file_type", "split.no", "split.count", "split.tensors.count")
MAX_TEXT = 127  # bytes of a text that llama-quantize writes about the matrix


def get_matrix_quantizer_name() -> str:
    """What quantizes with a matrix, for the manifest."""
    return f"{PACKAGE} {version(PACKAGE)}"


def find_library() -> Path:
    """Find the library that has ggml_quantize_chunk; ImpruverError where the extra is not installed."""
    spec = find_spec(PACKAGE)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    paths = [path for folder in folders for path in folder.glob(f"{PACKAGE}*.so")]
    if not paths:
        raise ImpruverError(
            f"gguf.imatrix: quantizing with an importance matrix needs {PACKAGE}, which is not installed: {EXTRA}, or "
            "set gguf.imatrix to none"
        )
    return paths[0]


def load_library() -> ctypes.CDLL:
    """Load ggml; ImpruverError where it does not export what is called here."""
    path = find_library()
    library = ctypes.CDLL(str(path))
    try:
        quantize_chunk, row_size = library.ggml_quantize_chunk, library.ggml_row_size
    except AttributeError:
        raise ImpruverError(f"{path}: this version of {PACKAGE} exports no ggml_quantize_chunk: {EXTRA} -U") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    quantize_chunk.restype = ctypes.c_size_t
    row_size.argtypes, row_size.restype = [ctypes.c_int, number], ctypes.c_size_t
    for kind, (name, block, size) in TENSOR_TYPES.items():  # these numbers must mean the same there
        if name in ("Q4_0", "Q2_K", "IQ2_XXS", "IQ1_M", "MXFP4") and row_size(kind, block) != size:
            raise ImpruverError(f"{path}: its type {kind} is not {name}: {EXTRA} -U")
    return library


def read_model_sizes(reader: gguf.GGUFReader) -> ModelSizes:
    """Read what the rules for types ask of a model from its header."""

    def read(key: str, default: int = 0) -> int:
        value = fields[key].contents() if (key := f"{architecture}.{key}") in fields else default
        return int(value[0] if isinstance(value, list) else value)  # of several layers the first

    fields = reader.fields
    architecture = fields["general.architecture"].contents()
    heads = read("attention.head_count")
    sizes = read("block_count"), heads, read("attention.head_count_kv", heads), read("expert_count")
    return ModelSizes(architecture, *sizes)


class Conversion(NamedTuple):
    """A tensor of the source, and the type that it is to have."""

    tensor: gguf.ReaderTensor
    kind: str
    means: np.ndarray | None  # of its squared inputs (matrices, columns)

    @property
    def size(self) -> int:
        """The bytes of the tensor in its new type."""
        _, block, size = TENSOR_TYPES[TYPE_NUMBERS[self.kind]]
        return int(self.tensor.n_elements) // block * size


def plan_level(level: str, reader: gguf.GGUFReader, matrix: Imatrix | None) -> list[Conversion]:
    """Plan a level, in the order of its file; ImpruverError where the matrix is not this model's."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    described = [
        GgufTensor(tensor.name, tuple(int(size) for size in tensor.shape), tensor.tensor_type.name)
        for tensor in reader.tensors
    ]
    types = choose_level_types(level, read_model_sizes(reader), described, matrix is not None)
    entries, planned = matrix.entries if matrix else {}, []
    for name, kind in types.items():
        tensor, means = tensors[name], None
        if name in entries and kind != tensor.tensor_type.name:
            means = entries[name].compute_means()
            matrices = int(tensor.shape[2]) if len(tensor.shape) > 2 else 1
            if means.size != tensor.shape[0] * matrices:
                raise ImpruverError(
                    f"gguf.imatrix: {name} has {matrices} x {tensor.shape[0]} inputs, the matrix {means.shape[0]} x "
                    f"{means.shape[1]}: it is of another model"
                )
            means = means.reshape(matrices, -1)
        if means is None and needs_matrix(name, kind, level):
            raise ImpruverError(
                f"gguf.quantization_levels: {level} needs the importance of the inputs of {name}, and the matrix has "
                "none: leave that level out"
            )
        planned.append(Conversion(tensor, kind, means))
    return planned


def quantize_level(
    library: ctypes.CDLL, reader: gguf.GGUFReader, level: str, target: Path, matrix: Imatrix | None, threads: int
) -> None:
    """Write the file of a level; ImpruverError."""
    planned = plan_level(level, reader, matrix)
    with target.open("wb") as file:
        file.write(_build_header(reader, planned, QUANT_TYPES[level].ftype, matrix))
        file.write(bytes(-file.tell() % ALIGNMENT))
        for conversion in planned:
            for data in _generate_data(library, conversion, threads):
                file.write(data)
            file.write(bytes(-conversion.size % ALIGNMENT))


def _generate_data(library: ctypes.CDLL, conversion: Conversion, threads: int) -> Iterator[bytes | memoryview]:
    """Yield a tensor's bytes in its new type, some rows at a time, quantized by several threads."""
    tensor = conversion.tensor
    if conversion.kind == tensor.tensor_type.name:
        yield np.ascontiguousarray(tensor.data).reshape(-1).data.cast("B")
        return
    width, rows = int(tensor.shape[0]), int(tensor.shape[1])
    source = tensor.data.reshape(-1, tensor.data.shape[-1])
    step = max(1, CHUNK_VALUES // width)
    # No piece has rows of two experts.
    starts = [first + start for first in range(0, len(source), rows) for start in range(0, rows, step)]

    def quantize(start: int) -> memoryview:
        stop = min(start + step, start - start % rows + rows)
        values = _read_values(source[start:stop], tensor)
        means = None if conversion.means is None else np.ascontiguousarray(conversion.means[start // rows])
        number = TYPE_NUMBERS[conversion.kind]
        encoded = np.empty((stop - start) * library.ggml_row_size(number, width), np.uint8)
        pointers = values.ctypes.data, encoded.ctypes.data
        weights = None if means is None else means.ctypes.data
        library.ggml_quantize_chunk(number, *pointers, 0, stop - start, width, weights)
        return encoded.data

    waiting: deque = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in starts:
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
            waiting.append(pool.submit(quantize, start))
        while waiting:
            yield waiting.popleft().result()


def _read_values(rows: np.ndarray, tensor: gguf.ReaderTensor) -> np.ndarray:
    """Rows (rows, width) as float32; ImpruverError where they hold what is no number."""
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        values = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = rows.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImpruverError(f"{tensor.name}: found nan value")  # ggml's words
    return np.ascontiguousarray(values)


def _build_header(
    reader: gguf.GGUFReader, planned: Sequence[Conversion], file_type: int, matrix: Imatrix | None
) -> bytes:
    """Build the header as llama-quantize does: the source's keys, the file's type, what the matrix is of."""
    fields = [field for field in reader.fields.values() if not field.name.startswith("GGUF.")]
    keys = [
        reader.data[field.offset : field.offset + sum(part.nbytes for part in field.parts)].tobytes()
        for field in fields
        if field.name not in REPLACED
    ]
    keys += [
        _pack_number("general.quantization_version", gguf.GGML_QUANT_VERSION),
        _pack_number("general.file_type", file_type),
    ]
    if matrix:
        keys += [_pack_text("quantize.imatrix.file", "imatrix.gguf")]
        keys += [_pack_text("quantize.imatrix.dataset", name) for name in matrix.datasets[:1]]
        keys += [_pack_number("quantize.imatrix.entries_count", len(matrix.entries))]
        keys += [_pack_number("quantize.imatrix.chunks_count", matrix.chunk_count)]
    infos, offset = [], 0
    for conversion in planned:
        shape = [int(size) for size in conversion.tensor.shape]
        layout = f"<I{len(shape)}QIQ"
        packed = struct.pack(layout, len(shape), *shape, TYPE_NUMBERS[conversion.kind], offset)
        infos.append(_pack_bytes(conversion.tensor.name.encode()) + packed)
        offset += conversion.size + -conversion.size % ALIGNMENT
    return b"GGUF" + struct.pack("<IQQ", 3, len(planned), len(keys)) + b"".join(keys) + b"".join(infos)


def _pack_bytes(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pack_number(key: str, value: int) -> bytes:
    return _pack_bytes(key.encode()) + struct.pack("<II", 4, value)


def _pack_text(key: str, text: str) -> bytes:
    cut = text.encode()[:MAX_TEXT].decode(errors="ignore").encode()
    return _pack_bytes(key.encode()) + struct.pack("<I", 8) + _pack_bytes(cut)


def main(arguments: Sequence[str]) -> int:
    """Run as the process of its own."""
    claim_stdout()
    source, matrix, threads, level, target = arguments
    try:
        library, reader, imatrix = load_library(), gguf.GGUFReader(source), read_imatrix(Path(matrix))
        quantize_level(library, reader, level, Path(target), imatrix, int(threads))
    except (ImpruverError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
