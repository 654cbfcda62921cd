"""The names that a misspelt one is nearest to."""

import difflib
from collections.abc import Iterable
from typing import Any


def find_similar(name: Any, valid: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to `count` of the `valid` names like `name`, nearest first; case counts nothing, a dash is an underscore."""
    folded: dict[str, str] = {}
    for each in valid:
        folded.setdefault(_fold(each), each)
    return [folded[match] for match in difflib.get_close_matches(_fold(name), folded, count, cutoff)]


def suggest(
    name: Any, valid: Iterable[str], *, cutoff: float = 0.6, form: str = "; did you mean {}?", list_valid: bool = True
) -> str:
    """`form` with the valid name nearest to a misspelt one, else (`list_valid`) the valid names, else nothing."""
    valid = list(valid)
    for similar in find_similar(name, valid, 1, cutoff):
        return form.format(similar)
    return f" (valid: {', '.join(valid)})" if list_valid and 0 < len(valid) <= 20 else ""


def _fold(name: Any) -> str:
    return str(name).lower().replace("-", "_")
