"""What trials of files from elsewhere share: a process of their own, its limits, and the verdict that is kept.

A trial is a module with a `main`, run by `python -P -m`; it sets its limits before it touches the file.
"""

import hashlib
import sys
from contextlib import suppress
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, get_cache_dir
from impruver_core.system import get_installed_version

VERDICTS = "trials"  # in the folder of caches: an empty file for each that passed

_passed: set[str] = set()  # in this process


def build_trial_command(module: str, path: Path, seconds: int) -> list[str]:
    """The command that tries the file at `path`, with so many seconds of CPU time."""
    return [sys.executable, "-P", "-m", module, str(path), str(seconds)]


def set_trial_limits(seconds: int, memory: int) -> None:
    """Has the system end this process after so many seconds of CPU time, and give it so many bytes besides files'."""
    with suppress(ImportError):  # not on Windows
        import resource

        limits = {resource.RLIMIT_CORE: (0, 0), resource.RLIMIT_CPU: (seconds, seconds + 1)}
        limits |= {resource.RLIMIT_DATA: (memory, memory)}
        for limit, values in limits.items():
            with suppress(ValueError, OSError):  # a lower one is set already
                resource.setrlimit(limit, values)


def build_verdict_name(package: str, content: bytes) -> str:
    """The name of the verdict on a file that holds this content, for the installed version of `package`."""
    digest = hashlib.sha256(f"{get_installed_version(package)}\n".encode() + content).hexdigest()
    return f"{package}-{digest}"


def has_passed(name: str) -> bool:
    """Whether the file that this verdict is on passed before, in this process or in one that could keep it."""
    with suppress(ImpruverError):  # the folder of caches is asked for in a home that isn't there
        return name in _passed or (get_cache_dir() / VERDICTS / name).exists()
    return False


def write_verdict(name: str, new_folder: bool = False) -> None:
    """Keeps that a file passed; where that can't be written, it is tried again by the next process.

    Without `new_folder`, a folder of caches that isn't there yet is not made: a dry run writes nothing.
    """
    _passed.add(name)
    with suppress(ImpruverError, OSError):
        if new_folder or get_cache_dir().is_dir():
            with atomic_write(get_cache_dir() / VERDICTS / name):
                pass
