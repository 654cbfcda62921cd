"""What processes share in which llama.cpp runs alone: their environment, a stdout for results, why one ended."""

import ctypes
import os
import signal
import sys
from typing import TextIO

NO_BACKTRACE = {"GGML_NO_BACKTRACE": "1"}  # an abort would start gdb, which prints, or waits for ever
ENVIRONMENT = NO_BACKTRACE | {"OMP_WAIT_POLICY": "PASSIVE"}  # threads would spin while others use the processor
REASONS = ("GGML_ASSERT", "GGML_ABORT", "error:", "Error:")
PR_SET_PDEATHSIG = 1  # Linux's


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


def describe_exit(code: int) -> str:
    """How a process ended, by the code that `subprocess` gives: the signal's name, or `exit 1`."""
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"exit {code}"


def get_log_tail(log: str) -> str:
    """The last three lines of a log, in one line."""
    return " / ".join(_split_log(log)[-3:]) or "without a word"


def get_error_reason(log: str, default: str = "without a word") -> str:
    """Why a process ended: the last assertion or error in its log, else the last line, else `default`."""
    lines = _split_log(log)
    reasons = [line for line in lines if any(sign in line for sign in REASONS)]
    return (reasons or lines or [default])[-1]


def _split_log(log: str) -> list[str]:
    return [line.strip() for line in log.splitlines() if line.strip()]
