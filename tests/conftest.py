"""For all tests: no hub, nothing left in the home folder, one thread for each of xdist's workers."""

import os
import signal
import sys

import pytest

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


@pytest.fixture(autouse=True)
def not_quiet():
    """A command that was run in this process with --quiet leaves it quiet: the next test's would say nothing."""
    console = sys.modules.get("impruver_core.cli.console")
    if console is not None:
        console.set_quiet(False)
