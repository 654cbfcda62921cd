"""Signals and keys that come when they can't be obeyed at once: they wait, and are not lost."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from impruver_core.cli.runner import TerminationSignal

if TYPE_CHECKING:
    from prompt_toolkit.application import Application


@contextmanager
def exiting_on_sigterm(app: Application) -> Iterator[Callable[[], None]]:
    """End prompt-toolkit's loop on SIGTERM, in an orderly way: raised within it, it would be caught and lost there.

    Yields a function to be called when the loop has begun: the signal may have come before.
    """
    received: list[bool] = []

    def exit_app(*_: Any) -> None:
        received.append(True)
        if app.loop is not None:
            app.loop.call_soon_threadsafe(end_loop)

    def end_loop() -> None:
        if received and app.future is not None and not app.is_done:
            app.exit(exception=EOFError())

    before = signal.signal(signal.SIGTERM, exit_app)
    try:
        yield end_loop
    finally:
        signal.signal(signal.SIGTERM, before)
        if received:
            raise TerminationSignal


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl+C back until the end: half a line on the screen can't be taken up again."""
    received: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


@contextmanager
def without_echo() -> Iterator[None]:
    """Keep what is typed meanwhile out of the answer; it is there for the next prompt, Ctrl+D as well."""
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
