"""For all tests: no hub, nothing left in the home folder, one thread for each of xdist's workers."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def wandb_cache(tmp_path_factory):
    """wandb keeps logs and a cache of its own."""
    os.environ["WANDB_CACHE_DIR"] = str(tmp_path_factory.mktemp("wandb"))
