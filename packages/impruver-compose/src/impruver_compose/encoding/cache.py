"""Content-addressed cache of encoded shards: what has not changed is not encoded again."""

import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.io.atomic import atomic_write, get_cache_dir, make_folder
from impruver_core.tokenizer import get_special_tokens

from impruver_compose.encoding.job import DatasetJob
from impruver_compose.storage.shard_file import ROWS

KEPT_DAYS = 30


class ShardSlot(NamedTuple):
    """The file of a shard, and the rows start..stop that it is for."""

    path: Path
    start: int
    stop: int


@dataclass(frozen=True)
class CacheEntry:
    """The folder of the shards of a data set of `rows` rows."""

    folder: Path
    rows: int

    def list_shards(self) -> list[ShardSlot]:
        """Lists all shards, there or not, in order."""
        starts = range(0, self.rows, ROWS)
        paths = (self.folder / f"{number:06d}.arrow" for number in range(len(starts)))
        return [ShardSlot(path, start, min(start + ROWS, self.rows)) for path, start in zip(paths, starts, strict=True)]


def open_entry(job: DatasetJob, fingerprint: str) -> CacheEntry:
    """Opens the entry of a data set, and marks it as used today; `fingerprint` is the tokenizer's."""
    content = [_compute_code_version(), fingerprint, *_get_settings(job)]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    folder = get_cache_dir() / "compose" / key.hexdigest()[:32]
    make_folder(folder)
    os.utime(folder)
    return CacheEntry(folder, len(job.rows))


def pin_day(job: DatasetJob, entry: CacheEntry) -> DatasetJob:
    """Sets the job's `day` to that of the entry's first run, if its template asks for the date."""
    if "strftime_now" not in json.dumps(job.tokenizer.chat_template):
        return job
    path = entry.folder / "day"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(time.strftime("%Y-%m-%d"))
    return replace(job, day=path.read_text(encoding="utf-8"))


def remove_old_entries() -> None:
    """Removes the entries that no run has used for 30 days."""
    oldest = time.time() - KEPT_DAYS * 86400
    for folder in (get_cache_dir() / "compose").glob("*"):
        with suppress(OSError):  # another run may be removing it
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _get_settings(job: DatasetJob) -> list[Any]:
    section, converter, tokenizer = job.section, job.converter, job.tokenizer
    return [
        [job.key, converter.mapping, _get_source(converter.function)],
        [tokenizer.chat_template, get_special_tokens(tokenizer), job.template_kwargs],
        [
            job.build_encode_options(),
            job.max_length,
            section.turns,
            section.on_overflow,
            job.dedup.on,
            job.dedup.num_perm,
            ROWS,
        ],
    ]


def _get_source(function: Callable) -> list[Any]:
    """Returns a converter's name and its module's source; for one without a source something new each time."""
    function = inspect.unwrap(function)
    try:
        path = inspect.getsourcefile(function)
        return [getattr(function, "__qualname__", None), Path(path).read_text(encoding="utf-8")]
    except (TypeError, OSError, ValueError):
        return [time.time_ns(), os.getpid()]


@cache
def _compute_code_version() -> list[str]:
    """Hashes what encodes: the sources of compose and core, and the versions of the libraries."""
    digest = hashlib.sha256()
    for package in ("impruver_compose", "impruver_core"):
        folder = Path(find_spec(package).origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    libraries = ("tokenizers", "jinja2", "datasets", "datasketch")
    return [digest.hexdigest(), *(f"{name} {version(name)}" for name in libraries)]
