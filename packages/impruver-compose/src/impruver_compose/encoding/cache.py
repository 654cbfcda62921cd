"""Content-addressed cache of encoded shards: what has not changed is not encoded again."""

import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.io.atomic import atomic_write, get_cache_dir, make_folder
from impruver_core.tokenizer import get_special_tokens

from impruver_compose.encoding.job import DatasetJob
from impruver_compose.storage import ROWS

KEPT_DAYS = 30


class ShardSlot(NamedTuple):
    """The file of a shard, and the rows start..stop that it is for."""

    path: Path
    start: int
    stop: int


class CacheEntry(NamedTuple):
    """The folder of a data set's shards, and all of these in order, there or not."""

    folder: Path
    shards: list[ShardSlot]


def open_entry(job: DatasetJob, fingerprint: str) -> CacheEntry:
    """Opens the entry of a data set, and marks it as used today; `fingerprint` is the tokenizer's."""
    section, dedup, converter, tokenizer = job.section, job.dedup, job.converter, job.tokenizer
    content = [
        [_compute_code_version(), fingerprint, job.key, converter.mapping, _get_source(converter.function), ROWS],
        [tokenizer.chat_template, get_special_tokens(tokenizer), job.template_kwargs, job.build_encode_options()],
        [job.max_length, section.turns, section.on_overflow, dedup.on, dedup.num_perm],
    ]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    folder = get_cache_dir() / "compose" / key.hexdigest()[:32]
    make_folder(folder)
    os.utime(folder)
    starts, total = range(0, len(job.rows), ROWS), len(job.rows)
    slots = [(folder / f"{n:06d}.arrow", start, min(start + ROWS, total)) for n, start in enumerate(starts)]
    return CacheEntry(folder, [ShardSlot(*slot) for slot in slots])


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
