"""JSON files as lines: lists and documents of rows are cut into one row a line, each as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow
from impruver_core.cli.console import log_info
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.compression import BROKEN, build_read_error
from impruver_core.io.integrity import write_record
from impruver_core.io.jsonl import LONGEST_LINE, parse_row, read_numbered_lines

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
QUESTIONS = {"prompt", "instruction", "question", "query", "input"}
ANSWERS = {"completion", "output", "answer", "response", "reply"}
WHOLE = {"messages", "conversations", "dialogues", "text", "chosen", "rejected"}  # each alone tells that it is a row's
LISTS_OF_A_ROW = {"messages", "conversations", "dialogues", "history", "tools", "functions"}
DESCRIPTIONS = re.compile(  # keys with which a document describes itself: scalars, or lists of them
    r"(data_?set|format|schema)?[_-]?(version|name|id|title|description|summary|licen[cs]e|citation|homepage|url)"
    r"|licen[cs]es|(created|updated|modified|generated|exported)([_-]?(at|on|by|time|date))?|date|time|timestamp"
    r"|generator|authors?|creators?|sources?|languages?|lang|tags|split|subset|config|format|type|dataset"
    r"|count|total|length|size|(num|n|total)[_-]?(rows|examples|samples|items|records|pages|count).*"
    r"|(page|offset|limit|partial|next|previous|status|success|error|object|has_more)",
    re.IGNORECASE,
)
STRUCTURES = re.compile(r"info|meta.*|(dataset_?)info|features|schema|columns|fields", re.IGNORECASE)  # of any type
SCHEMA = pyarrow.schema({"text": pyarrow.string()})
BATCH, BATCH_CHARACTERS = 1000, 1 << 24  # lines, and their characters, that are written at once
_DECODER = json.JSONDecoder()


class _Value(NamedTuple):
    """A JSON value, and where it stands in its text."""

    value: Any
    start: int
    end: int


class _RowList(NamedTuple):
    """A document's list of rows: the place where it starts, and the keys of what describes the document."""

    start: int
    left_out: list[str]


class JsonLines(NamedTuple):
    """A file with a row of JSON on each line, and the file that it was made of, for messages."""

    path: Path
    source: Path


def prepare_json_lines(path: Path, digest: str, cache: Path) -> JsonLines:
    """Returns the lines of a JSON file, made in `cache` where it is a .json of another form, no UTF-8, or a .zip.

    A .json may be lines, a list of rows, or an object with one list of rows; also over several lines. `digest` is the
    sha256 of `path`.
    """
    target, note = cache / f"{digest}.jsonl", cache / f"{digest}.note.json"
    if not target.exists() and get_suffix(path) == ".json" and (text := _read_document(path)) is not None:
        left_out: list[str] = []
        with atomic_write(target) as file:
            file.writelines(f"{line}\n" for line in _cut_rows(text, path, left_out))
        if left_out:
            write_record(note, left_out)
    if target.exists():
        if left_out := load_record(note):
            log_info(f"note: {path}: not rows, and left out: {', '.join(left_out)}")
        return JsonLines(target, path)
    if find_encoding(path) in UTF8 and path.suffix.lower() != ".zip":
        return JsonLines(path, path)
    return JsonLines(write_as_utf8(path, target), path)


def write_json_lines(files: Sequence[JsonLines], target: Path, record: Path) -> list[str]:
    """Checks every line of JSONL files, and writes them as the column `text` of an Arrow file, unless that is there.

    Returns the columns of the rows in order, which `record` keeps. Blank lines are no rows.
    """
    known = load_record(record) if target.exists() else None
    if known is not None:
        return known
    columns: dict[str, None] = {}
    with atomic_write(target, "wb") as file, pyarrow.ipc.new_stream(file, SCHEMA) as writer:
        lines, size = [], 0
        for line in _check_lines(files, columns):
            lines.append(line)
            size += len(line)
            if size > BATCH_CHARACTERS or len(lines) == BATCH:
                writer.write_batch(_build_batch(lines))
                lines, size = [], 0
        writer.write_batch(_build_batch(lines))
    write_record(record, list(columns))
    return list(columns)


