"""Keep torch out of the process: importing it would cost each worker 600 MB and seconds, for nothing."""

import gc
import os
import sys


def hide_torch() -> None:
    """Lets imports find no torch from now on; the libraries then do without it."""
    sys.modules.setdefault("torch", None)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # transformers would tell that it is missing


def import_libraries() -> None:
    """Imports what composing needs; afterwards a user's own code may import torch."""
    import datasets  # noqa: F401
    import datasketch  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    if sys.modules.get("torch", True) is None:
        del sys.modules["torch"]
    gc.freeze()  # what was imported stays: no collection need look at it
