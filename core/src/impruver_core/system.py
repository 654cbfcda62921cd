"""What this process runs on: processors, memory, installed packages."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from impruver_core.errors import ImpruverError

# Limit, the least that will do, what it is for, what raises it.
LIMITS = (
    ("RLIMIT_DATA", 400 << 20, "a tool needs 400 MiB of memory", "ulimit -d unlimited"),
    ("RLIMIT_AS", 1 << 30, "a tool needs 1 GiB of addresses", "ulimit -v unlimited"),
    ("RLIMIT_NOFILE", 64, "a tool opens up to 64 files", "ulimit -n 4096"),
)


def available_cpus() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def get_total_memory() -> int:
    """Bytes of memory in this machine."""
    import psutil

    return psutil.virtual_memory().total


def get_available_memory() -> int:
    """Bytes of memory that can be had without swapping."""
    import psutil

    return psutil.virtual_memory().available


def get_process_memory() -> int:
    """Bytes of memory that this process holds now (its resident set)."""
    import psutil

    return psutil.Process().memory_info().rss


# psutil has no peak on Linux, and getrusage's can't be reset and counts what the process was before exec.
def reset_peak_memory() -> None:
    """Has `get_peak_memory` start anew; where the system can't do that, the peak of before stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def get_peak_memory() -> int | None:
    """The most bytes that this process held since `reset_peak_memory`; None where the system has no such figure."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def check_limits() -> None:
    """ImpruverError where `ulimit` leaves a process less than any tool needs: native code would abort, or spin."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for name, least, needed, advice in LIMITS:
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY and limit < least:
            raise ImpruverError(f"{needed}, and this process may have {limit:,}: raise the limit, as with {advice}")


def find_program(name: str) -> str | None:
    """The path of a program in those folders of PATH that are absolute: others depend on where one happens to be."""
    path = join_absolute_folders(os.environ.get("PATH"))
    return shutil.which(name, path=path) if path else None


def join_absolute_folders(path: str | None) -> str:
    """A PATH (None: the system's own) less the folders that depend on where one happens to be."""
    folders = (os.defpath if path is None else path).split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if os.path.isabs(folder))


def get_installed_version(package: str) -> str | None:
    """The version of an installed distribution from its metadata, or None; nothing is imported."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
