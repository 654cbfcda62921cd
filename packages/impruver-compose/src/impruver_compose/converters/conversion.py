"""Find a data set's converter by name, dotted path or columns; run it on a row, and check what it returns."""

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.dynamic_import import load_object
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.jsonl import format_row
from impruver_core.suggestions import suggest

from impruver_compose.converters import builtin
from impruver_compose.sections import DatasetSection


class Conversation(NamedTuple):
    """A part of a row, converted: messages with tools and template arguments, or a text; `as_json` is `to_row`'s."""

    messages: list[dict] | None
    text: str | None
    tools: list[dict] | None
    chat_template_kwargs: dict | None
    as_json: bytes = b""

    def to_row(self) -> dict:
        """Builds the columns that a row of val.jsonl has besides its tokens."""
        return {name: value for name, value in zip(self._fields[:4], self, strict=False) if value is not None}


def convert_row(row: dict, converter: Callable, mapping: dict) -> Iterator[Conversation]:
    """Converts a row to its conversations, none if it is skipped; RefusedError (`converter_failed`, `bad_row`)."""
    tools = _wrap_tools(_parse_field(row, "tools", list))
    kwargs = _parse_field(row, "chat_template_kwargs", dict)
    try:
        converted = converter(row, dict(mapping))
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        name = getattr(converter, "__name__", "converter")
        detail = f"{name}: {type(error).__name__}: {error}"
        raise RefusedError("converter_failed", detail.encode(errors="replace").decode()) from None
    if converted is None:
        return
    if isinstance(converted, str):
        yield _serialize(Conversation(None, converted, None, None))
        return
    if not isinstance(converted, (list, tuple)):
        raise RefusedError("bad_row", f"the converter gave {type(converted).__name__}, not a list of messages")
    several = bool(converted) and all(isinstance(item, (list, tuple)) for item in converted)
    for messages in converted if several else [converted]:
        yield _serialize(Conversation([_remove_nulls(message) for message in messages], None, tools, kwargs))


def _serialize(conversation: Conversation) -> Conversation:
    """Sets `as_json`; RefusedError for what is no JSON in UTF-8: a user's function may return anything."""
    try:
        _check_keys(conversation.messages)
        return conversation._replace(as_json=format_row(conversation.to_row()).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedError("bad_row", f"what the converter gave is no JSON: {error}") from None


def _check_keys(value: Any) -> None:
    """TypeError for a key that is no text: JSON would make it one, unlike what the template sees."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text")
            _check_keys(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_keys(item)


def _remove_nulls(message: Any) -> Any:
    """Removes a message's nulls: tables have them for columns that only other rows use."""
    if isinstance(message, dict):
        return {key: value for key, value in message.items() if value is not None or key == "content"}
    return message


def _parse_field(row: dict, name: str, kind: type) -> Any:
    """Parses a field of the row, which may be JSON text, as a list or an object; None if it is absent or empty."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError):  # nested too deep
            raise RefusedError("bad_row", f"{name} is not JSON") from None
    if value is not None and not isinstance(value, kind):
        raise RefusedError("bad_row", f"{name} is no {'list' if kind is list else 'object'}")
    return value or None


def _wrap_tools(tools: list | None) -> list[dict] | None:
    """Wraps tools as templates read them: {"type": "function", "function": {…}}."""
    if tools is None:
        return None
    return [
        {"type": "function", "function": tool}
        if isinstance(tool, dict) and "function" not in tool and "name" in tool
        else tool
        for tool in tools
    ]


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
