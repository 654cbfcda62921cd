"""Recognize the data files that a recipe names; read CSV and JSON as they were written."""

import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, hash_file
from impruver_core.io.jsonl import BROKEN, build_read_error, open_compressed, read_numbered_rows
from impruver_core.io.model_files import check_no_lfs_pointer

KINDS = {
    "json": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "text": (".txt",),
    "arrow": (".arrow",),
}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")


def find_data_files(path: Path, where: str) -> list[Path]:
    """Finds the data files of a file, a folder or a glob, in the order of their names; all are of one kind."""
    if path.is_file():
        files = [path]
    else:
        candidates = path.rglob("*") if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
        files = sorted(candidate for candidate in candidates if candidate.is_file() and get_kind(candidate))
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
