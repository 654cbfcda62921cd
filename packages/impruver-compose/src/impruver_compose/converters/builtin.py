"""Built-in converters (messages, ShareGPT, Alpaca, text, …): functions of a row and a mapping of fields to columns."""

import json
import random
from collections.abc import Sequence
from types import NoneType
from typing import Any

from impruver_core.chat_template.masking.train_flags import TRAIN_FLAGS
from impruver_core.errors import RefusedError
from impruver_core.io.json_keys import RepeatedKeyError, parse_unique_json

USERS = ("human", "user", "prompter")
ASSISTANTS = ("assistant", "gpt", "bot", "chatgpt", "model", "chatbot", "ai")
SPEAKERS = {  # of ShareGPT's files, in any case; another one is an error
    **dict.fromkeys(USERS, "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
    **{role: role for role in ("system", "developer", "function_call")},
    **dict.fromkeys(("function_response", "observation", "tool", "function"), "function_response"),
}
ROLES = {  # of messages, in any case; others stay as they are, since a template may know them
    **dict.fromkeys(USERS, "user"),
    **dict.fromkeys(ASSISTANTS, "assistant"),
    **{role: role for role in ("system", "developer", "tool", "function")},
}
PAIR_KEYS = (("user", "assistant"), ("instruction", "output"), ("question", "answer"), ("prompt", "response"))


def _get_field(row: dict, mapping: dict, name: str) -> Any:
    """Gets a field from its mapped column or the one of its own name; "" if it is mapped to `_`, absent or null."""
    column = mapping.get(name, name)
    value = row.get(column) if column != "_" else None
    return "" if value is None else value


def _to_text(value: Any) -> str:
    """Makes a value a text, numbers and booleans as in JSON; ValueError for NaN, which JSON does not have."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _parse_json_text(value: Any, name: str) -> Any:
    """Parses a value that is JSON text, as cells of CSV are; ValueError for no JSON, RefusedError for a key twice."""
    if not isinstance(value, str):
        return value
    try:
        return parse_unique_json(value) if value.strip() else []
    except RepeatedKeyError as error:
        raise RefusedError("bad_row", f"{name}: {error}") from None
    except (ValueError, RecursionError) as error:  # nested too deep
        raise ValueError(f"{name} is text, but no JSON: {error}") from None


def instruction_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts `instruction`, `input` (on a line of its own behind it), `output`, and `system` if it is mapped.

    `history` has the turns before. Instruction and output may be messages, both or one of them: only the output's are
    trained on then. Rows without an answer are skipped.
    """
    question, extra, answer = (_get_field(row, mapping, name) for name in ("instruction", "input", "output"))
    if answer == "" and row.get(mapping.get("output", "output")) is None:
        return None
    asked, said = _build_question(question, extra), _build_answer(answer)
    history = _convert_history(_parse_json_text(_get_field(row, mapping, "history"), "history"))
    return _prepend_system(row, mapping, [*history, *asked, *said])


def _build_question(question: Any, extra: Any) -> list[dict]:
    """Builds what stands before the answer: the user's message, or messages, which are not trained on."""
    if not _is_message_list(question):
        parts = (_to_text(value) for value in (question, extra))
        return [{"role": "user", "content": "\n".join(part for part in parts if part)}]
    if extra:
        raise RefusedError("bad_row", "the instruction is a list of messages, and the input has no place in it")
    kept = ({key: value for key, value in message.items() if key not in TRAIN_FLAGS} for message in question)
    return [message | {"train": False} for message in kept]


def _build_answer(answer: Any) -> list[dict]:
    """Builds the answer's messages."""
    if _is_message_list(answer):
        return answer
    if _is_message_list([answer]):
        return [answer]
    return [{"role": "assistant", "content": _to_text(answer)}]


def _is_message_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "role" in item for item in value)


