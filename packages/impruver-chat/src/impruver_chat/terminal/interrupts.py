"""Signals and keys that come at a moment when they can't be obeyed: they wait, and are not lost."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from impruver_core.cli.runner import TerminationSignal


@contextmanager
def exiting_on_sigterm(app: Any) -> Iterator[Callable[[], None]]:
    """SIGTERM ends prompt-toolkit's loop in an orderly way: raised within it, it would be caught and lost there.

    What is given is to be called when the loop has begun: the signal may have come before.
    """
    came: list[bool] = []

    def leave(*_: Any) -> None:
        came.append(True)
        if app.loop is not None:
            app.loop.call_soon_threadsafe(end)

    def end() -> None:
        if came and app.future is not None and not app.is_done:
            app.exit(exception=EOFError())

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield end
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            raise TerminationSignal


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl+C waits until what is done here is done: half a line on the screen can't be taken up again."""
    came: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def without_echo() -> Iterator[None]:
    """What is typed meanwhile is not echoed into the answer; it is there for the next prompt, Ctrl+D as well."""
    if not sys.stdin.isatty() or os.name != "posix":
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    *others, local, in_speed, out_speed, characters = before
    characters = list(characters)
    characters[termios.VEOF] = os.fpathconf(descriptor, "PC_VDISABLE")
    local = local & ~termios.ECHO | termios.NOFLSH  # Ctrl+C takes nothing of it away
    termios.tcsetattr(descriptor, termios.TCSANOW, [*others, local, in_speed, out_speed, characters])
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
