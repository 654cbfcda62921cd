"""Content-addressed cache of encoded shards: the first stage, of which only what is missing is made."""

import gc
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.cli.console import log_info, open_progress, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_cache_dir, remove_path, remove_stale_parts, reserve_space
from impruver_core.io.integrity import write_record
from impruver_core.io.locks import lock_unused, share_folder
from impruver_core.system import available_cpus
from impruver_core.tokenizer import get_special_tokens

from impruver_compose.encoding.encoder import encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.encoding.text_encoder import EncoderDisagreesError, find_encoder
from impruver_compose.sources.row_table import RowTable
from impruver_compose.stages.engine import Engine
from impruver_compose.stages.workspace import STAGES
from impruver_compose.storage import ROWS, find_shard_damage, load_record, make_own_folder, write_shard

ENTRIES = "compose"  # folder of the entries
KEPT_DAYS = 30
SHARD_SHARE = 5  # a shard's bytes to its rows', at least, for tokens of three to four characters


class ShardSlot(NamedTuple):
    """The file of a shard, and the rows start..stop that it is for."""

    path: Path
    start: int
    stop: int


class CacheEntry(NamedTuple):
    """The folder of a data set's shards, and all of these in order, there or not."""

    folder: Path
    shards: list[ShardSlot]


class ShardTask(NamedTuple):
    """A shard to encode: the place of its data set among the jobs, and its rows."""

    job: int
    slot: ShardSlot
    rows: RowTable


class CacheEntries(list[CacheEntry]):
    """The entries of data sets, open: marked as used today, and as in use."""

    def __init__(self, fingerprint: str, root: Path, in_use: ExitStack):
        super().__init__()
        self._fingerprint, self._root, self._in_use = fingerprint, root, in_use

    def open(self, job: DatasetJob) -> CacheEntry:
        """Opens the entry of one data set."""
        entry = _find_entry(job, self._fingerprint, self._root)
        make_own_folder(entry.folder)
        self._in_use.enter_context(share_folder(entry.folder))
        os.utime(entry.folder)
        return entry


@contextmanager
def open_entries(jobs: Sequence[DatasetJob], fingerprint: str, root: Path) -> Iterator[CacheEntries]:
    """Opens each data set's entry in `root`; `fingerprint` is the tokenizer's."""
    with ExitStack() as in_use:
        entries = CacheEntries(fingerprint, root / ENTRIES, in_use)
        entries.extend(map(entries.open, jobs))
        yield entries


def _find_entry(job: DatasetJob, fingerprint: str, root: Path) -> CacheEntry:
    section, dedup, converter, tokenizer = job.section, job.dedup, job.converter, job.tokenizer
    content = [
        [_compute_code_version(), fingerprint, job.key, converter.mapping, _get_source(converter.function), ROWS],
        [tokenizer.chat_template, get_special_tokens(tokenizer), job.template_kwargs, job.build_encode_options()],
        [job.max_length, section.turns, section.on_overflow, dedup.on, dedup.num_perm, job.encoder.describe()],
    ]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    folder = root / key.hexdigest()[:32]
    starts, total = range(0, len(job.rows), ROWS), len(job.rows)
    slots = [(folder / f"{n:06d}.arrow", start, min(start + ROWS, total)) for n, start in enumerate(starts)]
    return CacheEntry(folder, [ShardSlot(*slot) for slot in slots])


def pin_day(job: DatasetJob, entry: CacheEntry) -> DatasetJob:
    """Sets the job's `day` to that of the entry's first run, if its template asks for the date."""
    if "strftime_now" not in json.dumps(job.tokenizer.chat_template):
        return job
    path = entry.folder / "day"
    day = load_record(path)
    if day is None:
        for slot in entry.shards:  # of a day that is not known any more
            remove_path(slot.path)
        day = time.strftime("%Y-%m-%d")
        write_record(path, day)
    return replace(job, day=day)


