"""Check free space before and during a write."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from impruver_core.errors import ImpruverError


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
