"""JSONL: one JSON object a line, UTF-8. Readers name file and line in every error."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from impruver_core.errors import ImpruverError


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a JSONL file, blank lines skipped; ImpruverError with file and line for one that is no object."""
    for _, row in numbered_rows(path):
        yield row


def numbered_rows(path: str | Path) -> Iterator[tuple[int, dict]]:
    """(line from 1, row) of a JSONL file, as `read_rows`."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below; opening has its own error)
    except FileNotFoundError:
        raise ImpruverError(f"{path}: no such file") from None
    with file:
        for number, line in enumerate(file, 1):
            text = _decoded(path, number, line)
            if text.strip():
                yield number, _parsed(path, number, text)


def _decoded(path, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ImpruverError(f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line)") from None


def _parsed(path, number: int, text: str) -> dict:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise ImpruverError(f"{path}, line {number}{where}: not JSON: {reason}") from None
    if not isinstance(row, dict):
        raise ImpruverError(f"{path}, line {number}: a row must be a JSON object, not {type(row).__name__}")
    return row


def dumps(row: dict) -> str:
    """A row as one line of JSON without its end, characters as they are."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def write_rows(file: TextIO, rows: Iterable[dict]) -> int:
    """Writes rows to an open text file; returns how many."""
    count = 0
    for row in rows:
        file.write(dumps(row) + "\n")
        count += 1
    return count
