"""Files that are there whole or not at all, the folders that they go into, and the space on their disks."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from impruver_core.errors import ImpruverError
from impruver_core.io.locks import NO_LINK, is_at, lock_unused, try_lock

PART = re.compile(r"\.(?P<name>.+)\.\d+\.part")


@contextmanager
def atomic_write(path: str | Path, mode: str = "w", permissions: int = 0o666) -> Iterator[IO]:
    """Opens a file beside `path` that is synced and renamed to it at the end; an exception leaves `path` as it was.

    `permissions` are those of the new file, less what the process takes away from any (umask).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        make_folder(path.parent)
        with _open_new(temporary, mode, permissions) as file:
            yield file
            _sync(file)
            os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_synced(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a new file for writing (UTF-8, \\n) that is on the disk when it closes; makes its folder.

    What stands at `path` is removed first, so that a symbolic link is replaced and never written through.
    """
    make_folder(Path(path).parent)
    with _open_new(Path(path), mode) as file:
        yield file
        _sync(file)


def _sync(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _open_new(path: Path, mode: str, permissions: int = 0o666) -> IO:
    """Opens a new file and locks it, so that `remove_stale_parts` can tell that it is still being written."""
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    while True:
        path.unlink(missing_ok=True)
        file = open(path, mode, opener=partial(_create_new, permissions), **text)  # noqa: SIM115
        if try_lock(file.fileno()) and is_at(file.fileno(), path):  # else it was just taken for a stale one
            return file
        file.close()


def _create_new(permissions: int, name: str, flags: int) -> int:
    return os.open(name, flags | os.O_EXCL | NO_LINK, permissions)


def remove_stale_parts(folder: Path, is_ours: Callable[[str], object] = bool) -> None:
    """Removes what killed processes were writing into `folder` by `atomic_write`, of files whose names are ours."""
    for part in folder.glob(".*.part"):
        written = PART.fullmatch(part.name)
        if written and is_ours(written["name"]):
            with lock_unused(part) as unused:
                if unused:
                    part.unlink(missing_ok=True)


def check_folder(path: Path, key: str | None = None) -> None:
    """ImpruverError, beginning with `key`, where a folder can't be made or written to; makes nothing."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    where = f"{key}: {existing}" if key else str(existing)
    if not existing.is_dir():
        raise ImpruverError(f"{where} is a file, not a folder: name another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ImpruverError(f"{where}: no right to write in this folder: name another path")


def make_folder(path: Path) -> None:
    """Makes a folder with its parents; ImpruverError where that can't be, or where it can't be written to."""
    check_folder(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImpruverError(f"{path}: can't make this folder: {error.strerror}") from None


def sync_file(path: Path) -> None:
    """Brings a file that something else wrote to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def remove_path(path: Path) -> None:
    """Removes a file, a symbolic link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Syncs the names in a folder to the disk, where the system can do that."""
    with suppress(OSError):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def get_staged_path(path: str | Path) -> Path:
    """Where a file is written before `publish` puts it in place: beside it, under one name for all runs."""
    path = Path(path)
    return path.with_name(f".{path.name}.staged")


def hash_file(path: str | Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def get_cache_dir() -> Path:
    """The folder of what can be made again: $IMPRUVER_CACHE, else ~/.cache/impruver; ImpruverError without a home."""
    name = os.environ.get("IMPRUVER_CACHE") or "~/.cache/impruver"
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise ImpruverError(f"{name}: there is no such home folder; set IMPRUVER_CACHE to a folder") from None


def check_free_space(path: str | Path, needed: int) -> None:
    """ImpruverError where the disk of `path` has fewer than `needed` bytes free."""
    folder = next(folder for folder in (Path(path).absolute(), *Path(path).absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ImpruverError(f"{folder}: {format_size(needed)} are needed, {format_size(free)} are free")


@contextmanager
def reserve_space(path: str | Path, needed: int) -> Iterator[None]:
    """Checks as `check_free_space`, and turns a disk that fills up during the work inside into ImpruverError."""
    check_free_space(path, needed)
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ImpruverError(f"{path}: the disk is full; about {format_size(needed)} are needed") from None


def format_size(count: int) -> str:
    """Bytes as GB, MB or kB."""
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6)) if count >= s), ("kB", 1e3))
    return f"{count / size:.2f} {unit}"
