"""CSV and TSV as tables of texts: the separator and the quoting that a file has; no cell is shifted, padded or lost."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write
from impruver_core.io.compression import BROKEN, build_read_error
from impruver_core.io.jsonl import LONGEST_LINE

from impruver_compose.sources.text_encoding import build_encoding_error, open_text

if TYPE_CHECKING:
    import pyarrow

SEPARATORS = {"csv": ",;\t|", "tsv": "\t,;|"}  # the first one is the kind's own
TOLD_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # a first line, as Excel writes and reads it
MOST_COLUMNS = 10_000
BATCH = 1000  # rows in memory at once,
BATCH_CHARACTERS = 1 << 24  # and characters
QUOTES = 'a cell that holds a quote (") is written in quotes, with each of its own doubled ("")'


class Dialect(NamedTuple):
    """How a file separates its cells; `quoted`: cells may stand in quotes, with separators and line ends in them."""

    separator: str
    quoted: bool = True
    skipped: int = 0  # lines before the header


class _TableError(Exception):
    """What is wrong with a record of a table, and the line on which that begins."""

    def __init__(self, line: int, what: str):
        super().__init__(what)
        self.line = line


def write_delimited_table(path: Path, kind: str, columns: Sequence[str] | None, target: Path, where: str) -> list[str]:
    """Writes a CSV or TSV file as an Arrow stream of texts, its columns in the order of `columns`; returns these.

    Quotes go around cells, or are mere characters in a file where they don't go in pairs and no cell looks quoted.
    ImpruverError, with the line, for a file that has no sure reading as rows of as many cells as the header.
    """
    with _errors_as_user_errors(path, where):
        dialect = _detect_separator(path, kind)
        try:
            names, doubtful = _write_table(path, dialect, columns, target)
        except _TableError:
            if not _are_rows_unquoted(path, dialect):
                raise
            return _write_table(path, dialect._replace(quoted=False), columns, target)[0]
        if doubtful and len(names) > 1 and _are_rows_unquoted(path, dialect):
            target.unlink()
            raise _TableError(doubtful, f"a quote opens a cell that goes on over lines which are rows, too; {QUOTES}")
        return names


@contextmanager
def _errors_as_user_errors(path: Path, where: str) -> Iterator[None]:
    csv.field_size_limit(LONGEST_LINE)
    try:
        yield
    except _TableError as error:
        raise ImpruverError(f"{where}: {path}, line {error.line}: {error}") from None
    except UnicodeDecodeError as error:
        raise build_encoding_error(path, error) from None
    except BROKEN as error:
        raise build_read_error(str(path), error) from None


def _detect_separator(path: Path, kind: str) -> Dialect:
    """Detects the separator: as a first line tells it, else one by which the first row has as many cells as the header.

    The kind's own separator comes first.
    """
    with open_text(path) as file:
        told = TOLD_SEPARATOR.fullmatch(file.readline(100))
    if told:
        return Dialect(told[1], skipped=1)
    cells = {separator: _count_cells(path, Dialect(separator)) for separator in SEPARATORS[kind]}
    own = SEPARATORS[kind][0]
    even = next((each for each, (header, first) in cells.items() if header == first > 1), None)
    if even is None and cells[own][0] == 1 != cells[own][1]:
        even = next((each for each, (header, _) in cells.items() if header > 1), None)
    return Dialect(even or own)


def _count_cells(path: Path, dialect: Dialect) -> tuple[int, int]:
    """Counts the cells of the header and of the first row, 0 where there is none."""
    try:
        records = _read_records(path, dialect)
        return len(next(records, (0, ()))[1]), len(next(records, (0, ()))[1])
    except _TableError:
        return 0, 0


def _read_records(path: Path, dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    """Reads (line on which it begins, cells) of each record, the header first; blank lines are none.

    _TableError where a quote stands neither around a cell nor within an unquoted one, or is not closed.
    """
    quoting = csv.QUOTE_MINIMAL if dialect.quoted else csv.QUOTE_NONE
    with open_text(path) as file:
        for _ in range(dialect.skipped):
            file.readline()
        reader = csv.reader(file, delimiter=dialect.separator, quoting=quoting, strict=True)
        line = dialect.skipped + 1
        try:
            for cells in reader:
                if cells and not (len(cells) == 1 and cells[0].isspace()):
                    yield line, cells
                line = dialect.skipped + reader.line_num + 1
        except csv.Error:
            raise _TableError(
                line, f"a quote opens a cell and does not close it before a separator; {QUOTES}"
            ) from None


def _write_table(
    path: Path, dialect: Dialect, columns: Sequence[str] | None, target: Path
) -> tuple[list[str], int | None]:
    """Writes the table; its columns, and the line of the first record that could be several rows without quoting."""
    import pyarrow

    records = _read_records(path, dialect)
    header = _name_columns(*next(records, (1, [])))
    names = list(columns or header)
    if set(names) != set(header):
        others = f"another file has {', '.join(names)}: name the files one by one"
        raise _TableError(1, f"the columns are {', '.join(header)}, and {others}")
    places = [header.index(name) for name in names]
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    spaced = all(name.startswith(" ") for name in header[1:])
    # in prose a blank follows, unless it does everywhere in this file
    inner_separator = re.compile(re.escape(dialect.separator) + ("" if spaced else "(?! )"))
    doubtful, rows, size = None, [], 0
    with atomic_write(target, "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
        for line, cells in records:
            if len(cells) != len(header):
                raise _TableError(line, _describe_count(len(cells), len(header), dialect.separator))
            length = sum(map(len, cells))
            if size + length > BATCH_CHARACTERS or len(rows) == BATCH:
                writer.write_batch(_build_batch(rows, places, schema))
                rows, size = [], 0
            rows.append(cells)
            size += length
            if doubtful is None and any(
                ("\n" in cell or "\r" in cell) and inner_separator.search(cell) for cell in cells
            ):
                doubtful = line
        writer.write_batch(_build_batch(rows, places, schema))
    return names, doubtful


def _build_batch(rows: list[list[str]], places: list[int], schema: pyarrow.Schema) -> pyarrow.RecordBatch:
    import pyarrow

    cells = list(zip(*rows, strict=True)) if rows else [()] * len(places)
    return pyarrow.record_batch([pyarrow.array(cells[place], pyarrow.string()) for place in places], schema)


def _name_columns(line: int, header: list[str]) -> list[str]:
    """Names the columns: those without a name as pandas does. _TableError for a name that stands there twice."""
    if len(header) > MOST_COLUMNS:
        raise _TableError(line, f"{len(header):,} columns, more than any data set")
    if any("\0" in name for name in header):  # where Arrow would end the name
        raise _TableError(line, "the header has a NUL character: is it a table of text?")
    names = [name or f"Unnamed: {number}" for number, name in enumerate(header)]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise _TableError(line, f"the header has {', '.join(repeated)} more than once: name each column otherwise")
    return names


def _describe_count(count: int, wanted: int, separator: str) -> str:
    """Says how a record differs from the header, and what to do."""
    what = f"{count} cell{'s' * (count != 1)}, and the header has {wanted} (separator {separator!r})"
    if count < wanted:
        return f"{what}: write the empty cells, too"
    return f"{what}: a cell that holds the separator needs quotes around it"


def _are_rows_unquoted(path: Path, dialect: Dialect) -> bool:
    """Tells whether each line is a row with as many cells as the header, none of them in quotes, were quotes text."""
    width = None
    for _, cells in _read_records(path, dialect._replace(quoted=False)):
        width = len(cells) if width is None else width
        if len(cells) != width or any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells):
            return False
    return True
