"""What trials of files from elsewhere share: a process of their own, its limits, and the verdict that is kept.

A trial is a module with a `main`, run by `python -P -m`; it sets its limits before it touches the file.
"""

import hashlib
import sys
from contextlib import suppress
from pathlib import Path

from impruver_core.io.atomic import atomic_write, get_cache_dir
from impruver_core.system import get_installed_version


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


def find_verdict(package: str, content: bytes) -> Path:
    """The empty file that is there once what holds this content has passed with the installed version of `package`."""
    digest = hashlib.sha256(f"{get_installed_version(package)}\n".encode() + content).hexdigest()
    return get_cache_dir() / "trials" / f"{package}-{digest}"


def write_verdict(path: Path) -> None:
    """Keeps that a file passed; where that can't be written, it is tried again."""
    with suppress(OSError), atomic_write(path):
        pass
