"""Keeps torch out of a process that composes: importing it would cost each 600 MB and seconds, for nothing."""

import os
import sys


def hide_torch() -> None:
    """From now on imports find no torch, as where compose alone is installed; the libraries then go without."""
    sys.modules.setdefault("torch", None)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # transformers would tell that it is missing


def import_libraries() -> None:
    """Imports what composing needs; after that a user's own code may import torch."""
    import datasets  # noqa: F401
    import datasketch  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    if sys.modules.get("torch", True) is None:
        del sys.modules["torch"]
