"""Checkpoints on the disk: which of them are complete, how they come and how they go.

One is complete once it holds our marker, which is written after all the rest is synced, and which goes first when the
checkpoint goes. It has the size and checksum of each file, and its own checksum: listing and rotation compare sizes,
what is loaded is read and compared before. `checkpoint-N` are those that the recipe asks for; `stopped-N` was saved
because a signal came.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io import integrity
from impruver_core.io.atomic import atomic_write, remove_path, remove_stale_parts, sync_file, sync_folder
from impruver_core.io.json_schema import COUNT, FLAG, TEXT, JsonType, by_name, check_keys, either, list_of
from impruver_core.io.jsonl import format_row
from impruver_core.io.manifest import read_manifest

MARKER = "impruver.json"
NAME = re.compile(r"(checkpoint|stopped)-(\d+)")
STATE = "trainer_state.json"
# What a run writes of itself, into output_dir and into each checkpoint: a stranger's may hold anything.
SIZE = JsonType("a number of bytes", lambda value: type(value) is int and value >= 0)
CONTENT = JsonType(
    "an object with bytes and xxh3",
    lambda value: isinstance(value, dict) and SIZE.holds(value.get("bytes")) and TEXT.holds(value.get("xxh3")),
)
INSIDE = JsonType(
    "a path within the checkpoint",
    lambda value: TEXT.holds(value) and not Path(value).is_absolute() and ".." not in Path(value).parts,
)
CHECKPOINT = JsonType("a checkpoint's name", lambda value: isinstance(value, str) and NAME.fullmatch(value) is not None)
INPUT = JsonType(
    "an object with the texts role and sha256",
    lambda value: isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "sha256")),
)
IDENTITY_KEYS = {
    "files": by_name(INSIDE, either(SIZE, CONTENT)),  # by size alone in markers of before there were checksums
    "inputs": list_of(INPUT),
    "processes": COUNT,
    "complete": FLAG,
    "best": CHECKPOINT,
    "start": TEXT,
    "checksum": TEXT,
}


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Every checkpoint's folder, complete or not, by step."""
    folders = [path for path in output_dir.glob("*-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(folders, key=lambda path: (get_step(path), path.name))


def get_step(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(NAME.fullmatch(folder.name)[2])


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What a checkpoint says of its run; None for one that was cut off, that is not ours, or whose marker is broken."""
    try:
        return read_run_identity(folder / MARKER)
    except ImpruverError:
        return None


def read_run_identity(path: Path) -> dict[str, Any] | None:
    """What a file says of the run that it is of; None where there is none, ImpruverError for a broken one."""
    try:
        if not os.path.lexists(path):
            return None
        if not path.is_file():  # a pipe would never end
            raise ImpruverError(f"{path}: no ordinary file; remove it")
        if path.stat().st_size > integrity.LARGEST_RECORD:
            raise ImpruverError(f"{path}: larger than any that impruver-train wrote; remove it")
        identity = read_manifest(path) or {}
    except OSError as error:
        raise ImpruverError(f"{path}: can't be read: {error.strerror}") from None
    check_keys(identity, IDENTITY_KEYS, path)
    checksum = identity.pop("checksum", None)
    checked = checksum is not None or any(isinstance(each, dict) for each in (identity.get("files") or {}).values())
    if checked and checksum != compute_identity_checksum(identity):
        raise ImpruverError(f"{path}: it holds another text than was written; copy it again")
    return identity


def write_run_identity(path: Path, identity: dict[str, Any]) -> None:
    """Writes what identifies a run, with its own checksum; replaces whatever is there."""
    if path.is_dir():
        remove_path(path)
    with atomic_write(path) as file:
        file.write(format_row(identity | {"checksum": compute_identity_checksum(identity)}) + "\n")


def compute_identity_checksum(identity: dict[str, Any]) -> str:
    """The sha256, in hex, of what identifies a run, less its checksum; the same when it is read again."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def list_complete_checkpoints(output_dir: Path, resumable: bool = False) -> list[Path]:
    """The complete checkpoints by step; `resumable`: those that also hold optimizer, scheduler and random states."""
    marked = [(path, read_marker(path)) for path in list_checkpoints(output_dir)]
    marked = [(path, marker) for path, marker in marked if marker and not find_damaged_files(path, marker)]
    return [path for path, marker in marked if marker.get("complete") or not resumable]


def find_damaged_files(folder: Path, marker: dict[str, Any]) -> list[str]:
    """Files of a marked checkpoint that are gone or of another size; none of them is read."""
    contents = (marker.get("files") or {}).items()
    sizes = {name: content["bytes"] if isinstance(content, dict) else content for name, content in contents}
    there = {name: os.path.getsize(folder / name) for name in sizes if os.path.isfile(folder / name)}
    return [name for name, size in sizes.items() if there.get(name) != size]


def find_damage(folder: Path, marker: dict[str, Any]) -> str | None:
    """What is wrong with a marked checkpoint, which is read for it; None if it is as it was written.

    Of a marker without checksums, as they were once, only sizes are known.
    """
    resized = find_damaged_files(folder, marker)
    if resized:
        return f"{', '.join(resized)} gone or of another size"
    for name, content in (marker.get("files") or {}).items():
        damage = integrity.find_damage(folder / name, content) if isinstance(content, dict) else None
        if damage:
            return f"{name}: {damage}"
    return None


def write_marker(folder: Path, content: dict[str, Any]) -> None:
    """Brings a checkpoint to the disk, then marks it as complete."""
    inside = sorted(folder.rglob("*"))
    files, folders = [path for path in inside if path.is_file()], [path for path in inside if path.is_dir()]
    for path in files:
        sync_file(path)
    for path in (folder, *folders, folder.parent):
        sync_folder(path)
    contents = {str(path.relative_to(folder)): integrity.describe_content(path) for path in files}
    write_run_identity(folder / MARKER, content | {"files": contents})


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint, its marker first: cut off in between it is no complete one."""
    marker = folder / MARKER
    if marker.is_file() or marker.is_symlink():
        marker.unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def remove_later_checkpoints(output_dir: Path, start: Path | None) -> None:
    """Removes incomplete checkpoints, and those after the one to resume from: all where none in here is."""
    last = get_step(start) if start is not None and start.parent.absolute() == output_dir.absolute() else 0
    for path in list_checkpoints(output_dir):
        marker = read_marker(path)
        if get_step(path) > last or not marker or find_damaged_files(path, marker):
            remove_checkpoint(path)


def remove_unmarked_checkpoints(output_dir: Path) -> None:
    """Removes the checkpoints that a kill cut off, and what was being written in the others."""
    for path in list_checkpoints(output_dir):
        if os.path.lexists(path / MARKER):
            remove_stale_parts(path)
        else:
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
