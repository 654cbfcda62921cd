"""`RowTable`: the rows of a data set, memory-mapped, read as dicts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow
from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json

from impruver_compose.sources.mapped_pages import release_pages

if TYPE_CHECKING:
    from datasets import Dataset, Features


class FlawedRow(dict):
    """A row that is not to be used, with the reason as `flaw`: it has a key twice, and one of the two values."""

    flaw: str


@dataclass(frozen=True)
class RowTable:
    """The rows of a data set; `json_lines`: the table's column `text` has each row as a line of JSON.

    Those stay text: Arrow would turn strings into dates and add keys of others.
    """

    table: Dataset
    columns: tuple[str, ...]
    json_lines: bool = False
    first: int = 0  # the number of the table's first row
    sent: tuple[int, int] | None = None  # which rows another process gets; None: all

    def __len__(self) -> int:
        return len(self.table)

    def narrow(self, start: int, stop: int) -> RowTable:
        """The same rows, of which another process gets start..stop alone, by value and under the same numbers."""
        return replace(self, sent=(start, stop))

    def release(self, start: int, stop: int) -> None:
        """Gives back the memory that rows start..stop take while their file is mapped."""
        if self.table._indices is None:  # else they may lie anywhere
            rows = self.table.data.slice(start - self.first, stop - start)
            release_pages(chunk for column in rows.columns for chunk in column.chunks)

    def __reduce__(self) -> tuple:
        start, stop = self.sent or (self.first, self.first + len(self))
        rows = self.table.with_format("arrow")[start - self.first : stop - self.first]
        sink = pyarrow.BufferOutputStream()
        with pyarrow.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_table(rows)
        return _load_sent, (sink.getvalue(), self.table.features, self.columns, self.json_lines, start)

    def read(self, start: int, stop: int) -> list[dict]:
        """Reads rows start..stop; columns that a row of JSON does not have are None, as in a table."""
        columns = self.table[start - self.first : stop - self.first]
        if self.json_lines:
            return [self._parse_line(line) for line in columns["text"]]
        size = len(next(iter(columns.values()), ()))
        return [{name: _drop_inner_nulls(column[row]) for name, column in columns.items()} for row in range(size)]

    def _parse_line(self, line: str) -> dict:
        absent = dict.fromkeys(self.columns)
        try:
            return absent | parse_unique_json(line)
        except RepeatedKeyError as error:
            row = FlawedRow(absent | json.loads(line))
            row.flaw = str(error)
            return row


def _load_sent(
    content: pyarrow.Buffer, features: Features, columns: tuple[str, ...], json_lines: bool, first: int
) -> RowTable:
    """The rows that another process sent, numbered from `first`."""
    from datasets import Dataset, DatasetInfo
    from datasets.table import InMemoryTable

    table = InMemoryTable(pyarrow.ipc.open_stream(content).read_all())
    return RowTable(Dataset(table, DatasetInfo(features=features)), columns, json_lines, first)


def _drop_inner_nulls(value: Any, inner: bool = False) -> Any:
    """Drops the nulls inside a value's structs: those are keys that only other rows have."""
    if isinstance(value, list):
        return [_drop_inner_nulls(item, inner) for item in value]
    if isinstance(value, dict):
        return {name: _drop_inner_nulls(item, True) for name, item in value.items() if item is not None or not inner}
    return value
