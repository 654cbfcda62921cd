"""The data files that a name in a recipe stands for, all of one kind."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.files.pointer import refuse_pointer

KINDS = {
    "json": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "text": (".txt",),
    "arrow": (".arrow",),
}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")


def files_of(found: Path, where: str) -> list[Path]:
    """The data files of a file, a folder or a glob, in the order of their names; all of one kind."""
    if found.is_file():
        files = [found]
    else:
        candidates = found.rglob("*") if found.is_dir() else map(Path, glob.glob(str(found), recursive=True))
        files = sorted(path for path in candidates if path.is_file() and kind_of(path))
    if not files:
        raise ImpruverError(f"{where}: no data files in {found} ({_known()})")
    kinds = {kind_of(path) for path in files}
    if None in kinds:
        raise ImpruverError(f"{where}: {found.name} is of no kind that can be read ({_known()})")
    if len(kinds) > 1:
        raise ImpruverError(f"{where}: files of different kinds ({', '.join(sorted(kinds))}): name them one by one")
    if all(path.stat().st_size == 0 for path in files):
        raise ImpruverError(f"{where}: {files[0]} is empty")
    for path in files:
        refuse_pointer(path)
    return files


def kind_of(path: Path) -> str | None:
    """Its key of KINDS, by the suffix before that of a compression; None for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return next((name for name, known in KINDS.items() if suffixes and suffixes[-1] in known), None)


def _known() -> str:
    suffixes = ", ".join(suffix for known in KINDS.values() for suffix in known)
    return f"known: {suffixes}, also with {', '.join(COMPRESSED)}"


def refuse_written(files: list[Path], found: Path, written: Sequence[Path], what: str) -> None:
    """ImpruverError where the data holds what this run writes, or the next run would find it there."""
    read = {os.path.realpath(path) for path in files}
    for path in written:
        real = os.path.realpath(path)
        if real in read or (found.is_dir() and kind_of(path) and real.startswith(os.path.realpath(found) + os.sep)):
            raise ImpruverError(f"{what} holds {path}, which this run writes: name another path")
