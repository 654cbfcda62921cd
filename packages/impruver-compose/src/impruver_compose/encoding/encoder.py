"""Rows to an encoded shard: convert, tokenize chats and documents in batches, record what is dropped."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import orjson
from impruver_core.chat_template.masking.loss_mask import Encoded, Refused, encode_chats
from impruver_core.chat_template.masking.train_flags import is_blank, is_trained
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import RefusedError
from impruver_core.io.jsonl import format_row
from impruver_core.labels import IGNORE_INDEX, TRAINED_ROLES, count_target_tokens

from impruver_compose.converters.columns import check_guarded_columns
from impruver_compose.converters.conversion import Conversation, convert_row
from impruver_compose.dedup.signatures import compute_signatures
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.encoding.long_text import WINDOW, TokenizedText, make_tokenized_text, tokenize_text
from impruver_compose.encoding.overlong import cut_overlong
from impruver_compose.encoding.template_fields import count_template_fields
from impruver_compose.storage import DroppedRow, EncodedConversation, EncodedShard, build_token_row, compute_digest

BATCH = 500  # rows in memory at once,
BATCH_BYTES = 1 << 21  # and bytes of their conversations: a token's encoding takes a hundred bytes


class ConvertedPart(NamedTuple):
    """A conversation that a row became, with the row's and the part's number; `cut`: less messages that can't fit."""

    row: int
    part: int
    conversation: Conversation
    cut: bool = False


class TrainingView(NamedTuple):
    """The first `length` messages of a conversation, encoded as a row."""

    length: int
    encoded: Encoded | Refused


def encode_rows(job: DatasetJob, start: int, stop: int) -> tuple[EncodedShard, np.ndarray]:
    """Encodes rows start..stop; the shard, and its conversations' MinHash signatures, (conversations, num_perm)."""
    shard, signatures = EncodedShard(), [np.empty((0, job.dedup.num_perm), np.uint32)]
    shard.usage.columns.read.update(job.converter.left_out)
    job.encoder.begin_shard(is_first=start == 0)
    templates = TemplateSelector(job.tokenizer)
    for first in range(start, stop, BATCH):
        parts = _convert_rows(job, first, min(first + BATCH, stop), shard)
        count_template_fields(job, templates, [(part.row, part.conversation) for part in parts], shard.usage)
        for batch in _split_into_batches(parts):
            before = len(shard.conversations)
            _encode_batch(job, batch, shard)
            texts = [each.compared_ids for each in shard.conversations[before:]]
            signatures.append(compute_signatures(texts, job.dedup.num_perm))
    return shard, np.concatenate(signatures)


def convert_row_of(job: DatasetJob, row: int) -> list[Conversation]:
    """Converts one row of a data set; RefusedError if it is refused."""
    return list(convert_row(job.rows.read(row, row + 1)[0], job.converter))


def _convert_rows(job: DatasetJob, start: int, stop: int, shard: EncodedShard) -> list[ConvertedPart]:
    """Converts rows start..stop; counts them, and what is dropped, in `shard`."""
    parts = []
    for number, row in enumerate(job.rows.read(start, stop), start):
        shard.counts["rows"] += 1
        try:
            conversations = list(convert_row(row, job.converter, shard.usage.columns.read))
            if not conversations:
                raise RefusedError("converter_skipped", "")
        except RefusedError as error:
            shard.dropped.append(DroppedRow(number, None, error.reason, error.detail))
            continue
        if not shard.usage.columns.read.issuperset(row):
            handled = check_guarded_columns(row, job.converter.guarded)
            shard.usage.columns.count(number, ((name, value) for name, value in row.items() if name not in handled))
        shard.counts["converted"] += 1
        shard.counts["conversations"] += len(conversations)
        for part, conversation in enumerate(conversations):
            cut = cut_overlong(job, conversation)
            if isinstance(cut, Refused):
                shard.dropped.append(DroppedRow(number, part, cut.reason, cut.detail))
            else:
                parts.append(ConvertedPart(number, part, cut, cut is not conversation))
    return parts


