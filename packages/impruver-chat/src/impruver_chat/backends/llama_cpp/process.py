"""llama.cpp in a process of its own: start it, ask it, end it; what ends it against our will becomes one message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.worker_process import NO_BACKTRACE, describe_exit, get_error_reason

from impruver_chat.backends.base import BackendEndedError

COMMAND = [sys.executable, "-P", "-m", "impruver_chat.backends.llama_cpp.worker"]
EXIT_SECONDS = 10  # that a process may take to end after its last word


class LlamaCppProcess:
    """A process that answers requests about the GGUF file at `path`, see `worker.Worker`, one after another.

    Ctrl+C at any moment leaves it usable: a reply that nobody waited for is known by its number, and left out.
    """

    def __init__(self, path: Path):
        self._number, self._doing = 0, f"loaded {path}"
        self._replies: dict[int, bytes] = {}  # that came before they were asked for
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            COMMAND,
            env=NO_BACKTRACE | os.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            process_group=0,  # Ctrl+C, which stops an answer, is not for it
        )
        self.pid = self._process.pid

    def request(self, name: str, *arguments: Any) -> Any:
        """Send a request and receive its reply."""
        return self.receive(self.send(name, *arguments))

    def send(self, name: str, *arguments: Any) -> int:
        """Send a request; its number, by which `receive` knows the reply."""
        self._number += 1
        if name != "load":
            self._doing = "answered"
        if name.startswith("start_"):
            self._replies.clear()  # nobody waits for those any more
        request = json.dumps([self._number, name, *arguments])
        try:
            # The first line break ends a request that Ctrl+C has cut off.
            self._process.stdin.write(f"\n{request}\n".encode())
            self._process.stdin.flush()
        except OSError:  # it has ended
            raise self._build_error() from None
        return self._number

    def receive(self, number: int) -> Any:
        """Wait for the reply to a request; ImpruverError with its error, BackendEndedError where the process ends."""
        while number not in self._replies:
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise self._build_error()
            found, _, reply = line.partition(b" ")
            if found.isdigit():  # else Ctrl+C had taken its beginning away
                self._replies[int(found)] = reply
        result, error, code = json.loads(self._replies.pop(number))
        if error is not None:
            raise (CheckFailedError if code == CheckFailedError.exit_code else ImpruverError)(error)
        return result

    def close(self) -> None:
        """End the process at once: it holds nothing that is to be kept."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            with suppress(OSError):  # a request that was not sent
                stream.close()

    def _build_error(self) -> BackendEndedError:
        """Why the process has ended: its signal or exit code, and the reason in what it printed."""
        try:
            code = self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        reason = get_error_reason(self._log.read().decode("utf-8", "replace"), default="")
        message = f"--gguf: llama.cpp ended with {describe_exit(code)} as it {self._doing}"
        if code == -signal.SIGKILL:
            message += ", most likely for want of memory"
        return BackendEndedError(f"{message}: {reason}" if reason else message)
