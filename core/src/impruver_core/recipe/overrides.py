"""What goes over the recipe's file: `--set a.b=value`, then named flags."""

import re
from collections.abc import Sequence
from typing import Any

from impruver_core.recipe.schema import RecipeFlag
from impruver_core.recipe.validation import REMOVED, describe_value
from impruver_core.recipe.yaml_document import Document, parse_text

SECRET = re.compile(r"(hub_token|api_key|password|secret)$")  # keys whose values no message repeats
ALSO = {"seed": ("trainer.seed",)}  # a named flag for the first sets the others, too


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Sets each `a.b=value` in the document: the value is YAML, list items go by number, null removes."""
    for override in overrides:
        name, equals, text = override.partition("=")
        source = f"--set {name}=…" if SECRET.search(name) else f"--set {override}"
        path = split_path(name)
        if not equals or not all(part != "" for part in path):
            document.faults.append(f"{source}: expected KEY=VALUE, as in --set trainer.learning_rate=2e-4")
            continue
        parsed = Document(source)
        parse_text(text, parsed, place=lambda line, source=source: source, path=path)
        if parsed.faults:
            document.faults += parsed.faults
        else:
            document.locations.update(parsed.locations)
            set_value(document, path, REMOVED if parsed.data is None else parsed.data, source)


def apply_flags(document: Document, flags: Sequence[RecipeFlag]) -> None:
    """Sets the values of named flags in the document."""
    for key_path, value, flag in flags:
        for target in (key_path, *ALSO.get(key_path, ())):
            set_value(document, split_path(target), value, flag)


def set_value(document: Document, path: tuple, value: Any, source: str) -> None:
    """Sets `value` at a key path; mappings that are missing are made, list items must exist or be the next.

    `source` names the override in messages.
    """
    if not isinstance(document.data, dict):
        document.data = {}
    target = document.data
    for depth, part in enumerate(path):
        document.locations.setdefault(path[: depth + 1], source)
        problem = _find_problem(target, part)
        if problem:
            document.faults.append(f"{source}: {'.'.join(map(str, path[:depth]))}: {problem}")
            return
        if isinstance(target, list) and part == len(target):
            target.append(None)
        if depth + 1 == len(path):
            target[part] = value
            document.locations[path] = source
            return
        inner = target[part] if isinstance(target, list) else target.get(part)
        if inner is None or inner is REMOVED:
            inner = target[part] = [] if isinstance(path[depth + 1], int) else {}
        target = inner


def split_path(name: str) -> tuple:
    """`datasets.0.name` as its parts, numbers as such."""
    return tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))


def _find_problem(target: Any, part: Any) -> str | None:
    """Why `part` of a key path can't be set in what stands above it; None where it can."""
    if isinstance(target, dict):
        return None
    if not isinstance(target, list):
        return f"holds no keys, it is {describe_value(target)}"
    if not isinstance(part, int):
        return f"is a list; its items go by number, as in datasets.0.{part}"
    return f"has {len(target)} items, numbered from 0" if part > len(target) else None
