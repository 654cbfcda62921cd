"""Built-in converters (messages, ShareGPT, Alpaca, text, …): functions of a row and a mapping of fields to columns."""

import json
import random
from typing import Any

SKIPPED_LABELS = ("bad_output",)
ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "bot", "assistant", "chatgpt", "model"), "assistant"),
    **{role: role for role in ("system", "function_call")},
    **dict.fromkeys(("function_response", "observation", "tool"), "function_response"),
}


def _get_field(row: dict, mapping: dict, name: str) -> Any:
    """Gets a field from its mapped column or the one of its own name; "" if it is mapped to `_`, absent or null."""
    column = mapping.get(name, name)
    value = row.get(column) if column != "_" else None
    return "" if value is None else value


def _to_text(value: Any) -> str:
    """Makes a value a text, numbers and booleans as in JSON; ValueError for NaN, which JSON does not have."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def instruction_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts `instruction`, `input` (on a line of its own behind it), `output`, and `system` if it is mapped.

    If instruction and output are messages themselves, they stay so, and only the output's are trained on. Rows whose
    `label` is bad_output are skipped, as are rows without an answer.
    """
    question, answer = (_get_field(row, mapping, name) for name in ("instruction", "output"))
    if row.get("label") in SKIPPED_LABELS:
        return None
    if _is_message_list(question) and _is_message_list(answer):
        return _prepend_system(row, mapping, [*({**message, "train": False} for message in question), *answer])
    output = _to_text(answer)
    if not output.strip():
        return None
    parts = (_to_text(value) for value in (question, _get_field(row, mapping, "input")))
    content = "\n".join(part for part in parts if part)
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": output}]
    return _prepend_system(row, mapping, messages)


def _is_message_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)


def reasoning_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts as instruction_to_messages does, with `reasoning` in <think> tags before the answer."""
    messages = instruction_to_messages(row, mapping)
    reasoning = _to_text(_get_field(row, mapping, "reasoning"))
    if messages and reasoning:
        *before, last = messages
        messages = [*before, {**last, "content": f"<think>\n{reasoning}\n</think>\n\n{last['content']}"}]
    return messages


def _prepend_system(row: dict, mapping: dict, messages: list[dict]) -> list[dict]:
    system = _to_text(_get_field(row, {"system": "_"} | mapping, "system"))  # only if it is mapped
    return [{"role": "system", "content": system}, *messages] if system else messages


def dialog_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts `messages` of the form {"role": […], "content": […]}; unknown roles become the assistant's."""
    dialog = _get_field(row, mapping, "messages")
    if isinstance(dialog, list):
        roles, contents = ([message[key] for message in dialog] for key in ("role", "content"))
    else:
        roles, contents = dialog["role"], dialog["content"]
    if len(roles) != len(contents) or len(roles) < 2:
        return None
    pairs = zip(roles, contents, strict=True)
    return [{"role": ROLES.get(role, "assistant"), "content": content} for role, content in pairs]


def conversations_to_messages(row: dict, mapping: dict) -> list[dict]:
    """Converts ShareGPT's `conversations` of {"from", "value"} with the `system` prompt beside them."""
    messages = []
    system = _get_field(row, mapping, "system")
    if system:
        messages.append({"role": "system", "content": system})
    for item in _get_field(row, mapping, "conversations"):
        speaker = item.get("from") or item.get("role")
        if speaker not in ROLES:
            raise ValueError(f"unknown speaker {speaker!r}; known: {', '.join(ROLES)}")
        content = item["value"] if item.get("value") is not None else item.get("content")
        messages.append({"role": ROLES[speaker], "content": content})
    return messages


def char_dialog_to_messages(row: dict, mapping: dict) -> list[list[dict]] | None:
    """Converts dialogues with a character (IlyaGusev/gpt_roleplay_realm), one conversation for each that gpt-4 wrote.

    What the system prompt has of the character's sheet is drawn at random, seeded by the row.
    """
    chance = random.Random(json.dumps([row.get("name"), row.get("context"), row.get("greeting")], ensure_ascii=False))
    roles, conversations = {"char": "assistant"}, []
    for dialogue in row["dialogues"]:
        if dialogue["model_name"] == "gpt-4":
            turns = [{"role": roles.get(m["role"], "user"), "content": m["content"]} for m in dialogue["chat"]]
            conversations.append(_build_character_prompt(row, chance) + turns)
    return conversations or None


def _build_character_prompt(row: dict, chance: random.Random) -> list[dict]:
    context = f"Ты {row['name']}. {row['context']}" if chance.random() < 0.5 else row["context"]
    opening = []
    if chance.random() < 0.2:
        context += f"\nПриветствие: {row['greeting']}"
        opening = [{"role": "assistant", "content": row["greeting"]}]
    if chance.random() < 0.2:
        names = {"user": "Пользователь", "char": "Персонаж"}
        lines = [f"{names.get(m['role'], names['user'])}: {m['content']}" for m in row["example_dialogue"]]
        context += "\n".join(["\nПример диалога:", *lines])
    return [{"role": "system", "content": context}, *opening]


def messages(row: dict, mapping: dict) -> list[dict]:
    """Takes `messages` as they are (roles, contents, `tool_calls`, `train`): a list, also as JSON text."""
    value = _get_field(row, mapping, "messages") or []
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"messages is no list but {type(value).__name__}")
    return value


def text(row: dict, mapping: dict) -> str | None:
    """Takes `text` as plain text, all of it trained on; skips an empty one."""
    return _to_text(_get_field(row, mapping, "text")) or None
