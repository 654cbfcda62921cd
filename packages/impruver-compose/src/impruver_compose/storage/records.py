"""What encoding makes of rows: token rows by conversation, and what was dropped."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import orjson
from impruver_core.chat_template.masking.loss_mask import Encoded
from impruver_core.labels import count_target_tokens


class RowOrigin(NamedTuple):
    """Where a conversation comes from: a row of the loaded split and a part of that row, all numbers from 0."""

    dataset: str
    dataset_index: int
    row: int
    part: int


class TokenRow(NamedTuple):
    """A line of train.jsonl without its end, and the JSON object that val.jsonl adds to it."""

    content: bytes
    extra: bytes
    tokens: int
    target_tokens: int
    ended: int  # 1 if the last trained turn is trained on up to its end


def build_token_row(encoded: Encoded, extra: bytes) -> TokenRow:
    """Builds the token row of an encoding."""
    content = orjson.dumps({"input_ids": encoded.input_ids, "labels": encoded.labels})
    target_tokens = count_target_tokens(encoded.labels)
    return TokenRow(content, extra, len(encoded.input_ids), target_tokens, int(encoded.ended))


def compute_digest(content: bytes | np.ndarray) -> bytes:
    """Computes the 16 bytes by which contents are compared."""
    return hashlib.blake2b(content, digest_size=16).digest()


class EncodedConversation(NamedTuple):
    """A conversation's token rows (several where it is unfolded, or a long document) and what it is compared by."""

    row: int
    part: int
    token_rows: list[TokenRow]
    compared_ids: np.ndarray  # uint32, the tokens that near-duplicates are judged by
    digest: bytes  # equal for exact duplicates
    prompt_digest: bytes  # of the texts before the last answer, else of everything; the split keeps equal ones together
    trimmed: bool = False  # something of it is in no token row


class DroppedRow(NamedTuple):
    """A conversation that was dropped before duplicates are judged, or with `part` None a whole row."""

    row: int
    part: int | None
    reason: str
    detail: str


@dataclass
class EncodedShard:
    """What became of a range of rows; `counts` has `rows`, `converted`, `conversations` and `trimmed`."""

    counts: Counter[str] = field(default_factory=Counter)
    conversations: list[EncodedConversation] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