def _split_into_batches(parts: list[ConvertedPart]) -> Iterator[list[ConvertedPart]]:
    """Splits conversations into batches of at most BATCH_BYTES, or of one."""
    start, size = 0, 0
    for end, part in enumerate(parts):
        size += len(part.conversation.as_json)
        if size > BATCH_BYTES and end > start:
            yield parts[start:end]
            start, size = end, len(part.conversation.as_json)
    if parts:
        yield parts[start:]


def _encode_batch(job: DatasetJob, parts: list[ConvertedPart], shard: EncodedShard) -> None:
    """Encodes conversations, chats and documents apart, and adds them to `shard` in their order."""
    chats = [part.conversation for part in parts if part.conversation.text is None]
    whole = _encode_messages(job, chats, [chat.messages for chat in chats])
    views = iter(zip(whole, _encode_views(job, chats, whole), strict=True))
    documents = iter(
        _tokenize_documents(job, [part.conversation.text for part in parts if part.conversation.text is not None])
    )
    for part in parts:
        if part.conversation.text is not None:
            encoded = _encode_document(job, part, next(documents))
        else:
            encoded = _encode_conversation(job, part, *next(views))
        if isinstance(encoded, Refused):
            shard.dropped.append(DroppedRow(part.row, part.part, encoded.reason, encoded.detail))
            continue
        shard.conversations.append(encoded)
        shard.counts["trimmed"] += encoded.trimmed
        shard.counts["control_text"] += encoded.control_text


def _encode_messages(job: DatasetJob, chats: Sequence[Conversation], messages: list[list[dict]]) -> list:
    """Encodes lists of messages, each with the tools and template arguments of the chat at its position."""
    tools, kwargs = [chat.tools for chat in chats], [job.build_template_kwargs(chat) for chat in chats]
    options = job.build_encode_options()
    options |= {"chat_template_kwargs": kwargs, "encode": job.encoder, "as_arrays": True}
    return encode_chats(job.tokenizer, messages, tools, **options)


def _encode_views(job: DatasetJob, chats: list[Conversation], whole: list) -> list[list[TrainingView]]:
    """Encodes the views of each chat that `turns` asks for; `whole` are the encodings of all of its messages."""
    pairs = list(zip(chats, whole, strict=True))
    if job.section.turns == "all":
        return [[TrainingView(len(chat.messages), encoded)] for chat, encoded in pairs]
    views = [
        build_training_views(chat.messages, job.section.turns) if isinstance(encoded, Encoded) else []
        for chat, encoded in pairs
    ]
    owners = [chat for chat, own in zip(chats, views, strict=True) for _ in own]
    encodings = iter(_encode_messages(job, owners, [messages for own in views for messages in own]))
    return [[TrainingView(len(messages), next(encodings)) for messages in own] for own in views]


def _encode_conversation(
    job: DatasetJob, part: ConvertedPart, whole: Encoded | Refused, views: list[TrainingView]
) -> EncodedConversation | Refused:
    """Makes token rows of the views that fit; duplicates and the split are judged by all messages."""
    chat, section, on = part.conversation, job.section, job.dedup.on
    if isinstance(whole, Refused):
        return whole
    spoken = [n for n, message in enumerate(chat.messages) if message["role"] in TRAINED_ROLES]
    trained = [chat.messages[n] for n in spoken if is_trained(chat.messages[n])]
    if not views or not count_target_tokens(whole.labels) or (trained and all(map(is_blank, trained))):
        return Refused("nothing_to_learn", _explain_no_target(chat.messages))
    shorten = None
    if section.on_overflow == "trim_turns":
        encode = partial(_encode_messages, job, [chat])
        shorten = partial(find_longest_fitting_prefix, chat.messages, whole, encode, section.turns, job.max_length)
    fitting = select_fitting_views(views, job.max_length, shorten)
    if isinstance(fitting, Refused):
        return fitting
    last = spoken[-1] if spoken else 0
    ids = whole.input_ids
    texts = [
        ids[start:end]
        for number, start, end in whole.texts
        if on == "conversation" or (number < last if on == "prompt" else chat.messages[number]["role"] in TRAINED_ROLES)
    ]
    prompt = _serialize_prompt(chat.messages[:last])
    digest = compute_digest(ids)
    prompt_digest = compute_digest(prompt) if prompt else digest
    if on == "answer":
        digest = compute_digest(_serialize_answers(chat.messages))
    return EncodedConversation(
        part.row,
        part.part,
        [build_token_row(view.encoded, _format_extra(chat, view.length)) for view in fitting],
        np.concatenate(texts) if texts else ids[:0],
        prompt_digest if on == "prompt" else digest,
        prompt_digest,
        trimmed=part.cut or fitting[-1].length < views[-1].length,
        control_text=bool(whole.control_text),
    )


