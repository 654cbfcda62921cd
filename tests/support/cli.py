"""The commands, in this process (which saves their imports) or as processes of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest


class Finished(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


def run_in_process(main: Callable[[list[str]], int], words, capture: pytest.CaptureFixture[str]) -> Finished:
    """Runs a command's own main; what was written before is none of its output."""
    capture.readouterr()
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    return Finished(code, *capture.readouterr())


def script(name: str) -> Path:
    """A console script of this environment."""
    return Path(sys.executable).with_name(name)


def run_as_process(
    *words: object, environment: Mapping[str, str] | None = None, timeout: float = 300, **options
) -> subprocess.CompletedProcess:
    """Runs a command with variables added to this process's; its CompletedProcess, of texts unless text=False."""
    return subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        env=os.environ | (environment or {}),
        timeout=timeout,
        **{"text": True, "check": False} | options,
    )


def run_python(code: str, *words: object, **options) -> subprocess.CompletedProcess:
    """Runs a program with this Python, as `run_as_process` does."""
    return run_as_process(sys.executable, "-c", code, *words, **options)


def run_watching_imports(module: str, heavy: set[str], *flags: object) -> tuple[str, str]:
    """Runs `module`'s main in a fresh Python; what is left of `heavy` in sys.modules with the exit code, and stderr."""
    code = (
        f"import sys; from {module} import main\n"
        "try: ended = main(sys.argv[1:])\n"
        "except SystemExit as stop: ended = stop.code\n"
        f"print(sorted({heavy} & set(sys.modules)), ended)"
    )
    done = run_python(code, *flags)
    return done.stdout.splitlines()[-1], done.stderr


def wait_for(done: Callable[[], object], process: subprocess.Popen, seconds: float = 120) -> None:
    """Waits until `done()` is true while a process runs."""
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_content(path: Path | str) -> bool:
    """Whether a file is there and holds something."""
    return os.path.exists(path) and os.path.getsize(path) > 0


def is_ended(pid: int, seconds: float = 10) -> bool:
    """Whether a process that may be nobody's child ends within some seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False
