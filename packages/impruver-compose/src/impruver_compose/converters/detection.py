"""Find a data set's converter: by its name, by the dotted path of a user's function, or by the columns of its rows."""

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from pathlib import Path
from typing import NamedTuple

from impruver_core.dynamic_import import load_object
from impruver_core.errors import ImpruverError
from impruver_core.suggestions import suggest

from impruver_compose.converters import builtin
from impruver_compose.converters.columns import find_guard
from impruver_compose.field_usage import is_filled
from impruver_compose.sections import SourceSection


class BuiltinConverter(NamedTuple):
    """A built-in converter with the fields that it reads through its mapping: those it must have, and others."""

    function: Callable
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


BUILTIN = {
    f"impruver.{each.function.__name__}": each
    for each in (
        BuiltinConverter(builtin.instruction_to_messages, ("instruction", "output"), ("input", "history", "system")),
        BuiltinConverter(builtin.dialog_to_messages, ("messages",), ("system",)),
        BuiltinConverter(builtin.conversations_to_messages, ("conversations",), ("system",)),
        BuiltinConverter(builtin.char_dialog_to_messages),
        BuiltinConverter(
            builtin.reasoning_to_messages, ("instruction", "reasoning", "output"), ("input", "history", "system")
        ),
        BuiltinConverter(builtin.messages, ("messages",), ("system",)),
        BuiltinConverter(builtin.text, ("text",)),
    )
}
QUESTIONS = ("instruction", "prompt", "question")
ANSWERS = ("output", "response", "completion", "answer")
SYSTEMS = ("system", "system_prompt")
FIELDS = ("instruction", "input", "output", "reasoning", "history", "system")  # may be mapped to `_`, to be empty
TOLD_BY = {  # the columns that formats are told by
    *("messages", "conversations", "dialogues", "name", "context", "input", "text", "reasoning"),
    *(*QUESTIONS, *ANSWERS, *SYSTEMS),
}


class DatasetConverter(NamedTuple):
    """The converter of a data set, and the mapping that it gets with each row.

    `guarded`: columns that it does not read and that must not be passed over. `left_out`: columns that the recipe maps
    to `_`.
    """

    name: str
    function: Callable
    mapping: dict[str, str]
    guarded: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()

    @property
    def is_builtin(self) -> bool:
        """Whether it is one of ours, whose refusals have the ledger's reasons."""
        return self.name in BUILTIN


def find_converter(
    section: SourceSection, columns: Sequence[str], sample: dict, where: str, recipe_dir: Path
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
    left_out = frozenset(field for field, column in mapping.items() if column == "_" and field in columns)
    if name not in BUILTIN:
        function = load_object(name, f"{where}.converter", recipe_dir)
        return DatasetConverter(name, _adapt_signature(function, name, where), mapping, left_out=left_out)
    guarded = tuple(name for name in columns if find_guard(name) and name not in {*mapping, *mapping.values()})
    function = BUILTIN[name].function
    formats = _list_formats({*columns} - left_out)
    several = len(formats) > 1 or any({*names} <= {*columns} - left_out for names in (SYSTEMS, ("input", "context")))
    if section.converter is None and several and left_out == section.mapping.keys():
        function = _convert_by_format(name, mapping, formats, left_out)
    return DatasetConverter(name, function, mapping, guarded, left_out)


def _check_mapping(name: str, mapping: dict, columns: Sequence[str], where: str) -> None:
    """ImpruverError for a field that the converter does not have, a required one that is missing, an absent column."""
    _, required, optional = BUILTIN.get(name, (None, (), tuple(mapping)))
    for field, column in mapping.items():
        if field not in (*required, *optional) and not (column == "_" and field in columns):  # left out on purpose
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


def detect_converter(columns: Collection[str], sample: dict, mapping: dict, where: str) -> tuple[str, dict]:
    """Detects the built-in converter that fits the columns; its name, and the mapping that it needs."""
    empty = {field for field, column in mapping.items() if column == "_"}
    available = ({*columns} | {*mapping}) - (empty - {*FIELDS})
    formats = _list_formats(available)
    if not formats:
        raise ImpruverError(f"{where}: no converter fits the columns {', '.join(columns)}: {_suggest_way(available)}")
    name, needed = formats[0]
    if name == "impruver.messages" and isinstance(sample.get(mapping.get("messages", "messages")), dict):
        name = "impruver.dialog_to_messages"
    return name, needed | mapping


def _list_formats(columns: Collection[str]) -> list[tuple[str, dict]]:
    """Lists the built-in converters that columns have the fields of, the likeliest first, each with its mapping."""
    system = next(({"system": name} for name in SYSTEMS if name in columns), {})
    formats = []
    if "messages" in columns:
        formats.append(("impruver.messages", system))
    if "conversations" in columns:
        formats.append(("impruver.conversations_to_messages", system))
    if {"dialogues", "name", "context"} <= {*columns}:
        formats.append(("impruver.char_dialog_to_messages", {}))
    questions, answers = ([name for name in names if name in columns] for names in (QUESTIONS, ANSWERS))
    name = "reasoning" if "reasoning" in columns else "instruction"
    given = {"input": "context"} if "context" in columns and "input" not in columns else {}
    formats += [
        (f"impruver.{name}_to_messages", {**system, "instruction": question, "output": answer, **given})
        for question in questions
        for answer in answers
    ]
    if "text" in columns:
        formats.append(("impruver.text", {}))
    return formats


def _suggest_way(columns: Collection[str]) -> str:
    if "chosen" in columns:
        without = ", rejected: _" if "rejected" in columns else ""
        return (
            "they are pairs for preference training. To train on the better answers alone set mapping: "
            f"{{output: chosen{without}}} or, where those are whole conversations, {{messages: chosen{without}}}"
        )
    return "set converter, or mapping: {instruction: COLUMN, output: COLUMN}"


def _convert_by_format(
    usual: str, mapping: dict[str, str], formats: Sequence[tuple[str, dict]], left_out: Collection[str]
) -> Callable:
    """A converter of data sets whose rows have several `formats`: each by its own columns, else by the `usual` one."""
    known: dict[tuple[frozenset[str], ...], tuple[Callable, dict]] = {}
    told_by = TOLD_BY.difference(left_out)

    def convert(row: dict, _: dict) -> list | str | None:
        cells = [(name, value) for name, value in dict.items(row) if value is not None and name in told_by]
        key = frozenset(name for name, _ in cells), frozenset(name for name, value in cells if is_filled(value))
        if key not in known:
            name, own = _find_format(*key, formats) or (usual, mapping)
            known[key] = BUILTIN[name].function, own
        function, own = known[key]
        return function(row, own)

    return wraps(BUILTIN[usual].function)(convert)


def _find_format(
    present: frozenset[str], filled: frozenset[str], formats: Sequence[tuple[str, dict]]
) -> tuple[str, dict] | None:
    """Finds the format of a row with these columns; a text beside a question that lacks an answer is no document."""
    fitting = _list_formats(filled)
    if fitting and fitting[0][0] != "impruver.text":
        return fitting[0]
    chats = [(name, own) for name, own in formats if name != "impruver.text"]
    shared = {number: len(present & _list_columns(*each)) for number, each in enumerate(chats)}
    closest = max(shared, key=shared.__getitem__, default=None)
    if closest is not None and shared[closest]:
        return chats[closest]
    return fitting[0] if fitting else None


def _list_columns(name: str, mapping: dict[str, str]) -> set[str]:
    """The columns that a converter must have with this mapping."""
    return {mapping.get(field, field) for field in BUILTIN[name].required}