def remove_old_entries() -> None:
    """Removes the entries and stages in the cache that no run has used for 30 days."""
    oldest = time.time() - KEPT_DAYS * 86400
    for folder in (*(get_cache_dir() / ENTRIES).glob("*"), *(get_cache_dir() / STAGES).glob("*")):
        with suppress(OSError):  # another run may be removing it
            if folder.stat().st_mtime < oldest:
                with lock_unused(folder) as unused:
                    if unused:
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


def resolve_num_proc(wanted: int | None) -> int:
    """Returns the number of processes `wanted`, else one for each core that this process may use."""
    if wanted is not None and wanted < 1:
        raise ImpruverError(f"--num_proc must be at least 1, not {wanted}")
    return wanted or available_cpus()


def encode_missing_shards(jobs: Sequence[DatasetJob], entries: CacheEntries, engine: Engine) -> list[DatasetJob]:
    """Encodes the shards that the cache does not have; returns the jobs as they were done.

    A data set of which gigatoken encodes a text otherwise than `tokenizers` is encoded by these, in an entry of its own
    that takes the other's place among the `entries`. One process, or one that can't be forked, has own threads.
    """
    jobs = list(jobs)
    while True:
        try:
            _encode_all(jobs, entries, engine)
            return jobs
        except EncoderDisagreesError as error:
            difference, index, start = error.args
            job = replace(jobs[index], encoder=find_encoder(jobs[index].tokenizer, "tokenizers"))
            warn(
                f"{job.name}: gigatoken and tokenizers encode a text differently (of row {start} or one behind it: "
                f"{difference}); tokenizers encodes this data set"
            )
            entries[index] = entries.open(job)
            jobs[index] = pin_day(job, entries[index])


def _encode_all(jobs: Sequence[DatasetJob], entries: Sequence[CacheEntry], engine: Engine) -> None:
    tasks, rows, needed = [], 0, 0
    for number, (job, entry) in enumerate(zip(jobs, entries, strict=True)):
        remove_stale_parts(entry.folder)
        missing = _list_missing_shards(job, entry)
        tasks += [ShardTask(number, slot, job.rows.narrow(slot.start, slot.stop)) for slot in missing]
        own = sum(slot.stop - slot.start for slot in missing)
        needed += _estimate_bytes(job, own) if own else 0
        rows += own
    if not tasks:
        return
    without_rows = [replace(job, rows=None) for job in jobs]  # which come with the tasks
    with reserve_space(entries[0].folder, needed), open_progress(rows, "encode", "rows") as progress:
        for count in engine.run(_encode_shard, tasks, without_rows):
            progress.update(count)


def _list_missing_shards(job: DatasetJob, entry: CacheEntry) -> list[ShardSlot]:
    """Lists the shards that are not there, or not as they were written, which are removed and told."""
    damages = [(slot, find_shard_damage(slot.path)) for slot in entry.shards]
    missing = [(slot, damage) for slot, damage in damages if damage]
    damaged = [(slot, damage) for slot, damage in missing if os.path.lexists(slot.path)]
    for slot, _ in damaged:
        remove_path(slot.path)
    if damaged:
        slot, damage = damaged[0]
        log_info(
            f"note: {len(damaged)} of {len(entry.shards)} files in the cache of {job.name} are damaged and made again "
            f"({slot.path}: {damage})"
        )
    return [slot for slot, _ in missing]


def _estimate_bytes(job: DatasetJob, rows: int) -> int:
    """Estimates the size of the shards of so many rows: ids and labels as text take most of it."""
    table = job.rows.table.data  # with the rows that were not selected
    return SHARD_SHARE * table.nbytes * rows // max(1, table.num_rows)


def _encode_shard(jobs: Sequence[DatasetJob], task: ShardTask) -> int:
    """Encodes a shard and writes it; returns its number of rows."""
    job, slot = replace(jobs[task.job], rows=task.rows), task.slot
    gc.disable()  # rows leave no cycles behind that collections would have to find
    try:
        write_shard(slot.path, *encode_rows(job, slot.start, slot.stop))
        job.rows.release(slot.start, slot.stop)
    except EncoderDisagreesError as error:
        raise EncoderDisagreesError(*error.args, task.job, slot.start) from None
    finally:
        gc.enable()
    return slot.stop - slot.start
