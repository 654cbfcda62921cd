"""What is costly to make is made once for all of xdist's workers."""

import fcntl
from collections.abc import Callable
from pathlib import Path


def fill_once(folder: Path, fill: Callable[[Path], object]) -> Path:
    """Has the first worker that comes here fill `folder`, while the others wait; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / ".done"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system, however this process ends
        if not done.exists():
            fill(folder)
            done.touch()
    return folder
