"""The built-in converters. Each takes a row and a mapping of its fields to columns, and changes neither."""

import json
import random

SKIPPED_LABELS = ("bad_output",)


ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "function_call": "function_call",
    "function_response": "function_response",
    "observation": "function_response",
    "tool": "function_response",
}


def _get_field(row: dict, mapping: dict, name: str):
    """A field's value, of the mapped column or the one of its name; "" where it is mapped to `_`, absent or null."""
    column = mapping.get(name, name)
    value = row.get(column) if column != "_" else None
    return "" if value is None else value


def _to_text(value) -> str:
    """A value as text: numbers and booleans as JSON writes them; ValueError for NaN, which is none."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def instruction_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """`instruction`, `input` (behind it, on a line of its own), `output`, and `system` where mapped.

    Where instruction and output are messages themselves, those, and only the output's are learned. Rows whose `label`
    says bad_output are skipped, as are rows without an answer.
    """
    asked, answer = (_get_field(row, mapping, name) for name in ("instruction", "output"))
    if row.get("label") in SKIPPED_LABELS:
        return None
    if _is_message_list(asked) and _is_message_list(answer):
        return _prepend_system(row, mapping, [*({**message, "train": False} for message in asked), *answer])
    output = _to_text(answer)
    if not output.strip():
        return None
    parts = (_to_text(value) for value in (asked, _get_field(row, mapping, "input")))
    content = "\n".join(part for part in parts if part)
    return _prepend_system(
        row, mapping, [{"role": "user", "content": content}, {"role": "assistant", "content": output}]
    )


def _is_message_list(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)


def reasoning_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """As instruction_to_messages, with `reasoning` before the answer in <think> tags."""
    messages = instruction_to_messages(row, mapping)
    reasoning = _to_text(_get_field(row, mapping, "reasoning"))
    if messages and reasoning:
        *before, last = messages
        messages = [*before, {**last, "content": f"<think>\n{reasoning}\n</think>\n\n{last['content']}"}]
    return messages


def _prepend_system(row: dict, mapping: dict, messages: list[dict]) -> list[dict]:
    system = _to_text(_get_field(row, {"system": "_"} | mapping, "system"))  # only where it is mapped
    return [{"role": "system", "content": system}, *messages] if system else messages


def dialog_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """`messages` as {"role": […], "content": […]}; every role but user, system and the functions' is the assistant."""
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
    """ShareGPT: `conversations` of {"from", "value"}, and a `system` prompt beside them."""
    messages = []
    system = _get_field(row, mapping, "system")
    if system:
        messages.append({"role": "system", "content": system})
    for item in _get_field(row, mapping, "conversations"):
        speaker = item.get("from") or item.get("role")
        if speaker not in ROLES:
            raise ValueError(f"unknown speaker {speaker!r}; known: {', '.join(ROLES)}")
        said = item["value"] if item.get("value") is not None else item.get("content")
        messages.append({"role": ROLES[speaker], "content": said})
    return messages


def char_dialog_to_messages(row: dict, mapping: dict) -> list[list[dict]] | None:
    """Dialogues with a character (IlyaGusev/gpt_roleplay_realm): one conversation for each that gpt-4 wrote, else None.

    What of the character's sheet goes into the system prompt is chosen by chance, seeded by the row.
    """
    chance = random.Random(json.dumps([row.get("name"), row.get("context"), row.get("greeting")], ensure_ascii=False))
    told = [
        _build_character_prompt(row, chance) + [_convert_turn(message) for message in dialogue["chat"]]
        for dialogue in row["dialogues"]
        if dialogue["model_name"] == "gpt-4"
    ]
    return told or None


def _convert_turn(message: dict) -> dict:
    return {"role": "assistant" if message["role"] == "char" else "user", "content": message["content"]}


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
    """Messages rows, as they are: roles and contents, `tool_calls`, `train`; a list, also as JSON text."""
    value = _get_field(row, mapping, "messages") or []
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"messages is no list but {type(value).__name__}")
    return value


def text(row: dict, mapping: dict) -> str | None:
    """Plain text to learn whole; None for an empty one."""
    return _to_text(_get_field(row, mapping, "text")) or None
