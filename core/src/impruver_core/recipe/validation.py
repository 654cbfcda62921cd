"""The one check of a recipe against its declared sections: every fault is reported, none stops the next."""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection
from dataclasses import MISSING
from typing import Any

from impruver_core.io.json_schema import TYPE_WORDS, describe_type
from impruver_core.recipe.credentials import names_credential
from impruver_core.recipe.schema import OLD_BOOLEANS, ListOf, OpenMapping, Scalar, get_fields
from impruver_core.suggestions import suggest

FaultReport = Callable[[tuple, str], None]  # takes a key path and what is wrong there
REMOVED = object()  # what `--set a.b=null` leaves at a.b: as if it were never given


def validate_value(spec: Any, value: Any, path: tuple, report: FaultReport) -> Any:
    """The value of a top-level key as its owner declared it; every fault goes to `report`."""
    value = None if value is REMOVED else value
    if isinstance(spec, Scalar):
        return spec.default if value is None else _check_value(spec.type, value, spec.choices, path, report)
    if isinstance(spec, ListOf):
        return [] if value is None else _check_type(list[spec.section], value, path, report)
    if isinstance(spec, OpenMapping):
        if value is None:
            return None if spec.optional else {}
        mapping = _check_type(dict, value, path, report)
        if spec.check is not None and isinstance(mapping, dict):
            for name, fault in spec.check(mapping):
                report((*path, name), fault)
        return mapping
    return _check_section(spec, {} if value is None else value, path, report)


def remove_unset(value: Any) -> Any:
    """A copy without what was removed by `--set …=null`."""
    if isinstance(value, dict):
        return {name: remove_unset(item) for name, item in value.items() if item is not REMOVED}
    if isinstance(value, list):
        return [remove_unset(item) for item in value if item is not REMOVED]
    return None if value is REMOVED else value


def _check_section(section: type, value: Any, path: tuple, report: FaultReport) -> Any:
    if not isinstance(value, dict):
        return report(path, f"expected a mapping, found {describe_value(value)}")
    fields = get_fields(section)
    hints = typing.get_type_hints(section)
    valid, values = True, {}

    def report_here(where: tuple, what: str) -> None:
        nonlocal valid
        valid = False
        report(where, what)

    for name, item in value.items():
        if name not in fields:
            report_here((*path, name), f"no such key{suggest(name, fields)}")
        elif item is not None and item is not REMOVED:
            key, choices = fields[name].name, fields[name].metadata.get("choices")
            values[key] = _check_value(hints[key], item, choices, (*path, name), report_here)
    for name, field in fields.items():
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            report_here((*path, name), "is missing")
    try:
        return section(**values) if valid else None
    except ValueError as error:  # a section's own check: what is wrong, and the key if it is about one alone
        what, *key = error.args
        return report((*path, *key), str(what))


def _check_value(hint: Any, value: Any, choices: Collection | None, path: tuple, report: FaultReport) -> Any:
    result = _check_type(hint, value, path, report)
    if choices is not None and type(value) in (str, int, float) and result is not None and result not in choices:
        near = suggest(value, map(str, choices), cutoff=0.5, list_valid=False)
        report(path, f"{value!r} is none of {', '.join(map(str, choices))}{near}")
    return result


def _check_type(hint: Any, value: Any, path: tuple, report: FaultReport) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return remove_unset(value)
    if origin in (typing.Union, types.UnionType):
        return _check_union(arguments, value, path, report)
    if origin is typing.Literal:
        return _check_value(type(arguments[0]), value, arguments, path, report)
    if dataclasses.is_dataclass(hint):
        return _check_section(hint, value, path, report)
    base = origin or hint
    if base in (list, dict) and isinstance(value, base):
        if not arguments:
            return remove_unset(value)
        pairs = value.items() if base is dict else enumerate(value)
        items = {at: _check_type(arguments[-1], item, (*path, at), report) for at, item in pairs if item is not REMOVED}
        return items if base is dict else list(items.values())
    if base is bool and isinstance(value, str) and value.lower() in OLD_BOOLEANS:
        return OLD_BOOLEANS[value.lower()]
    if base is float and type(value) is int:
        return float(value)
    if base is int and type(value) is float and value.is_integer():
        return int(value)
    if type(value) is not base:
        return report(path, f"expected {describe_type(base)}, found {describe_value(value)}{_get_advice(base, value)}")
    return value


def _get_advice(base: type, value: Any) -> str:
    if base is list:
        return "; begin each item with a dash" if isinstance(value, dict) else f"; write [{value}]"
    return "; put it in quotes" if base is str and not isinstance(value, (list, dict)) else ""


def _check_union(arguments: tuple, value: Any, path: tuple, report: FaultReport) -> Any:
    arms = [arm for arm in arguments if arm is not type(None)]
    if len(arms) == 1:
        return _check_type(arms[0], value, path, report)
    for arm in arms:
        faults: list = []
        checked = _check_type(arm, value, path, lambda *fault: faults.append(fault))  # noqa: B023
        if not faults:
            return checked
    names = " or ".join(TYPE_WORDS.get(typing.get_origin(arm) or arm, describe_type(dict)) for arm in arms)
    return report(path, f"expected {names}, found {describe_value(value)}")


def describe_value(value: Any) -> str:
    """What a value is, in the words of a fault."""
    if isinstance(value, (list, dict)):
        return describe_type(type(value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    if isinstance(value, str):
        return "a text with a credential" if names_credential(value) else f"the text {value!r}"
    return f"the number {value}"
