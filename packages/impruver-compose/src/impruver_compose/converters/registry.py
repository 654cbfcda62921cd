"""Find a data set's converter by name, dotted path or columns: a function `(row, mapping)`."""

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import NamedTuple

from impruver_core.dynamic_import import load_object
from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

from impruver_compose.converters import builtin
from impruver_compose.sections import DatasetSection


class BuiltinConverter(NamedTuple):
    """A built-in converter with the fields that it reads through its mapping: those it must have, and others."""

    function: Callable
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


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


class DatasetConverter(NamedTuple):
    """The converter of a data set, and the mapping that it gets with each row."""

    name: str
    function: Callable
    mapping: dict[str, str]


def find_converter(
    section: DatasetSection, columns: Sequence[str], sample: dict, where: str, recipe_dir: Path
) -> DatasetConverter:
    """Finds the converter that a section names, else the built-in one that fits the columns and the row `sample`."""
    name, mapping = section.converter, section.mapping
    if name is None:
        name, mapping = detect_converter(columns, sample, mapping, where)
    dotted = "." in name and all(part.isidentifier() for part in name.split(".")) and not name.endswith(".py")
    if name not in BUILTIN and (name.startswith("impruver.") or not dotted):
        raise ImpruverError(
            f"{where}.converter: {name} is neither built in ({', '.join(BUILTIN)}) nor a function of yours, as in "
            "mine.convert: convert of mine.py beside the recipe"
        )
    _check_mapping(name, mapping, columns, where)
    if name in BUILTIN:
        return DatasetConverter(name, BUILTIN[name].function, mapping)
    function = load_object(name, f"{where}.converter", recipe_dir)
    return DatasetConverter(name, _adapt_signature(function, name, where), mapping)


def _check_mapping(name: str, mapping: dict, columns: Sequence[str], where: str) -> None:
    """ImpruverError for a field that the converter does not have, a required one that is missing, an absent column."""
    _, required, optional = BUILTIN.get(name, (None, (), tuple(mapping)))
    for field in mapping:
        if field not in (*required, *optional):
            raise ImpruverError(f"{where}.mapping: {name} has no field {field}{suggest(field, (*required, *optional))}")
    wanted = {field: field for field in required} | mapping
    missing = [f"{field}: {column}" for field, column in wanted.items() if column not in ("_", *columns)]
    if missing:
        raise ImpruverError(f"{where}.mapping: no such column ({', '.join(missing)}); there are {', '.join(columns)}")


def _adapt_signature(function: Callable, name: str, where: str) -> Callable:
    """Makes a user's function one of (row, mapping): it may also take the row alone, as in the first impruver."""
    if not callable(function):
        raise ImpruverError(f"{where}.converter: {name} is no function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function written in C may have none
        parameters = ()
    if any(parameter.name == "mapping" for parameter in parameters):
        return wraps(function)(lambda row, mapping: function(row, mapping=mapping))
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return function if len(positional) > 1 else wraps(function)(lambda row, mapping: function(row))


def detect_converter(columns: Sequence[str], sample: dict, mapping: dict, where: str) -> tuple[str, dict]:
    """Detects the built-in converter that fits the columns; its name, and the mapping that it needs."""
    available = set(columns) | set(mapping)
    if "messages" in available:
        grouped = isinstance(sample.get(mapping.get("messages", "messages")), dict)
        return ("impruver.dialog_to_messages" if grouped else "impruver.messages"), mapping
    if "conversations" in available:
        return "impruver.conversations_to_messages", mapping
    if {"dialogues", "name", "context"} <= available:
        return "impruver.char_dialog_to_messages", mapping
    question = next((name for name in QUESTIONS if name in available), None)
    answer = next((name for name in ANSWERS if name in available), None)
    if question and answer:
        name = "reasoning" if "reasoning" in available else "instruction"
        system = {"system": "system"} if "system" in columns else {}
        return f"impruver.{name}_to_messages", {**system, "instruction": question, "output": answer} | mapping
    if "text" in available:
        return "impruver.text", mapping
    raise ImpruverError(
        f"{where}: no converter fits the columns {', '.join(columns)}: set converter, or "
        "mapping: {instruction: COLUMN, output: COLUMN}"
    )
