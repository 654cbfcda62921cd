"""The report's texts: sample rows, the closest duplicates, where training and inference part."""

import json
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from impruver_core.chat_template.masking.segments import decode_segments
from impruver_core.reporting import html

from impruver_compose.dedup.near_duplicates import Duplicate
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.records import RowOrigin
from impruver_compose.reporting.text_diff import build_diff_spans
from impruver_compose.storage.corpus import Corpus

PAIRS = 10


SAMPLES, LONG_SAMPLE = 6, 2000  # rows, at least one of each data set up to twice as many; tokens


CHARACTERS = 6000  # shown of a row


def build_samples(corpus: Corpus, jobs: Sequence[DatasetJob], train: np.ndarray) -> dict:
    """The first rows of train, of each data set: those too long to be read only where there are no others."""
    each = max(1, SAMPLES // len(jobs))
    of_all = corpus.dataset_of_rows[train]
    taken = []
    for index in range(len(jobs)):
        own = train[of_all == index]
        short = own[corpus.tokens[own] <= LONG_SAMPLE]
        first = dict.fromkeys((short if len(short) else own)[: each * 2].tolist())
        taken += [(index, line) for line in [*first][:each]]
    return html.build_section(
        "Sample rows",
        "Learned text on green; the rest is read and not learned. Special tokens in violet.",
        html.build_texts(_build_sample(corpus, jobs[index], line) for index, line in taken[: 2 * SAMPLES]),
    )


def _build_sample(corpus: Corpus, job: DatasetJob, line: int) -> tuple[str, list]:
    row = json.loads(corpus.read_text("content", line))
    ids, labels = (row[name][:LONG_SAMPLE] for name in ("input_ids", "labels"))
    spans = [(text, "learned" if learned else "") for text, learned in decode_segments(job.tokenizer, ids, labels)]
    special = [token.content for token in job.tokenizer.added_tokens_decoder.values() if token.special]
    caption = f"{_format_origin(corpus.get_origin(corpus.find_conversation(line)))}: {corpus.tokens[line]:,} tokens"
    return f"{caption}, {corpus.learned[line]:,} learned", html.mark_strings(
        html.truncate_spans(spans, CHARACTERS), special
    )


def build_closest_pairs(corpus: Corpus, duplicates: Sequence[Duplicate]) -> dict | None:
    if not duplicates:
        return None
    exact = sum(each.exact for each in duplicates)
    closest = sorted(duplicates, key=lambda each: (each.exact, -each.similarity, each.number))[:PAIRS]
    items = []
    for each in closest:
        texts = build_diff_spans(
            _read_conversation_text(corpus, each.kept), _read_conversation_text(corpus, each.number)
        )
        left, right = (html.truncate_spans(text, CHARACTERS) for text in texts)
        sides = [(f"kept: {_format_origin(corpus.get_origin(each.kept))}", left)]
        sides += [(f"dropped: {_format_origin(corpus.get_origin(each.number))}", right)]
        items.append((f"{'exact duplicate' if each.exact else f'similarity {each.similarity:.4f}'}", *sides))
    note = (
        f"The {len(items)} closest of {len(duplicates):,} pairs, near-duplicates ({len(duplicates) - exact:,}) first; "
    )
    return html.build_section(
        "Duplicates", note + f"exact: {exact:,}. Differences are marked.", html.build_pairs(items)
    )


def build_prompt_pairs(entries: Sequence[dict]) -> dict | None:
    """Of the gate's entries the text before an answer in training, and what the model is asked with."""
    items = []
    for entry in entries:
        example = entry["example"]
        if example:
            trained, asked = build_diff_spans(example["trained"], example["prompt"])
            caption = f"data set {entry['dataset_index']}, row {example['row']}, before the last answer"
            items.append((caption, ("in training", trained), ("at inference", asked)))
    return html.build_pairs(items) if items else None


def _read_conversation_text(corpus: Corpus, number: int) -> str:
    """What a conversation says, or a document."""
    first, end = (int(at) for at in corpus.first_line[number : number + 2])
    last = json.loads(corpus.read_text("extra", end - 1))  # unfolded, the last line has it all
    if "messages" not in last:
        return "".join(json.loads(corpus.read_text("extra", line))["text"] for line in range(first, end))
    return "\n\n".join(_format_message(message) for message in last["messages"])


def _format_message(message: dict) -> str:
    content, calls = message.get("content"), message.get("tool_calls")
    said = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False) if content else ""
    called = json.dumps(calls, ensure_ascii=False) if calls else ""
    return f"{message['role']}: " + "\n".join(filter(None, [said, called]))


def _format_origin(origin: RowOrigin) -> str:
    part = f", conversation {origin.part}" if origin.part else ""
    return f"data set {origin.dataset_index} ({PurePath(origin.dataset).name}), row {origin.row}{part}"
