"""Run a command in a process of its own, line by line: what llama.cpp does there does not end this one."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress

from impruver_core.worker_process import ENVIRONMENT, describe_exit


def stream_lines(command: Sequence[str], stdin: str = "") -> Iterator[str]:
    """Run a command and yield the lines of its stdout; it is killed where nobody reads on.

    CalledProcessError, with its stderr, where the exit code is not 0.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=ENVIRONMENT | os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            with suppress(BrokenPipeError):  # it has ended already, as its exit code will tell
                process.stdin.write(stdin)
                process.stdin.close()
            yield from process.stdout
            code = process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            with suppress(BrokenPipeError):
                process.stdin.close()
        if code != 0:
            log.seek(0)
            raise subprocess.CalledProcessError(code, command, stderr=log.read())


def describe_failure(code: int, log: str) -> str:
    """How a process ended and why, as `(exit 1): error: no such file`; `log` is the end of what it wrote."""
    if code == -signal.SIGKILL:
        return "(SIGKILL), most likely for want of memory"
    return f"({describe_exit(code)}): {log}"
