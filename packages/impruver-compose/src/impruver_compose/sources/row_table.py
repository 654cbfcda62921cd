"""Memory-mapped rows; those of JSON stay lines of text: Arrow would turn strings into dates and add keys of others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, hash_file
from impruver_core.io.jsonl import BROKEN, build_read_error, open_compressed, read_numbered_rows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RowTable:
    """The rows of a data set; `json_lines`: the table's column `text` has each row as a line of JSON."""

    table: Dataset
    columns: tuple[str, ...]
    json_lines: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def read(self, start: int, stop: int) -> list[dict]:
        """Reads rows start..stop; columns that a row of JSON does not have are None, as in a table."""
        columns = self.table[start:stop]
        if self.json_lines:
            lines = (line.removeprefix("\ufeff") for line in columns["text"])
            return [dict.fromkeys(self.columns) | json.loads(line) for line in lines]
        size = len(next(iter(columns.values()), ()))
        return [{name: _drop_inner_nulls(column[row]) for name, column in columns.items()} for row in range(size)]


def _drop_inner_nulls(value: Any, inner: bool = False) -> Any:
    """Drops the nulls inside a value's structs: those are keys that only other rows have."""
    if isinstance(value, list):
        return [_drop_inner_nulls(item, inner) for item in value]
    if isinstance(value, dict):
        return {name: _drop_inner_nulls(item, True) for name, item in value.items() if item is not None or not inner}
    return value


def scan_json_lines(paths: Sequence[Path], cache: Path) -> tuple[list[str], int]:
    """Checks every line of JSONL files; their columns in order, and the number of rows, also kept in `cache`."""
    if cache.exists():
        return tuple(json.loads(cache.read_text(encoding="utf-8")))
    columns, rows = {}, 0
    for path in paths:
        for _, row in read_numbered_rows(path):
            columns |= dict.fromkeys(row)
            rows += 1
    with atomic_write(cache) as file:
        json.dump([list(columns), rows], file)
    return list(columns), rows


def resolve_json_lines(path: Path, cache: Path) -> Path:
    """Returns `path`, or for a .json file that holds a list the JSONL file in `cache` that is made of it."""
    if ".json" not in [suffix.lower() for suffix in path.suffixes[-2:]]:
        return path
    rows = _read_json_list(path)
    if rows is None:
        return path
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ImpruverError(f"{path}, row {number}: a row must be a JSON object, not {type(row).__name__}")
    converted = cache / "json" / f"{hash_file(path)}.jsonl"
    if not converted.exists():
        with atomic_write(converted) as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)  # escaped: half a surrogate pair can't be written
    return converted


def _read_json_list(path: Path) -> list | None:
    """Reads the list that a JSON file holds; None for lines of JSON."""
    try:
        with open_compressed(path) as file:
            start = file.read(1 << 16)
            if not start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
                return None
            return json.loads((start + file.read()).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ImpruverError(f"{path}: not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ImpruverError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deep
        raise ImpruverError(f"{path}: can't be read: {error}") from None
    except BROKEN as error:
        raise build_read_error(str(path), error) from None
