"""The commands, in this process (which saves their imports) or as processes of their own."""

import os
import subprocess
import sys
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
        check=False,
        **{"text": True} | options,
    )
