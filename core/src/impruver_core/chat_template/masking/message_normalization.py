"""Makes of a messages row what the template can render: tool calls in its form, no nulls, no fields of wrong types.

Calls come in three forms, and a template knows one: `tool_calls` of an assistant's message (OpenAI's), its older
`function_call` beside the content, and messages of a role `function_call` (ShareGPT's). Results are messages of the
roles `tool`, `function`, `function_response` and `observation`.
"""

from collections.abc import Sequence
from typing import Any

from impruver_core.chat_template.analysis.prober import build_call_id
from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.chat_template.masking.media import TEXT_KINDS, check_parts, get_kind
from impruver_core.chat_template.masking.tool_calls import Call, get_function, normalize_call, parse_calls
from impruver_core.chat_template.masking.train_flags import TRAIN_FLAGS, check_other_flags, read_train_flag
from impruver_core.chat_template.rendering.renderer import REASONING_FIELDS
from impruver_core.errors import RefusedError

MESSAGE_KEYS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "function_call", *TRAIN_FLAGS, *REASONING_FIELDS)
)
PLAIN_KEYS = MESSAGE_KEYS.difference(TRAIN_FLAGS)
PLAIN_ROLES = ("system", "user", "assistant")
RESULT_ROLES = ("function", "function_response", "observation")  # of other names than `tool`


def normalize_messages(messages: Sequence[dict], fmt: TemplateFormat) -> list[dict]:
    """The messages as the template is to get them; RefusedError("bad_row") where they are no messages.

    Calls and results of other forms become `tool_calls` and `tool`; the roles `function_call` and `function_response`
    stay where the template renders these and no `tool_calls`. Arguments in JSON text become objects, unless the
    template needs text. Null content becomes empty, a list of text parts the text that they make up, unless the
    template takes lists. A developer's message is the system's where the template knows no developer. Keys that are
    null or about training go, and `tool_calls` without a call.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise RefusedError("bad_row", "messages is not a list of messages" if messages else "messages is empty")
    if all(map(_is_plain, messages)):
        return [dict(message) for message in messages]
    prepared = [_check_message(message, number) for number, message in enumerate(messages)]
    prepared = _convert_to_tool_calls(prepared, fmt)
    for number, message in enumerate(prepared):
        if message["role"] == "developer" and not fmt.renders_developer:
            message["role"] = "system"
        if isinstance(message["content"], list):
            message["content"] = _normalize_parts(message, number, fmt)
        if calls := message.pop("tool_calls", None):
            message["tool_calls"] = [normalize_call(call, number, fmt.arguments_as_text) for call in calls]
    return prepared


def _is_plain(message: Any) -> bool:
    """Whether a message is a usual role and a text, as most are: there is nothing to normalize."""
    return (
        isinstance(message, dict)
        and len(message) == 2
        and message.get("role") in PLAIN_ROLES
        and isinstance(message.get("content"), str)
    )


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
    is_plain = PLAIN_KEYS.issuperset(message)  # as most are: nothing more is looked for in them
    if not is_plain:
        read_train_flag(message, number)
        check_other_flags(message, number, MESSAGE_KEYS)
    if not is_plain or isinstance(content, list):
        check_parts(message, number)
    fields = {key: value for key, value in message.items() if value is not None and key not in TRAIN_FLAGS}
    return fields | {"content": "" if content is None else content}


def _normalize_parts(message: dict, number: int, fmt: TemplateFormat) -> str | list:
    """The text that the parts of a content make up; a list of them where the template takes it.

    RefusedError("bad_row") for a part of another kind where it takes none.
    """
    content, role = message["content"], message["role"]
    text = _join_text_parts(content)
    if text is None:
        if fmt.probe_parts(role, 1):
            return content
        kind = next((kind for kind in map(get_kind, content) if kind not in TEXT_KINDS), "text, without text")
        raise RefusedError("bad_row", f"message {number} has a part of kind {kind}, which this template does not take")
    if not content or not fmt.probe_parts(role, min(len(content), 2)):
        return text
    known = (isinstance(part, dict) and part.get("type", "text") != "text" for part in content)
    return [{**part, "type": "text"} if other else part for part, other in zip(content, known, strict=True)]


def _join_text_parts(content: Sequence[Any]) -> str | None:
    """The text of a content whose parts are all text, else None."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in content if get_kind(part) in TEXT_KINDS]
    are_text = len(texts) == len(content) and all(isinstance(text, str) for text in texts)
    return "".join(texts) if are_text else None


def _convert_to_tool_calls(messages: list[dict], fmt: TemplateFormat) -> list[dict]:
    """The messages with all calls and results as `tool_calls` and `tool`, unless the template has them as roles.

    Results belong to the calls before them by name, else in order.
    """
    as_roles = fmt.renders_function_roles and not fmt.renders_calls  # many pass through any role
    kept = (*(("function_response",) if as_roles else ()), *(() if fmt.renders_calls else ("observation",)))
    prepared: list[dict] = []
    waiting: list[dict] = []  # calls without a result
    made = 0
    for number, message in enumerate(messages):
        role, form = message["role"], message.pop("function_call", None)
        if role == "function_call" and not as_roles:
            content = message["content"]
            calls = parse_calls(_join_text_parts(content) if isinstance(content, list) else content, number)
            message = {**message, "role": "assistant", "content": ""}
        elif form and message.get("tool_calls"):
            raise RefusedError("bad_row", f"message {number} has both tool_calls and function_call")
        else:
            calls = parse_calls(form, number) if form else []
        if calls:
            message["tool_calls"] = [
                {"id": _build_id(fmt, number, index, made, call), "type": "function", "function": call._asdict()}
                for index, call in enumerate(calls)
            ]
            made += len(calls)
        called = [_name_call(call) for call in message.get("tool_calls") or []]
        if called:  # several messages of calls may stand side by side
            waiting = waiting + called if number and messages[number - 1]["role"] == role == "function_call" else called
        elif role in RESULT_ROLES and role not in kept:
            message = _convert_result(message, waiting, number)
        elif role == "tool":
            waiting = [call for call in waiting if call["id"] != message.get("tool_call_id")]
        prepared.append(message)
    return prepared


def _build_id(fmt: TemplateFormat, number: int, index: int, made: int, call: Call) -> str:
    """The id of call `index` in message `number`, of which the data has none; `made` calls had none before."""
    if fmt.ids_hold_names:
        return build_call_id(call.name, made + index, True)
    return f"call{number:05d}" if index == 0 else f"call{number:03d}{index:02d}"


def _name_call(call: Any) -> dict:
    """The id and the function's name of a call in `tool_calls`."""
    call = call if isinstance(call, dict) else {}
    function = get_function(call)
    return {"id": call.get("id"), "name": function.get("name") if isinstance(function, dict) else None}


def _convert_result(message: dict, waiting: list[dict], number: int) -> dict:
    """A result as a message of the role `tool`; its call leaves those that wait."""
    name = message.get("name")
    call = next((call for call in waiting if name and call["name"] == name), waiting[0] if waiting else {})
    if call:
        waiting.remove(call)
    name = name or call.get("name")
    named = {"name": name} if name else {}
    id_ = message.get("tool_call_id") or call.get("id") or f"call{number:05d}"
    rest = {key: value for key, value in message.items() if key not in ("role", "name", "tool_call_id", "content")}
    return {"role": "tool", **named, "tool_call_id": id_, "content": message["content"], **rest}
