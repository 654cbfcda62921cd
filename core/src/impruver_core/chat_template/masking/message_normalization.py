"""Makes of a messages row what the template can render: tool calls in its form, no nulls, no fields of wrong types."""

import json
from collections.abc import Sequence

from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.chat_template.masking.media import check_no_media
from impruver_core.chat_template.masking.train_flags import TRAIN_FLAGS, check_other_flags, read_train_flag
from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS
from impruver_core.errors import RefusedError
from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json

MESSAGE_KEYS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", *TRAIN_FLAGS, *REASONING_FIELDS)
)


def normalize_messages(messages: Sequence[dict], fmt: TemplateFormat) -> list[dict]:
    """The messages as the template is to get them; RefusedError("bad_row") where they are no messages.

    `function_call` and `function_response` become `tool_calls` and `tool` unless the template renders these roles;
    arguments in JSON text become objects, unless the template needs text; null content becomes empty; keys that are
    null or about training go.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RefusedError("bad_row", "messages is not a list of messages" if messages else "messages is empty")
    prepared = [_check_message(message, number) for number, message in enumerate(messages)]
    if not fmt.renders_function_roles:
        prepared = _convert_to_tool_calls(prepared)
    for number, message in enumerate(prepared):
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [_normalize_call(call, number, fmt.arguments_as_text) for call in calls]
    return prepared


def _check_message(message: dict, number: int) -> dict:
    """The message without null and flags of training; RefusedError where a field is of a wrong type."""
    if not isinstance(message, dict):
        raise RefusedError("bad_row", f"message {number} is not an object but {type(message).__name__}")
    if not isinstance(message.get("role"), str):
        raise RefusedError("bad_row", f"message {number} has no role")
    content = message.get("content")
    if content is not None and not isinstance(content, (str, list)):
        raise RefusedError("bad_row", f"content of message {number} is not text but {type(content).__name__}")
    for field in REASONING_FIELDS:
        if not isinstance(message.get(field, ""), (str, type(None))):
            raise RefusedError("bad_row", f"{field} of message {number} is not text")
    if not isinstance(message.get("tool_calls") or [], list):
        raise RefusedError("bad_row", f"tool_calls of message {number} is not a list")
    read_train_flag(message, number)
    check_other_flags(message, number, MESSAGE_KEYS)
    check_no_media(message, number)
    fields = {key: value for key, value in message.items() if value is not None and key not in TRAIN_FLAGS}
    return fields | {"content": "" if content is None else content}


def _convert_to_tool_calls(messages: list[dict]) -> list[dict]:
    """The messages with `function_call` and `function_response` as OpenAI's `tool_calls` and `tool`."""
    prepared, names = [], []
    for number, message in enumerate(messages):
        if message["role"] == "function_call":
            calls = _parse_calls(message["content"], number)
            names = [
                (f"call{number:05d}" if index == 0 else f"call{number:03d}{index:02d}", call)
                for index, call in enumerate(calls)
            ]
            tool_calls = [{"id": id_, "type": "function", "function": call} for id_, call in names]
            prepared.append({"role": "assistant", "content": "", "tool_calls": tool_calls})
        elif message["role"] == "function_response":
            id_, call = names.pop(0) if names else (f"call{number:05d}", {})
            name = message.get("name") or call.get("name")
            named = {"name": name} if name else {}
            prepared.append({"role": "tool", **named, "tool_call_id": id_, "content": message["content"]})
        else:
            prepared.append(message)
    return prepared


def _parse_calls(content: str, number: int) -> list[dict]:
    """The calls in the text of a function_call message: `{"name", "arguments"}` or a list of such."""
    try:
        parsed = parse_unique_json(content)
    except RepeatedKeyError as error:
        raise RefusedError("bad_row", f"function_call in message {number}: {error}") from None
    except (TypeError, ValueError, RecursionError):
        raise RefusedError("bad_row", f"function_call in message {number} is not JSON") from None
    calls = parsed if isinstance(parsed, list) else [parsed]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise RefusedError("bad_row", f'function_call in message {number} is not {{"name": …, "arguments": …}}')
    return [{"name": call["name"], "arguments": call.get("arguments", call.get("parameters", {}))} for call in calls]


def _normalize_call(call: dict, number: int, as_text: bool) -> dict:
    """A call of message `number` with its arguments as the template wants them: JSON text, or an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RefusedError("bad_row", f"a tool call of message {number} has no function name")
    arguments = function.get("arguments", {})
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            arguments = parse_unique_json(arguments) if arguments.strip() else {}
        except RepeatedKeyError as error:
            raise RefusedError("bad_row", f"arguments of a tool call of message {number}: {error}") from None
        except (ValueError, RecursionError):
            raise RefusedError("bad_row", f"arguments of a tool call of message {number} are not JSON") from None
    if function is call:
        return {"type": "function", "function": {**call, "arguments": arguments}}
    return {**call, "function": {**function, "arguments": arguments}}
