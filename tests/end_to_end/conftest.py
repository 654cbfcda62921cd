"""The real commands."""

import subprocess

import pytest
from support.cli import run_as_process, script


@pytest.fixture
def run(tmp_path):
    """Runs a command of this environment in tmp_path; its CompletedProcess."""

    def run(*command: str, timeout: float = 600) -> subprocess.CompletedProcess:
        environment = {"IMPRUVER_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
        return run_as_process(script(command[0]), *command[1:], environment=environment, cwd=tmp_path, timeout=timeout)

    return run
