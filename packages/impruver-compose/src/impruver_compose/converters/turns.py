"""Turns as data sets write them: roles in other spellings, ShareGPT's from and value, pairs of question and answer."""

import json
from collections.abc import Sequence
from typing import Any

from impruver_core.errors import RefusedError
from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json

USERS = ("human", "user", "prompter")
ASSISTANTS = ("assistant", "gpt", "bot", "chatgpt", "model", "chatbot", "ai")
CALLS = dict.fromkeys(("function_call", "tool_call", "tool_calls"), "function_call")
RESULTS = dict.fromkeys(("function_response", "tool_response", "tool_result", "tool_results"), "function_response")
SPEAKERS = {  # of ShareGPT's files, in any case; another one is an error
    **dict.fromkeys(USERS, "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
    **{role: role for role in ("system", "developer")},
    **CALLS,
    **RESULTS,
    **dict.fromkeys(("observation", "tool", "function"), "function_response"),
}
ROLES = {  # of messages, in any case; others stay as they are, since a template may know them
    **dict.fromkeys(USERS, "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
    **{role: role for role in ("system", "developer", "tool", "function", "observation")},
    **CALLS,
    **RESULTS,
}
PAIR_KEYS = (
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "gpt"),
    ("user", "bot"),
    ("instruction", "output"),
    ("question", "answer"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
)
NOTHING = ("", "none", "null", "nan")  # what tables write into a cell that has no value


def to_text(value: Any) -> str:
    """Makes a value a text, numbers and booleans as in JSON; ValueError for NaN, which JSON does not have."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise ValueError("a value is NaN or infinite, which is no text: write null or nothing there") from None


def parse_json_text(value: Any, name: str) -> Any:
    """Parses a value that is JSON text, as cells of CSV are; ValueError for no JSON, RefusedError for a key twice."""
    if not isinstance(value, str):
        return value
    try:
        return parse_unique_json(value) if value.strip() else []
    except RepeatedKeyError as error:
        raise RefusedError("bad_row", f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:  # nested too deep
        raise ValueError(f"{name} is text, but no JSON: {error}") from None


def fold_role(role: Any) -> str | None:
    """A role as it is looked up; None for what is no text."""
    return role.strip().lower() if isinstance(role, str) else None


def normalize_roles(messages: list) -> list:
    """Gives roles in other spellings (Human, User, model) their usual name."""
    return [
        message | {"role": role}
        if isinstance(message, dict)
        and (role := ROLES.get(fold_role(message.get("role")))) not in (None, message["role"])
        else message
        for message in messages
    ]


def read_messages(value: Any) -> list[dict] | None:
    """Reads messages, or turns of ShareGPT's, a list or a single one; None for any other value."""
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        return None
    if all("role" in item for item in items):
        return normalize_roles(items)
    if all("from" in item and "value" in item for item in items):
        return [convert_turn(item, number) for number, item in enumerate(items)]
    return None


def read_messages_text(text: Any) -> list[dict] | None:
    """Reads messages that stand in a cell as JSON text; None for any other text."""
    if not isinstance(text, str) or not text.lstrip().startswith(("[{", "[ {", "{")):
        return None
    try:
        return read_messages(parse_unique_json(text))
    except (ValueError, RecursionError):
        return None


def convert_turn(turn: Any, number: int) -> dict:
    """Converts a turn of ShareGPT's; what it has besides speaker and text stays as it is."""
    if not isinstance(turn, dict):
        raise RefusedError("bad_row", f"turn {number} of conversations is no object but {type(turn).__name__}")
    rest = dict(turn)
    role, content = (_pop_value(rest, keys, number) for keys in (("from", "role"), ("value", "content")))
    speaker = SPEAKERS.get(fold_role(role))
    if speaker is None:
        raise ValueError(f"unknown speaker {role!r}; known: {', '.join(SPEAKERS)}")
    return {"role": speaker, "content": content, **rest}


def _pop_value(turn: dict, keys: tuple[str, str], number: int) -> Any:
    """Takes the one value that a turn has under these keys; RefusedError for two different ones."""
    values = [value for value in (turn.pop(key, None) for key in keys) if value is not None]
    if len(values) > 1 and values[0] != values[1]:
        raise RefusedError("bad_row", f"turn {number} has both {keys[0]} and {keys[1]}, and they differ")
    return values[0] if values else None


def convert_history(value: Any) -> list[dict]:
    """Converts earlier turns: pairs of question and answer, as lists or as objects, or messages; also JSON text."""
    if value is None or (isinstance(value, str) and value.strip().lower() in NOTHING):
        return []
    try:
        turns = parse_json_text(value, "history")
    except ValueError as error:
        raise RefusedError("bad_row", f"{error}; mapping: {{history: _}} leaves it out") from None
    if not isinstance(turns, Sequence):
        raise RefusedError("bad_row", f"history is no list of turns but {type(turns).__name__}")
    messages = read_messages(list(turns))
    if messages is not None:
        return messages
    return [message for number, turn in enumerate(turns) for message in _convert_pair(turn, number)]


def _convert_pair(turn: Any, number: int) -> list[dict]:
    pair = turn
    if isinstance(turn, dict):
        keys = next((keys for keys in PAIR_KEYS if {*keys} == turn.keys()), ())
        pair = [turn[key] for key in keys]
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise RefusedError("bad_row", f"turn {number} of history is no pair of a question and an answer")
    question, answer = (to_text("" if text is None else text) for text in pair)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
