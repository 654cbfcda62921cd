"""Encodes what is missing of several data sets' shards, in as many processes as there are to be."""

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

from impruver_compose.encoding.cache import CacheEntry
from impruver_compose.encoding.encoder import encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.storage.shard_file import write_shard

Task = tuple[int, int]  # number of a data set, of a shard in it


SHARD_SHARE = 5  # times the bytes of the rows, at least, for tokens of three to four characters


_work: dict = {}  # of a worker process: what it was forked with


def resolve_num_proc(asked: int | None) -> int:
    """How many processes encode: as many as `asked`, else one for each core that this one may use."""
    if asked is not None and asked < 1:
        raise ImpruverError(f"--num_proc must be at least 1, not {asked}")
    return asked or available_cpus()


def encode_missing_shards(jobs: Sequence[DatasetJob], entries: Sequence[CacheEntry], num_proc: int) -> None:
    """Makes the shards that are not there yet; what was made before a stop stays.

    With one process (or one shard, or where processes can't be forked) `tokenizers` uses its own threads.
    """
    tasks = [(index, number) for index, entry in enumerate(entries) for number in entry.find_missing_shards()]
    if not tasks:
        return
    rows = sum(stop - start for start, stop in (entries[index].get_row_range(number) for index, number in tasks))
    needed = sum(_estimate_shard_bytes(jobs[index], *entries[index].get_row_range(number)) for index, number in tasks)
    with reserve_space(entries[0].folder, needed), open_progress(rows, "encode") as bar:
        if min(num_proc, len(tasks)) == 1 or sys.platform != "linux":
            for index, number in tasks:
                bar.update(_encode_shard(jobs[index], entries[index], number))
            return
        for done in _encode_in_processes(jobs, entries, tasks, min(num_proc, len(tasks))):
            bar.update(done)


def _estimate_shard_bytes(job: DatasetJob, start: int, stop: int) -> int:
    """About how many bytes a shard has: ids and labels as text take most."""
    whole = job.rows.table.data  # also of rows that were not chosen
    return SHARD_SHARE * whole.nbytes * (stop - start) // max(1, whole.num_rows)


def _encode_shard(job: DatasetJob, entry: CacheEntry, number: int) -> int:
    start, stop = entry.get_row_range(number)
    write_shard(entry.get_shard_paths()[number], *encode_rows(job, start, stop))
    return stop - start


def _encode_in_processes(jobs, entries, tasks: list[Task], num_proc: int) -> Iterator[int]:
    """Rows done, a shard at a time. Forked: the libraries are loaded once, and their memory is shared."""
    context, leash = multiprocessing.get_context("fork"), os.pipe()
    gc.freeze()  # a collection in a worker would copy every page that it looks at
    _work.update(jobs=jobs, entries=entries)
    pool = ProcessPoolExecutor(num_proc, context, _start_worker, leash)
    try:
        with _single_threaded_tokenizers():
            futures = [pool.submit(_run_task, *task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
    except BrokenProcessPool:
        raise ImpruverError(
            "a worker process was killed, most likely for want of memory: set a lower --num_proc "
            "(what is encoded is kept)"
        ) from None
    finally:
        os.close(leash[1])  # ends those that still work
        pool.shutdown(cancel_futures=True)
        os.close(leash[0])
        _work.clear()
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


def _start_worker(leash: int, held: int) -> None:
    """Ctrl+C is the parent's to handle. Where it ends, even killed, its end of the leash closes, and so do workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(held)
    if sys.modules.get("torch") is not None:  # of a user's converter: its threads did not come along, and it would wait
        sys.modules["torch"].set_num_threads(1)
    threading.Thread(target=lambda: os.read(leash, 1) or os._exit(1), daemon=True).start()


def _run_task(index: int, number: int) -> int:
    return _encode_shard(_work["jobs"][index], _work["entries"][index], number)
