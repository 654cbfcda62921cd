""" "did you mean" for a mistyped name. New leaf."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


def suggest(name: Any, valid: Iterable[str]) -> str:
    """ "; did you mean …?" for a misspelt name, else the valid names, else nothing."""
    valid = list(valid)
    close = difflib.get_close_matches(str(name).lower().replace("-", "_"), valid, 1, 0.6)
    if close:
        return f"; did you mean {close[0]}?"
    return f" (valid: {', '.join(valid)})" if 0 < len(valid) <= 20 else ""
