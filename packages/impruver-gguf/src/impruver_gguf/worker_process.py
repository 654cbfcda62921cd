"""Processes in which llama.cpp runs: what it prints or aborts with is kept from what they are to tell."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TextIO

# Its threads would spin while others use the processor; its abort would start gdb, which prints, or waits for ever.
SURROUNDINGS = {"OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}


REASONS = ("GGML_ASSERT", "GGML_ABORT", "error:", "Error:")


PR_SET_PDEATHSIG = 1  # Linux's


def lines_of(command: Sequence[str], given: str = "") -> Iterator[str]:
    """The lines that a process tells on stdout, `given` on its stdin; it is killed where nobody reads on.

    CalledProcessError, with what it wrote on stderr, where it ends with another exit code than 0.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=SURROUNDINGS | os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            process.stdin.write(given)
            process.stdin.close()
            yield from process.stdout
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if code != 0:
            log.seek(0)
            raise subprocess.CalledProcessError(code, command, stderr=log.read())


def own_channel() -> TextIO:
    """Stdout for results alone: from now on whatever else is printed, native code too, goes to stderr.

    On Linux the process ends with the one that started it, which can't see to that where it is killed itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def last_lines(log: str) -> str:
    """The last three lines of what a process told."""
    return " / ".join(_lines(log)[-3:]) or "without a word"


def last_words(log: str) -> str:
    """Why a process ended: the assertion or error that it told, else its last line."""
    lines = _lines(log)
    reasons = [line for line in lines if any(sign in line for sign in REASONS)]
    return (reasons or lines or ["without a word"])[-1]


def _lines(log: str) -> list[str]:
    return [line.strip() for line in log.splitlines() if line.strip()]
