"""One tool call in any form that data has: its name and its arguments, wherever they stand and however written.

`{"name": …, "arguments": …}`, alone or under `function`; the arguments as an object or as JSON text, under `arguments`
or `parameters`, in the function or beside it.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from impruver_core.chat_template.masking.train_flags import is_train_flag
from impruver_core.errors import RefusedError
from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json

ARGUMENT_KEYS = ("arguments", "parameters")
OTHER_KEYS = frozenset(("id", "call_id", "type", "index", "name", "description", "status", "function"))


class Call(NamedTuple):
    """A call's function, and its arguments: an object, or what else the data have for one."""

    name: str
    arguments: Any


def parse_calls(form: Any, number: int) -> list[Call]:
    """The calls of a `function_call` of message `number`: `{"name", "arguments"}` or a list of such, or JSON text."""
    if isinstance(form, str):
        form = _parse_json(form, f"function_call in message {number}", "is not JSON")
    calls = form if isinstance(form, list) and form else [form]
    if not all(_find_name(call) for call in calls):
        raise RefusedError("bad_row", f'function_call in message {number} is not {{"name": …, "arguments": …}}')
    return [read_call(call, number) for call in calls]


def normalize_call(call: Any, number: int, as_text: bool) -> dict:
    """A call of `tool_calls` as templates know it: its arguments in its function, as JSON text or an object."""
    if not _find_name(call):
        raise RefusedError("bad_row", f"a tool call of message {number} has no function name")
    arguments = read_call(call, number, as_text).arguments
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = get_function(call)
    if function is not call:
        rest = {key: value for key, value in call.items() if key not in ARGUMENT_KEYS}
    else:
        rest = {"type": "function"}
        function = {key: value for key, value in call.items() if key != "function"}
    if arguments not in ({}, "{}") and not _is_filled(function.get("arguments")):  # they stand under another key
        function = {key: value for key, value in function.items() if key != "parameters"}
    return {**rest, "function": {**function, "arguments": arguments}}


def get_function(call: dict) -> Any:
    """The object of a call that has its name: under `function`, or the call itself."""
    return call if call.get("function") is None else call["function"]


def read_call(call: dict, number: int, as_text: bool = False) -> Call:
    """Reads a call of message `number`; RefusedError("bad_row") where something of it would be lost.

    `as_text`: arguments in JSON text stay as they are.
    """
    name, fields = _find_name(call), list(_find_fields(call))
    told = f"the call {name} of message {number}"
    present = [value for key, value in fields if key in ARGUMENT_KEYS and value is not None]
    parsed = [_parse_arguments(value, number, as_text) for value in present]
    filled = [arguments for arguments in parsed if arguments not in ({}, "{}", [])]
    if len(filled) > 1:
        first, *others = (_parse_arguments(arguments, number, False) for arguments in filled)
        if any(other != first for other in others):
            raise RefusedError("bad_row", f"{told} has two objects of arguments that differ")
    for key, value in fields:
        if is_train_flag(key, value):
            raise RefusedError("bad_row", f"{told} has {key}: flags of training belong to the message, as train")
        is_object = isinstance(value, (dict, list)) or (isinstance(value, str) and value.lstrip()[:1] in ("{", "["))
        other = key not in OTHER_KEYS and key not in ARGUMENT_KEYS and _is_filled(value)
        if other and not filled and (is_object or not present):
            raise RefusedError("bad_row", f"{told} has {key}, which is not read: its arguments belong under arguments")
    return Call(name, (filled or parsed or [{}])[0])


def _find_name(call: Any) -> str | None:
    function = get_function(call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _find_fields(call: dict) -> Iterator[tuple[str, Any]]:
    """The keys and values of a call's function, then those beside it."""
    function = get_function(call)
    yield from function.items()
    if function is not call:
        yield from call.items()


def _is_filled(value: Any) -> bool:
    return bool(value.strip() if isinstance(value, str) else isinstance(value, (dict, list)) and value)


def _parse_arguments(value: Any, number: int, as_text: bool) -> Any:
    """Arguments as an object, of JSON text too, be it encoded twice; {} where they are blank or null."""
    if not isinstance(value, str):
        return {} if value is None else value
    if not value.strip():
        return {}
    if as_text and value.lstrip()[0] not in '"n':  # neither encoded twice nor null
        return value
    try:
        parsed = _parse_json(value, f"arguments of a tool call of message {number}", "are not JSON")
    except RefusedError:
        if as_text:
            return value
        raise
    if isinstance(parsed, str) and parsed.lstrip().startswith("{"):  # encoded twice
        with suppress(RefusedError):
            return _parse_arguments(parsed, number, as_text)
    return {} if parsed is None or parsed == "" else parsed


def _parse_json(text: str, what: str, problem: str) -> Any:
    try:
        return parse_unique_json(text)
    except RepeatedKeyError as error:
        raise RefusedError("bad_row", f"{what}: {error}") from None
    except (ValueError, RecursionError):
        raise RefusedError("bad_row", f"{what} {problem}") from None
