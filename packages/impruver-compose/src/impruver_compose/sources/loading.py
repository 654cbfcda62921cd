"""Open files, folders, globs and hub data sets as memory-mapped rows, by `datasets`; CSV and JSON as written."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_cache_dir, remove_path, reserve_space, sync_file
from impruver_core.io.compression import BLOCK, open_compressed
from impruver_core.io.integrity import (
    FileState,
    check_unchanged,
    describe_content,
    find_damage,
    read_file_states,
    write_record,
)
from impruver_core.io.locks import lock_folders
from impruver_core.io.manifest import describe_file
from impruver_core.library_logging import quiet_libraries
from impruver_core.recipe.paths import check_hub_id, find_local

from impruver_compose.sections import SourceSection
from impruver_compose.sources.delimited import write_delimited_table
from impruver_compose.sources.files import (
    check_files,
    check_not_output,
    check_unpacked_size,
    get_suffix,
)
from impruver_compose.sources.json_documents import prepare_json_lines, write_json_lines
from impruver_compose.sources.row_table import RowTable
from impruver_compose.sources.splits import find_split_files, select_slices
from impruver_compose.sources.text_encoding import UTF8, build_encoding_error, find_encoding, open_text, write_as_utf8
from impruver_compose.storage import load_record

if TYPE_CHECKING:
    from datasets import Dataset

CONTENT = "content.json"  # what the other files in a folder of the cache hold: written last
JSON_START = re.compile(r"\s*\[?\s*{\s*\"")
FORM = 4  # of the cache: another number for files that are read otherwise


@dataclass(frozen=True)
class LoadedDataset:
    """An opened data set, what the manifest says of it, and a key of JSON types that is equal for the same rows."""

    rows: RowTable
    inputs: list[dict]
    key: list


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, each with its sha256, and the folder of the cache for what is made of them."""

    number: int
    name: str
    files: Mapping[Path, str]
    cache: Path


def load_dataset(section: SourceSection, where: str, recipe_dir: Path, outputs: Sequence[Path]) -> LoadedDataset:
    """Opens the data set of a section; ImpruverError for one that can't be read, or holds one of the `outputs`."""
    quiet_libraries("datasets", errors_only=True)  # what it raises is reported here
    path = find_local(section.name, recipe_dir)
    if path is not None:
        return _load_local(path, section, where, outputs)
    check_hub_id(section.name, where)
    table = _load_from_hub(section, where)
    entry = {"path": section.name, "subset": section.subset, "split": section.split, "revision": section.revision}
    entry["fingerprint"] = table._fingerprint
    return LoadedDataset(RowTable(table, tuple(table.column_names)), [entry], [entry])


def _load_local(path: Path, section: SourceSection, where: str, outputs: Sequence[Path]) -> LoadedDataset:
    found = find_split_files(path, section, where)
    files = list(dict.fromkeys(file for own in found.values() for file in own))
    kind = check_files(files, path, where)
    check_not_output(files, path, outputs, f"{where}: {section.name}")
    states = read_file_states(files)
    inputs = [describe_file(file, digest=True) for file in files]
    digests = {file: entry["sha256"] for file, entry in zip(files, inputs, strict=True)}
    key = [[name, [digests[file] for file in own]] for name, own in found.items()]
    # by content: `datasets` itself would tell the files apart by name and time
    folder = hashlib.sha256(json.dumps([FORM, kind, key]).encode()).hexdigest()[:32]
    cache = get_cache_dir() / "datasets" / folder
    with reserve_space(get_cache_dir(), sum(entry["bytes"] for entry in inputs)), lock_folders([cache]):
        _remove_damaged(cache, section.name)
        splits = [
            SplitFiles(number, name, {file: digests[file] for file in own}, cache)
            for number, (name, own) in enumerate(found.items())
        ]
        rows = _load_files(splits, kind, section.split, where)
        _complete_cache(cache, states)
    return LoadedDataset(rows, inputs, [key, section.split, rows.columns, rows.json_lines])


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


def _load_files(splits: Sequence[SplitFiles], kind: str, split: str, where: str) -> RowTable:
    """Loads the rows that `split` names of files of a kind; lines of JSON stay as they are."""
    if kind == "json":
        scans, tables = zip(*(_load_json_lines(each, where) for each in splits), strict=True)
        columns = dict.fromkeys(name for own in scans for name in own)
    else:
        load = {"csv": _load_delimited, "tsv": _load_delimited, "text": _load_text}.get(kind, _load_binary)
        for file in (file for each in splits for file in each.files):
            check_unpacked_size(file)
        tables = [load(each, kind, where) for each in splits]
        columns = tables[0].column_names
        _check_same_columns(splits, tables, where)
    names = [each.name for each in splits]
    table = select_slices(dict(zip(names, tables, strict=True)), split, where)
    return RowTable(table, tuple(columns), json_lines=kind == "json")


