"""The data files that a name in a recipe stands for, all of one kind."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from impruver_core.errors import ImpruverError
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


def find_data_files(found: Path, where: str) -> list[Path]:
    """The data files of a file, a folder or a glob, in the order of their names; all of one kind."""
    if found.is_file():
        files = [found]
    else:
        candidates = found.rglob("*") if found.is_dir() else map(Path, glob.glob(str(found), recursive=True))
        files = sorted(path for path in candidates if path.is_file() and get_kind(path))
    if not files:
        raise ImpruverError(f"{where}: no data files in {found} ({_format_known_kinds()})")
    kinds = {get_kind(path) for path in files}
    if None in kinds:
        raise ImpruverError(f"{where}: {found.name} is of no kind that can be read ({_format_known_kinds()})")
    if len(kinds) > 1:
        raise ImpruverError(f"{where}: files of different kinds ({', '.join(sorted(kinds))}): name them one by one")
    if all(path.stat().st_size == 0 for path in files):
        raise ImpruverError(f"{where}: {files[0]} is empty")
    for path in files:
        check_no_lfs_pointer(path)
    return files


def get_kind(path: Path) -> str | None:
    """Its key of KINDS, by the suffix before that of a compression; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return next((name for name, known in KINDS.items() if suffixes and suffixes[-1] in known), None)


def _format_known_kinds() -> str:
    suffixes = ", ".join(suffix for known in KINDS.values() for suffix in known)
    return f"known: {suffixes}, also with {', '.join(COMPRESSED)}"


def check_not_output(files: list[Path], found: Path, written: Sequence[Path], what: str) -> None:
    """ImpruverError where the data holds what this run writes, or the next run would find it there."""
    read = {os.path.realpath(path) for path in files}
    for path in written:
        real = os.path.realpath(path)
        if real in read or (found.is_dir() and get_kind(path) and real.startswith(os.path.realpath(found) + os.sep)):
            raise ImpruverError(f"{what} holds {path}, which this run writes: name another path")


def build_csv_options(files: Sequence[Path], separator: str, where: str) -> dict:
    """Of the CSV loader of `datasets`; ImpruverError where pandas would shift or lose cells, saying nothing."""
    import datasets

    headers = [_read_header(path, separator, where) for path in files]
    for path, columns in zip(files, headers, strict=True):
        if set(columns) != set(headers[0]):
            raise ImpruverError(
                f"{where}: {path} has the columns {', '.join(columns)}, {files[0].name} has {', '.join(headers[0])}: "
                "name the files one by one"
            )
    texts = datasets.Features({name: datasets.Value("string") for name in headers[0]})
    return {"sep": separator, "features": texts, "keep_default_na": False, "encoding": "utf-8-sig"}


def _read_header(path: Path, separator: str, where: str) -> list[str]:
    """The columns of a file. A first row of more cells than these would shift: pandas takes its first for a name."""
    import pandas

    try:
        top = pandas.read_csv(path, sep=separator, nrows=1, dtype=str, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ImpruverError(f"{where}: {path} is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None
    except (ValueError, OSError) as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImpruverError(f"{where}: {path} can't be read as csv: {told}") from None
    if not isinstance(top.index, pandas.RangeIndex):
        raise ImpruverError(f"{where}: {path}: the first row has more cells than the header has columns")
    return [str(name) for name in top.columns]
