"""`RowTable`: the rows of a data set, memory-mapped, read as dicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json

if TYPE_CHECKING:
    from datasets import Dataset


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

    def __len__(self) -> int:
        return len(self.table)

    def read(self, start: int, stop: int) -> list[dict]:
        """Reads rows start..stop; columns that a row of JSON does not have are None, as in a table."""
        columns = self.table[start:stop]
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


def _drop_inner_nulls(value: Any, inner: bool = False) -> Any:
    """Drops the nulls inside a value's structs: those are keys that only other rows have."""
    if isinstance(value, list):
        return [_drop_inner_nulls(item, inner) for item in value]
    if isinstance(value, dict):
        return {name: _drop_inner_nulls(item, True) for name, item in value.items() if item is not None or not inner}
    return value
