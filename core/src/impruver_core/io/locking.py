"""One process at a time in a folder."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def lock_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Lets one process at a time work in these folders, others wait; no more than `with` where none can be locked."""
    with ExitStack() as stack:
        for folder in sorted({os.path.realpath(folder) for folder in folders}):  # in one order: none waits for another
            stack.callback(os.close, _locked(folder))
        yield


def _locked(folder: str) -> int:
    number = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX)
    except (ImportError, OSError):  # not on every system, nor on every network's disk
        pass
    except BaseException:  # stopped while waiting
        os.close(number)
        raise
    return number
