"""JSON files as lines: lists and documents of rows are cut into one row a line, each as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.compression import BROKEN, build_read_error
from impruver_core.io.integrity import write_record
from impruver_core.io.jsonl import LONGEST_LINE, read_numbered_rows

from impruver_compose.sources.files import get_suffix
from impruver_compose.sources.text_encoding import (
    UTF8,
    build_encoding_error,
    find_encoding,
    open_text,
    write_as_utf8,
)
from impruver_compose.storage import load_record

BLANKS = re.compile(r"[ \t\r\n]*")
LINE_ENDS = re.compile(r"[\r\n]+")
ROWS = "data"  # the usual name of a document's list of rows
OF_A_ROW = {  # keys that no document has beside its list of rows
    *("messages", "conversations", "dialogues", "prompt", "completion", "instruction", "output", "question", "answer"),
    *("response", "text", "chosen", "rejected"),
}
_DECODER = json.JSONDecoder()


class _Value(NamedTuple):
    """A JSON value, and where it stands in its text."""

    value: Any
    start: int
    end: int


class JsonLines(NamedTuple):
    """A file with a row of JSON on each line, and the file that it was made of, for messages."""

    path: Path
    source: Path


def prepare_json_lines(path: Path, digest: str, cache: Path) -> JsonLines:
    """Returns the lines of a JSON file, made in `cache` where it is a .json of another form, no UTF-8, or a .zip.

    A .json may be lines, a list of rows, or an object with one list of rows; also over several lines. `digest` is the
    sha256 of `path`.
    """
    target = cache / f"{digest}.jsonl"
    if target.exists():
        return JsonLines(target, path)
    if get_suffix(path) == ".json" and (text := _read_document(path)) is not None:
        with atomic_write(target) as file:
            file.writelines(f"{line}\n" for line in _cut_rows(text, path))
        return JsonLines(target, path)
    if find_encoding(path) in UTF8 and path.suffix.lower() != ".zip":
        return JsonLines(path, path)
    return JsonLines(write_as_utf8(path, target), path)


def scan_json_lines(files: Sequence[JsonLines], cache: Path) -> tuple[list[str], int]:
    """Checks every line of JSONL files; their columns in order, and the number of rows, also kept in `cache`."""
    known = load_record(cache)
    if known is not None:
        return tuple(known)
    columns, rows = {}, 0
    for path, source in files:
        with nullcontext(None) if path == source else open(path, "rb") as file:
            for _, row in read_numbered_rows(source, file):
                columns |= dict.fromkeys(row)
                rows += 1
    write_record(cache, [list(columns), rows])
    return list(columns), rows


def _read_document(path: Path) -> str | None:
    """Reads a .json file that is no JSON Lines: a list, one object, or values over several lines; None for lines."""
    try:
        with open_text(path) as file:
            first = ""
            while not first.strip(" \t\r\n\ufeff") and (line := file.readline(LONGEST_LINE)):
                first += line
            start = first.lstrip(" \t\r\n\ufeff")
            if start.startswith("{") and _is_line(start) and any(line.strip() for line in file):
                return None
            if not start.startswith(("[", "{")):
                return None
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise build_encoding_error(path, error) from None
    except BROKEN as error:
        raise build_read_error(str(path), error) from None


def _is_line(line: str) -> bool:
    """Tells whether a line that begins with a brace is a row, or a broken one, and not the first of a longer object."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return error.pos < len(line.rstrip())
    except (ValueError, RecursionError):
        pass
    return True


def _cut_rows(text: str, path: Path) -> Iterator[str]:
    """Cuts a document into its rows, each a line of the text as it was written."""
    try:
        for number, row in enumerate(_find_rows(text, path)):
            if not isinstance(row.value, dict):
                what = type(row.value).__name__
                raise ImpruverError(f"{path}, row {number}: a row must be a JSON object, not {what}")
            yield LINE_ENDS.sub(" ", text[row.start : row.end])  # those in texts are escaped
    except json.JSONDecodeError as error:
        raise ImpruverError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deep
        raise ImpruverError(f"{path}: can't be read: {error}") from None


