"""Conversations far beyond the longest row: known by their first part, so that the rest is never tokenized."""

from collections.abc import Sequence
from typing import Any

from impruver_core.chat_template.masking.loss_mask import Encoded, Refused, encode_chats
from impruver_core.io.jsonl import format_row
from impruver_core.labels import TRAINED_ROLES

from impruver_compose.converters.conversion import Conversation
from impruver_compose.encoding.job import DatasetJob

SMALL = 1 << 16  # bytes of a conversation's JSON that are always tokenized
TOKEN_BYTES = 32  # bytes of JSON for a token; above it a conversation is looked at in parts
FIRST_PART, GROWTH = 16, 4  # bytes for a token in the first part; how much larger each further one is
MARGIN = 2  # times the longest row: a template may leave out what it has of a turn, once others follow


def cut_overlong(job: DatasetJob, chat: Conversation) -> Conversation | Refused:
    """The conversation; of one that is surely too long the messages that may fit, or Refused where all have to."""
    size = len(chat.as_json)
    if chat.messages is None or job.max_length is None or size <= max(SMALL, TOKEN_BYTES * job.max_length):
        return chat
    part_size = FIRST_PART * job.max_length
    while part_size < size:
        count, part = take_first_part(chat.messages, part_size)
        kwargs = [job.build_template_kwargs(chat)]
        options = job.build_encode_options()
        (encoded,) = encode_chats(job.tokenizer, [part], [chat.tools], chat_template_kwargs=kwargs, **options)
        if isinstance(encoded, Encoded) and len(encoded.input_ids) > MARGIN * job.max_length:
            return _cut_or_refuse(job, chat, count, len(encoded.input_ids))
        part_size *= GROWTH
    return chat


def _cut_or_refuse(job: DatasetJob, chat: Conversation, count: int, tokens: int) -> Conversation | Refused:
    messages = chat.messages[:count]
    if job.section.on_overflow != "trim_turns" or not any(message["role"] in TRAINED_ROLES for message in messages):
        return Refused("too_long", f"more than {tokens} tokens, at most {job.max_length} (max_tokens_count)")
    cut = chat._replace(messages=messages)
    return cut._replace(as_json=format_row(cut.to_row()).encode())


def take_first_part(messages: Sequence[dict], size: int) -> tuple[int, list[dict]]:
    """The messages in the first `size` bytes of their JSON, the last one with its texts cut; how many are whole."""
    for count, message in enumerate(messages):
        length = len(format_row({"": message}))
        if length > size:
            return count, [*messages[:count], _cut_texts(message, size)]
        size -= length
    return len(messages), list(messages)


def _cut_texts(value: Any, size: int) -> Any:
    if isinstance(value, str):
        return value[:size]
    if isinstance(value, dict):
        return {key: _cut_texts(item, size) for key, item in value.items()}
    return [_cut_texts(item, size) for item in value] if isinstance(value, list) else value
