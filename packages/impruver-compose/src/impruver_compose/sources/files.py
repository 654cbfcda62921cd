"""The data files of a file, a folder or a glob, by the kinds that can be read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.compression import (
    BLOCK,
    BROKEN,
    COMPRESSED,
    build_read_error,
    build_size_error,
    get_most_unpacked,
    is_hidden,
    open_compressed,
    read_zip_member,
)
from impruver_core.io.model_files import check_no_lfs_pointer
from impruver_core.recipe.paths import list_matches

KINDS = {
    "json": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "parquet": (".parquet",),
    "text": (".txt",),
    "arrow": (".arrow",),
}
KNOWN = f"known: {', '.join(suffix for known in KINDS.values() for suffix in known)}, also with {', '.join(COMPRESSED)}"
ABOUT_DATA = (  # what `datasets` leaves out, too: it says something of the rows beside it
    *("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "dummy_data.zip"),
)
COMPANIONS = re.compile(  # texts that stand beside data and are about it
    r"((licen[cs]es?|copying|readme|requirements)([-_. ][\w.-]+)?"
    r"|copyright|notices?|changelog|changes|authors|contributors|contributing|citation|credits)\.txt",
    re.IGNORECASE,
)
PARQUET_ROWS = 32  # read at once, to count their bytes


def get_suffix(path: Path) -> str:
    """Returns a file's suffix, of a compressed one that before it, of a .zip that of the one file in it."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path.name).suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED else None
    if packing == ".zip" and not (suffixes and _find_kind(suffixes[-1])):
        with suppress(ImpruverError, OSError):
            return PurePosixPath(read_zip_member(path)).suffix.lower()
    return suffixes[-1] if suffixes else ""


def get_kind(path: Path) -> str | None:
    """Returns a file's key of KINDS, by its suffix; None for others."""
    return _find_kind(get_suffix(path))


def _find_kind(suffix: str) -> str | None:
    return next((name for name, known in KINDS.items() if suffix in known), None)


def list_data_files(path: Path) -> dict[str, Path]:
    """Lists the data files of a folder or a glob by their names below it, or below the glob's first folder, sorted.

    Hidden files and folders, those that begin with `__`, and files about the data are none.
    """
    base = path if path.is_dir() else next(folder for folder in path.parents if folder.is_dir())
    hidden = path != base and is_hidden(path.relative_to(base).as_posix())  # asked for
    whole = Path(glob.escape(str(path)), "**", "*")
    found = list_matches(whole, links=False) if base == path else list_matches(path)
    files = {file.relative_to(base).as_posix(): file for file in found if not file.is_dir()}
    return {
        name: file
        for name, file in sorted(files.items())
        if (hidden or not is_hidden(name)) and file.name not in ABOUT_DATA and _is_data(file)
    }


def drop_companions(files: Mapping[str, Path], name: str) -> dict[str, Path]:
    """The files of a folder without texts about it (LICENSE.txt), which a note names; those alone are its data."""
    about = [each for each in files if COMPANIONS.fullmatch(PurePosixPath(each).name)]
    if not about or len(about) == len(files):
        return dict(files)
    log_info(f"note: {name}: not data, and left out: {', '.join(about)} (to train on one, name that file)")
    return {each: file for each, file in files.items() if each not in about}


def _is_data(file: Path) -> bool:
    if get_kind(file) is None:
        return False
    if not file.exists():
        raise ImpruverError(f"{file} is a link to a file that is not there: fetch the data again")
    return file.is_file()


def check_files(files: Sequence[Path], path: Path, where: str) -> str:
    """Checks that the files at `path` can be read, and are all of one kind, which is returned; ImpruverError else."""
    if not files:
        raise ImpruverError(f"{where}: no data files in {path} ({KNOWN})")
    kinds = {get_kind(file) for file in files}
    if None in kinds:
        if path.suffix.lower() == ".zip":
            read_zip_member(path)  # which says what is wrong with it
        raise ImpruverError(f"{where}: {path.name} is of no kind that can be read ({KNOWN})")
    if len(kinds) > 1:
        raise ImpruverError(f"{where}: files of different kinds ({', '.join(sorted(kinds))}): name them one by one")
    if all(file.stat().st_size == 0 for file in files):
        raise ImpruverError(f"{where}: {files[0]} is empty")
    for file in files:
        check_no_lfs_pointer(file)
    return kinds.pop()


def check_not_output(files: Iterable[Path], path: Path, outputs: Sequence[Path], what: str) -> None:
    """ImpruverError where the data at `path` holds what this run writes, or would at the next run."""
    inputs = {os.path.realpath(file) for file in files}
    for output in outputs:
        real = os.path.realpath(output)
        if real in inputs or (path.is_dir() and get_kind(output) and real.startswith(os.path.realpath(path) + os.sep)):
            raise ImpruverError(f"{what} holds {output}, which this run writes: name another path")


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


def warn_about_copies(inputs: Iterable[dict]) -> None:
    """Warns of each file that has the same bytes as another one of the run: its rows would count twice."""
    names: dict[str, dict[str, None]] = {}
    for entry in inputs:
        if "sha256" in entry and entry.get("bytes"):
            names.setdefault(entry["sha256"], {})[entry["path"]] = None
    for first, *others in filter(lambda same: len(same) > 1, names.values()):
        warn(f"{' and '.join(others)} {'has' if len(others) == 1 else 'have'} the same bytes as {first}: leave one out")
