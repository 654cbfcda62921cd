"""SIGINT, SIGTERM and SIGHUP as exceptions, from the first moment of the work to its last.

An exception unwinds what is open, and libraries may lose one: it is raised while they clean up or call back. What is
lost so is raised again, or seen at the end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from impruver_core.cli.streams import write_stream

ECHO_SECONDS = 0.3  # in which two signals count as one: `timeout` sends it to the process, then to its group
LATELY_SECONDS = 5.0  # in which a failure is put down to a signal
AGAIN_SECONDS = 0.05  # after which a signal that got lost is raised again
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
NAMES = {signal.SIGINT: "Ctrl+C", signal.SIGTERM: "SIGTERM", SIGHUP: "SIGHUP"}


class TerminationSignal(BaseException):
    """SIGTERM came. Like KeyboardInterrupt no Exception: what is open is unwound, nobody swallows it by chance.

    What either is raised with, such as what was saved, is printed.
    """

    number = signal.SIGTERM


class HangupSignal(TerminationSignal):
    """SIGHUP came: the terminal, or the connection to it, is gone."""

    number = SIGHUP


def make_exception(number: int, *args: str) -> BaseException:
    """The exception that stands for a signal."""
    kinds = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: TerminationSignal, SIGHUP: HangupSignal}
    return kinds[number](*args)


def describe(stop: BaseException) -> tuple[str, int]:
    """The name of the signal that an exception stands for, for a message, and its exit code."""
    number = getattr(stop, "number", signal.SIGINT)
    return NAMES[number], 128 + number


def is_caused_by_stop(error: BaseException) -> bool:
    """Whether a signal's exception is what an error was raised for, as by a C extension that can't let it through."""
    cause, seen = error.__cause__, set()
    while cause is not None and id(cause) not in seen:
        if isinstance(cause, (KeyboardInterrupt, TerminationSignal)):
            return True
        seen.add(id(cause))
        cause = cause.__cause__
    return False


class StopSignals:
    """The handlers of this process, and what they saw: a handler can return nothing."""

    def __init__(self, program: str) -> None:
        self.program, self.process = program, os.getpid()
        self.came: int | None = None  # SIGTERM or SIGHUP: who catches a KeyboardInterrupt may go on, as a chat does
        self.last, self.time = signal.SIGINT, -LATELY_SECONDS
        self.before: dict[int, Any] = {}

    @property
    def came_lately(self) -> bool:
        """Whether a signal came within the last seconds."""
        return time.monotonic() - self.time < LATELY_SECONDS

    def install(self) -> None:
        """Has signals raise exceptions, but for those that are ignored, as nohup does; only the main thread may."""
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in NAMES if number and signal.getsignal(number) is not signal.SIG_IGN]
            self.before = {number: signal.signal(number, self.handle) for number in heard}

    def ignore(self) -> None:
        """From now on a signal changes nothing: the work has ended, one way or another."""
        for number in self.before:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Has signals do what they did before."""
        for number, handler in self.before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def handle(self, number: int, _frame: Any) -> None:
        """The handler: raises, and ends the process where it is when told again; a forked worker just ends."""
        if os.getpid() != self.process:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        again = number != signal.SIGINT and self.came is not None
        if again and time.monotonic() - self.time < ECHO_SECONDS:
            return
        self.last, self.time = number, time.monotonic()
        if again:
            write_stream(sys.stderr, f"{self.program}: stopped by {NAMES[number]}\n")
            os._exit(128 + number)
        self.came = None if number == signal.SIGINT else number
        raise make_exception(number)

    def raise_again(self, unraisable: Any) -> None:
        """`sys.unraisablehook`: a signal's exception that was raised where none can be is raised again elsewhere."""
        if isinstance(unraisable.exc_value, (KeyboardInterrupt, TerminationSignal)):
            number = getattr(unraisable.exc_value, "number", signal.SIGINT)
            self.came = None
            again = threading.Timer(AGAIN_SECONDS, os.kill, (self.process, number))
            again.daemon = True
            again.start()
        else:
            sys.__unraisablehook__(unraisable)


@contextmanager
def handled(program: str, own_process: bool) -> Iterator[StopSignals]:
    """Has signals raise exceptions within; afterwards as before, or in a process that now ends they are ignored."""
    signals, hook = StopSignals(program), sys.unraisablehook
    signals.install()
    sys.unraisablehook = signals.raise_again
    try:
        yield signals
    finally:
        sys.unraisablehook = hook
        if not own_process:
            signals.restore()
