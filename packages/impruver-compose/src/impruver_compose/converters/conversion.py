"""Run a data set's converter on a row, and check what it returns."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import orjson
from impruver_core.chat_template.masking.train_flags import TRAIN_FLAGS, read_train_flag
from impruver_core.errors import RefusedError
from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json
from impruver_core.io.jsonl import format_row

from impruver_compose.converters.columns import RecordingRow, check_guarded_columns
from impruver_compose.converters.detection import DatasetConverter
from impruver_compose.sources.row_table import FlawedRow

OTHER_TEXTS = ("text", "value", "message")  # names under which a message may have its text, and templates read none
SHARED_FIELDS = frozenset(("tools", "functions", "chat_template_kwargs"))
TEXT_ALONE = frozenset((str,))
OTHER_FLAGS = {*TRAIN_FLAGS} - {"train"}


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


def convert_row(row: dict, converter: DatasetConverter, read: set[str] | None = None) -> Iterator[Conversation]:
    """Converts a row to its conversations, none if it is skipped; adds the columns that are read to `read`.

    RefusedError with a reason of the ledger (`converter_failed`, `bad_row`, …).
    """
    if isinstance(row, FlawedRow):
        raise RefusedError("bad_row", row.flaw)
    check_guarded_columns(row, converter.guarded)
    if read is None or not read.issuperset(row):  # else there is nothing to record
        row = RecordingRow(row, set() if read is None else read)
    tools, kwargs = _read_shared_fields(row)
    try:
        converted = converter.function(row, dict(converter.mapping))
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        if converter.is_builtin and isinstance(error, RefusedError):
            raise
        name = getattr(converter.function, "__name__", "converter")
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
        yield _serialize(
            Conversation([_clean_message(message, n) for n, message in enumerate(messages)], None, tools, kwargs)
        )


def _read_shared_fields(row: dict) -> tuple[list[dict] | None, dict | None]:
    """Reads the tools and the template's arguments, which all conversations of a row share."""
    if not isinstance(row, RecordingRow) and SHARED_FIELDS.isdisjoint(row):  # as of most rows
        return None, None
    tools, functions = (_wrap_tools(_parse_field(row, name, list)) for name in ("tools", "functions"))
    if tools and functions and tools != functions:
        raise RefusedError("bad_row", "it has both tools and functions, and they differ: leave one of them")
    row.get("parallel_tool_calls")  # told OpenAI's server what to allow: the calls themselves are in the messages
    return tools or functions, _parse_field(row, "chat_template_kwargs", dict)


def _serialize(conversation: Conversation) -> Conversation:
    """Sets `as_json`; RefusedError for what is no JSON in UTF-8: a user's function may return anything."""
    try:
        if _is_plain(conversation):
            with suppress(orjson.JSONEncodeError):  # lone surrogates, of which Python says more
                return Conversation(*conversation[:4], orjson.dumps(conversation.to_row()))
        _check_keys(conversation.messages)
        return conversation._replace(as_json=format_row(conversation.to_row()).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedError("bad_row", f"what the converter gave is no JSON: {error}") from None


def _is_plain(conversation: Conversation) -> bool:
    """Whether it is messages whose keys and values are texts: as most are, and orjson writes them as Python does."""
    return (
        conversation.messages is not None
        and conversation.tools is None
        and conversation.chat_template_kwargs is None
        and all(type(message) is dict for message in conversation.messages)
        and all(TEXT_ALONE.issuperset(map(type, chain(message, message.values()))) for message in conversation.messages)
    )


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


def _clean_message(message: Any, number: int) -> Any:
    """Removes nulls, which tables have for columns of other rows, and says in one way that a turn is not trained on."""
    if not isinstance(message, dict):
        return message
    cleaned = {key: value for key, value in message.items() if value is not None or key == "content"}
    if "content" not in cleaned and (other := next((key for key in OTHER_TEXTS if cleaned.get(key)), None)):
        raise RefusedError("bad_row", f"message {number} has no content, but {other}")
    if not OTHER_FLAGS.isdisjoint(cleaned):
        trained = read_train_flag(cleaned, number)
        cleaned = {key: value for key, value in cleaned.items() if key not in OTHER_FLAGS}
        cleaned |= {"train": False} if trained is False else {}
    return cleaned


def _parse_field(row: dict, name: str, kind: type) -> Any:
    """Parses a field of the row, which may be JSON text, as a list or an object; None if it is absent or empty."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = parse_unique_json(value) if value.strip() else None
        except RepeatedKeyError as error:
            raise RefusedError("bad_row", f"{name}: {error}") from None
        except (ValueError, RecursionError):  # nested too deep
            raise RefusedError("bad_row", f"{name} is not JSON") from None
    if value is not None and not isinstance(value, kind):
        raise RefusedError("bad_row", f"{name} is no {'list' if kind is list else 'object'}")
    return value or None


def _wrap_tools(tools: list | None) -> list[dict] | None:
    """Wraps tools as templates read them: {"type": "function", "function": {…}}; each may be JSON text."""
    if tools is None:
        return None
    wrapped = []
    for number, tool in enumerate(tools):
        try:
            tool = parse_unique_json(tool) if isinstance(tool, str) else tool
        except RepeatedKeyError as error:
            raise RefusedError("bad_row", f"tool {number}: {error}") from None
        except (ValueError, RecursionError):
            raise RefusedError("bad_row", f"tool {number} is text, but no JSON") from None
        if not isinstance(tool, dict):
            raise RefusedError("bad_row", f"tool {number} is no object but {type(tool).__name__}")
        bare = "function" not in tool and "name" in tool
        wrapped.append({"type": "function", "function": tool} if bare else tool)
    return wrapped