def _convert_history(turns: Any) -> list[dict]:
    """Converts earlier turns: pairs of a question and an answer, as lists or as objects, or messages."""
    if not isinstance(turns, Sequence) or not turns:
        if turns:
            raise RefusedError("bad_row", f"history is no list of turns but {type(turns).__name__}")
        return []
    if _is_message_list(turns):
        return _normalize_roles(turns)
    messages = []
    for number, turn in enumerate(turns):
        pair = turn
        if isinstance(turn, dict):
            keys = next((keys for keys in PAIR_KEYS if set(keys) == turn.keys()), ())
            pair = [turn[key] for key in keys]
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RefusedError("bad_row", f"turn {number} of history is no pair of a question and an answer")
        texts = (_to_text("" if value is None else value) for value in pair)
        messages += [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    return messages


def reasoning_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts as instruction_to_messages does, with `reasoning` in <think> tags before the answer."""
    messages = instruction_to_messages(row, mapping)
    reasoning = _to_text(_get_field(row, mapping, "reasoning"))
    if messages and reasoning:
        *before, last = messages
        messages = [*before, {**last, "content": f"<think>\n{reasoning}\n</think>\n\n{last['content']}"}]
    return messages


def _prepend_system(row: dict, mapping: dict, messages: list[dict]) -> list[dict]:
    """Puts the system prompt of a column first, only if it is mapped, and unless it stands there already."""
    system = _to_text(_get_field(row, {"system": "_"} | mapping, "system"))
    first = {"role": "system", "content": system}
    return [first, *messages] if system and messages[:1] != [first] else messages


def dialog_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts `messages` of the form {"role": […], "content": […], …}; unknown roles become the assistant's."""
    messages = _convert_dialog(_parse_json_text(_get_field(row, mapping, "messages"), "messages"))
    return messages and _prepend_system(row, {"system": "system"} | mapping, messages)


def _convert_dialog(dialog: Any) -> list[dict] | None:
    if isinstance(dialog, list):
        turns = [dict(message) for message in dialog]
    else:
        lists = {key: values for key, values in dialog.items() if values is not None}
        if len({len(values) for values in lists.values()}) > 1:
            return None
        turns = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    if len(turns) < 2:
        return None
    return [turn | {"role": SPEAKERS.get(_fold(turn["role"]), "assistant")} for turn in turns]


def conversations_to_messages(row: dict, mapping: dict) -> list[dict]:
    """Converts ShareGPT's `conversations` of {"from", "value", …}, also as JSON text, and `system` beside them."""
    turns = _parse_json_text(_get_field(row, mapping, "conversations"), "conversations")
    if not isinstance(turns, list):
        raise RefusedError("bad_row", f"conversations is no list but {type(turns).__name__}")
    messages = [_convert_turn(turn, number) for number, turn in enumerate(turns)]
    return _prepend_system(row, {"system": "system"} | mapping, messages)


def _convert_turn(turn: Any, number: int) -> dict:
    """Converts a turn of ShareGPT's; what it has besides speaker and text stays as it is."""
    if not isinstance(turn, dict):
        raise RefusedError("bad_row", f"turn {number} of conversations is no object but {type(turn).__name__}")
    rest = dict(turn)
    names, texts = ([rest.pop(key, None) for key in keys] for keys in (("from", "role"), ("value", "content")))
    speaker, content = (next((value for value in values if value is not None), None) for values in (names, texts))
    role = SPEAKERS.get(_fold(speaker))
    if role is None:
        raise ValueError(f"unknown speaker {speaker!r}; known: {', '.join(SPEAKERS)}")
    return {"role": role, "content": content, **rest}


def _fold(role: Any) -> Any:
    return role.strip().lower() if isinstance(role, str) else None


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


def messages(row: dict, mapping: dict) -> list[dict] | None:
    """Takes `messages` as they are (roles, contents, `tool_calls`, `train`), with `system` before them.

    They are a list, also as JSON text; two lists, of roles and of contents, are read as `dialog_to_messages` does.
    """
    value = _parse_json_text(_get_field(row, mapping, "messages"), "messages")
    if isinstance(value, dict) and all(isinstance(values, (list, NoneType)) for values in value.values()):
        return dialog_to_messages(row, mapping)
    if not isinstance(value, list):
        raise ValueError(f"messages is no list but {type(value).__name__}")
    return _prepend_system(row, {"system": "system"} | mapping, _normalize_roles(value))


def _normalize_roles(turns: list) -> list:
    """Gives roles in other spellings (Human, User, model) their usual name."""
    return [
        turn | {"role": role}
        if isinstance(turn, dict) and (role := ROLES.get(_fold(turn.get("role")))) not in (None, turn["role"])
        else turn
        for turn in turns
    ]


def text(row: dict, mapping: dict) -> str:
    """Takes `text` as plain text, all of it trained on."""
    return _to_text(_get_field(row, mapping, "text"))
