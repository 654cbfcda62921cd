"""The layers above the recipe's file: `--set a.b=value`, then named flags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from impruver_core.recipe.validation import REMOVED, describe_value
from impruver_core.recipe.yaml_document import Document, parse_text

SECRET = re.compile(r"(hub_token|api_key|password|secret)$")  # keys whose values no message repeats
ALSO = {"seed": ("trainer.seed",)}  # a named flag for the first sets the others too


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Puts each `a.b=value` in its place: the value is YAML, list items go by number, null removes."""
    for override in overrides:
        name, equals, text = override.partition("=")
        told = f"--set {name}=…" if SECRET.search(name) else f"--set {override}"
        path = split_path(name)
        if not equals or not all(part != "" for part in path):
            document.faults.append(f"{told}: expected KEY=VALUE, as in --set trainer.learning_rate=2e-4")
            continue
        parsed = Document(told)
        parse_text(text, parsed, place=lambda line, told=told: told, path=path)
        if parsed.faults:
            document.faults += parsed.faults
        else:
            document.locations.update(parsed.locations)
            set_value(document, path, REMOVED if parsed.data is None else parsed.data, told)


def apply_flags(document: Document, named: Sequence[tuple[str, Any, str]]) -> None:
    """Puts the values of named flags, given as (key path, value, flag)."""
    for name, value, flag in named:
        for target in (name, *ALSO.get(name, ())):
            set_value(document, split_path(target), value, flag)


def set_value(document: Document, path: tuple, value: Any, told: str) -> None:
    """Sets `value` at the key path; mappings that are not there yet are made, list items must exist or be the next."""
    if not isinstance(document.data, dict):
        document.data = {}
    at = document.data
    for depth, part in enumerate(path):
        document.locations.setdefault(path[: depth + 1], told)
        problem = _unusable(at, part)
        if problem:
            document.faults.append(f"{told}: {'.'.join(map(str, path[:depth]))}: {problem}")
            return
        if isinstance(at, list) and part == len(at):
            at.append(None)
        if depth + 1 == len(path):
            at[part] = value
            document.locations[path] = told
            return
        inner = at[part] if isinstance(at, list) else at.get(part)
        if inner is None or inner is REMOVED:
            inner = at[part] = [] if isinstance(path[depth + 1], int) else {}
        at = inner


def split_path(name: str) -> tuple:
    """`datasets.0.name` as its parts, numbers as such."""
    return tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))


def _unusable(at: Any, part: Any) -> str | None:
    if isinstance(at, dict):
        return None
    if not isinstance(at, list):
        return f"holds no keys, it is {describe_value(at)}"
    if not isinstance(part, int):
        return f"is a list; its items go by number, as in datasets.0.{part}"
    return f"has {len(at)} items, numbered from 0" if part > len(at) else None
