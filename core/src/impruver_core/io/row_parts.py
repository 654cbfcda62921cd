"""Rows in parts: the JSONL files of a folder, plain or compressed, that are one sequence of rows.

impruver-compose writes `part-00000.jsonl`, `part-00001.jsonl` …; by other names they are read as well.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from impruver_core.io.compression import COMPRESSED, is_hidden

PART = re.compile(r"part-[0-9]{5,}\.jsonl(\.zst)?")  # a name that impruver-compose gives
ROWS = ".jsonl"


def get_part_path(folder: Path, number: int, compressed: bool = False) -> Path:
    """Where part `number`, from 0, of the rows in `folder` is written."""
    return folder / f"part-{number:05d}{ROWS}{'.zst' if compressed else ''}"


def is_row_file(name: str) -> bool:
    """True for a name in a folder of rows that is read as some of them: visible, .jsonl, or that compressed."""
    lower = name.lower()
    for suffix in COMPRESSED:
        lower = lower.removesuffix(suffix)
    return lower.endswith(ROWS) and not is_hidden(name)


def list_row_files(folder: Path) -> list[Path]:
    """What in a folder is read as its rows, by names, in the order of the parts; [] where there is no folder."""
    return sort_parts(path for path in folder.iterdir() if is_row_file(path.name)) if folder.is_dir() else []


def sort_parts(paths: Iterable[Path]) -> list[Path]:
    """The paths by their names, numbers in these by their value: `part-100000` comes after `part-99999`."""
    return sorted(paths, key=lambda path: [(piece.zfill(20), piece) for piece in re.split(r"([0-9]+)", str(path))])
