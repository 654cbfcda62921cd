"""Run commands in processes of their own: what llama.cpp does there does not end this one."""

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress

from impruver_core.worker_process import ENVIRONMENT, describe_exit

POLL_SECONDS = 0.02  # between looks at processes that run


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


def run_commands(commands: Mapping[str, Sequence[str]], at_once: int) -> Iterator[str]:
    """Run commands, `at_once` at a time, and yield the key of each that is done; the next one runs by then.

    CalledProcessError, with its stderr, where an exit code is not 0. Then, and where nobody reads on, all are killed.
    """
    waiting, running = deque(commands), {}
    with ExitStack() as stack:

        def start_next() -> None:
            if waiting:
                key = waiting.popleft()
                log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))
                streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": log}
                process = subprocess.Popen(commands[key], env=ENVIRONMENT | os.environ, **streams)
                stack.callback(process.wait)
                stack.callback(process.kill)
                running[key] = process, log

        for _ in range(at_once):
            start_next()
        while running:
            ended = next((key for key, (process, _) in running.items() if process.poll() is not None), None)
            if ended is None:
                time.sleep(POLL_SECONDS)
                continue
            process, log = running.pop(ended)
            if process.returncode != 0:
                log.seek(0)
                raise subprocess.CalledProcessError(process.returncode, commands[ended], stderr=log.read())
            start_next()
            yield ended


def describe_failure(code: int, log: str) -> str:
    """How a process ended and why, as `(exit 1): error: no such file`; `log` is the end of what it wrote."""
    if code == -signal.SIGKILL:
        return "(SIGKILL), most likely for want of memory"
    return f"({describe_exit(code)}): {log}"
