"""Rows of a data set, memory-mapped. Those of JSON stay as they were written.

Arrow would read dates out of strings, round numbers, and give every row the keys of all others; so a row of JSON stays
one line of text until it is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, hash_file
from impruver_core.io.jsonl import BROKEN, build_read_error, open_compressed, read_numbered_rows


@dataclass(frozen=True)
class RowTable:
    """The rows of a `datasets.Dataset`; `json_lines`: its column `text` holds each row as a line of JSON."""

    table: Any
    columns: tuple[str, ...]
    json_lines: bool = False

    def __len__(self) -> int:
        return len(self.table)

    def read(self, start: int, stop: int) -> list[dict]:
        """Rows start..stop; columns that a row of JSON does not have are None, as in a table."""
        columns = self.table[start:stop]
        if self.json_lines:
            lines = (line.removeprefix("\ufeff") for line in columns["text"])
            return [dict.fromkeys(self.columns) | json.loads(line) for line in lines]
        size = len(next(iter(columns.values()), ()))
        return [{name: _remove_struct_nulls(column[at]) for name, column in columns.items()} for at in range(size)]


def _remove_struct_nulls(value, inner: bool = False):
    """A table's value without the nulls inside its structs: those are keys that only other rows have."""
    if isinstance(value, list):
        return [_remove_struct_nulls(item, inner) for item in value]
    if isinstance(value, dict):
        return {name: _remove_struct_nulls(item, True) for name, item in value.items() if item is not None or not inner}
    return value


def scan_json_lines(paths: Sequence[Path], kept: Path) -> tuple[list[str], int]:
    """(columns, rows) of JSONL files, every line checked; the columns of all rows, in the order in which they came.

    ImpruverError with file and line at the first line that is no row. What was found is left at `kept`, for next time.
    """
    if kept.exists():
        return tuple(json.loads(kept.read_text(encoding="utf-8")))
    columns, rows = {}, 0
    for path in paths:
        for _, row in read_numbered_rows(path):
            columns |= dict.fromkeys(row)
            rows += 1
    with atomic_write(kept) as file:
        json.dump([list(columns), rows], file)
    return list(columns), rows


def resolve_json_lines(path: Path, cache: Path) -> Path:
    """`path`, or where it is .json and holds a list, the JSONL file in `cache` that was made of it."""
    if ".json" not in [suffix.lower() for suffix in path.suffixes[-2:]]:
        return path
    rows = _read_json_list(path)
    if rows is None:
        return path
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ImpruverError(f"{path}, row {number}: a row must be a JSON object, not {type(row).__name__}")
    made = cache / "json" / f"{hash_file(path)}.jsonl"
    if not made.exists():
        with atomic_write(made) as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)  # escaped: half a surrogate pair can't be written
    return made


def _read_json_list(path: Path) -> list | None:
    """The list that a JSON file holds; None for lines of JSON."""
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
