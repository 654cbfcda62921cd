"""Open files, folders, globs and hub data sets as memory-mapped rows, by `datasets`; CSV and JSON as written."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_cache_dir, remove_path, reserve_space, sync_file
from impruver_core.io.integrity import (
    FileState,
    check_unchanged,
    describe_content,
    find_damage,
    read_file_states,
    write_record,
)
from impruver_core.io.jsonl import (
    BLANKS,
    BLOCK,
    BROKEN,
    LONGEST_LINE,
    build_read_error,
    build_size_error,
    get_most_unpacked,
    open_compressed,
    read_numbered_rows,
)
from impruver_core.io.locks import lock_folders
from impruver_core.io.manifest import describe_file
from impruver_core.io.model_files import check_no_lfs_pointer
from impruver_core.library_logging import quiet_libraries
from impruver_core.recipe.paths import check_hub_id, find_local, list_matches

from impruver_compose.sections import DatasetSection
from impruver_compose.storage import load_record

if TYPE_CHECKING:
    from datasets import Dataset

KINDS = {
    "json": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "text": (".txt",),
    "arrow": (".arrow",),
}
CONTENT = "content.json"  # what the other files in a folder of the cache hold: written last
MOST_COLUMNS = 10_000
PARQUET_ROWS = 32  # read at once, to count their bytes
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")
JSON_START = re.compile(rb'(\xef\xbb\xbf)?\s*\[?\s*{\s*"')


def find_data_files(path: Path, where: str) -> list[Path]:
    """Finds the data files of a file, a folder or a glob, in the order of their names; all are of one kind."""
    if path.is_file():
        files = [path]
    else:
        whole = path.is_dir()
        candidates = list_matches(
            Path(glob.escape(str(path)), "**", "*") if whole else path, hidden=whole, links=not whole
        )
        files = sorted(candidate for candidate in candidates if get_kind(candidate) and candidate.is_file())
    suffixes = ", ".join(suffix for known in KINDS.values() for suffix in known)
    known = f"known: {suffixes}, also with {', '.join(COMPRESSED)}"
    if not files:
        raise ImpruverError(f"{where}: no data files in {path} ({known})")
    kinds = {get_kind(file) for file in files}
    if None in kinds:
        raise ImpruverError(f"{where}: {path.name} is of no kind that can be read ({known})")
    if len(kinds) > 1:
        raise ImpruverError(f"{where}: files of different kinds ({', '.join(sorted(kinds))}): name them one by one")
    if all(file.stat().st_size == 0 for file in files):
        raise ImpruverError(f"{where}: {files[0]} is empty")
    for file in files:
        check_no_lfs_pointer(file)
    return files


def get_kind(path: Path) -> str | None:
    """Returns a file's key of KINDS, by the suffix before that of a compression; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return next((name for name, known in KINDS.items() if suffixes and suffixes[-1] in known), None)


def check_not_output(files: list[Path], path: Path, outputs: Sequence[Path], what: str) -> None:
    """ImpruverError where the data at `path` holds what this run writes, or would at the next run."""
    inputs = {os.path.realpath(file) for file in files}
    for output in outputs:
        real = os.path.realpath(output)
        if real in inputs or (path.is_dir() and get_kind(output) and real.startswith(os.path.realpath(path) + os.sep)):
            raise ImpruverError(f"{what} holds {output}, which this run writes: name another path")


def build_csv_options(files: Sequence[Path], separator: str, where: str) -> dict[str, Any]:
    """Builds the options to read every cell as text; ImpruverError where pandas would shift or lose cells silently."""
    import datasets

    headers = [_read_header(path, separator, where) for path in files]
    for path, columns in zip(files, headers, strict=True):
        if set(columns) != set(headers[0]):
            other = f"{files[0].name} has {', '.join(headers[0])}: name the files one by one"
            raise ImpruverError(f"{where}: {path} has the columns {', '.join(columns)}, {other}")
    texts = datasets.Features({name: datasets.Value("string") for name in headers[0]})
    return {"sep": separator, "features": texts, "keep_default_na": False, "encoding": "utf-8-sig"}


