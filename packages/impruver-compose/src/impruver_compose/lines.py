"""Lines of train.jsonl, and digests of what is in them."""

import hashlib

import numpy as np
import orjson
from impruver_core.templating.mask import UNLEARNED, Encoded

from impruver_compose.shards import Line


def line_of(encoded: Encoded, extra: bytes) -> Line:
    """The line of an encoding; `extra` is the JSON of what it carries besides in val.jsonl."""
    content = orjson.dumps({"input_ids": encoded.input_ids, "labels": encoded.labels})
    return Line(content, extra, len(encoded.input_ids), learned(encoded.labels), int(encoded.ended))


def learned(labels: list[int]) -> int:
    """How many tokens are learned: the first has nothing to be told from."""
    return len(labels) - labels.count(UNLEARNED) - (labels[:1] != [UNLEARNED])


def digest(content: bytes | np.ndarray) -> bytes:
    """16 bytes that tell a content from any other."""
    return hashlib.blake2b(content, digest_size=16).digest()
