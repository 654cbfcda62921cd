"""Calls of functions in an answer's text: read in the form in which the chat template writes them."""

import json
import re
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

NAME, ID = "probe_tool", "call00001"  # of the probe's call
ARGUMENTS = {"probe_one": "probe value", "probe_two": "another value"}
WORD = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True)
class ToolCallFormat:
    """What stands before the first call, before each further one and behind the last. A call is JSON, with name and
    arguments under these keys; or, where `between` is not None, a name, that text, and the arguments as JSON; or,
    where `tags` are given, a name, then each argument's name and value as text, with these before the first name,
    before a value and before each further name.
    """

    start: str
    separator: str = ""
    end: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    between: str | None = None
    tags: tuple[str, str, str] | None = None

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts that a template writes around calls."""
        return self.start, self.separator, self.between or "", *(self.tags or ())


def infer_tool_call_format(turn: str, twice: str = "") -> ToolCallFormat | None:
    """The form of the probe's call in `turn`, and of two such in `twice`; None where it is none of those known."""
    read = _infer_first_call(turn)
    if read is None:
        return None
    form, end = read
    form = replace(form, end=turn[end:])
    second = twice.find(NAME, end)
    if form.between is None and form.tags is None and second > 0:
        second = twice.find("{", end)
    return replace(form, separator=twice[end:second].strip()) if second > end else form


def parse_tool_calls(text: str, form: ToolCallFormat) -> list[dict] | None:
    """The calls `{"name", "arguments"}` that make up `text`, None where it is anything else."""
    found, at = [], _skip_literal(form.start, text, 0)
    while at is not None:
        read = (_parse_tagged_call if form.tags else _parse_json_calls if form.between is None else _parse_named_call)(
            text, at, form
        )
        if read is None:
            return None
        calls, end = read
        found += calls
        at = _skip_literal(form.separator, text, end) if form.separator else None
        if at is None:
            return found if form.end.strip().startswith(text[end:].strip()) else None
    return None


def format_call(call: dict) -> str:
    """A call for a person: `name {"key": "value"}`."""
    return f"{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}"


def _infer_first_call(turn: str) -> tuple[ToolCallFormat, int] | None:
    """(the form without what stands around further calls, where the first call ends)."""
    if NAME not in turn:
        return None
    at = turn.index(NAME)
    for start in (place.start() for place in re.finditer(r"[{\[]", turn[:at])):
        value, end = _parse_json(turn, start)
        keys = _find_keys(value[0] if isinstance(value, list) and value else value)
        if keys:
            return ToolCallFormat(turn[:start].strip(), keys=keys), end
    behind, opens = at + len(NAME), turn[:at].strip()
    start = turn.find("{", behind)
    value, end = _parse_json(turn, max(start, 0))
    if opens and value == ARGUMENTS:
        return ToolCallFormat(opens, between=turn[behind:start].strip()), end
    return _infer_tagged_call(turn, opens, behind)


def _infer_tagged_call(turn: str, opens: str, at: int) -> tuple[ToolCallFormat, int] | None:
    """As `_form`, for arguments in tags: what stands between the probe's name and its arguments' names and values."""
    tags = []
    for text in [text for argument in ARGUMENTS.items() for text in argument]:
        found = turn.find(text, at)
        if found < 0:
            return None
        tags.append(turn[at:found])
        at = found + len(text)
    return (ToolCallFormat(opens, tags=tuple(tags[:3])), at) if opens and all(tag.strip() for tag in tags) else None


def _skip_literal(literal: str, text: str, at: int) -> int | None:
    """Where `literal` ends in `text`, blanks aside and with any id; None where it does not stand there."""
    words = (re.escape(word).replace(ID, r"\w+") for word in literal.split())
    found = re.compile(r"\s*" + r"\s*".join(words) + r"\s*").match(text, at)
    return found.end() if found else None


def _parse_json_calls(text: str, at: int, form: ToolCallFormat) -> tuple[list[dict], int] | None:
    value, end = _parse_json(text, at)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else {}
        name, arguments = (function.get(key) for key in form.keys) if isinstance(function, dict) else (None, None)
        if not isinstance(name, str) or _parse_object(arguments) is None:
            return None
        calls.append({"name": name, "arguments": _parse_object(arguments)})
    return (calls, end) if calls else None


def _parse_named_call(text: str, at: int, form: ToolCallFormat) -> tuple[list[dict], int] | None:
    word = WORD.match(text, at)
    start = _skip_literal(form.between or "", text, word.end()) if word else None
    arguments, end = _parse_json(text, start) if start is not None else (None, 0)
    return ([{"name": word.group(), "arguments": arguments}], end) if word and isinstance(arguments, dict) else None


def _parse_tagged_call(text: str, at: int, form: ToolCallFormat) -> tuple[list[dict], int] | None:
    first, equals, further = form.tags or ("", "", "")
    behind = commonprefix([further, form.end])  # noqa: RUF071 (no paths)
    word = WORD.match(text, at)
    if not behind.strip():
        return None
    arguments, opening, at = {}, first, word.end() if word else len(text)
    while text.startswith(opening, at):
        start = text.find(equals, at + len(opening))
        end = text.find(behind, start)
        if start < 0 or end < 0:
            return None
        value = text[start + len(equals) : end]
        read, stop = _parse_json(value, 0)
        is_json = stop == len(value) and not isinstance(read, str)  # rendered again, either is the same text
        arguments[text[at + len(opening) : start]] = read if is_json else value
        opening, at = further, end
    return ([{"name": word.group(), "arguments": arguments}], at) if word and arguments else None


def _find_keys(item: Any) -> tuple[str, str] | None:
    """Under which keys the probe's name and arguments stand."""
    function = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(function, dict):
        return None
    name = next((key for key, value in function.items() if value == NAME), None)
    arguments = next((key for key, value in function.items() if _parse_object(value) == ARGUMENTS), None)
    return (name, arguments) if name and arguments else None


def _parse_object(value: Any) -> dict | None:
    """An object, also where it is given as JSON text."""
    if isinstance(value, str):
        value, _ = _parse_json(value, 0)
    return value if isinstance(value, dict) else None


def _parse_json(text: str, start: int) -> tuple[Any, int]:
    """(the JSON value that begins there, where it ends); (None, start) where none does."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
