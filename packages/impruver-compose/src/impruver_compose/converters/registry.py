"""Converters: `(row, mapping) -> messages, several conversations, or None`. Found by name, dotted path or columns."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import NamedTuple

from impruver_core.dynamic_import import load_object
from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

from impruver_compose.converters import builtin


class BuiltinConverter(NamedTuple):
    """A built-in converter, and what it reads through its mapping: fields that it must have, and further ones."""

    function: Callable
    needed: tuple[str, ...] = ()
    further: tuple[str, ...] = ()


BUILTIN = {
    f"impruver.{each.function.__name__}": each
    for each in (
        BuiltinConverter(builtin.instruction_to_messages, ("instruction", "output"), ("input", "system")),
        BuiltinConverter(builtin.dialog_to_messages, ("messages",)),
        BuiltinConverter(builtin.conversations_to_messages, ("conversations",), ("system",)),
        BuiltinConverter(builtin.char_dialog_to_messages),
        BuiltinConverter(builtin.reasoning_to_messages, ("instruction", "reasoning", "output"), ("input", "system")),
        BuiltinConverter(builtin.messages, ("messages",)),
        BuiltinConverter(builtin.text, ("text",)),
    )
}


QUESTIONS = ("instruction", "prompt", "question")


ANSWERS = ("output", "response", "completion", "answer")


def find_converter(section, columns: Sequence[str], sample: dict, where: str, recipe_dir: Path):
    """(name, converter, mapping) of a data set: the recipe's, else the one that its columns tell."""
    if section.converter is None:
        name, mapping = detect_converter(columns, sample, section.mapping, where)
    else:
        name, mapping = section.converter, section.mapping
    dotted = "." in name and all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")
    if name not in BUILTIN and (name.startswith("impruver.") or not dotted):
        raise ImpruverError(
            f"{where}.converter: {name} is neither built in ({', '.join(BUILTIN)}) nor a function of yours, as in "
            "mine.convert: convert of mine.py beside the recipe"
        )
    _check_mapping(name, mapping, columns, where)
    if name in BUILTIN:
        return name, BUILTIN[name].function, mapping
    return name, _adapt_signature(load_object(name, f"{where}.converter", recipe_dir), name, where), mapping


def _check_mapping(name: str, mapping: dict, columns: Sequence[str], where: str) -> None:
    """Every field is the converter's own, stands on a column, and none that it must have is missing."""
    _, needed, further = BUILTIN.get(name, (None, (), tuple(mapping)))
    for field in mapping:
        if field not in (*needed, *further):
            raise ImpruverError(f"{where}.mapping: {name} has no field {field}{suggest(field, (*needed, *further))}")
    wanted = {field: field for field in needed} | mapping
    missing = [f"{field}: {column}" for field, column in wanted.items() if column not in ("_", *columns)]
    if missing:
        raise ImpruverError(f"{where}.mapping: no such column ({', '.join(missing)}); there are {', '.join(columns)}")


def _adapt_signature(function: Callable, name: str, where: str) -> Callable:
    """`function(row, mapping)`, for functions of the row alone, too, as the first impruver called them."""
    if not callable(function):
        raise ImpruverError(f"{where}.converter: {name} is no function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C may tell nothing
        parameters = ()
    if any(parameter.name == "mapping" for parameter in parameters):
        return wraps(function)(lambda row, mapping: function(row, mapping=mapping))
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return function if len(positional) > 1 else wraps(function)(lambda row, mapping: function(row))


def detect_converter(columns: Sequence[str], sample: dict, mapping: dict, where: str) -> tuple[str, dict]:
    """The built-in converter that fits the columns, and the mapping it needs; ImpruverError where none does."""
    has = set(columns) | set(mapping)
    if "messages" in has:
        grouped = isinstance(sample.get(mapping.get("messages", "messages")), dict)
        return ("impruver.dialog_to_messages" if grouped else "impruver.messages"), mapping
    if "conversations" in has:
        return "impruver.conversations_to_messages", mapping
    if {"dialogues", "name", "context"} <= has:
        return "impruver.char_dialog_to_messages", mapping
    question = next((name for name in QUESTIONS if name in has), None)
    answer = next((name for name in ANSWERS if name in has), None)
    if question and answer:
        name = "reasoning" if "reasoning" in has else "instruction"
        found = {"instruction": question, "output": answer} | mapping
        if "system" in columns:
            found = {"system": "system"} | found
        return f"impruver.{name}_to_messages", found
    if "text" in has:
        return "impruver.text", mapping
    raise ImpruverError(
        f"{where}: no converter fits the columns {', '.join(columns)}: set converter, or "
        "mapping: {instruction: COLUMN, output: COLUMN}"
    )
