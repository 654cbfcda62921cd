"""Checkpoints on the disk: which of them are complete, how they come and how they go.

One is complete once it holds our marker, which is written after all the rest is synced, and which goes first when the
checkpoint goes. `checkpoint-N` are those that the recipe asks for; `stopped-N` was saved because a signal came.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from impruver_core.io.atomic import atomic_write, sync_folder
from impruver_core.io.json_schema import COUNT, FLAG, TEXT, JsonType, by_name, check_keys, list_of
from impruver_core.io.jsonl import format_row
from impruver_core.io.manifest import read_manifest

MARKER = "impruver.json"
NAME = re.compile(r"(checkpoint|stopped)-(\d+)")
STATE = "trainer_state.json"
# What a run writes of itself, into output_dir and into each checkpoint: a stranger's may hold anything.
SIZE = JsonType("a number of bytes", lambda value: type(value) is int and value >= 0)
CHECKPOINT = JsonType("a checkpoint's name", lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None)
INPUT = JsonType(
    "an object with the texts role and sha256",
    lambda value: isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "sha256")),
)
IDENTITY_KEYS = {
    "files": by_name(TEXT, SIZE),
    "inputs": list_of(INPUT),
    "processes": COUNT,
    "complete": FLAG,
    "best": CHECKPOINT,
    "start": TEXT,
}


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Every checkpoint's folder, complete or not, by step."""
    folders = [path for path in output_dir.glob("*-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: (get_step(path), path.name))


def get_step(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(NAME.fullmatch(folder.name)[2])


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What a complete checkpoint says of its run; None for one that was cut off, or that is not ours."""
    return read_run_identity(folder / MARKER)


def read_run_identity(path: Path) -> dict[str, Any] | None:
    """What a file says of the run that it is of; None where there is none, ImpruverError for a broken one."""
    if not path.is_file():  # a pipe would never end
        return None
    identity = read_manifest(path)
    check_keys(identity or {}, IDENTITY_KEYS, path)
    return identity


def list_complete_checkpoints(output_dir: Path, resumable: bool = False) -> list[Path]:
    """The complete checkpoints by step; `resumable`: those that also hold optimizer, scheduler and random states."""
    marked = [(path, read_marker(path)) for path in list_checkpoints(output_dir)]
    marked = [(path, marker) for path, marker in marked if marker and not find_damaged_files(path, marker)]
    return [path for path, marker in marked if marker.get("complete") or not resumable]


def find_damaged_files(folder: Path, marker: dict[str, Any]) -> list[str]:
    """Files of a marked checkpoint that are gone or of another size."""
    sizes = marker.get("files") or {}
    there = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
    return [name for name, size in sizes.items() if there.get(name) != size]


def write_marker(folder: Path, content: dict[str, Any]) -> None:
    """Brings a checkpoint to the disk, then marks it as complete."""
    inside = sorted(folder.rglob("*"))
    files, folders = [path for path in inside if path.is_file()], [path for path in inside if path.is_dir()]
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in (folder, *folders, folder.parent):
        sync_folder(path)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    with atomic_write(folder / MARKER) as file:
        file.write(format_row(content | {"files": sizes}) + "\n")


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, its marker first: cut off in between it is no complete one."""
    (folder / MARKER).unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def remove_later_checkpoints(output_dir: Path, start: Path | None) -> None:
    """Removes incomplete checkpoints, and those after the one to resume from: all where none in here is."""
    last = get_step(start) if start is not None and start.parent.absolute() == output_dir.absolute() else 0
    for path in list_checkpoints(output_dir):
        marker = read_marker(path)
        if get_step(path) > last or not marker or find_damaged_files(path, marker):
            remove_checkpoint(path)


def remove_stopped_checkpoints(output_dir: Path, but: Path | None = None) -> None:
    """Removes the checkpoints that the recipe did not ask for, but for one."""
    for path in list_checkpoints(output_dir):
        if path.name.startswith("stopped-") and path != but:
            remove_checkpoint(path)


def rotate_checkpoints(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest of the recipe's checkpoints beyond `limit`; the last and the best one stay.

    Trainer's own rotation comes before a checkpoint is known to be complete, and takes one that is not for the last.
    """
    complete = [path for path in list_complete_checkpoints(output_dir) if path.name.startswith("checkpoint-")]
    if not limit or not complete:
        return
    protected = {complete[-1].name, Path(best).name if best else complete[-1].name}
    spare = [path for path in complete if path.name not in protected]
    for path in spare[: max(0, len(complete) - max(limit, len(protected)))]:
        remove_checkpoint(path)
