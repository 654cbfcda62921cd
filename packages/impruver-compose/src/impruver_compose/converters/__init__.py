"""Converters: `(row, mapping) -> messages, several conversations, or None`. Found by name, dotted path or columns."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.objects import load_object

from impruver_compose.converters import builtin

BUILTIN = {
    "impruver.instruction_to_messages": builtin.instruction_to_messages,
    "impruver.dialog_to_messages": builtin.dialog_to_messages,
    "impruver.conversations_to_messages": builtin.conversations_to_messages,
    "impruver.char_dialog_to_messages": builtin.char_dialog_to_messages,
    "impruver.reasoning_to_messages": builtin.reasoning_to_messages,
    "impruver.messages": builtin.messages,
    "impruver.text": builtin.text,
}
QUESTIONS = ("instruction", "prompt", "question")
ANSWERS = ("output", "response", "completion", "answer")


def find_converter(section, columns: Sequence[str], sample: dict, where: str, recipe_dir: Path):
    """(name, converter, mapping) of a data set: the recipe's, else the one that its columns tell."""
    if section.converter is None:
        name, mapping = detect(columns, sample, section.mapping, where)
    else:
        name, mapping = section.converter, section.mapping
    missing = [f"{field}: {column}" for field, column in mapping.items() if column != "_" and column not in columns]
    if missing:
        raise ImpruverError(f"{where}.mapping: no such column ({', '.join(missing)}); there are {', '.join(columns)}")
    if name in BUILTIN:
        return name, BUILTIN[name], mapping
    if name.startswith("impruver."):
        raise ImpruverError(f"{where}.converter: {name} is not built in; there are {', '.join(BUILTIN)}")
    return name, _two_arguments(load_object(name, f"{where}.converter", recipe_dir), name, where), mapping


def _two_arguments(function: Callable, name: str, where: str) -> Callable:
    """`function(row, mapping)`, for functions of the row alone, too, as the first impruver called them."""
    if not callable(function):
        raise ImpruverError(f"{where}.converter: {name} is no function")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return lambda row, mapping: function(row)
    if any(parameter.name == "mapping" for parameter in parameters):
        return lambda row, mapping: function(row, mapping=mapping)
    positional = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]
    return function if len(positional) > 1 else lambda row, mapping: function(row)


def detect(columns: Sequence[str], sample: dict, mapping: dict, where: str) -> tuple[str, dict]:
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
        f"{where}: no converter fits the columns {', '.join(columns)}: set converter, or mapping (instruction, output)"
    )
