"""JSON whose objects have each key once: Python's own parser keeps the last of two and loses the other unsaid."""

import json
from typing import Any


class RepeatedKeyError(ValueError):
    """An object of a JSON text has a key twice; `key` is its name."""

    def __init__(self, key: str):
        super().__init__(f"the key {json.dumps(key, ensure_ascii=False)} occurs twice in one object")
        self.key = key


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        seen = set()
        raise RepeatedKeyError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return built


_DECODER = json.JSONDecoder(object_pairs_hook=_build_object)


def parse_unique_json(text: str) -> Any:
    """Parses a JSON text as `json.loads`, at the same speed; RepeatedKeyError for a key that an object has twice."""
    return _DECODER.decode(text)
