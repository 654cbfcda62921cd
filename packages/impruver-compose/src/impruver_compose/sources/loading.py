"""Open files, folders, globs and hub data sets as memory-mapped rows, by `datasets`."""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_cache_dir
from impruver_core.io.disk_space import reserve_space
from impruver_core.io.jsonl import BLANKS, open_compressed
from impruver_core.io.manifest import describe_file
from impruver_core.library_logging import quiet_libraries
from impruver_core.recipe.paths import check_hub_id, find_local

from impruver_compose.sections import DatasetSection
from impruver_compose.sources.file_formats import (
    build_csv_options,
    check_not_output,
    find_data_files,
    get_kind,
    resolve_json_lines,
    scan_json_lines,
)

if TYPE_CHECKING:
    from datasets import Dataset

JSON_START = re.compile(rb'(\xef\xbb\xbf)?\s*\[?\s*{\s*"')


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
        inputs = [describe_file(file, digest=True) for file in files]
        digests = [entry["sha256"] for entry in inputs]
        # by content: `datasets` itself would tell the files apart by name and time
        cache = get_cache_dir() / "datasets" / hashlib.sha256("".join(digests).encode()).hexdigest()[:32]
        with reserve_space(get_cache_dir(), sum(entry["bytes"] for entry in inputs)):
            rows = _load_files(files, section.split, where, cache)
        return LoadedDataset(rows, inputs, [digests, section.split, rows.columns, rows.json_lines])
    check_hub_id(section.name, where)
    table = _load_from_hub(section, where)
    entry = {"path": section.name, "subset": section.subset, "split": section.split, "revision": section.revision}
    entry["fingerprint"] = table._fingerprint
    return LoadedDataset(RowTable(table, tuple(table.column_names)), [entry], [entry])


def _load_files(files: list[Path], split: str, where: str, cache: Path) -> RowTable:
    kind = get_kind(files[0])
    if kind == "json":
        return _load_json(files, split, where, cache)
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


def _load_json(files: list[Path], split: str, where: str, cache: Path) -> RowTable:
    """Loads JSON as lines of text, every line checked; blank ones are no rows."""
    json_lines = [resolve_json_lines(path, get_cache_dir()) for path in files]
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
