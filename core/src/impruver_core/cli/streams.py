"""Standard streams that never stop the work: a log on stderr may be full, slow, gone or closed.

Messages that stderr doesn't take at once wait for a moment, then the work goes on; what it takes later it gets, up to
a limit. Only the reader of results, on stdout, may keep a program waiting.
"""

import errno
import io
import os
import select
import stat
import sys
import time
from contextlib import suppress
from typing import TextIO

PATIENCE = 2.0  # seconds for which a stderr that takes nothing is waited for, once
PIECE = 4096  # bytes: what a pipe takes whole once it takes anything (PIPE_BUF)
MOST_WAITING = 1 << 20  # bytes of messages that are kept for a stderr that takes nothing; the oldest go

_state: dict[str, OSError | None] = {"lost": None}


def open_streams() -> None:
    """Opens those of stdin, stdout and stderr that are closed (`>&-`) on the null device; makes stderr patient.

    Else the next file that is opened takes the closed one's number, and what a library prints ends up in that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: the closed stream's
            setattr(sys, name, open(nowhere, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if type(sys.stderr) is io.TextIOWrapper and isinstance(sys.stderr.buffer, (io.BufferedWriter, io.FileIO)):
        with suppress(OSError, ValueError):
            patient = PatientWriter(sys.stderr.fileno())
            options = {"encoding": sys.stderr.encoding, "errors": "backslashreplace"}
            sys.stderr = io.TextIOWrapper(patient, **options, line_buffering=True, write_through=True)


class PatientWriter(io.RawIOBase):
    """Writes to an open file without ever failing, or waiting for longer than PATIENCE."""

    def __init__(self, number: int):
        self._number, self._terminal = number, os.isatty(number)
        self._target = _reopen_nonblocking(number)
        self._waiting, self._slow = bytearray(), False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return self._terminal

    def write(self, data: bytes) -> int:
        self._waiting += data
        self._send(0 if self._slow else PATIENCE)
        return memoryview(data).nbytes

    def drain(self) -> None:
        """Writes what has not been taken so far, before the process ends."""
        if self._waiting:
            self._send(PATIENCE)

    def _send(self, patience: float) -> None:
        """Writes what waits; ends when nothing was taken for `patience` seconds."""
        deadline = time.monotonic() + patience
        while self._waiting:
            try:
                # a terminal's second opening doesn't block, a pipe that can't be opened again might
                if not select.select([], [self._target], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise BlockingIOError
                del self._waiting[: os.write(self._target, self._waiting[:PIECE])]
                self._slow, deadline = False, time.monotonic() + patience
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self._slow = True
                    del self._waiting[:-MOST_WAITING]
                    break
            except (OSError, ValueError):  # full, or gone
                self._waiting.clear()


def drain_streams() -> None:
    """Gives a slow stderr a last chance to take what waits, before the process ends."""
    if isinstance(getattr(sys.stderr, "buffer", None), PatientWriter):
        sys.stderr.buffer.drain()


def _reopen_nonblocking(number: int) -> int:
    """A second opening of a pipe or a terminal, of which a write never waits; else the number itself.

    Not blocking is a property of an opening, which other processes share: theirs stays as it is.
    """
    with suppress(OSError):
        if os.isatty(number):
            return os.open(os.ttyname(number), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
        if stat.S_ISFIFO(os.fstat(number).st_mode):
            return os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK)
    return number


def write_stream(stream: TextIO, text: str) -> None:
    """Writes a text at once; a stream whose reader went away, or whose disk is full, gets nothing more."""
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO) and stream is sys.stdout:
            _state["lost"] = error
        silence_stream(stream)  # nobody reads any more, or the terminal is gone


def take_lost_results() -> OSError | None:
    """Why not all results could be written to stdout, once; None where they could, or nobody wanted more."""
    lost, _state["lost"] = _state["lost"], None
    return lost


def silence_stream(stream: TextIO) -> None:
    """Sends the rest of a stream nowhere, so that its closing can't fail."""
    with suppress(OSError, ValueError):  # a stream without a file, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
