"""Opens data sets through `datasets`: files, folders, globs and hub data sets, memory-mapped."""

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import say
from impruver_core.errors import ImpruverError
from impruver_core.files.jsonl import numbered_rows
from impruver_core.files.manifest import describe
from impruver_core.recipe.lookup import find_local, looks_local

LOADERS = {
    "json": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
    "text": (".txt",),
    "arrow": (".arrow",),
}
COMPRESSED = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class Source:
    """An opened data set and what the manifest says of it."""

    name: str
    rows: Any  # datasets.Dataset
    inputs: list[dict]


def open_source(section, where: str, recipe_dir: Path) -> Source:
    """Opens the data set of a section; ImpruverError, beginning with `where`, for one that can't be read."""
    quiet_datasets()
    found = find_local(section.name, recipe_dir)
    if found is not None:
        files = _files(found, where)
        rows = _load_files(files, section.split, where)
        return Source(section.name, rows, [describe(path, digest=True) for path in files])
    if looks_local(section.name):
        raise ImpruverError(f"{where}: {section.name} is not there (looked beside the recipe and in {Path.cwd()})")
    rows = _load_hub(section, where)
    entry = {"path": section.name, "subset": section.subset, "split": section.split, "revision": section.revision}
    return Source(section.name, rows, [entry | {"fingerprint": rows._fingerprint}])


def quiet_datasets() -> None:
    """No progress bars of `datasets`; its cache stands in ours."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()


def cache_dir() -> Path:
    """The folder of what can be made again: $IMPRUVER_CACHE, else ~/.cache/impruver."""
    return Path(os.environ.get("IMPRUVER_CACHE") or Path.home() / ".cache" / "impruver")


def _files(found: Path, where: str) -> list[Path]:
    """The data files of a file, a folder or a glob, in the order of their names."""
    if found.is_file():
        return [found]
    candidates = found.rglob("*") if found.is_dir() else map(Path, glob.glob(str(found), recursive=True))
    files = sorted(path for path in candidates if path.is_file() and _loader(path))
    if not files:
        raise ImpruverError(f"{where}: no data files in {found} ({_known()})")
    return files


def _loader(path: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return next((name for name, known in LOADERS.items() if suffixes and suffixes[-1] in known), None)


def _known() -> str:
    suffixes = ", ".join(suffix for known in LOADERS.values() for suffix in known)
    return f"known: {suffixes}, also with {', '.join(COMPRESSED)}"


def _load_files(files: list[Path], split: str, where: str):
    import datasets

    loaders = {_loader(path) for path in files}
    if None in loaders:
        raise ImpruverError(f"{where}: {files[0].name} is of no kind that can be read ({_known()})")
    if len(loaders) > 1:
        raise ImpruverError(f"{where}: files of different kinds ({', '.join(sorted(loaders))}): name them one by one")
    (loader,) = loaders
    if all(path.stat().st_size == 0 for path in files):
        raise ImpruverError(f"{where}: {files[0]} is empty")
    options = {"sep": "\t"} if files[0].name.lower().endswith(".tsv") else {}
    name = split.partition("[")[0]
    try:
        return datasets.load_dataset(
            loader,
            data_files={name: [str(path) for path in files]},
            split=split,
            cache_dir=str(cache_dir() / "datasets"),
            **options,
        )
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # datasets raises its own, pyarrow's, ValueError, UnicodeDecodeError and more
        if isinstance(error, OSError) and error.errno is not None:
            raise
        _tell_bad_line(files, loader)
        raise ImpruverError(f"{where}: {files[0]} can't be read as {loader}: {_innermost(error)}") from None


def _tell_bad_line(files: list[Path], loader: str) -> None:
    """Reads JSONL again, line by line: `datasets` names a block, not the line."""
    for path in files:
        if loader == "json" and path.suffix in (".jsonl", ".ndjson"):
            for _ in numbered_rows(path):
                pass


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _load_hub(section, where: str):
    import datasets

    options = {"name": section.subset, "split": section.split, "cache_dir": str(cache_dir() / "datasets")}
    try:
        try:
            return datasets.load_dataset(section.name, revision=section.revision, **options)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error) or section.revision:
                raise
            say(f"{section.name} is a script, which `datasets` no longer runs: reading the hub's Parquet copy of it")
            return datasets.load_dataset(section.name, revision="refs/convert/parquet", **options)
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImpruverError(f"{where}: {section.name} can't be loaded: {_innermost(error)}") from None