def _check_same_columns(splits: Sequence[SplitFiles], tables: Sequence[Dataset], where: str) -> None:
    """ImpruverError for splits whose rows would lack columns beside each other."""
    (first, table), *others = zip(splits, tables, strict=True)
    for split, other in others:
        if set(other.column_names) != set(table.column_names):
            one, two = (
                f"{next(iter(each.files))} has {', '.join(own.column_names)}"
                for each, own in ((first, table), (split, other))
            )
            raise ImpruverError(
                f"{where}.split: other columns in {first.name} and {split.name}: {one}; {two}: "
                "make each a data set of its own"
            )


def _load_json_lines(split: SplitFiles, where: str) -> tuple[list[str], Dataset]:
    """Loads JSON as lines of text, every line checked; blank ones are no rows. With the columns of the rows."""
    import datasets

    lines = [prepare_json_lines(file, digest, split.cache) for file, digest in split.files.items()]
    target, record = split.cache / f"lines-{split.number}.arrow", split.cache / f"columns-{split.number}.json"
    columns = write_json_lines(lines, target, record)
    table = datasets.Dataset.from_file(str(target))
    if not len(table):
        raise ImpruverError(f"{where}: {next(iter(split.files))} has no rows")
    return columns, table


def _load_delimited(split: SplitFiles, kind: str, where: str) -> Dataset:
    """Loads CSV or TSV as texts, each file by the separator and quoting that it has."""
    import datasets

    columns, tables = None, []
    for file, digest in split.files.items():
        target = split.cache / f"{digest}.arrow"
        if not target.exists():
            columns = write_delimited_table(file, kind, columns, target, where)
        tables.append(datasets.Dataset.from_file(str(target)))
        columns = tables[0].column_names
    table = tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)
    if not len(table):
        raise ImpruverError(f"{where}: {next(iter(split.files))} has no rows")
    return table


def _load_text(split: SplitFiles, kind: str, where: str) -> Dataset:
    """Loads the lines of text files."""
    first = next(iter(split.files))
    try:
        with open_text(first) as file:
            if JSON_START.match(file.read(1000)):
                looks = "is read as plain text, line by line, and looks like JSON"
                warn(f"{where}: {first} {looks}: name it .json or .jsonl")
    except UnicodeDecodeError as error:
        raise build_encoding_error(first, error) from None
    paths = [
        file
        if file.suffix.lower() != ".zip" and find_encoding(file) in UTF8
        else write_as_utf8(file, split.cache / f"{digest}.txt")
        for file, digest in split.files.items()
    ]
    return _load_table("text", paths, first, split.cache, where, encoding="utf-8-sig")


def _load_binary(split: SplitFiles, kind: str, where: str) -> Dataset:
    """Loads Parquet or Arrow files."""
    paths = [
        file if file.suffix.lower() != ".zip" else _unpack(file, split.cache / f"{digest}{get_suffix(file)}")
        for file, digest in split.files.items()
    ]
    return _load_table(kind, paths, next(iter(split.files)), split.cache, where)


def _unpack(path: Path, target: Path) -> Path:
    if not target.exists():
        with open_compressed(path) as packed, atomic_write(target, "wb") as file:
            shutil.copyfileobj(packed, file, BLOCK)
    return target


def _load_table(loader: str, paths: Sequence[Path], source: Path, cache: Path, where: str, **options) -> Dataset:
    """Loads files by a loader of `datasets`; errors name `source`, the first of those that they are or were made of."""
    import datasets

    data_files = {"train": [glob.escape(str(path)) for path in paths]}
    with _loading_errors_as_user_errors(f"{where}: {source} can't be read as {loader}"):
        return datasets.load_dataset(loader, data_files=data_files, split="train", cache_dir=str(cache), **options)


@contextmanager
def _loading_errors_as_user_errors(what: str) -> Iterator[None]:
    """Turns what `datasets` raises (its own, pyarrow's, ValueError, …) into an ImpruverError of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        reason = _get_root_message(error)
        raise ImpruverError(f"{what}: {reason}") from None


def _get_root_message(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_from_hub(section: SourceSection, where: str) -> Dataset:
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
