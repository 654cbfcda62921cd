"""Run llama.cpp in processes of their own: what it prints, or aborts with, does not mix with their results."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import TextIO

# Its threads would spin while others use the processor; its abort would start gdb, which prints, or waits for ever.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}
REASONS = ("GGML_ASSERT", "GGML_ABORT", "error:", "Error:")
PR_SET_PDEATHSIG = 1  # Linux's


def stream_lines(command: Sequence[str], stdin: str = "") -> Iterator[str]:
    """Run a command and yield the lines of its stdout; it is killed where nobody reads on.

    CalledProcessError, with its stderr, where the exit code is not 0.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=ENVIRONMENT | os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            process.stdin.write(stdin)
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


def claim_stdout() -> TextIO:
    """Take stdout for results alone: from now on whatever else is printed, by native code too, goes to stderr.

    On Linux the process then ends with the one that started it, which can't see to that where it is killed itself.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return results


def get_log_tail(log: str) -> str:
    """The last three lines of a log, in one line."""
    return " / ".join(_split_log(log)[-3:]) or "without a word"


def get_error_reason(log: str) -> str:
    """Why a process ended: the last assertion or error in its log, else the last line."""
    lines = _split_log(log)
    reasons = [line for line in lines if any(sign in line for sign in REASONS)]
    return (reasons or lines or ["without a word"])[-1]


def _split_log(log: str) -> list[str]:
    return [line.strip() for line in log.splitlines() if line.strip()]
