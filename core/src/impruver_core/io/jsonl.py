"""JSONL: one JSON object a line, UTF-8. Readers name file and line in every error."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from impruver_core.errors import ImpruverError
from impruver_core.io.compression import BROKEN, build_read_error, open_compressed
from impruver_core.io.model_files import LFS_POINTER

LONGEST_LINE = 64 << 20  # bytes
BLANKS = " \t\r\n"  # JSON's own; any other is no JSON
LISTS = "impruver-compose reads a list of rows from a file whose name ends in .json"


def read_rows(path: str | Path) -> Iterator[dict]:
    """The rows of a JSONL file, blank lines skipped; ImpruverError with file and line for one that is no object.

    A name that ends in .gz, .bz2, .xz, .zst or .zip is a compressed file.
    """
    return (row for _, row in read_numbered_rows(path))


def read_numbered_rows(
    path: str | Path, file: BinaryIO | None = None, parse: Callable[[str], Any] = json.loads
) -> Iterator[tuple[int, dict]]:
    """(line from 1, row) of a JSONL file, as `read_rows`; `file`: its bytes, where they are open already.

    `parse` parses a line as `json.loads` does, and raises what that raises.
    """
    return ((number, parse_row(path, number, text, parse)) for number, text in read_numbered_lines(path, file))


def read_numbered_lines(path: str | Path, file: BinaryIO | None = None) -> Iterator[tuple[int, str]]:
    """(line from 1, text) of a JSONL file, blanks at the end cut off and blank lines skipped; as `read_numbered_rows`.

    ImpruverError with file and line for one that is too long or no UTF-8.
    """
    number = 0
    try:
        with open_compressed(path) if file is None else nullcontext(file) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE + 1), b""), 1):
                if len(line) > LONGEST_LINE:
                    size = f"longer than {LONGEST_LINE >> 20} MiB"
                    raise ImpruverError(f"{path}, line {number}: {size}; a row is one conversation or document")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise ImpruverError(
                        f"{path}, line {number}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8"
                    ) from None
                if text := text.rstrip(BLANKS):
                    yield number, text
    except FileNotFoundError:
        raise ImpruverError(f"{path}: no such file") from None
    except BROKEN as error:
        raise build_read_error(f"{path}, after line {number}", error) from None


def parse_row(path: str | Path, number: int, text: str, parse: Callable[[str], Any] = json.loads) -> dict:
    """Parses line `number` of a JSONL file; ImpruverError with file and line for one that is no object."""
    try:
        row = parse(text)
    except json.JSONDecodeError as error:
        where = f"{path}, line {number}, column {error.pos + 1}"
        raise ImpruverError(f"{where}: not JSON: {error.msg}; {_get_advice(text, error)}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deep
        raise ImpruverError(f"{path}, line {number}: can't be read: {error}") from None
    if not isinstance(row, dict):
        advice = f"; {LISTS}" if isinstance(row, list) else ""
        raise ImpruverError(f"{path}, line {number}: a row must be a JSON object, not {type(row).__name__}{advice}")
    return row


def _get_advice(text: str, error: json.JSONDecodeError) -> str:
    """What to do about a line that is no row, by its looks."""
    rest = text[error.pos :].lstrip()
    looks = {
        "a pointer of Git LFS stands here, not the file: fetch that with git lfs pull": text.startswith(LFS_POINTER),
        "this is a web page: download the file itself": text.startswith("<"),
        LISTS: text.startswith("["),
        "rows have no comma between them": rest.startswith(","),
        "each row stands on a line of its own": rest.startswith("{") and error.pos > 0,
        "JSON has double quotes, as json.dumps writes them": rest.startswith("'"),
    }
    return next((advice for advice, fits in looks.items() if fits), "a row is one JSON object on a line")


def format_row(row: dict) -> str:
    """A row as one line of JSON without its end, characters as they are; ValueError for NaN, which is no JSON."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def write_rows(file: TextIO, rows: Iterable[dict]) -> int:
    """Writes rows to an open text file; returns how many."""
    count = 0
    for row in rows:
        file.write(format_row(row) + "\n")
        count += 1
    return count
