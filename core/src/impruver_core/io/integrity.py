"""Whether a file still holds what was written, by a checksum, and whether it changed while it was read, by its state.

Checksums are XXH3 of xxHash (128 bits), which find damage and are quick. Who must be sure that nobody made two files
alike uses `hash_file`.
"""

import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write

BLOCK = 1 << 22  # bytes read at once
LARGEST_RECORD = 1 << 26  # bytes of a file of `write_record`


class DamagedError(Exception):
    """A file that is not as it was written; the message says what is wrong with it."""


class FileState(NamedTuple):
    """What the system knows of a file, and changes whenever somebody writes to it or puts another in its place."""

    device: int
    inode: int
    size: int
    modified: int  # ns
    changed: int  # ns, which nobody can set back


def read_file_state(path: str | Path) -> FileState:
    """The state of the file at `path`, through symbolic links."""
    found = os.stat(path)
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def read_file_states(paths: Iterable[str | Path]) -> dict[Path, FileState]:
    """The state of each file, to be compared by `check_unchanged` after they were read."""
    return {Path(path): read_file_state(path) for path in paths}


def check_unchanged(states: Mapping[Path, FileState]) -> None:
    """ImpruverError for the first file that was written to, replaced or removed since its state was read."""
    for path, before in states.items():
        try:
            same = read_file_state(path) == before
        except OSError:
            same = False
        if not same:
            raise ImpruverError(
                f"{path} was changed while it was read: nothing is made of it; wait for what writes it, and run this "
                "command again"
            )


@contextmanager
def checking_unchanged(states: Mapping[Path, FileState]) -> Iterator[None]:
    """`check_unchanged` after what is done within, or in place of how that fails: a changed file may be why."""
    try:
        yield
    except Exception:
        check_unchanged(states)
        raise
    check_unchanged(states)


def compute_checksum(path: str | Path) -> str:
    """The checksum of a file, in hex."""
    digest, block = xxhash.xxh3_128(), bytearray(BLOCK)
    view = memoryview(block)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()


def describe_content(path: str | Path) -> dict[str, Any]:
    """A file's size and checksum, as `find_damage` compares them: `{"bytes": 5, "xxh3": "…"}`."""
    return {"bytes": os.path.getsize(path), "xxh3": compute_checksum(path)}


def find_damage(path: str | Path, content: Mapping[str, Any]) -> str | None:
    """What is wrong with a file that `describe_content` described; None if it is the same."""
    try:
        if not os.path.isfile(path):
            return "it is gone"
        if os.path.getsize(path) != content["bytes"]:
            return f"it has {os.path.getsize(path):,} bytes, not {content['bytes']:,}"
        same = compute_checksum(path) == content["xxh3"]
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    return None if same else "it holds other bytes than were written"


def write_record(path: str | Path, value: Any) -> None:
    """Writes a JSON value with its own checksum, whole or not at all."""
    text = json.dumps(value)  # escaped: half a surrogate pair, as a name may have, can't be written
    with atomic_write(path) as file:
        json.dump({"xxh3": _compute_text_checksum(text), "value": text}, file)


def read_record(path: str | Path) -> Any:
    """The value that `write_record` wrote; None where there is no file.

    Raises:
        DamagedError: for anything else.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
            raise DamagedError("it is no file")
        if os.path.getsize(path) > LARGEST_RECORD:
            raise DamagedError("it is larger than any that was written")
        record = json.loads(Path(path).read_bytes())
        if record["xxh3"] != _compute_text_checksum(record["value"]):
            raise DamagedError("it holds another text than was written")
        return json.loads(record["value"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError("it can't be read") from None


def _compute_text_checksum(text: str) -> str:
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))
