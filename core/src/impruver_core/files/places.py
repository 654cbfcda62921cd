"""Where things that can be made again are kept."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder of what can be made again: $IMPRUVER_CACHE, else ~/.cache/impruver."""
    return Path(os.environ.get("IMPRUVER_CACHE") or Path.home() / ".cache" / "impruver").expanduser()
