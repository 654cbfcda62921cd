"""Checkpoints on the disk: which of them are whole, how they come and how they go.

One is whole once it holds our marker, which is written after all the rest is synced, and which goes first when the
checkpoint goes. `checkpoint-N` are those that the recipe asks for; `stopped-N` was saved because a signal came.
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from impruver_core.io.atomic import atomic_write, sync_folder
from impruver_core.io.jsonl import format_row
from impruver_core.io.manifest import read_manifest

MARKER = "impruver.json"
NAME = re.compile(r"(checkpoint|stopped)-(\d+)")
STATE = "trainer_state.json"


def folders(output_dir: Path) -> list[Path]:
    """Every checkpoint's folder, whole or not, by step."""
    found = [path for path in output_dir.glob("*-*") if path.is_dir() and NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: (step_of(path), path.name))


def step_of(folder: Path) -> int:
    """The step after which a checkpoint was saved."""
    return int(NAME.fullmatch(folder.name)[2])


def marker_of(folder: Path) -> dict[str, Any] | None:
    """What a whole checkpoint tells of its run; None for one that was cut off, or that is not ours."""
    return read_manifest(folder / MARKER)


def whole(output_dir: Path, to_go_on: bool = False) -> list[Path]:
    """The whole checkpoints by step; `to_go_on`: those alone that also hold optimizer, scheduler and random states."""
    marked = [(path, marker_of(path)) for path in folders(output_dir)]
    marked = [(path, marker) for path, marker in marked if marker and not damage(path, marker)]
    return [path for path, marker in marked if marker.get("complete") or not to_go_on]


def damage(folder: Path, marker: dict[str, Any]) -> list[str]:
    """Files of a marked checkpoint that are gone or of another size."""
    sizes = marker.get("files") or {}
    there = {name: (folder / name).stat().st_size for name in sizes if (folder / name).is_file()}
    return [name for name, size in sizes.items() if there.get(name) != size]


def mark(folder: Path, about: dict[str, Any]) -> None:
    """Brings a checkpoint to the disk, then marks it as whole."""
    inside = sorted(folder.rglob("*"))
    for path in inside:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [folder, *inside]:
        if path.is_dir():
            sync_folder(path)
    sync_folder(folder.parent)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in inside if path.is_file()}
    with atomic_write(folder / MARKER) as file:
        file.write(format_row(about | {"files": sizes}) + "\n")


def discard(folder: Path) -> None:
    """Removes a checkpoint, its marker first: cut off in between it is no whole one."""
    (folder / MARKER).unlink(missing_ok=True)
    sync_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def discard_after(output_dir: Path, start: Path | None) -> None:
    """Removes half-written checkpoints, and those later than the one to go on from: all where none in here is."""
    last = step_of(start) if start is not None and start.parent.absolute() == output_dir.absolute() else 0
    for path in folders(output_dir):
        marker = marker_of(path)
        if step_of(path) > last or not marker or damage(path, marker):
            discard(path)


def discard_half_written(output_dir: Path) -> None:
    """Removes checkpoints that were not written to their end."""
    for path in folders(output_dir):
        if not (path / MARKER).exists():
            discard(path)


def discard_stopped(output_dir: Path, but: Path | None = None) -> None:
    """Removes the checkpoints that the recipe did not ask for, but for one."""
    for path in folders(output_dir):
        if path.name.startswith("stopped-") and path != but:
            discard(path)


def rotate(output_dir: Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest of the recipe's checkpoints beyond `limit`; the last and the best one stay.

    Trainer's own rotation comes before a checkpoint is known to be whole, and takes one that is not for the last.
    """
    kept = [path for path in whole(output_dir) if path.name.startswith("checkpoint-")]
    if not limit or not kept:
        return
    protected = {kept[-1].name, Path(best).name if best else kept[-1].name}
    spare = [path for path in kept if path.name not in protected]
    for path in spare[: max(0, len(kept) - max(limit, len(protected)))]:
        discard(path)
