"""The real chat model, out of a package, once for all workers; and the real commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder; the tool is safe to run in several workers at once."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "SmolLM2-135M-Instruct"
    subprocess.run([sys.executable, ROOT / "tools" / "unpack_smollm2.py", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def run(tmp_path):
    """Runs a command of this environment in tmp_path; its CompletedProcess."""

    def run(*command: str, timeout: float = 600) -> subprocess.CompletedProcess:
        program = Path(sys.executable).with_name(command[0])
        environment = os.environ | {"IMPRUVER_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path / "home")}
        return subprocess.run(
            [program, *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout
        )

    return run
