"""Rows of one data set to token rows: convert, encode in batches, drop what can't be used, count."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from impruver_core.cli.console import progress, warn
from impruver_core.errors import CheckFailed, RefusedError
from impruver_core.files.jsonl import dumps
from impruver_core.templating.mask import UNLEARNED, Encoded, Refused, encode_chats
from impruver_core.templating.template import renders_tools
from impruver_core.templating.tokenizer import plain_encoding

from impruver_compose.convert import Conversation, convert
from impruver_compose.ledger import Counts, Ledger, Origin
from impruver_compose.rows import Rows
from impruver_compose.spool import Corpus

BATCH = 1000  # rows
PROBED = 100  # rows of a data set that must get a mask before the rest is worked on


@dataclass(frozen=True)
class Job:
    """All that encoding a data set needs."""

    name: str
    index: int
    rows: Rows
    converter: Callable
    mapping: dict
    tokenizer: Any
    limit: int | None  # tokens of a row
    options: dict  # of encode_chats: only_target_loss, add_bos, add_eos
    template_kwargs: dict | None
    prompts_only: bool  # dedup.on: prompt


def encode_source(job: Job, corpus: Corpus, ledger: Ledger) -> Counts:
    """Adds the conversations of one data set to the corpus, and what was dropped to the ledger."""
    counts, warned = Counts(), False
    with progress(None, len(job.rows), f"data set {job.index}: {job.name}") as bar:
        for start in range(0, len(job.rows), BATCH):
            rows = job.rows.batch(start, start + BATCH)
            pairs = list(_converted(job, start, rows, counts, ledger))
            warned = warned or _warn_of_tools(job, pairs)
            _encode(job, pairs, corpus, counts, ledger)
            bar.update(len(rows))
    return counts


def _converted(
    job: Job, start: int, rows: list[dict], counts: Counts, ledger: Ledger
) -> Iterator[tuple[Origin, Conversation]]:
    for number, row in enumerate(rows, start):
        counts.rows += 1
        try:
            conversations = list(convert(row, job.converter, job.mapping))
            if not conversations:
                raise RefusedError("converter_skipped", "")
        except RefusedError as error:
            counts.rows_dropped[error.reason] += 1
            ledger.drop(Origin(job.name, job.index, number, 0), error.reason, error.detail)
            continue
        counts.converted += 1
        for part, conversation in enumerate(conversations):
            counts.conversations += 1
            yield Origin(job.name, job.index, number, part), conversation


def _encode(job: Job, pairs: list[tuple[Origin, Conversation]], corpus: Corpus, counts: Counts, ledger: Ledger) -> None:
    chats = [(origin, chat) for origin, chat in pairs if chat.text is None]
    encoded = iter(
        encode_chats(
            job.tokenizer,
            [chat.messages for _, chat in chats],
            [chat.tools for _, chat in chats],
            chat_template_kwargs=[
                {**(job.template_kwargs or {}), **(chat.chat_template_kwargs or {})} for _, chat in chats
            ],
            **job.options,
        )
    )
    texts = iter(_encode_texts(job, [chat.text for _, chat in pairs if chat.text is not None]))
    for origin, chat in pairs:
        refused = _add_text(job, origin, chat, next(texts), corpus) if chat.text is not None else None
        if chat.text is None:
            refused = _add_chat(job, origin, chat, next(encoded), corpus)
        if refused:
            if refused.reason == "mask_refused" and origin.row < PROBED:
                raise CheckFailed(
                    f"{_shown(origin)}: {refused.detail}\n{json.dumps(chat.as_row(), ensure_ascii=False)}"
                )
            counts.dropped[refused.reason] += 1
            ledger.drop(origin, refused.reason, refused.detail)


def _add_chat(job: Job, origin: Origin, chat: Conversation, row: Encoded | Refused, corpus: Corpus) -> Refused | None:
    if isinstance(row, Refused):
        return row
    learned = sum(label != UNLEARNED for label in row.labels[1:])
    if not learned:
        return Refused("nothing_to_learn", "no assistant's turn is learned")
    if job.limit is not None and len(row.input_ids) > job.limit:
        return Refused("too_long", f"{len(row.input_ids)} tokens, at most {job.limit}")
    last = max(
        (n for n, message in enumerate(chat.messages) if message["role"] in ("assistant", "function_call")), default=0
    )
    prompt = [token for number, start, end in row.texts if number < last for token in row.input_ids[start:end]]
    whole = [token for _, start, end in row.texts for token in row.input_ids[start:end]]
    line = dumps({"input_ids": row.input_ids, "labels": row.labels}) + "\n"
    extra = dumps([chat.as_row()]).encode()
    asked = _asked(chat.messages[:last])
    corpus.add(origin, line.encode(), extra, whole, prompt, asked, row.input_ids, learned, job.prompts_only)
    return None


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


def _encode_texts(job: Job, texts: list[str]) -> list:
    with plain_encoding(job.tokenizer) as encode:
        return encode(texts)


def _add_text(job: Job, origin: Origin, chat: Conversation, encoding, corpus: Corpus) -> Refused | None:
    """A document, cut at the limit, with BOS and EOS around the whole; every piece carries its part of the text."""
    if not encoding.ids:
        return Refused("nothing_to_learn", "no tokens")
    ids, starts = _with_ends(job, encoding.ids, [0, *(start for start, _ in encoding.offsets[1:])], len(chat.text))
    labels = list(ids)
    if ids[0] == job.tokenizer.bos_token_id:
        labels[0] = UNLEARNED
    size = job.limit or len(ids)
    lines, extras, learned = [], [], 0
    for start in range(0, len(ids), size):
        piece = slice(start, start + size)
        lines.append(dumps({"input_ids": ids[piece], "labels": labels[piece]}) + "\n")
        extras.append({"text": chat.text[starts[start] : starts[min(start + size, len(ids))]]})
        learned += sum(label != UNLEARNED for label in labels[piece][1:])
    if not learned:
        return Refused("nothing_to_learn", "no piece has two tokens")
    corpus.add(origin, "".join(lines).encode(), dumps(extras).encode(), encoding.ids, ids, b"", ids, learned)
    return None


def _with_ends(job: Job, ids: list[int], starts: list[int], length: int) -> tuple[list[int], list[int]]:
    """The ids with BOS and EOS where they are missing; where in the text each begins, and where the text ends."""
    bos, eos = job.tokenizer.bos_token_id, job.tokenizer.eos_token_id
    if job.options["add_bos"] and bos not in (None, ids[0]):
        ids, starts = [bos, *ids], [0, *starts]
    if job.options["add_eos"] and eos not in (None, ids[-1]):
        ids, starts = [*ids, eos], [*starts, length]
    return ids, [*starts, length]


def _warn_of_tools(job: Job, pairs: list[tuple[Origin, Conversation]]) -> bool:
    chat = next((chat for _, chat in pairs if chat.tools), None)
    if chat is None:
        return False
    if not renders_tools(job.tokenizer, chat.tools, job.template_kwargs):
        warn(f"data set {job.index} ({job.name}): its rows have tools, which the chat template does not render")
    return True


def _shown(origin: Origin) -> str:
    return f"data set {origin.dataset_index} ({origin.dataset}), row {origin.row}, conversation {origin.part}"
