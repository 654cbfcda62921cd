"""Rows of one data set to a shard: convert, encode in batches, tell what can't be used."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import orjson
from impruver_core.errors import RefusedError
from impruver_core.files.jsonl import dumps
from impruver_core.templating.mask import UNLEARNED, Encoded, Refused, encode_chats
from impruver_core.templating.tokenizer import plain_encoding

from impruver_compose.convert import Conversation, convert
from impruver_compose.jobs import Job
from impruver_compose.minhash import signatures_of
from impruver_compose.shards import Dropped, Kept, Line, Shard
from impruver_compose.unfold import fitting, parts, shortened

BATCH = 500  # rows in memory at once,
BATCH_BYTES = 1 << 21  # and of their conversations: a token's encoding takes a hundred bytes

Placed = tuple[int, int, Conversation]  # row, part, conversation


def encode_rows(job: Job, start: int, stop: int) -> tuple[Shard, np.ndarray]:
    """The shard of rows start..stop, and the MinHash signatures of what it kept."""
    shard, found = Shard(), []
    for first in range(start, stop, BATCH):
        for conversations in _batches(_converted(job, first, min(first + BATCH, stop), shard)):
            before = len(shard.kept)
            _encode(job, conversations, shard)
            found.append(signatures_of([kept.said for kept in shard.kept[before:]], job.num_perm))
    return shard, np.concatenate([np.empty((0, job.num_perm), np.uint32), *found])


def converted(job: Job, row: int) -> list[Conversation]:
    """The conversations of one row; RefusedError where it becomes none."""
    return list(convert(job.rows.batch(row, row + 1)[0], job.converter, job.mapping))


def _converted(job: Job, start: int, stop: int, shard: Shard) -> list[Placed]:
    """The conversations of rows start..stop."""
    found = []
    for number, row in enumerate(job.rows.batch(start, stop), start):
        shard.rows += 1
        try:
            conversations = list(convert(row, job.converter, job.mapping))
            if not conversations:
                raise RefusedError("converter_skipped", "")
        except RefusedError as error:
            shard.dropped.append(Dropped(number, None, error.reason, error.detail))
            continue
        shard.converted += 1
        shard.conversations += len(conversations)
        found += [(number, at, conversation) for at, conversation in enumerate(conversations)]
    return found


def _batches(conversations: list[Placed]) -> Iterator[list[Placed]]:
    """The conversations in stretches of at most BATCH_BYTES, or of one."""
    start, size = 0, 0
    for end, (_, _, conversation) in enumerate(conversations):
        size += len(conversation.as_json)
        if size > BATCH_BYTES and end > start:
            yield conversations[start:end]
            start, size = end, len(conversation.as_json)
    if conversations:
        yield conversations[start:]


def _encode(job: Job, conversations: list[Placed], shard: Shard) -> None:
    chats = [chat for _, _, chat in conversations if chat.text is None]
    whole = encode_all(job, chats, [chat.messages for chat in chats])
    lines = iter(zip(whole, _lines(job, chats, whole), strict=True))
    with plain_encoding(job.tokenizer) as encode:
        documents = iter(encode([chat.text for _, _, chat in conversations if chat.text is not None]))
    for row, at, chat in conversations:
        if chat.text is not None:
            kept = _document(job, row, at, chat.text, next(documents))
        else:
            kept = _chat(job, row, at, chat, *next(lines))
        if isinstance(kept, Refused):
            shard.dropped.append(Dropped(row, at, kept.reason, kept.detail))
            continue
        shard.kept.append(kept)


def encode_all(job: Job, chats: Sequence[Conversation], messages: list[list[dict]]) -> list[Encoded | Refused]:
    """Encodes `messages`, each with the tools and template arguments of the chat of the same number."""
    return encode_chats(
        job.tokenizer,
        messages,
        [chat.tools for chat in chats],
        chat_template_kwargs=[job.kwargs(chat) for chat in chats],
        **job.options,
    )


def _lines(job: Job, chats: list[Conversation], whole: list[Encoded | Refused]) -> list:
    """The lines of each chat as `turns` asks for them: (number of messages, Encoded or Refused)."""
    if job.turns == "all":
        return [[(len(chat.messages), encoded)] for chat, encoded in zip(chats, whole, strict=True)]
    usable = [isinstance(encoded, Encoded) for encoded in whole]
    asked = [parts(chat.messages, job.turns) if good else [] for chat, good in zip(chats, usable, strict=True)]
    owners = [chat for chat, several in zip(chats, asked, strict=True) for _ in several]
    encoded = iter(encode_all(job, owners, [messages for several in asked for messages in several]))
    return [[(len(messages), next(encoded)) for messages in several] for several in asked]


def _chat(job: Job, row: int, at: int, chat: Conversation, whole: Encoded | Refused, lines: list) -> Kept | Refused:
    if isinstance(whole, Refused):
        return whole
    if not lines or not _learned(whole.labels):
        return Refused("nothing_to_learn", "no assistant's turn is learned")
    fit = fitting(lines, job.limit, (lambda: _shorter(job, chat, whole)) if job.trim else None)
    if isinstance(fit, Refused):
        return fit
    last = max((n for n, m in enumerate(chat.messages) if m["role"] in ("assistant", "function_call")), default=0)
    ids = np.asarray(whole.input_ids, np.uint32)
    judged = [ids[start:end] for number, start, end in whole.texts if number < last or not job.prompts_only]
    asked = _asked(chat.messages[:last])
    all_digest = _digest(ids)
    prompt_digest = _digest(asked) if asked else all_digest
    return Kept(
        row,
        at,
        [_line(encoded, _leading(chat, count)) for count, encoded in fit],
        np.concatenate([ids[:0], *judged]),
        prompt_digest if job.prompts_only else all_digest,
        prompt_digest,
        trimmed=fit[-1][0] < lines[-1][0],
    )


def _shorter(job: Job, chat: Conversation, whole: Encoded) -> list[tuple[int, Encoded]]:
    return shortened(chat.messages, whole, lambda several: encode_all(job, [chat], several), job.turns, job.limit)


def _leading(chat: Conversation, count: int) -> bytes:
    """What a line of the first `count` messages carries besides in val.jsonl."""
    if count == len(chat.messages):
        return chat.as_json
    return dumps(chat._replace(messages=chat.messages[:count]).as_row()).encode()


def _line(encoded: Encoded, extra: bytes) -> Line:
    content = orjson.dumps({"input_ids": encoded.input_ids, "labels": encoded.labels})
    return Line(content, extra, len(encoded.input_ids), _learned(encoded.labels), encoded.ended)


def _learned(labels: list[int]) -> int:
    """How many tokens are learned: the first has nothing to be told from."""
    return len(labels) - labels.count(UNLEARNED) - (labels[:1] != [UNLEARNED])


def _asked(messages: list[dict]) -> bytes:
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


def _document(job: Job, row: int, at: int, text: str, encoding) -> Kept | Refused:
    """A document, cut at the limit, with BOS and EOS around the whole; every piece carries its part of the text."""
    if not encoding.ids:
        return Refused("nothing_to_learn", "no tokens")
    ids, starts = _with_ends(job, encoding.ids, [0, *(start for start, _ in encoding.offsets[1:])], len(text))
    labels = list(ids)
    if ids[0] == job.tokenizer.bos_token_id:
        labels[0] = UNLEARNED
    lines = []
    for start, stop in pairwise(_borders(len(ids), job.limit)):
        ended = stop == len(ids) and stop - start > 1 and ids[-1] == job.tokenizer.eos_token_id
        encoded = Encoded(ids[start:stop], labels[start:stop], [], ended)
        lines.append(_line(encoded, dumps({"text": text[starts[start] : starts[stop]]}).encode()))
    if not any(line.learned for line in lines):
        return Refused("nothing_to_learn", "no piece has two tokens")
    whole = _digest(np.asarray(ids, np.uint32))
    said = ids if job.prompts_only else encoding.ids
    return Kept(row, at, lines, np.asarray(said, np.uint32), whole, whole)


def _borders(length: int, limit: int | None) -> list[int]:
    """Where a document of `length` tokens is cut. The last piece is no single token: a row's first is not learned."""
    size = limit or length
    borders = [*range(0, length, size), length]
    if length % size == 1 and len(borders) > 2 and size > 2:
        borders[-2] -= 1
    return borders


def _with_ends(job: Job, ids: list[int], starts: list[int], length: int) -> tuple[list[int], list[int]]:
    """The ids with BOS and EOS where they are missing; where in the text each begins, and where the text ends."""
    bos, eos = job.tokenizer.bos_token_id, job.tokenizer.eos_token_id
    if job.options["add_bos"] and bos not in (None, ids[0]):
        ids, starts = [bos, *ids], [0, *starts]
    if job.options["add_eos"] and eos not in (None, ids[-1]):
        ids, starts = [*ids, eos], [*starts, length]
    return ids, [*starts, length]


def _digest(content: bytes | np.ndarray) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
