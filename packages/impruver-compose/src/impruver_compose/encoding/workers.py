"""Encode the missing shards of several data sets in worker processes."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from impruver_core.cli.console import open_progress
from impruver_core.errors import ImpruverError
from impruver_core.io.disk_space import reserve_space
from impruver_core.system import available_cpus

from impruver_compose.encoding.cache import CacheEntry, ShardSlot
from impruver_compose.encoding.encoder import encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.storage import is_readable, write_shard

SHARD_SHARE = 5  # a shard's bytes to its rows', at least, for tokens of three to four characters
_tasks: list[tuple[DatasetJob, ShardSlot]] = []  # what workers are forked with


def resolve_num_proc(wanted: int | None) -> int:
    """Returns the number of processes `wanted`, else one for each core that this process may use."""
    if wanted is not None and wanted < 1:
        raise ImpruverError(f"--num_proc must be at least 1, not {wanted}")
    return wanted or available_cpus()


def encode_missing_shards(jobs: Sequence[DatasetJob], entries: Sequence[CacheEntry], num_proc: int) -> None:
    """Encodes the shards that the cache does not have; one process, or one that can't be forked, has own threads."""
    pairs = zip(jobs, entries, strict=True)
    _tasks[:] = [(job, slot) for job, entry in pairs for slot in entry.shards if not is_readable(slot.path)]
    if not _tasks:
        return
    needed = sum(_estimate_bytes(job, slot) for job, slot in _tasks)
    rows = sum(slot.stop - slot.start for _, slot in _tasks)
    numbers, num_proc = range(len(_tasks)), min(num_proc, len(_tasks))
    alone = num_proc == 1 or sys.platform != "linux"
    with reserve_space(entries[0].folder, needed), open_progress(rows, "encode") as progress:
        for count in map(_encode_shard, numbers) if alone else _encode_in_processes(numbers, num_proc):
            progress.update(count)


def _estimate_bytes(job: DatasetJob, slot: ShardSlot) -> int:
    """Estimates a shard's size: ids and labels as text take most of it."""
    table = job.rows.table.data  # with the rows that were not selected
    return SHARD_SHARE * table.nbytes * (slot.stop - slot.start) // max(1, table.num_rows)


def _encode_shard(number: int) -> int:
    """Encodes the shard of a task and writes it; returns its number of rows."""
    job, slot = _tasks[number]
    write_shard(slot.path, *encode_rows(job, slot.start, slot.stop))
    return slot.stop - slot.start


def _encode_in_processes(numbers: Sequence[int], num_proc: int) -> Iterator[int]:
    """Encodes shards in forked processes, which share the libraries' memory; each one's rows as it is done."""
    context, leash = multiprocessing.get_context("fork"), os.pipe()
    gc.freeze()  # a collection in a worker would copy every page that it looks at
    pool = ProcessPoolExecutor(num_proc, context, _start_worker, leash)
    try:
        with _single_threaded_tokenizers():
            futures = [pool.submit(_encode_shard, number) for number in numbers]
            for future in as_completed(futures):
                yield future.result()
    except BrokenProcessPool:
        way = "set a lower --num_proc (what is encoded is kept)"
        raise ImpruverError(f"a worker process was killed, most likely for want of memory: {way}") from None
    finally:
        os.close(leash[1])  # ends those that still work
        pool.shutdown(cancel_futures=True)
        os.close(leash[0])
        gc.unfreeze()


@contextmanager
def _single_threaded_tokenizers() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=DeprecationWarning)  # of Python 3.12, for threads that sleep
            yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _start_worker(leash: int, parents_end: int) -> None:
    """Leaves Ctrl+C to the parent, and ends when the parent does, even killed: its end of the leash closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(parents_end)
    if sys.modules.get("torch") is not None:  # of a user's converter: its threads did not come along, and it would wait
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=lambda: os.read(leash, 1) or os._exit(1), daemon=True).start()