def _explain_no_target(messages: Sequence[dict]) -> str:
    if any(message["role"] in TRAINED_ROLES and is_blank(message) for message in messages):
        return "no assistant's turn is trained on (an answer is blank)"
    roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
    return f"no assistant's turn is trained on (roles: {roles})"


def _format_extra(chat: Conversation, length: int) -> bytes:
    """Formats what val.jsonl has besides the tokens of the first `length` messages."""
    if length == len(chat.messages):
        return chat.as_json
    return format_row(chat._replace(messages=chat.messages[:length]).to_row()).encode()


def _serialize_prompt(messages: list[dict]) -> bytes:
    """Serializes the texts and tool calls of messages but the system's; empty if there are none."""
    # not the tokens: behind another system prompt a text may begin with another one; templates strip its ends
    contents = [
        [text.strip() if isinstance(text, str) else text or "", message.get("tool_calls") or []]
        for message in messages
        if message["role"] != "system"
        for text in [message.get("content")]
    ]
    if not any(text or calls for text, calls in contents):
        return b""
    try:
        return orjson.dumps(contents, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # whole numbers beyond 64 bits
        return json.dumps(contents, sort_keys=True).encode()


def _serialize_answers(messages: list[dict]) -> bytes:
    """Serializes all that the assistant says, reasoning and calls included, whatever it is asked."""
    answers = [
        {name: value.strip() if isinstance(value, str) else value for name, value in message.items() if name != "train"}
        for message in messages
        if message["role"] in TRAINED_ROLES
    ]
    return json.dumps(answers, sort_keys=True).encode()


def _tokenize_documents(job: DatasetJob, texts: list[str]) -> list[TokenizedText | Refused]:
    """Tokenizes plain texts, the short ones at once."""
    short = [text for text in texts if len(text) <= WINDOW]
    tokenized: list[TokenizedText | Refused] = []
    encodings = iter(job.encoder(short))
    for text in texts:
        try:
            encoding = next(encodings) if len(text) <= WINDOW else None
            if isinstance(encoding, RefusedError):
                raise encoding
            known = encoding is not None
            tokenized.append(make_tokenized_text(encoding) if known else tokenize_text(job.encoder, text))
        except RefusedError as error:
            tokenized.append(Refused(error.reason, error.detail))
    return tokenized


def _encode_document(
    job: DatasetJob, part: ConvertedPart, tokens: TokenizedText | Refused
) -> EncodedConversation | Refused:
    """Encodes plain text with BOS and EOS around it, cut at the longest row; all but BOS is trained on."""
    text, tokenizer = part.conversation.text, job.tokenizer
    if isinstance(tokens, Refused):
        return tokens
    if not len(tokens.ids) or not text.strip():
        return Refused("nothing_to_learn", "the document is blank")
    ids, starts = tokens.ids, tokens.starts
    starts[0] = 0
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if job.section.add_global_bos and bos not in (None, ids[0]):
        ids, starts = np.insert(ids, 0, bos), np.insert(starts, 0, 0)
    if job.section.add_global_eos and eos not in (None, ids[-1]):
        ids, starts = np.append(ids, np.uint32(eos)), np.append(starts, len(text))
    starts = np.append(starts, len(text))
    token_rows = []
    for start, stop in pairwise(_compute_borders(len(ids), job.max_length)):
        ended = stop == len(ids) and stop - start > 1 and ids[-1] == eos
        row_ids = ids[start:stop]
        labels = row_ids.astype(np.int64)
        if start == 0 and row_ids[0] == bos:
            labels[0] = IGNORE_INDEX
        extra = format_row({"text": text[starts[start] : starts[stop]]}).encode()
        token_rows.append(build_token_row(Encoded(row_ids, labels, [], bool(ended)), extra))
    if not any(token_row.target_tokens for token_row in token_rows):
        return Refused("nothing_to_learn", "no piece has two tokens")
    digest = compute_digest(ids)
    compared_ids = ids if job.dedup.on == "prompt" else tokens.ids
    return EncodedConversation(part.row, part.part, token_rows, compared_ids, digest, digest)


def _compute_borders(length: int, max_length: int | None) -> list[int]:
    """Computes where `length` tokens are cut. The last piece has two or more: a row's first token is no target."""
    size = max_length or length
    borders = [*range(0, length, size), length]
    if length % size == 1 and len(borders) > 2 and size > 2:
        borders[-2] -= 1
    return borders


def build_training_views(messages: Sequence[dict], turns: str) -> list[list[dict]]:
    """Builds the messages of each row that `turns` (`each` or `last`) asks for.

    Of a conversation user, assistant, user, assistant the rows are these; what is marked * is trained on:

        turns: all    user assistant* user assistant*
        turns: last   user assistant  user assistant*
        turns: each   user assistant*
                      user assistant  user assistant*
    """
    ends = _find_trained_turns(messages)
    return [_build_view(messages, end, turns) for end in (ends if turns == "each" else ends[-1:])]


def _build_view(messages: Sequence[dict], end: int, turns: str) -> list[dict]:
    """Builds the messages up to number `end`; unless `turns` is `all`, only that one is trained on."""
    if turns == "all":
        return list(messages[: end + 1])
    return [*({**message, "train": False} for message in messages[:end]), messages[end]]


def _find_trained_turns(messages: Sequence[dict]) -> list[int]:
    return [n for n, message in enumerate(messages) if message["role"] in TRAINED_ROLES and _is_answer(message)]


def _is_answer(message: dict) -> bool:
    """Whether an assistant's message is trained on, and says something."""
    return is_trained(message) and not is_blank(message)


def select_fitting_views(
    views: list[TrainingView], max_length: int | None, shorten: Callable[[], list[TrainingView]] | None
) -> list[TrainingView] | Refused:
    """Selects the views of at most `max_length` tokens, else what `shorten` finds; without it all of them must fit."""
    for view in views:
        if isinstance(view.encoded, Refused):
            return view.encoded
    fitting = [view for view in views if max_length is None or len(view.encoded.input_ids) <= max_length]
    if len(fitting) == len(views):
        return views
    fitting = (fitting or shorten()) if shorten else []
    longest = max(len(view.encoded.input_ids) for view in views)
    return fitting or Refused("too_long", f"{longest} tokens, at most {max_length} (max_tokens_count)")


def find_longest_fitting_prefix(
    messages: Sequence[dict], whole: Encoded, encode: Callable, turns: str, max_length: int
) -> list[TrainingView]:
    """Finds the longest view of at most `max_length` tokens that ends with a trained turn; [] if there is none.

    `whole` is the encoding of all messages: a turn that ends behind `max_length` there can't fit.
    """
    reached = {number: end for number, _, end in whole.texts}
    ends = _find_trained_turns(messages)
    if turns != "all" or ends[-1:] == [len(messages) - 1]:
        ends = ends[:-1]  # that view was too long
    for end in reversed(ends):
        if reached.get(end, 0) <= max_length:
            (encoded,) = encode([_build_view(messages, end, turns)])
            if isinstance(encoded, Encoded) and len(encoded.input_ids) <= max_length:
                return [TrainingView(end + 1, encoded)]
    return []
