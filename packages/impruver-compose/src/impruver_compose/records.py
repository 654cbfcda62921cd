"""`RowOrigin`, `TokenRow`, `EncodedConversation`, `DroppedRow`, `EncodedShard`. New leaf."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import orjson
from impruver_core.chat_template.masking.loss_mask import Encoded
from impruver_core.labels import count_target_tokens


class TokenRow(NamedTuple):
    """A line of train.jsonl, without its end, and the JSON object of what it carries besides in val.jsonl."""

    content: bytes
    extra: bytes
    tokens: int
    learned: int
    ended: int  # 1 where the end of its last learned turn is learned


def build_token_row(encoded: Encoded, extra: bytes) -> TokenRow:
    """The line of an encoding; `extra` is the JSON of what it carries besides in val.jsonl."""
    content = orjson.dumps({"input_ids": encoded.input_ids, "labels": encoded.labels})
    return TokenRow(content, extra, len(encoded.input_ids), count_target_tokens(encoded.labels), int(encoded.ended))


def compute_digest(content: bytes | np.ndarray) -> bytes:
    """16 bytes that tell a content from any other."""
    return hashlib.blake2b(content, digest_size=16).digest()


class EncodedConversation(NamedTuple):
    """An encoded conversation: its lines (several where it is unfolded, or a long text) and what it is judged by."""

    row: int
    part: int
    lines: list[TokenRow]
    said: np.ndarray  # uint32 ids of what near-duplicates are judged by
    exact: bytes  # digest of what is equal in an exact duplicate
    prompt: bytes  # digest of the texts before the last answer, else of all
    trimmed: bool = False  # something of it is in no line


class DroppedRow(NamedTuple):
    """What was dropped before duplicates were judged: a conversation, or a whole row (`part` None)."""

    row: int
    part: int | None
    reason: str
    detail: str


@dataclass
class EncodedShard:
    """What became of a stretch of rows: `counts` are of rows, converted, conversations and trimmed."""

    counts: Counter[str] = field(default_factory=Counter)
    kept: list[EncodedConversation] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)


class RowOrigin(NamedTuple):
    """Where a conversation came from: all numbers from 0, `row` in the loaded split, `part` within the row."""

    dataset: str
    dataset_index: int
    row: int
    part: int
