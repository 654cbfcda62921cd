"""Signals while training runs: the first one waits for the end of the step, the next one ends at once."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from impruver_core.cli.console import log_info
from impruver_core.cli.runner import TerminationSignal

from impruver_train.distributed import first_on_machine, together

# SIGHUP: the terminal, or the connection to it, is gone. nohup has it ignored, and so it stays.
WAITING = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
ECHO_SECONDS = 1.0  # a launcher passes on the signal that the terminal has already sent to all


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Has a signal end the process where it is: nothing is to be saved yet.

    An exception, raised while libraries are imported, can be swallowed by them, and the run would go on.
    """

    def end(number: int, _frame: Any) -> None:
        code, what = (130, "Ctrl+C") if number == signal.SIGINT else (143, "SIGTERM")
        if first_on_machine():
            os.write(2, f"impruver-train: stopped by {what}\n".encode())
        os._exit(code)

    before = handled_by(end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def handled_by(handler: Any) -> dict[int, Any]:
    """Has `handler` handle the signals that are not ignored, and tells what did before; only the main thread may."""
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in WAITING if signal.getsignal(number) is not signal.SIG_IGN] if main else []
    return {number: signal.signal(number, handler) for number in heard}


class Noted:
    """The signal that came, 0 until one does; the state of a handler, which can return nothing."""

    def __init__(self) -> None:
        self.number, self.at, self.process = 0, 0.0, os.getpid()
        self.before: dict[int, Any] = {}

    def arm(self) -> None:
        """From now on a signal waits; before, it just ends the run, which has nothing to lose yet."""
        self.before = self.before or handled_by(self.note)

    def note(self, number: int, _frame: Any) -> None:
        """The handler. A second signal ends the process where it is, whatever it is in."""
        if os.getpid() != self.process:  # a worker's copy: the main process tells it when to end
            return
        if not self.number:
            self.number, self.at = number, time.monotonic()
            log_info("stopping: what runs is finished and saved; the same signal again ends at once")
        elif time.monotonic() - self.at > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


@contextmanager
def noting() -> Iterator[Noted]:
    """What signals are noted in; afterwards they are handled as before."""
    noted = Noted()
    try:
        yield noted
    finally:
        for worker in multiprocessing.active_children():  # a loader's, which hear no signal, and may be kept for ever
            worker.kill()
        for number, handler in noted.before.items():
            signal.signal(number, handler)


def agreed(noted: Noted, device: Any) -> int:
    """The signal that came to this process or, of several, to any: all stop after the same step."""
    import torch

    if not together():
        return noted.number
    number = torch.tensor(noted.number, device=device)
    torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
    noted.number = int(number)
    return noted.number


def stopped(number: int, saved: str, tells: bool) -> BaseException:
    """What to raise once the work is saved: core's answer to that signal; of several processes one `tells`."""
    if not tells:
        return SystemExit(128 + number)
    text = f"{saved}; the same command goes on from there"
    return KeyboardInterrupt(text) if number == signal.SIGINT else TerminationSignal(text)


def shielded(collator: Any) -> Any:
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
