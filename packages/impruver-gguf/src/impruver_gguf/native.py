"""Processes in which llama.cpp runs: what it prints or aborts with is kept from what they are to tell."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import TextIO

# Its threads would spin while others use the processor; its abort would start gdb, which prints, or waits for ever.
SURROUNDINGS = {"OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}
REASONS = ("GGML_ASSERT", "GGML_ABORT", "error:", "Error:")


PR_SET_PDEATHSIG = 1  # Linux's


def end_with_parent() -> None:
    """On Linux this process ends with the one that started it, which can't see to that where it is killed itself."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def own_channel() -> TextIO:
    """Stdout for results alone: from now on whatever else is printed, native code too, goes to stderr."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return channel


def last_words(log: str) -> str:
    """Why a process ended: the assertion or error that it told, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reasons = [line for line in lines if any(sign in line for sign in REASONS)]
    return (reasons or lines or [""])[-1]
