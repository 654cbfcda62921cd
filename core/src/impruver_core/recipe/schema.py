"""How a tool declares its part of a recipe; validation.py checks recipes against it.

A tool's `sections.py` describes its part of the recipe:

    @dataclass(frozen=True)
    class SplitSection:
        val_ratio: float = key(0.05, "share of the conversations that goes to val_path")

    SECTIONS = {"split": SplitSection, "datasets": list_of(DatasetSection, "…"), "trainer": open_mapping("…")}

A key `class` is the field `class_`. A field may be str, int, float, bool, list, list[T], dict, dict[str, T], a
dataclass, a union of these, or Any. `null` in a recipe means "not given". A section's
`__post_init__` may raise ValueError("what is wrong"), or ValueError("what is wrong", "key") where one key alone is.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable
from dataclasses import MISSING, dataclass
from typing import Any, NamedTuple

REQUIRED = MISSING
OLD_BOOLEANS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}  # YAML 1.1's words


def key(default: Any, help: str, choices: Collection | None = None, *, local: bool = False) -> Any:
    """A field of a section. `REQUIRED` as default: it must be given. `local`: it may name a local file or folder."""
    metadata = {"help": help, "choices": choices, "local": local}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Scalar:
    """A top-level key that holds one value."""

    type: Any
    default: Any
    help: str
    choices: Collection | None = None


@dataclass(frozen=True)
class ListOf:
    """A top-level key that holds a list of sections; empty where it is not given."""

    section: type
    help: str = ""


@dataclass(frozen=True)
class OpenMapping:
    """A top-level key with any names; not given it is {} (None if `optional`).

    `check(mapping)` yields (key, what is wrong) for what its owner knows to be wrong; `names()` are those it knows.
    """

    help: str = ""
    optional: bool = False
    check: Callable[[dict], Iterable[tuple[str, str]]] | None = None
    names: Callable[[], Iterable[str]] = tuple


class RecipeFlag(NamedTuple):
    """A named flag that was given, and the key path of the recipe that it sets."""

    key_path: str
    value: Any
    flag: str


scalar, list_of, open_mapping = Scalar, ListOf, OpenMapping


def get_yaml_name(field: dataclasses.Field) -> str:
    """The key of a field: `class_` is `class` in a recipe."""
    return field.name.rstrip("_")


def list_keys(spec: Any) -> Iterable[str]:
    """The keys below a top-level key, as far as its owner knows them."""
    if isinstance(spec, OpenMapping):
        return spec.names()
    return () if isinstance(spec, Scalar) else get_fields(spec.section if isinstance(spec, ListOf) else spec)


def get_fields(section: type) -> dict[str, dataclasses.Field]:
    """The fields of a section by their keys."""
    return {get_yaml_name(field): field for field in dataclasses.fields(section)}