def _find_rows(text: str, path: Path) -> Iterator[_Value]:
    """Finds the rows: the items of a list, or of an object's one list of objects; else the values themselves."""
    start = _skip_blanks(text, 1 if text.startswith("\ufeff") else 0)
    if text.startswith("[", start):
        yield from _read_list(text, start, last=True)
        return
    first = _read_value(text, start)
    after = _skip_blanks(text, first.end)
    if _is_by_columns(first.value):
        raise ImpruverError(
            f"{path} is written by columns; write rows, as pandas does with to_json(…, orient='records', lines=True)"
        )
    if after < len(text) or not isinstance(first.value, dict) or OF_A_ROW & first.value.keys():
        while True:  # values behind one another, over several lines
            yield first
            if after >= len(text):
                return
            first = _read_value(text, after)
            after = _skip_blanks(text, first.end)
    rows = _find_list_of_rows(text, start, path)
    yield from [first] if rows is None else _read_list(text, rows.start)


def _find_list_of_rows(text: str, start: int, path: Path) -> _Value | None:
    """Finds an object's only list of objects, else `data`, if that is a list; ImpruverError for several."""
    members: dict[str, _Value] = {}
    for key, value in _read_members(text, start):
        if key in members:
            raise ImpruverError(f"{path}: the key {json.dumps(key)} occurs twice in the document")
        members[key] = value
    lists = {
        key: member
        for key, member in members.items()
        if isinstance(member.value, list) and member.value and all(isinstance(item, dict) for item in member.value)
    }
    if len(lists) > 1:
        names = ", ".join(lists)
        raise ImpruverError(f"{path} holds {len(lists)} lists of objects ({names}): write each into a file of its own")
    rows = members.get(ROWS)
    return next(iter(lists.values()), rows if rows and isinstance(rows.value, list) else None)


def _is_by_columns(value: Any) -> bool:
    """Tells whether an object has columns: lists of plain values of one length, or {"0": …, "1": …} as of pandas."""
    columns = list(value.values()) if isinstance(value, dict) else []
    if columns and all(isinstance(column, dict) and column for column in columns):
        return all(list(column) == [str(n) for n in range(len(column))] for column in columns)
    plain = all(isinstance(c, list) and c and not any(isinstance(i, (list, dict)) for i in c) for c in columns)
    return plain and len(columns) > 1 and len({len(column) for column in columns}) == 1


def _read_members(text: str, start: int) -> Iterator[tuple[str, _Value]]:
    """Reads the keys and values of the object at `start`, which parses."""
    at = _skip_blanks(text, start + 1)
    while not text.startswith("}", at):
        key = _read_value(text, at)
        value = _read_value(text, _skip_blanks(text, _skip_blanks(text, key.end) + 1))
        yield key.value, value
        at = _skip_blanks(text, value.end)
        at = _skip_blanks(text, at + 1) if text.startswith(",", at) else at


def _read_list(text: str, start: int, last: bool = False) -> Iterator[_Value]:
    """Reads the items of the list at `start`; `last`: nothing may stand behind it. JSONDecodeError as of `json`."""
    at = _skip_blanks(text, start + 1)
    closed = text.startswith("]", at)
    while not closed:
        item = _read_value(text, at)
        yield item
        at = _skip_blanks(text, item.end)
        closed = text.startswith("]", at)
        if not closed and not text.startswith(",", at):
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
        at = at if closed else _skip_blanks(text, at + 1)
    after = _skip_blanks(text, at + 1)
    if last and after < len(text):
        raise json.JSONDecodeError("Extra data", text, after)


def _read_value(text: str, at: int) -> _Value:
    value, end = _DECODER.raw_decode(text, at)
    return _Value(value, at, end)


def _skip_blanks(text: str, at: int) -> int:
    return BLANKS.match(text, at).end()
