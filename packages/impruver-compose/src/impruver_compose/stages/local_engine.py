"""Stages on this machine: in forked processes, which share what is loaded."""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.worker_process import describe_exit

ENDING_SECONDS = 5  # within which a worker that was ended is gone

_work: dict[str, Any] = {}  # what workers are forked with


class LocalEngine:
    """Runs tasks in forked processes; one process, one task, or a system that can't fork well: in this one."""

    def __init__(self, processes: int):
        self.processes = processes if sys.platform == "linux" else 1

    def run(self, function: Callable, tasks: Sequence, shared: Any) -> Iterator[Any]:
        """As `Engine.run` says."""
        processes = min(self.processes, len(tasks))
        if processes <= 1:
            return (function(shared, task) for task in tasks)
        return _run_in_processes(function, tasks, shared, processes)


@contextmanager
def open_local(processes: int) -> Iterator[LocalEngine]:
    """Opens the engine of this machine."""
    yield LocalEngine(processes)


def _run_in_processes(function: Callable, tasks: Sequence, shared: Any, processes: int) -> Iterator[Any]:
    context, leash = multiprocessing.get_context("fork"), os.pipe()
    _work.update(function=function, tasks=tasks, shared=shared)
    gc.freeze()  # a collection in a worker would copy every page that it looks at
    pool = ProcessPoolExecutor(processes, context, _start_worker, leash)
    try:
        with _single_threaded_tokenizers():
            futures = [pool.submit(_run_task, number) for number in range(len(tasks))]
            workers = multiprocessing.active_children()
            for future in as_completed(futures):
                yield future.result()
    except BrokenProcessPool:
        raise ImpruverError(_describe_killed(workers)) from None
    finally:
        os.close(leash[1])  # ends those that still work
        pool.shutdown(cancel_futures=True)
        os.close(leash[0])
        gc.unfreeze()
        _work.clear()


def _run_task(number: int) -> Any:
    return _work["function"](_work["shared"], _work["tasks"][number])


def _describe_killed(workers: Sequence[multiprocessing.Process]) -> str:
    """Says which of the workers was killed; the pool ends the others by SIGTERM."""
    for worker in workers:
        worker.join(ENDING_SECONDS)
    killed = [worker for worker in workers if worker.exitcode not in (None, 0, -signal.SIGTERM)] or list(workers)
    code = killed[0].exitcode
    way = "set a lower --num_proc (what is encoded is kept)"
    if code == -signal.SIGKILL:
        way = f"most likely for want of memory: {way}"
    how = describe_exit(code) if code is not None else "it hangs"
    return f"a worker process was killed (number {killed[0].pid}, {how}), {way}"


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
