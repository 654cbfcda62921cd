"""Calls of functions in an answer's text: read in the form in which the chat template writes them."""

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from impruver_core.templating.probe_chats import ARGUMENTS

NAME, ID = "probe_tool", "call00001"  # of the probe's call
WORD = re.compile(r"[\w.:/-]+")


@dataclass(frozen=True)
class CallForm:
    """What stands before the first call, before each further one and behind the last. A call is JSON, with name and
    arguments under these keys; or, where `between` is not None, a name, that text, and the arguments as JSON.
    """

    opens: str
    again: str = ""
    closes: str = ""
    keys: tuple[str, str] = ("name", "arguments")
    between: str | None = None

    @property
    def literals(self) -> tuple[str, ...]:
        """The texts that a template writes around calls."""
        return self.opens, self.again, self.between or ""


def form_of(turn: str, twice: str = "") -> CallForm | None:
    """The form of the probe's call in `turn`, and of two such in `twice`; None where it is none of those known."""
    read = _form(turn)
    if read is None:
        return None
    form, end = read
    form = replace(form, closes=turn[end:].strip())
    second = twice.find(NAME, end)
    if form.between is None and second > 0:
        second = twice.find("{", end)
    return replace(form, again=twice[end:second].strip()) if second > end else form


def calls_in(text: str, form: CallForm) -> list[dict] | None:
    """The calls `{"name", "arguments"}` that make up `text`, None where it is anything else."""
    found, at = [], _behind(form.opens, text, 0)
    while at is not None:
        read = _keyed(text, at, form) if form.between is None else _named(text, at, form)
        if read is None:
            return None
        calls, end = read
        found += calls
        at = _behind(form.again, text, end) if form.again else None
        if at is None:
            return found if form.closes.startswith(text[end:].strip()) else None
    return None


def described(call: dict) -> str:
    """A call for a person: `name {"key": "value"}`."""
    return f"{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}"


def _form(turn: str) -> tuple[CallForm, int] | None:
    """(the form without what stands around further calls, where the first call ends)."""
    if NAME not in turn:
        return None
    at = turn.index(NAME)
    for start in (place.start() for place in re.finditer(r"[{\[]", turn[:at])):
        value, end = _json(turn, start)
        keys = _keys(value[0] if isinstance(value, list) and value else value)
        if keys:
            return CallForm(turn[:start].strip(), keys=keys), end
    behind, opens = at + len(NAME), turn[:at].strip()
    start = turn.find("{", behind)
    value, end = _json(turn, max(start, 0))
    if opens and value == ARGUMENTS:
        return CallForm(opens, between=turn[behind:start].strip()), end
    return None


def _behind(literal: str, text: str, at: int) -> int | None:
    """Where `literal` ends in `text`, blanks aside and with any id; None where it does not stand there."""
    words = (re.escape(word).replace(ID, r"\w+") for word in literal.split())
    found = re.compile(r"\s*" + r"\s*".join(words) + r"\s*").match(text, at)
    return found.end() if found else None


def _keyed(text: str, at: int, form: CallForm) -> tuple[list[dict], int] | None:
    value, end = _json(text, at)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else {}
        name, arguments = (function.get(key) for key in form.keys) if isinstance(function, dict) else (None, None)
        if not isinstance(name, str) or _object(arguments) is None:
            return None
        calls.append({"name": name, "arguments": _object(arguments)})
    return (calls, end) if calls else None


def _named(text: str, at: int, form: CallForm) -> tuple[list[dict], int] | None:
    word = WORD.match(text, at)
    start = _behind(form.between or "", text, word.end()) if word else None
    arguments, end = _json(text, start) if start is not None else (None, 0)
    return ([{"name": word.group(), "arguments": arguments}], end) if word and isinstance(arguments, dict) else None


def _keys(item: Any) -> tuple[str, str] | None:
    """Under which keys the probe's name and arguments stand."""
    function = item.get("function", item) if isinstance(item, dict) else None
    if not isinstance(function, dict):
        return None
    name = next((key for key, value in function.items() if value == NAME), None)
    arguments = next((key for key, value in function.items() if _object(value) == ARGUMENTS), None)
    return (name, arguments) if name and arguments else None


def _object(value: Any) -> dict | None:
    """An object, also where it is given as JSON text."""
    if isinstance(value, str):
        value, _ = _json(value, 0)
    return value if isinstance(value, dict) else None


def _json(text: str, start: int) -> tuple[Any, int]:
    """(the JSON value that begins there, where it ends); (None, start) where none does."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
