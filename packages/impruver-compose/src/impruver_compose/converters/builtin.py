"""Built-in converters (messages, ShareGPT, Alpaca, text, …): functions of a row and a mapping of fields to columns."""

import json
import random
from types import NoneType
from typing import Any, NamedTuple

from impruver_core.chat_template.masking.train_flags import TRAIN_FLAGS, is_blank
from impruver_core.errors import RefusedError

from impruver_compose.converters.turns import (
    SPEAKERS,
    convert_history,
    convert_turn,
    fold_role,
    normalize_roles,
    parse_json_text,
    read_messages,
    read_messages_text,
    to_text,
)


def _get_field(row: dict, mapping: dict, name: str) -> Any:
    """Gets a field from its mapped column or the one of its own name; "" if it is mapped to `_`, absent or null."""
    column = mapping.get(name, name)
    value = row.get(column) if column != "_" else None
    return "" if value is None else value


class _Exchange(NamedTuple):
    """What stands before an answer, and the answer, as messages."""

    asked: list[dict]
    said: list[dict]


def instruction_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts `instruction`, `input` (on a line of its own behind it), `output`, and `system` if it is mapped.

    `history` has the turns before. Instruction and output may be messages, both or one of them: only the output's are
    trained on then. Rows without an answer are skipped.
    """
    exchange = _build_exchange(row, mapping)
    return exchange and _prepend_system(row, mapping, [*exchange.asked, *exchange.said])


def reasoning_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts as instruction_to_messages does, with `reasoning` in <think> tags before the answer."""
    exchange = _build_exchange(row, mapping)
    reasoning = to_text(_get_field(row, mapping, "reasoning"))
    if exchange and reasoning:
        answers = (
            n for n, message in enumerate(exchange.said) if message["role"] == "assistant" and not is_blank(message)
        )
        number = next(answers, None)
        if number is not None:
            exchange.said[number] = _add_reasoning(exchange.said[number], f"<think>\n{reasoning}\n</think>\n\n")
    return exchange and _prepend_system(row, mapping, [*exchange.asked, *exchange.said])


def _add_reasoning(message: dict, thought: str) -> dict:
    content = message.get("content") or ""
    parts = isinstance(content, list)
    return message | {"content": [{"type": "text", "text": thought}, *content] if parts else f"{thought}{content}"}


def _build_exchange(row: dict, mapping: dict) -> _Exchange | None:
    """Builds the messages of a row of question and answer, without its system prompt; None for one without answer."""
    question, extra, answer = (_get_field(row, mapping, name) for name in ("instruction", "input", "output"))
    if answer == "" and row.get(mapping.get("output", "output")) is None:
        return None
    asked = read_messages(question) or read_messages_text(question)
    # A cell with a list of messages is one where the prompt is, too; else it is a text, as any other.
    said = read_messages(answer) or (read_messages_text(answer) if asked else None)
    if asked is None:
        text = "\n".join(filter(None, map(to_text, (question, extra))))
        repeated = said is not None and any(_is_question(message, text) for message in said[:2])
        asked = [] if repeated else [{"role": "user", "content": text}]
    else:
        if extra:
            raise RefusedError("bad_row", "the instruction is a list of messages, and the input has no place in it")
        kept = ({key: value for key, value in message.items() if key not in TRAIN_FLAGS} for message in asked)
        asked = [message | {"train": False} for message in kept]
    history = convert_history(_get_field(row, mapping, "history"))
    return _Exchange([*history, *asked], said or [{"role": "assistant", "content": to_text(answer)}])


def _is_question(message: dict, text: str) -> bool:
    """Whether the answer's messages begin with the question, as whole conversations do."""
    content = message.get("content")
    return message["role"] == "user" and isinstance(content, str) and content.strip() == text.strip()


def _prepend_system(row: dict, mapping: dict, messages: list[dict]) -> list[dict]:
    """Puts the system prompt of a column first, only if it is mapped, and unless it stands there already."""
    system = to_text(_get_field(row, {"system": "_"} | mapping, "system"))
    first = {"role": "system", "content": system}
    return [first, *messages] if system and messages[:1] != [first] else messages


def dialog_to_messages(row: dict, mapping: dict) -> list[dict] | None:
    """Converts `messages` of the form {"role": […], "content": […], …}; unknown roles become the assistant's."""
    messages = _convert_dialog(parse_json_text(_get_field(row, mapping, "messages"), "messages"))
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
    return [turn | {"role": SPEAKERS.get(fold_role(turn["role"]), "assistant")} for turn in turns]


def conversations_to_messages(row: dict, mapping: dict) -> list[dict]:
    """Converts ShareGPT's `conversations` of {"from", "value", …}, also as JSON text, and `system` beside them."""
    turns = parse_json_text(_get_field(row, mapping, "conversations"), "conversations")
    if not isinstance(turns, list):
        raise RefusedError("bad_row", f"conversations is no list but {type(turns).__name__}")
    messages = [convert_turn(turn, number) for number, turn in enumerate(turns)]
    return _prepend_system(row, {"system": "system"} | mapping, messages)


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
    value = parse_json_text(_get_field(row, mapping, "messages"), "messages")
    lists = isinstance(value, dict) and all(isinstance(values, (list, NoneType)) for values in value.values())
    if lists and {"role", "content"} <= value.keys():
        return dialog_to_messages(row, mapping)
    if not isinstance(value, list):
        raise ValueError(f"messages is no list but {type(value).__name__}")
    return _prepend_system(row, {"system": "system"} | mapping, normalize_roles(value))


def text(row: dict, mapping: dict) -> str:
    """Takes `text` as plain text, all of it trained on."""
    return to_text(_get_field(row, mapping, "text"))
