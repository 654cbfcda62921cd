"""Which files hold the split that is asked for: by a README's `configs`, by names, in folders of `save_to_disk`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

from impruver_compose.sections import SourceSection
from impruver_compose.sources.files import drop_companions, list_data_files
from impruver_compose.sources.repository_card import find_config, read_configs
from impruver_compose.sources.saved_datasets import find_saved_folders, list_saved_splits
from impruver_compose.sources.split_names import check_distinct_splits, find_named_splits, find_synonym

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(?=\D)")
LISTED = 3  # names in a message
UNNAMED = "names tell no splits, so all is"
ANY_SPLIT = "train"  # the key's default: of files that say nothing of splits it means all


class _Splits(NamedTuple):
    """The files of each split, and who says so."""

    files: Mapping[str, Sequence[Path]]
    source: str


def find_split_files(path: Path, section: SourceSection, where: str) -> dict[str, list[Path]]:
    """Finds the files of each split that `section.split` names; ImpruverError where there are only those of others.

    A folder's splits are those that `datasets` finds: by the README's `configs`, else by names (train, dev, test, …).
    Files of a folder or a glob whose names say nothing are all `train`; a file that is named itself is what it is.
    """
    wanted = list_split_names(section.split)
    found = _find_splits(path, section, wanted, where)
    chosen = {name: _choose(found, name, section, where) for name in wanted}
    for files in chosen.values():
        _warn_about_missing_shards(files)
    return chosen


def list_split_names(split: str) -> list[str]:
    """Lists the splits in `train`, `train[:1000]` or `train[:10%]+validation`."""
    return list(dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+")))


def select_slices(tables: Mapping[str, Dataset], split: str, where: str) -> Dataset:
    """Selects the rows that `split` names, as `train[:1000]`, from the tables of whole splits."""
    import datasets

    if split in tables:
        return tables[split]
    try:
        sizes = {name: len(table) for name, table in tables.items()}
        slices = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
        parts = [tables[each.splitname].select(range(each.from_, each.to) or []) for each in slices]
        return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)
    except (ValueError, AssertionError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ImpruverError(f"{where}.split: {split} can't be read: {reason}") from None


def _find_splits(path: Path, section: SourceSection, wanted: list[str], where: str) -> _Splits:
    if path.is_dir():
        saved = list_saved_splits(path)
        if saved is not None:
            _refuse_subset(section, "was written by save_to_disk", where)
            return _Splits(saved, "save_to_disk wrote")
        return _find_folder_splits(path, section, where)
    _refuse_subset(section, "is a file" if path.is_file() else "is a pattern", where)
    files = {path.name: path} if path.is_file() else list_data_files(path)
    named = find_named_splits(files)
    if len(named) > 1 and not path.is_file():
        check_distinct_splits(named, where)
        _warn_about_unnamed(files, named, section.name)
        return _Splits(named, "the names of its files say")
    return _find_named_files(list(files.values()), named if len(named) == 1 else {}, wanted)


def _find_named_files(files: list[Path], named: Mapping[str, list[Path]], wanted: list[str]) -> _Splits:
    """What files are that the recipe names itself: the split that is asked for, unless a name tells another."""
    told = next(iter(named), None)
    if len(wanted) == 1 and (wanted[0] == ANY_SPLIT or told in (None, wanted[0], find_synonym(wanted[0]))):
        return _Splits({wanted[0]: files}, "")
    return _Splits(named, "its name says") if named else _Splits({ANY_SPLIT: files}, UNNAMED)


def _find_folder_splits(path: Path, section: SourceSection, where: str) -> _Splits:
    files = list_data_files(path)
    configs = read_configs(path / "README.md", where)
    if configs:
        config = find_config(configs, section.subset, path, where)
        if config.patterns is not None:
            return _Splits(config.match_files(files), f"config {config.name} of its README.md has")
        return _find_named_or_all(_get_below(files, config.folder), section.name, where)
    saved = find_saved_folders(files)
    if saved:
        what = f"{len(saved)} data sets" if len(saved) > 1 else "a data set"
        raise ImpruverError(
            f"{where}: {section.name} holds {what} that save_to_disk wrote ({', '.join(saved)}): name each folder"
        )
    if section.subset is not None:
        inside = _get_below(files, section.subset)
        if not inside:
            folders = ", ".join(sorted({name.partition("/")[0] for name in files if "/" in name})) or "no folder"
            raise ImpruverError(
                f"{where}.subset: {path} has neither a README.md with configs nor data in a folder {section.subset}; "
                f"there is {folders}"
            )
        return _find_named_or_all(inside, section.name, where)
    if path.name == "data":  # of a repository: the names of its shards tell any splits
        files = {f"data/{name}": file for name, file in files.items()}
    return _find_named_or_all(files, section.name, where)


def _get_below(files: Mapping[str, Path], folder: str) -> dict[str, Path]:
    prefix = f"{folder.strip('/')}/" if folder else ""
    return {name.removeprefix(prefix): file for name, file in files.items() if name.startswith(prefix)}


def _find_named_or_all(files: Mapping[str, Path], name: str, where: str) -> _Splits:
    """The splits that the names of files tell; all are `train` where they tell none."""
    files = drop_companions(files, name)
    named = find_named_splits(files)
    if not named:
        return _Splits({ANY_SPLIT: list(files.values())}, UNNAMED)
    check_distinct_splits(named, where)
    _warn_about_unnamed(files, named, name)
    return _Splits(named, "the names of its files say")


def _choose(found: _Splits, name: str, section: SourceSection, where: str) -> list[Path]:
    """The files of a split; `dev`, `valid` and `val` are one, as are the other words that `datasets` takes for one."""
    name = next((each for each in (name, find_synonym(name)) if each in found.files), name)
    if found.files.get(name) or not any((name in found.files, *found.files.values())):
        return list(found.files.get(name, []))
    if name not in found.files:
        raise ImpruverError(
            f"{where}.split: {section.name} has no split {name}; {found.source} {', '.join(found.files)}: set split, "
            "or name the files that are meant"
        )
    if found.source == UNNAMED:
        return []
    raise ImpruverError(f"{where}: {section.name}: {found.source} the split {name}, and no file of it is there")


def _refuse_subset(section: SourceSection, what: str, where: str) -> None:
    if section.subset is not None:
        raise ImpruverError(f"{where}.subset: {section.name} {what}, which has no subsets: leave the key out")


def _warn_about_unnamed(files: Mapping[str, Path], named: Mapping[str, list[Path]], name: str) -> None:
    """Warns of the files beside those of splits, which no split reads."""
    known = {file for own in named.values() for file in own}
    others = [each for each, file in files.items() if file not in known]
    if others:
        some = ", ".join(others[:LISTED]) + (", …" if len(others) > LISTED else "")
        warn(f"{name} has splits ({', '.join(named)}); files of none are not read: {some}")


def _warn_about_missing_shards(files: Sequence[Path]) -> None:
    """Warns of files that are numbered as of more than there are."""
    numbers: dict[tuple[Path, str, int], set[int]] = {}
    for file in files:
        if found := SHARD.match(PurePosixPath(file).name):
            numbers.setdefault((file.parent, found[1], int(found[3])), set()).add(int(found[2]))
    for (folder, stem, count), there in numbers.items():
        if len(there) < min(count, 100_000):
            warn(
                f"{folder} has {len(there)} of the {count} files {stem}-…-of-{count:05d}: the others' rows are missing"
            )
