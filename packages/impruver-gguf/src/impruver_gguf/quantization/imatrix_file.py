"""imatrix.gguf, an importance matrix in llama.cpp's form: for each matrix how large its inputs were, by column.

A tensor's entry is `NAME.in_sum2` (matrices, columns), the sums of its squared inputs, and `NAME.counts` (matrices, 1),
of how many; there are several matrices where experts are one tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_file import read_gguf_header

SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
AGAIN = "make it again, with impruver-train --imatrix_only or llama.cpp's llama-imatrix"


class ImatrixEntry(NamedTuple):
    """Sums of squared inputs (matrices, columns), float32, and counts (matrices,)."""

    sums: np.ndarray
    counts: np.ndarray

    def compute_means(self) -> np.ndarray:
        """The means of the squared inputs (matrices, columns); 1 for a matrix, as an expert's, that had none."""
        counts = self.counts.astype(np.float32)[:, None]
        return np.where(counts > 0, self.sums / np.maximum(counts, 1), np.float32(1)).astype(np.float32)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix, by the GGUF's names of tensors."""

    entries: Mapping[str, ImatrixEntry]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int  # tokens


def write_imatrix(path: Path, matrix: Imatrix) -> None:
    """Write a matrix as llama-imatrix does."""
    writer = gguf.GGUFWriter(None, "")
    writer.kv_data[0].clear()  # an imatrix.gguf names no architecture
    writer.add_string("general.type", "imatrix")
    writer.add_array(DATASETS, [*matrix.datasets] or [path.name])  # gguf writes no empty list
    writer.add_uint32(CHUNK_COUNT, matrix.chunk_count)
    writer.add_uint32(CHUNK_SIZE, matrix.chunk_size)
    for name in sorted(matrix.entries):
        entry = matrix.entries[name]
        writer.add_tensor(name + SUMS, np.ascontiguousarray(entry.sums, np.float32))
        writer.add_tensor(name + COUNTS, np.ascontiguousarray(entry.counts[:, None], np.float32))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read an imatrix.gguf; ImpruverError where it is none, or holds what no matrix can."""
    header = read_gguf_header(path, (DATASETS,))
    if not {DATASETS, CHUNK_COUNT, CHUNK_SIZE} <= header.values.keys():
        raise ImpruverError(f"{path}: no importance matrix: it has no {DATASETS}; {AGAIN}")
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    entries = {}
    for name in (name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)):
        sums, counts = tensors[name + SUMS], tensors.get(name + COUNTS)
        if counts is None or sums.dtype != np.float32 or counts.dtype != np.float32 or sums.size % counts.size:
            raise ImpruverError(f"{path}: {name}: sums and counts do not belong together; {AGAIN}")
        if not np.isfinite(sums).all() or not np.isfinite(counts).all() or (sums < 0).any() or (counts < 0).any():
            raise ImpruverError(f"{path}: {name}: holds what is no sum of squares; {AGAIN}")
        entries[name] = ImatrixEntry(np.array(sums).reshape(counts.size, -1), np.rint(counts).reshape(-1))
    if not entries:
        raise ImpruverError(f"{path}: no importance matrix: it has no tensor *{SUMS}; {AGAIN}")
    datasets = [text.decode(errors="replace") for text in header.values[DATASETS].value or ()]
    return Imatrix(entries, datasets, header.values[CHUNK_COUNT].value, header.values[CHUNK_SIZE].value)
