"""Folders that `save_to_disk` of `datasets` wrote: a data set, or several splits in a dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import read_json

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def list_saved_splits(folder: Path) -> dict[str, list[Path]] | None:
    """Lists the Arrow files of each split of a saved data set; None for any other folder.

    A single data set is the split that it, or the dict that it lies in, says; else `train`.
    """
    if (folder / DICT).is_file():
        splits = _read_names(folder / DICT, "splits")
        return {split: _list_arrow_files(folder / split) for split in splits}
    if not (folder / STATE).is_file() or not (folder / INFO).is_file():
        return None
    split = read_json(folder / STATE).get("_split")
    above = folder.parent / DICT
    if split is None and above.is_file() and folder.name in _read_names(above, "splits"):
        split = folder.name
    names = re.findall(r"[\w.-]+", re.sub(r"\[.*?\]", "", split)) if isinstance(split, str) else []
    return {"+".join(names) or "train": _list_arrow_files(folder)}


def find_saved_folders(files: Mapping[str, Path]) -> list[str]:
    """Finds the folders of saved data sets, dicts as one, among files by their names below another folder."""
    found = {}
    for name, file in files.items():
        folder = file.parent
        if file.name == STATE and "/" in name and (folder / INFO).is_file():
            inside = PurePosixPath(name).parent
            in_dict = (folder.parent / DICT).is_file() and len(inside.parts) > 1
            found[str(inside.parent if in_dict else inside)] = None
    return list(found)


def _list_arrow_files(folder: Path) -> list[Path]:
    path = folder / STATE
    if not path.is_file():
        raise ImpruverError(f"{path} is not there: what save_to_disk wrote is incomplete")
    if read_json(path).get("_indices_data_files"):
        raise ImpruverError(f"{path}: an old version of datasets wrote this; load and save it with a newer one")
    files = [folder / name for name in _read_names(path, "_data_files", "filename")]
    for file in files:
        if not file.is_file():
            raise ImpruverError(f"{file} is not there: what save_to_disk wrote is incomplete")
    return files


def _read_names(path: Path, key: str, field: str | None = None) -> list[str]:
    """Reads the bare names that a file of `save_to_disk` lists; ImpruverError for any other."""
    content = read_json(path)
    items = content.get(key) if isinstance(content, dict) else None
    names = [item.get(field) if field and isinstance(item, dict) else item for item in items or []]
    for name in names:
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
            raise ImpruverError(f"{path}: {key} names {name!r}, which is no file of this folder")
    return names
