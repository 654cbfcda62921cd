"""Where things that can be made again are kept."""

import os
from pathlib import Path

from impruver_core.errors import ImpruverError


def cache_dir() -> Path:
    """The folder of what can be made again: $IMPRUVER_CACHE, else ~/.cache/impruver; ImpruverError without a home."""
    given = os.environ.get("IMPRUVER_CACHE") or "~/.cache/impruver"
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise ImpruverError(f"{given}: there is no such home folder; set IMPRUVER_CACHE to a folder") from None
