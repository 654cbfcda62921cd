"""The files that stages hand to one another: columns of numbers, sorted by the column `key`, with a checksum."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow

from impruver_compose.storage import open_arrow_file, write_arrow_file

KEYS = 1 << 64


class Columns(NamedTuple):
    """The content of a file: columns of one length, with `per_row` lines for each row that was read and not dropped."""

    columns: Mapping[str, np.ndarray]
    dropped: int = 0
    facts: Mapping[str, int] = {}
    per_row: int = 1

    def count_read(self) -> int:
        """Counts the rows that it was made of."""
        return len(next(iter(self.columns.values()))) // self.per_row + self.dropped


class ColumnFile:
    """A file of columns, memory-mapped, with its number of `rows` and its `facts`.

    `rows_read` are those that it was made of, `dropped` those of which nothing is in there.
    """

    def __init__(self, path: Path):
        self._batch, metadata = open_arrow_file(path)
        self.rows = self._batch.num_rows
        self.rows_read, self.dropped = int(metadata[b"read"]), int(metadata[b"dropped"])
        self.facts: dict[str, int] = json.loads(metadata[b"facts"])

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Reads a column, or these rows of it."""
        return self._batch.column(name).to_numpy()[rows]

    def find_rows(self, part: int, parts: int) -> slice:
        """Finds the rows whose keys, uint64, are in part number `part` of so many equal ranges of all keys."""
        keys = self.read("key")
        start = np.searchsorted(keys, np.uint64(part * KEYS // parts))
        stop = np.searchsorted(keys, np.uint64((part + 1) * KEYS // parts)) if part + 1 < parts else len(keys)
        return slice(int(start), int(stop))


def write_columns(path: Path, content: Columns) -> None:
    """Writes a file of columns, whole or not at all."""
    arrays = {name: pyarrow.array(values) for name, values in content.columns.items()}
    metadata = {"read": str(content.count_read()), "dropped": str(content.dropped)}
    metadata["facts"] = json.dumps(dict(content.facts))
    write_arrow_file(path, pyarrow.record_batch(arrays).replace_schema_metadata(metadata))


def sort_by_key(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sorts columns by `key`; rows with the same key stay in their order."""
    order = np.argsort(columns["key"], kind="stable")
    return {name: values[order] for name, values in columns.items()}


def read_part(paths: Sequence[Path], part: int, parts: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the rows of all files whose keys are in part number `part` of so many, in the order of the files."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for path in paths:
        file = ColumnFile(path)
        rows = file.find_rows(part, parts)
        for name, values in found.items():
            values.append(file.read(name, rows))
    return {name: np.concatenate(values) for name, values in found.items()}


def count_part(paths: Sequence[Path], part: int, parts: int) -> int:
    """Counts the rows that `read_part` reads."""
    slices = (ColumnFile(path).find_rows(part, parts) for path in paths)
    return sum(rows.stop - rows.start for rows in slices)
