"""Rows of one data set to a shard: convert, encode in batches, tell what can't be used."""

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from impruver_core.chat_template.masking.loss_mask import Encoded, Refused, encode_chats
from impruver_core.errors import RefusedError
from impruver_core.io.jsonl import format_row
from impruver_core.labels import count_target_tokens
from impruver_core.tokenizer import plain_encoder

from impruver_compose.converters.conversation import Conversation, convert_row
from impruver_compose.dedup.minhash import compute_signatures
from impruver_compose.encoding.documents import encode_document
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.encoding.turns import build_training_views, find_longest_fitting_prefix, select_fitting_views
from impruver_compose.records import (
    DroppedRow,
    EncodedConversation,
    EncodedShard,
    build_token_row,
    compute_digest,
)

BATCH = 500  # rows in memory at once,


BATCH_BYTES = 1 << 21  # and of their conversations: a token's encoding takes a hundred bytes


Placed = tuple[int, int, Conversation]  # row, part, conversation


def encode_rows(job: DatasetJob, start: int, stop: int) -> tuple[EncodedShard, np.ndarray]:
    """The shard of rows start..stop, and the MinHash signatures of what it kept."""
    shard, found = EncodedShard(), []
    for first in range(start, stop, BATCH):
        for conversations in _split_into_batches(_convert_rows(job, first, min(first + BATCH, stop), shard)):
            before = len(shard.kept)
            _encode_batch(job, conversations, shard)
            found.append(compute_signatures([kept.said for kept in shard.kept[before:]], job.num_perm))
    return shard, np.concatenate([np.empty((0, job.num_perm), np.uint32), *found])


def convert_row_at(job: DatasetJob, row: int) -> list[Conversation]:
    """The conversations of one row; RefusedError where it becomes none."""
    return list(convert_row(job.rows.read(row, row + 1)[0], job.converter, job.mapping))


def _convert_rows(job: DatasetJob, start: int, stop: int, shard: EncodedShard) -> list[Placed]:
    """The conversations of rows start..stop."""
    found = []
    for number, row in enumerate(job.rows.read(start, stop), start):
        shard.counts["rows"] += 1
        try:
            conversations = list(convert_row(row, job.converter, job.mapping))
            if not conversations:
                raise RefusedError("converter_skipped", "")
        except RefusedError as error:
            shard.dropped.append(DroppedRow(number, None, error.reason, error.detail))
            continue
        shard.counts.update(converted=1, conversations=len(conversations))
        found += [(number, at, conversation) for at, conversation in enumerate(conversations)]
    return found


def _split_into_batches(conversations: list[Placed]) -> Iterator[list[Placed]]:
    """The conversations in stretches of at most BATCH_BYTES, or of one."""
    start, size = 0, 0
    for end, (_, _, conversation) in enumerate(conversations):
        size += len(conversation.as_json)
        if size > BATCH_BYTES and end > start:
            yield conversations[start:end]
            start, size = end, len(conversation.as_json)
    if conversations:
        yield conversations[start:]


def _encode_batch(job: DatasetJob, conversations: list[Placed], shard: EncodedShard) -> None:
    chats = [chat for _, _, chat in conversations if chat.text is None]
    whole = encode_messages(job, chats, [chat.messages for chat in chats])
    lines = iter(zip(whole, _encode_views(job, chats, whole), strict=True))
    with plain_encoder(job.tokenizer) as encode:
        documents = iter(encode([chat.text for _, _, chat in conversations if chat.text is not None]))
    for row, at, chat in conversations:
        if chat.text is not None:
            kept = encode_document(job, row, at, chat.text, next(documents))
        else:
            kept = _encode_conversation(job, row, at, chat, *next(lines))
        if isinstance(kept, Refused):
            shard.dropped.append(DroppedRow(row, at, kept.reason, kept.detail))
            continue
        shard.kept.append(kept)
        shard.counts["trimmed"] += kept.trimmed


def encode_messages(
    job: DatasetJob, chats: Sequence[Conversation], messages: list[list[dict]]
) -> list[Encoded | Refused]:
    """Encodes `messages`, each with the tools and template arguments of the chat of the same number."""
    return encode_chats(
        job.tokenizer,
        messages,
        [chat.tools for chat in chats],
        chat_template_kwargs=[job.get_template_kwargs(chat) for chat in chats],
        **job.options,
    )


def _encode_views(job: DatasetJob, chats: list[Conversation], whole: list[Encoded | Refused]) -> list:
    """The lines of each chat as `turns` asks for them: (number of messages, Encoded or Refused)."""
    if job.turns == "all":
        return [[(len(chat.messages), encoded)] for chat, encoded in zip(chats, whole, strict=True)]
    usable = [isinstance(encoded, Encoded) for encoded in whole]
    asked = [
        build_training_views(chat.messages, job.turns) if good else [] for chat, good in zip(chats, usable, strict=True)
    ]
    owners = [chat for chat, several in zip(chats, asked, strict=True) for _ in several]
    encoded = iter(encode_messages(job, owners, [messages for several in asked for messages in several]))
    return [[(len(messages), next(encoded)) for messages in several] for several in asked]


def _encode_conversation(
    job: DatasetJob, row: int, at: int, chat: Conversation, whole: Encoded | Refused, lines: list
) -> EncodedConversation | Refused:
    if isinstance(whole, Refused):
        return whole
    if not lines or not count_target_tokens(whole.labels):
        roles = ", ".join(dict.fromkeys(message["role"] for message in chat.messages))
        return Refused("nothing_to_learn", f"no assistant's turn is learned (roles: {roles})")
    encode = partial(encode_messages, job, [chat])
    shorter = (
        partial(find_longest_fitting_prefix, chat.messages, whole, encode, job.turns, job.limit) if job.trim else None
    )
    fit = select_fitting_views(lines, job.limit, shorter)
    if isinstance(fit, Refused):
        return fit
    last = max((n for n, m in enumerate(chat.messages) if m["role"] in ("assistant", "function_call")), default=0)
    ids = np.asarray(whole.input_ids, np.uint32)
    judged = [ids[start:end] for number, start, end in whole.texts if number < last or not job.prompts_only]
    asked = _serialize_prompt(chat.messages[:last])
    all_digest = compute_digest(ids)
    prompt_digest = compute_digest(asked) if asked else all_digest
    return EncodedConversation(
        row,
        at,
        [build_token_row(encoded, _format_extra(chat, count)) for count, encoded in fit],
        np.concatenate([ids[:0], *judged]),
        prompt_digest if job.prompts_only else all_digest,
        prompt_digest,
        trimmed=fit[-1][0] < lines[-1][0],
    )


def _format_extra(chat: Conversation, count: int) -> bytes:
    """What a line of the first `count` messages carries besides in val.jsonl."""
    if count == len(chat.messages):
        return chat.as_json
    return format_row(chat._replace(messages=chat.messages[:count]).to_row()).encode()


def _serialize_prompt(messages: list[dict]) -> bytes:
    """What messages say but the system's, empty where they say nothing.

    As text: the same text may begin with another token behind a system prompt. Templates trim blanks at its ends.
    """
    said = [
        [text.strip() if isinstance(text, str) else text or "", message.get("tool_calls") or []]
        for message in messages
        if message["role"] != "system"
        for text in [message.get("content")]
    ]
    return json.dumps(said, sort_keys=True).encode() if any(text or calls for text, calls in said) else b""
