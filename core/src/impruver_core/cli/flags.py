"""Flags of a tool: the fields of one flat dataclass, which parser.py turns into a command line.

    @dataclass
    class Flags(CommonFlags):
        train_path: Optional[str] = from_recipe("train_path")        # not given: None; goes into the recipe
        show: int = flag(int, 0, help="print this many rows")        # the tool's own, never in the recipe

`flag` and `from_recipe` always set `type`: argparse-dataclass' own inference fails silently on Optional and Literal.
"""

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass
from typing import Any

from impruver_core.io.json_schema import describe_type
from impruver_core.recipe.registry import find_key
from impruver_core.recipe.schema import OLD_BOOLEANS


def flag(type: Any, default: Any, *, choices: Collection | None = None, nargs: Any = None, help: str) -> Any:
    """A flag of the tool's own. `nargs` as argparse has it; a list as default is copied."""
    shown = "" if default is None or default is MISSING or default == [] else f" (default: {_shown(default)})"
    metadata = {"type": _converter(type), "choices": choices, "nargs": nargs, "help": escape_help(help + shown)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def from_recipe(path: str, help: str | None = None, *, type: Any = None, nargs: Any = None) -> Any:
    """A flag for a key of the recipe: type, help and shown default are its section's; not given it is None.

    Keys inside an open mapping (`trainer.report_to`) are declared nowhere: give `help`, and `type` unless it is text.
    `nargs` makes a list of several words, each of `type`.
    """
    declared = find_key(path)
    default = "" if declared.default is None else f", else {_shown(declared.default)}"
    metadata = {
        "path": path,
        "type": _converter(type or _bare(declared.type)),
        "choices": declared.choices,
        "nargs": nargs,
        "help": escape_help(f"{help or declared.help} (default: the recipe's {path}{default})"),
    }
    return dataclasses.field(default=None, metadata=metadata)


def list_recipe_flags(flags: Any) -> list[tuple[str, Any, str]]:
    """What the given flags put into the recipe: (key path, value, flag) for each `from_recipe` field that is set."""
    return [
        (field.metadata["path"], getattr(flags, field.name), f"--{field.name}")
        for field in dataclasses.fields(flags)
        if "path" in field.metadata and getattr(flags, field.name) is not None
    ]


def parse_boolean(text: str) -> bool:
    """`true` or `false`, in any of YAML's words."""
    try:
        return OLD_BOOLEANS[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}") from None


def _mapping(text: str) -> Any:
    """A list or mapping, given as YAML."""
    from impruver_core.recipe.yaml_document import Document, parse_text

    document = Document("")
    parse_text(text, document)
    if document.faults:
        raise argparse.ArgumentTypeError(f"expected YAML, got {text!r}")
    return document.data


def _bare(hint: Any) -> Any:
    """`int | None` as int; text where a key is declared nowhere."""
    arms = [arm for arm in typing.get_args(hint) if arm is not types.NoneType]
    return str if hint is None else arms[0] if typing.get_origin(hint) in (typing.Union, types.UnionType) else hint


def _converter(type: Any) -> Any:
    base = typing.get_origin(type) or type
    return {bool: parse_boolean, list: _mapping, dict: _mapping, int: _number(int), float: _number(float)}.get(
        base, type
    )


def _number(kind: Callable) -> Callable:
    def number(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {describe_type(kind)}, got {text!r}") from None

    return number


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def escape_help(help: str) -> str:
    """Help text as argparse takes it: a bare % would break --help."""
    return help.replace("%", "%%")


@dataclass
class CommonFlags:
    """Flags that every tool has; --set, --version and --help are the Parser's."""

    config: str | None = flag(str, None, help="recipe: a YAML file, or a name that `impruver ls` lists")
    dry_run: bool = flag(bool, False, help="check everything that needs no weights, count and estimate, write nothing")
    overwrite: bool = flag(bool, False, help="start anew: replace outputs that this tool would refuse to replace")
    quiet: bool = flag(bool, False, help="results, warnings and errors only")
