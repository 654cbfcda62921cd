"""Ends what takes too long, by a timer of this process's CPU time: loops of Python, and its regular expressions.

One operation of a compiled library is not ended: for those, see `tokenizer_trial`.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from impruver_core.errors import ImpruverError

# What builds the error that the timer raises, None while it is not set; whether the timer's signal is ours.
_state = SimpleNamespace(build_error=None, claimed=False)


class TimeLimitError(ImpruverError):
    """Something that takes longer than it may."""


class _TimeUpError(BaseException):
    """No Exception: what is ended may well catch those."""


@contextmanager
def limit_cpu_time(seconds: float, message: str) -> Iterator[None]:
    """TimeLimitError(message) where the body takes more CPU time; in the main thread alone."""
    time_up = _TimeUpError()
    started = start_timer(seconds, lambda: time_up)
    try:
        yield
    except _TimeUpError as error:
        if error is not time_up:  # of a limit around this one
            raise
        raise TimeLimitError(message) from None
    finally:
        if started:
            stop_timer()


def start_timer(seconds: float, build_error: Callable[[], BaseException]) -> bool:
    """Has an error raised after so much CPU time; False, and nothing done, where it can't be or a timer is set."""
    if _state.build_error is not None or threading.get_ident() != threading.main_thread().ident or not _claim_signal():
        return False
    _state.build_error = build_error
    signal.setitimer(signal.ITIMER_PROF, seconds)
    return True


def stop_timer() -> None:
    """Ends what `start_timer` began. The timer never outlives it: without a handler its signal ends the process."""
    _state.build_error = None  # before: the signal may come in between
    signal.setitimer(signal.ITIMER_PROF, 0)


def _claim_signal() -> bool:
    """Whether the timer is there and ours: a profiler's is left alone."""
    if not _state.claimed and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGPROF) is signal.SIG_DFL:
        signal.signal(signal.SIGPROF, _raise_error)
        _state.claimed = True  # asked once: to ask takes longer than to set the timer
    return _state.claimed


def _raise_error(number: int, frame: Any) -> None:
    if _state.build_error is not None:
        raise _state.build_error()
