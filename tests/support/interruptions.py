"""Runs that are stopped amid putting their outputs in place."""

import os
import signal

import pytest

# For programs that tests write: `at` and `dying`, which makes a function that ends the process at its call number `at`.
DYING = """
done = 0

def dying(call):
    def counted(*args, **kwargs):
        global done
        if done == at:
            os._exit(9)
        done += 1
        return call(*args, **kwargs)
    return counted
"""


def stop_behind_train(patch: pytest.MonkeyPatch) -> None:
    """Has this process get SIGTERM once train.jsonl has its name."""
    rename = os.replace

    def replace(now, then):
        rename(now, then)
        if str(then).endswith("train.jsonl"):
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(os, "replace", replace)
