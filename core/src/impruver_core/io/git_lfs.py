"""Git LFS leaves a few lines of text in place of a large file that it did not fetch."""

from pathlib import Path

from impruver_core.errors import ImpruverError

MARK = "version https://git-lfs"


def check_no_lfs_pointer(path: str | Path) -> None:
    """ImpruverError where `path` holds such a pointer: whoever reads it as the file tells of broken bytes."""
    with open(path, "rb") as file:
        if file.read(len(MARK)) == MARK.encode():
            raise ImpruverError(f"{path} is a pointer of Git LFS, not the file: fetch that with git lfs pull")
