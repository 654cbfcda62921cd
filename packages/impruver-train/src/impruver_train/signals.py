"""Signals while training runs: the first one waits for the end of the optimizer step, the next one ends at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import log_info
from impruver_core.cli.stop_signals import NAMES, make_exception
from impruver_core.cli.streams import write_stream
from impruver_core.commands.run import REPORTING

from impruver_train.distributed import is_distributed, is_first_on_machine, is_launched

if TYPE_CHECKING:
    import torch

# SIGHUP: the terminal, or the connection to it, is gone. nohup has it ignored, and so it stays.
WAITING = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
WORKER_SECONDS = 10.0  # in which one that was killed ends
ECHO_SECONDS = 1.0  # a launcher passes on the signal that the terminal has already sent to all


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Has a signal end the process where it is: nothing is to be saved yet, and libraries may swallow an exception."""

    def end(number: int, _frame: Any) -> None:
        if is_first_on_machine() and REPORTING not in os.environ:
            write_stream(sys.stderr, f"impruver-train: stopped by {NAMES[number]}\n")
        os._exit(128 + number)

    before = set_handlers(end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_handlers(handler: Any) -> dict[int, Any]:
    """Has `handler` handle the signals that are not ignored; returns what did before. Only the main thread may."""
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in WAITING if signal.getsignal(number) is not signal.SIG_IGN] if main else []
    return {number: signal.signal(number, handler) for number in heard}


class StopSignal:
    """The signal that came, 0 until one does; the state of a handler, which can return nothing."""

    def __init__(self) -> None:
        self.number, self.time, self.process = 0, 0.0, os.getpid()
        self.before: dict[int, Any] = {}
        self.announced = False

    def arm(self) -> None:
        """From now on a signal waits; before, it just ends the run, which has nothing to lose yet."""
        self.before = self.before or set_handlers(self.handle)

    def handle(self, number: int, _frame: Any) -> None:
        """The handler. A second signal ends the process where it is, whatever it is in."""
        if os.getpid() != self.process:  # a worker's copy: the main process ends it
            return
        if not self.number:
            self.number, self.time = number, time.monotonic()
            if not is_launched():  # there it may come because another process is gone: said once all are heard of
                self.announce()
        elif time.monotonic() - self.time > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def announce(self) -> None:
        """Says once what a signal does."""
        if self.number and not self.announced:
            self.announced = True
            log_info("stopping: what runs is finished and saved; the same signal again ends at once")


@contextmanager
def capture_stop_signals() -> Iterator[StopSignal]:
    """Yields what signals are recorded in once it is armed; afterwards they are handled as before."""
    stop = StopSignal()
    try:
        yield stop
    finally:
        kill_workers()
        for number, handler in stop.before.items():
            signal.signal(number, handler)


def kill_workers() -> None:
    """Ends a loader's workers, which hear no signal and might stay for ever."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        before = None
    else:
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report their end as a failure
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join(WORKER_SECONDS)
    if before is not None:
        signal.signal(signal.SIGCHLD, before)


def get_signal_of_any_rank(stop: StopSignal, device: torch.device) -> int:
    """The signal that came to this process or, of several, to any: all stop after the same step.

    One that comes while the processes ask each other counts the next time: it must not get lost.
    """
    if not is_distributed():
        return stop.number
    import torch

    number = torch.tensor(stop.number, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    if int(number):
        stop.number = int(number)
        stop.announce()
    return int(number)


def make_stop_exception(number: int, saved: str, speaks: bool) -> BaseException:
    """What to raise once the work is saved: core's answer to that signal; of several processes one `speaks`."""
    if not speaks:
        return SystemExit(128 + number)
    text = f"{saved}; the same command resumes from there"
    return make_exception(number, text)


def ignore_signals_in_workers(collator: Callable) -> Callable:
    """`collator` that has a loader's worker process ignore signals: a group's signal would end it amid the step."""
    shielded_in: list[int] = []

    def collate(rows: Any) -> Any:
        if os.getpid() not in shielded_in:
            import torch

            shielded_in[:] = [os.getpid()]
            for number in WAITING if torch.utils.data.get_worker_info() is not None else ():
                signal.signal(number, signal.SIG_IGN)
        return collator(rows)

    return collate
