"""Reads JSON files and checks what their keys hold; messages name file and key."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import check_ordinary_file


@dataclass(frozen=True)
class JsonType:
    """A kind of value: its words for messages, and the check whether a value is one."""

    words: str
    holds: Callable[[Any], bool]


Keys = Mapping[str, "JsonType | Keys"]
TYPE_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
TYPE_WORDS |= {list: "a list", dict: "a mapping"}


def describe_type(kind: type) -> str:
    """A type of Python's in the words of messages about values; the class itself where it is none of JSON's."""
    return TYPE_WORDS.get(kind, str(kind))


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


COUNT = JsonType("a whole number from 1", lambda value: type(value) is int and 0 < value < 1 << 31)
INDEX = JsonType("a whole number from 0", lambda value: type(value) is int and 0 <= value < 1 << 31)
WHOLE = JsonType(describe_type(int), lambda value: type(value) is int and abs(value) < 1 << 31)
NUMBER = JsonType(describe_type(float), lambda value: type(value) in (int, float) and abs(value) < 1e38)
POSITIVE = JsonType("a number above 0", lambda value: NUMBER.holds(value) and value > 0)
FLAG = JsonType(describe_type(bool), lambda value: isinstance(value, bool))
TEXT = JsonType("a text", lambda value: isinstance(value, str))
OBJECT = JsonType("an object", lambda value: isinstance(value, dict))
PATTERN = JsonType("a text that is a regular expression", lambda value: isinstance(value, str) and _is_pattern(value))


def list_of(kind: JsonType) -> JsonType:
    """A list whose items are all of a kind."""
    return JsonType(f"a list, each item {kind.words}", lambda v: isinstance(v, list) and all(map(kind.holds, v)))


def by_name(name: JsonType, kind: JsonType) -> JsonType:
    """An object of free names."""
    return JsonType(
        f"an object, each name {name.words}, each value {kind.words}",
        lambda value: isinstance(value, dict) and all(map(name.holds, value)) and all(map(kind.holds, value.values())),
    )


def either(*kinds: JsonType) -> JsonType:
    """Any of several kinds."""
    return JsonType(" or ".join(kind.words for kind in kinds), lambda value: any(kind.holds(value) for kind in kinds))


def read_text(path: Path) -> str:
    """The text in a file that must be there."""
    try:
        check_ordinary_file(path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ImpruverError(f"{path} is not there") from None
    except UnicodeDecodeError as error:
        raise ImpruverError(f"{path}: not UTF-8 (byte {error.start + 1}); copy or download it again") from None


def read_json(path: Path, keys: Keys | None = None, *, missing_ok: bool = False) -> dict[str, Any]:
    """The JSON object in a file, its keys as `keys` says; of a file that is not there {} if `missing_ok`."""
    if missing_ok and not path.exists():
        return {}
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImpruverError(f"{path}: not JSON: {error}; mend it, or copy it again") from None
    if not isinstance(content, dict):
        raise ImpruverError(f"{path}: holds a {type(content).__name__}, not a JSON object; copy it again")
    check_keys(content, keys or {}, path)
    return content


def check_keys(content: Mapping[str, Any], keys: Keys, path: Path | str, within: str = "") -> None:
    """ImpruverError for a key of the file at `path` whose value is of another kind; null is as good as left out."""
    for key, kind in keys.items():
        value = content.get(key)
        if value is None:
            continue
        nested = not isinstance(kind, JsonType)
        wanted = OBJECT if nested else kind
        if not wanted.holds(value):
            raise ImpruverError(f"{path}: {within}{key} must be {wanted.words}, not {_format_value(value)}")
        if nested:
            check_keys(value, kind, path, f"{within}{key}.")


def _format_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:80]}…"
