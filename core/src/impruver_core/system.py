"""CPU count, free and peak memory. New, replaces 7 copies."""

from __future__ import annotations

import os


def available_cpus() -> int:
    """What this process may use of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
