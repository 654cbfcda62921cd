"""Where encoded data sets are kept, by all that goes into them: what is the same is not encoded again."""

import hashlib
import inspect
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from impruver_core.io.atomic import atomic_write, get_cache_dir, make_folder
from impruver_core.tokenizer import get_special_tokens

from impruver_compose.encoding.job import DatasetJob
from impruver_compose.storage.shard_file import ROWS, is_readable

KEPT_DAYS = 30


@dataclass(frozen=True)
class CacheEntry:
    """The folder of a data set's shards."""

    folder: Path
    rows: int

    def get_shard_paths(self) -> list[Path]:
        """All of them, there or not, in order."""
        return [self.folder / f"{number:06d}.arrow" for number in range(-(-self.rows // ROWS))]

    def find_missing_shards(self) -> list[int]:
        """The numbers of those that are yet to be made."""
        return [number for number, path in enumerate(self.get_shard_paths()) if not is_readable(path)]

    def get_row_range(self, number: int) -> tuple[int, int]:
        """The rows of shard `number`: from, to."""
        return number * ROWS, min((number + 1) * ROWS, self.rows)


def open_entry(job: DatasetJob, tokenizer: str) -> CacheEntry:
    """The entry of a data set, used today; `tokenizer` is its fingerprint."""
    key = hashlib.sha256(
        json.dumps([_compute_code_version(), tokenizer, *_get_settings(job)], sort_keys=True, default=str).encode()
    )
    folder = get_cache_dir() / "compose" / key.hexdigest()[:32]
    make_folder(folder)
    os.utime(folder)
    return CacheEntry(folder, len(job.rows))


def get_template_day(job: DatasetJob, entry: CacheEntry) -> str | None:
    """The day of an entry's first run, as 2026-11-22, where the template asks for the date."""
    if "strftime_now" not in json.dumps(job.tokenizer.chat_template):
        return None
    path = entry.folder / "day"
    if not path.exists():
        with atomic_write(path) as file:
            file.write(time.strftime("%Y-%m-%d"))
    return path.read_text(encoding="utf-8")


def remove_old_entries() -> None:
    """Removes entries that no run has used for 30 days."""
    oldest = time.time() - KEPT_DAYS * 86400
    for folder in (get_cache_dir() / "compose").glob("*"):
        with suppress(OSError):  # another run may forget it just now
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _get_settings(job: DatasetJob) -> list:
    return [
        [job.key, job.mapping, _get_source(job.converter)],
        [job.tokenizer.chat_template, get_special_tokens(job.tokenizer), job.template_kwargs],
        [job.options, job.limit, job.turns, job.trim, job.prompts_only, job.num_perm, ROWS],
    ]


def _get_source(converter) -> list:
    """A converter's name and the text of its module; one without a source is never the same."""
    function = inspect.unwrap(converter)
    try:
        path = inspect.getsourcefile(function)
        return [getattr(function, "__qualname__", None), Path(path).read_text(encoding="utf-8")]
    except (TypeError, OSError, ValueError):
        return [time.time_ns(), os.getpid()]


@cache
def _compute_code_version() -> list:
    """What encodes: our own sources and the versions of the libraries."""
    digest = hashlib.sha256()
    for package in ("impruver_compose", "impruver_core"):
        folder = Path(find_spec(package).origin).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return [
        digest.hexdigest(),
        *(f"{name} {version(name)}" for name in ("tokenizers", "jinja2", "datasets", "datasketch")),
    ]
