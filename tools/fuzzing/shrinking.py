"""Makes a failing example smaller for a while: fewer files, fewer lines, fewer bytes."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from fuzzing.example import Example

LARGEST = 200_000  # bytes of a file that is worth it


def shrink(example: Example, fails: Callable[[Example], bool], deadline: float) -> Example:
    """The smallest example that was found until `deadline` (time.monotonic) and fails likewise."""
    changed = True
    while changed:
        changed = False
        for smaller in list_smaller(example):
            if time.monotonic() > deadline:
                return example
            if fails(smaller):
                example, changed = smaller, True
                break
    return example


def list_smaller(example: Example) -> Iterator[Example]:
    """Examples with something left out, much first."""
    for name in example.files:
        yield replace(example, files={other: content for other, content in example.files.items() if other != name})
    for name, content in example.files.items():
        if isinstance(content, bytes) and 1 < len(content) < LARGEST:
            for part in list_smaller_bytes(content):
                yield replace(example, files=example.files | {name: part})


def list_smaller_bytes(content: bytes) -> Iterator[bytes]:
    """The bytes with pieces left out, halves first; of JSON, with items left out."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, (dict, list)):
        yield from (json.dumps(each).encode() for each in list_smaller_values(value))
    size = len(content)
    while size > 1:
        size = (size + 1) // 2
        for begin in range(0, len(content), size):
            yield content[:begin] + content[begin + size :]


def list_smaller_values(value: dict | list, depth: int = 4) -> Iterator[dict | list]:
    """The value less one item, then with one item less something."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        if isinstance(value, dict):
            yield {name: item for name, item in value.items() if name != key}
        else:
            yield value[:key] + value[key + 1 :]
    for key in keys:
        if depth and isinstance(value[key], (dict, list)):
            for item in list_smaller_values(value[key], depth - 1):
                yield {**value, key: item} if isinstance(value, dict) else [*value[:key], item, *value[key + 1 :]]