def _read_header(path: Path, separator: str, where: str) -> list[str]:
    """Reads a file's columns; ImpruverError if its first row has more cells: pandas would make the first an index."""
    import pandas

    header, first = _count_cells(path, separator)
    if header > MOST_COLUMNS:
        raise ImpruverError(f"{where}: {path} has {header:,} columns, more than any data set")
    if first > max(header, MOST_COLUMNS):
        raise ImpruverError(f"{where}: {path}: the first row has more cells than the header has columns")
    try:
        top = pandas.read_csv(path, sep=separator, nrows=1, dtype=str, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImpruverError(f"{where}: {path} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except (ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImpruverError(f"{where}: {path} can't be read as csv: {reason}") from None
    if not isinstance(top.index, pandas.RangeIndex):
        raise ImpruverError(f"{where}: {path}: the first row has more cells than the header has columns")
    return [str(name) for name in top.columns]


def _count_cells(path: Path, separator: str) -> list[int]:
    """Counts the cells of the header and of the first row, 0 where there is none: pandas takes a column for each."""
    csv.field_size_limit(LONGEST_LINE)
    with open_compressed(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
        with suppress(csv.Error, *BROKEN):
            return [len(next(rows, ())) for rows in [csv.reader(lines, delimiter=separator)] * 2]
    return [0, 0]


def scan_json_lines(paths: Sequence[Path], cache: Path) -> tuple[list[str], int]:
    """Checks every line of JSONL files; their columns in order, and the number of rows, also kept in `cache`."""
    known = load_record(cache)
    if known is not None:
        return tuple(known)
    columns, rows = {}, 0
    for path in paths:
        for _, row in read_numbered_rows(path):
            columns |= dict.fromkeys(row)
            rows += 1
    write_record(cache, [list(columns), rows])
    return list(columns), rows


def resolve_json_lines(path: Path, digest: str, cache: Path) -> Path:
    """Returns `path`, or for a .json file that holds a list the JSONL file in `cache` that is made of it.

    `digest` is the sha256 of `path`.
    """
    if ".json" not in [suffix.lower() for suffix in path.suffixes[-2:]]:
        return path
    rows = _read_json_list(path)
    if rows is None:
        return path
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ImpruverError(f"{path}, row {number}: a row must be a JSON object, not {type(row).__name__}")
    converted = cache / f"{digest}.jsonl"
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


@dataclass(frozen=True)
class LoadedDataset:
    """An opened data set, what the manifest says of it, and a key of JSON types that is equal for the same rows."""

    rows: RowTable
    inputs: list[dict]
    key: list


def load_dataset(section: DatasetSection, where: str, recipe_dir: Path, outputs: Sequence[Path]) -> LoadedDataset:
    """Opens the data set of a section; ImpruverError for one that can't be read, or holds one of the `outputs`."""
    quiet_libraries("datasets", errors_only=True)  # what it raises is reported here
    path = find_local(section.name, recipe_dir)
    if path is not None:
        files = find_data_files(path, where)
        check_not_output(files, path, outputs, f"{where}: {section.name}")
        states = read_file_states(files)
        inputs = [describe_file(file, digest=True) for file in files]
        digests = [entry["sha256"] for entry in inputs]
        # by content: `datasets` itself would tell the files apart by name and time
        cache = get_cache_dir() / "datasets" / hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
        with reserve_space(get_cache_dir(), sum(entry["bytes"] for entry in inputs)), lock_folders([cache]):
            _remove_damaged(cache, section.name)
            rows = _load_files(files, digests, section.split, where, cache)
            _complete_cache(cache, states)
        return LoadedDataset(rows, inputs, [digests, section.split, rows.columns, rows.json_lines])
    check_hub_id(section.name, where)
    table = _load_from_hub(section, where)
    entry = {"path": section.name, "subset": section.subset, "split": section.split, "revision": section.revision}
    entry["fingerprint"] = table._fingerprint
    return LoadedDataset(RowTable(table, tuple(table.column_names)), [entry], [entry])


def _remove_damaged(cache: Path, name: str) -> None:
    """Empties the folder of a data set's rows unless all files in it are as they were when it was complete."""
    content = load_record(cache / CONTENT) or {}
    damages = ((path, find_damage(cache / path, entry)) for path, entry in content.items())
    path, damage = next(((path, damage) for path, damage in damages if damage), (None, None))
    if path is not None:
        log_info(f"note: the rows of {name} in the cache are damaged and made again ({cache / path}: {damage})")
    if path is not None or not content:  # of a run that was killed, or of an earlier version
        for inside in cache.iterdir():
            remove_path(inside)


def _complete_cache(cache: Path, states: dict[Path, FileState]) -> None:
    """Notes what the files in the folder of a data set's rows hold, if the data are still those that it is named by."""
    try:
        check_unchanged(states)
    except ImpruverError:
        shutil.rmtree(cache, ignore_errors=True)
        raise
    before = load_record(cache / CONTENT) or {}
    files = [path for path in cache.rglob("*") if path.is_file() and path.name != CONTENT and path.suffix != ".lock"]
    names = {str(path.relative_to(cache)): path for path in sorted(files)}
    if before.keys() != names.keys():
        for path in names.values():
            sync_file(path)
        content = {name: before.get(name) or describe_content(path) for name, path in names.items()}
        write_record(cache / CONTENT, content)


def _load_files(files: list[Path], digests: list[str], split: str, where: str, cache: Path) -> RowTable:
    kind = get_kind(files[0])
    if kind == "json":
        return _load_json(files, digests, split, where, cache)
    for path in files:
        check_unpacked_size(path)
    options = {}
    if kind == "text":
        options = {"encoding": "utf-8-sig"}
        with open_compressed(files[0]) as file:
            if JSON_START.match(file.read(1000)):
                looks = "is read as plain text, line by line, and looks like JSON"
                warn(f"{where}: {files[0]} {looks}: name it .json or .jsonl")
    if kind in ("csv", "tsv"):
        options = build_csv_options(files, "," if kind == "csv" else "\t", where)
    table = _load_table("csv" if kind == "tsv" else kind, files, split, where, cache, **options)
    return RowTable(table, tuple(table.column_names))


def check_unpacked_size(path: Path) -> None:
    """ImpruverError for a small file of much data, one that is compressed or a Parquet file."""
    if path.suffix.lower() in COMPRESSED:
        try:
            with open_compressed(path) as file:  # which counts
                while file.read(BLOCK):
                    pass
        except BROKEN as error:
            raise build_read_error(str(path), error) from None
    elif get_kind(path) == "parquet":
        _check_parquet_size(path)


def _check_parquet_size(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    most, count = get_most_unpacked(path), 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                count += batch.nbytes
                if count > most:
                    raise build_size_error(path)
    except (pyarrow.ArrowException, OSError):  # `datasets` has the words for that
        return


def _load_json(files: list[Path], digests: list[str], split: str, where: str, cache: Path) -> RowTable:
    """Loads JSON as lines of text, every line checked; blank ones are no rows."""
    json_lines = [resolve_json_lines(*each, cache) for each in zip(files, digests, strict=True)]
    columns, rows = scan_json_lines(json_lines, cache / "scan.json")
    if not rows:
        raise ImpruverError(f"{where}: {files[0]} has no rows")
    table = _load_table("text", json_lines, split.partition("[")[0], where, cache)
    if len(table) != rows:
        table = table.select([row for row, line in enumerate(table["text"]) if line.strip("\ufeff" + BLANKS)])
    if len(table) != rows:  # `datasets` ends a line there
        raise ImpruverError(f"{where}: {files[0]} has a carriage return within a line: write each row as one line")
    if "[" in split:
        table = _select_slice(table, split, where)
    return RowTable(table, tuple(columns), json_lines=True)


def _select_slice(table: Dataset, split: str, where: str) -> Dataset:
    import datasets

    name = split.partition("[")[0]
    try:
        slices = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(table)})
    except (ValueError, AssertionError, KeyError) as error:
        raise ImpruverError(f"{where}.split: {split} can't be read: {_get_root_message(error)}") from None
    return table.select([row for each in slices for row in range(each.from_, each.to)])


def _load_table(loader: str, files: list[Path], split: str, where: str, cache: Path, **options) -> Dataset:
    import datasets

    data_files = {split.partition("[")[0]: [glob.escape(str(path)) for path in files]}
    with _loading_errors_as_user_errors(f"{where}: {files[0]} can't be read as {loader}"):
        return datasets.load_dataset(loader, data_files=data_files, split=split, cache_dir=str(cache), **options)


@contextmanager
def _loading_errors_as_user_errors(what: str) -> Iterator[None]:
    """Turns what `datasets` raises (its own, pyarrow's, ValueError, …) into an ImpruverError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = _get_root_message(error)
        quotes = "; a cell that holds the separator needs quotes around it" if "fields in line" in reason else ""
        raise ImpruverError(f"{what}: {reason}{quotes}") from None


def _get_root_message(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_from_hub(section: DatasetSection, where: str) -> Dataset:
    import datasets

    options = {"name": section.subset, "split": section.split, "cache_dir": str(get_cache_dir() / "datasets")}
    what = f"{where}: {section.name} is no file or folder here, and can't be loaded from the hub"
    with _loading_errors_as_user_errors(what):
        try:
            return datasets.load_dataset(section.name, revision=section.revision, **options)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error) or section.revision:
                raise
            script = f"{section.name} is a script, which `datasets` no longer runs"
            log_info(f"{script}: reading the hub's Parquet copy of it")
            return datasets.load_dataset(section.name, revision="refs/convert/parquet", **options)