def _check_lines(files: Sequence[JsonLines], columns: dict[str, None]) -> Iterator[str]:
    """Yields the lines with a row; adds the rows' columns to `columns`."""
    for path, source in files:
        with nullcontext(None) if path == source else open(path, "rb") as file:
            for number, line in read_numbered_lines(source, file):
                row = parse_row(source, number, line, _parse_line)
                if not row.keys() <= columns.keys():
                    columns |= dict.fromkeys(row)
                if "\r" in line.lstrip():  # which other readers end a line with
                    raise ImpruverError(
                        f"{source}, line {number}: a carriage return within a row: write each row as one line"
                    )
                yield line


def _build_batch(lines: list[str]) -> pyarrow.RecordBatch:
    return pyarrow.record_batch([pyarrow.array(lines, pyarrow.string())], SCHEMA)


def _parse_line(text: str) -> Any:
    """Parses JSON as `json.loads` does, by orjson, which is faster; what that refuses, `json` reads or describes."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)


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


def _cut_rows(text: str, path: Path, left_out: list[str]) -> Iterator[str]:
    """Cuts a document into its rows, each a line of the text as it was written; adds keys of no rows to `left_out`."""
    try:
        for number, row in enumerate(_find_rows(text, path, left_out)):
            if not isinstance(row.value, dict):
                what = type(row.value).__name__
                raise ImpruverError(f"{path}, row {number}: a row must be a JSON object, not {what}")
            yield LINE_ENDS.sub(" ", text[row.start : row.end])  # those in texts are escaped
    except json.JSONDecodeError as error:
        raise ImpruverError(f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; nested too deep
        raise ImpruverError(f"{path}: can't be read: {error}") from None


def _find_rows(text: str, path: Path, left_out: list[str]) -> Iterator[_Value]:
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
    if after >= len(text) and isinstance(first.value, dict):
        rows = _find_list_of_rows(text, start, path)
        if rows is not None:
            left_out += rows.left_out
        yield from [first] if rows is None else _read_list(text, rows.start)
        return
    while True:  # values behind one another, over several lines
        yield first
        if after >= len(text):
            return
        first = _read_value(text, after)
        after = _skip_blanks(text, first.end)


def _find_list_of_rows(text: str, start: int, path: Path) -> _RowList | None:
    """Finds an object's only list of objects, else `data`, if that is a list; None for an object that is a row itself.

    ImpruverError for several lists, and where more stands beside the list than what describes the document.
    """
    members: dict[str, _Value] = {}
    repeated = None
    for key, member in _read_members(text, start):
        repeated = key if key in members else repeated
        members[key] = member
    filled = {key: member.value for key, member in members.items() if member.value not in (None, "", [], {})}
    lists = [key for key, value in filled.items() if _is_list_of_rows(key, value)]
    if not lists and ROWS in members and isinstance(members[ROWS].value, list):
        lists = [ROWS]
    if not lists or _is_row(filled.keys(), ROWS in lists):
        return None
    if repeated is not None:
        raise ImpruverError(f"{path}: the key {json.dumps(repeated)} occurs twice in the document")
    if len(lists) > 1:
        names = ", ".join(lists)
        raise ImpruverError(f"{path} holds {len(lists)} lists of objects ({names}): write each into a file of its own")
    others = [key for key in filled if key != lists[0]]
    beside = [key for key in others if not _describes_document(key, filled[key])]
    if beside:
        raise ImpruverError(
            f"{path} has {', '.join(beside)} beside its list {lists[0]}: put them into each row, or leave them out; "
            "where all of it is one row, write that as a line of a .jsonl file"
        )
    return _RowList(members[lists[0]].start, others)


def _is_list_of_rows(key: str, value: Any) -> bool:
    """Tells whether a member of an object may be a document's rows: objects, but no turns or tools of one row."""
    if key in LISTS_OF_A_ROW or STRUCTURES.fullmatch(key) or not isinstance(value, list) or not value:
        return False
    if not all(isinstance(item, dict) for item in value):
        return False
    return key == ROWS or not all(item.keys() & {"role", "from"} and len(item) > 1 for item in value)


def _is_row(keys: Collection[str], has_data: bool) -> bool:
    """Tells whether an object with these keys is a row: beside `data` they must be those of a whole format."""
    if WHOLE & keys or (QUESTIONS & keys and ANSWERS & keys):
        return True
    return not has_data and bool((QUESTIONS | ANSWERS) & keys)


def _describes_document(key: str, value: Any) -> bool:
    if STRUCTURES.fullmatch(key):
        return True
    items = value if isinstance(value, list) else [value]
    return bool(DESCRIPTIONS.fullmatch(key)) and not any(isinstance(item, (dict, list)) for item in items)


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
