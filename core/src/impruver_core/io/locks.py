"""Locks between processes, by `flock`: they end with the process that holds them, however it ends.

Where a system or a network's disk knows none, work goes on without.
"""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from impruver_core.errors import ImpruverError

PATIENCE, PAUSE = 8.0, 0.05  # seconds: for another run that is about to end, and between two looks at it
NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # a pipe is opened only once somebody writes into it


@contextmanager
def lock_folders(folders: Collection[Path]) -> Iterator[None]:
    """Lets one process at a time work in these folders, which are made, others wait."""
    with ExitStack() as stack:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for folder in sorted({os.path.realpath(folder) for folder in folders}):  # in one order: none waits for another
            stack.enter_context(_opened(folder, "LOCK_EX"))
        yield


@contextmanager
def share_folder(folder: Path, busy: str | None = None) -> Iterator[None]:
    """Marks a folder, which is made, as in use: `lock_unused` and `lock_folder_alone` keep away from it.

    Where a process has it locked it is waited for; with `busy` that is an ImpruverError after a while.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _opened(folder, "LOCK_SH", busy) as number:
            if is_at(number, os.path.realpath(folder)):  # nobody removed it before it was locked
                yield
                return


@contextmanager
def lock_unused(path: Path) -> Iterator[bool]:
    """Locks a file or folder that no process has locked or shares; False where one has, or it is gone."""
    try:
        number = os.open(path, os.O_RDONLY | NO_LINK | NO_WAIT)
    except OSError:
        yield False
        return
    try:
        yield try_lock(number) and is_at(number, path)
    finally:
        os.close(number)


@contextmanager
def lock_folder_alone(folder: Path, busy: str) -> Iterator[None]:
    """Has no other process work in this folder, which is made; ImpruverError `busy` where one does and goes on.

    A folder that is still empty afterwards goes again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder, "LOCK_EX", busy):
        try:
            yield
        finally:
            with suppress(OSError):  # nothing came of it
                folder.rmdir()


@contextmanager
def lock_output_alone(path: Path, busy: str) -> Iterator[None]:
    """As `lock_folder_alone`, for one output file among others, by a lock file beside it that goes in the end."""
    beside = path.with_name(f".{path.name}.lock")
    with ExitStack() as stack:
        while True:
            number = os.open(beside, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
            stack.callback(os.close, number)
            _wait_for_lock(number, "LOCK_EX", busy)
            if is_at(number, beside):  # else the run before removed it in between
                break
        try:
            yield
        finally:
            beside.unlink(missing_ok=True)


def is_at(number: int, path: str | Path) -> bool:
    """Whether an open file is the one that stands at `path`."""
    try:
        return os.path.samestat(os.fstat(number), os.lstat(path))
    except OSError:
        return False


def try_lock(number: int, lock: str = "LOCK_EX") -> bool:
    """Whether an open file or folder is now locked, or can't be on this system; False where another process has it."""
    try:
        import fcntl

        fcntl.flock(number, getattr(fcntl, lock) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _wait_for_lock(number: int, lock: str, busy: str | None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not try_lock(number, lock):
        if busy is not None and time.monotonic() >= deadline:
            raise ImpruverError(busy)
        time.sleep(PAUSE)


@contextmanager
def _opened(folder: str | Path, lock: str, busy: str | None = None) -> Iterator[int]:
    number = os.open(folder, os.O_RDONLY)
    try:
        _wait_for_lock(number, lock, busy)
        yield number
    finally:
        os.close(number)
