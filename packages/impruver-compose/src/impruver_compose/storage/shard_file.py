"""Shards: the encoded conversations of a stretch of a data set's rows, each an Arrow file that is there whole or not.

It holds all that later steps need of its rows: the lines of train.jsonl, what they carry besides in val.jsonl, what
duplicates are judged by, and what was dropped.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from impruver_core.io.atomic import make_folder

from impruver_compose.records import DroppedRow, EncodedShard

ROWS = 1000  # of the data set, to a shard


OF_CONVERSATION = {
    "row": pyarrow.int64(),
    "part": pyarrow.int32(),
    "exact": pyarrow.binary(16),
    "prompt": pyarrow.binary(16),
    "said": pyarrow.large_list(pyarrow.uint32()),
}


OF_LINE = {
    "content": pyarrow.large_binary(),
    "extra": pyarrow.large_binary(),
    "tokens": pyarrow.int32(),
    "learned": pyarrow.int32(),
    "ended": pyarrow.int8(),
}


def write_shard(path: Path, shard: EncodedShard, signatures: np.ndarray) -> None:
    """Writes a shard with the MinHash signatures of what it kept (uint32, a row each), then puts it at `path`."""
    columns = {"signature": pyarrow.FixedSizeListArray.from_arrays(signatures.ravel(), signatures.shape[1])}
    for name, kind in OF_CONVERSATION.items():
        columns[name] = pyarrow.array([getattr(kept, name) for kept in shard.kept], kind)
    for name, kind in OF_LINE.items():
        values = [[getattr(line, name) for line in kept.lines] for kept in shard.kept]
        columns[name] = pyarrow.array(values, pyarrow.large_list(kind))
    told = {"counts": json.dumps(shard.counts), "dropped": json.dumps(shard.dropped)}
    batch = pyarrow.record_batch(columns).replace_schema_metadata(told)
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        os.replace(part, path)  # not synced: one that a power cut emptied is made again
    finally:
        part.unlink(missing_ok=True)


class ShardReader:
    """A written shard, memory-mapped."""

    def __init__(self, path: Path):
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        self._batch = reader.get_batch(0)
        told = reader.schema.metadata
        self.counts: dict[str, int] = json.loads(told[b"counts"])
        self.dropped = [DroppedRow(*each) for each in json.loads(told[b"dropped"])]

    def read_column(self, name: str) -> np.ndarray:
        """One of the columns of numbers, a value a conversation; of digests as fields of 16 bytes."""
        column = self._batch.column(name)
        if name in ("exact", "prompt"):
            return np.frombuffer(column.buffers()[1] or b"", "V16")[: len(column)]
        return column.to_numpy(zero_copy_only=False)

    def read_signatures(self) -> np.ndarray:
        """uint32 of shape (conversations, num_perm)."""
        column = self._batch.column("signature")
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)

    def read_sizes(self, name: str) -> np.ndarray:
        """How many values each conversation has: lines in `content`, tokens that are judged in `said`."""
        return np.diff(self._batch.column(name).offsets.to_numpy())

    def read_row_column(self, name: str) -> pyarrow.Array:
        """`content`, `extra`, `tokens`, `learned` or `ended`, a value a line."""
        return self._batch.column(name).flatten()

    def read_compared_ids(self, at: int) -> np.ndarray:
        """uint32 ids of what is judged of conversation `at`."""
        return self._batch.column("said")[at].values.to_numpy()


def make_bytes_getter(texts: pyarrow.LargeBinaryArray) -> Callable[[int], bytes]:
    """A function that gives a value by its number."""
    _, offsets, buffer = texts.buffers()
    content = memoryview(buffer if buffer is not None else b"")
    places = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1].tolist()
    return lambda number: bytes(content[places[number] : places[number + 1]])


def is_readable(path: Path) -> bool:
    """Whether a shard stands at `path` and can be read."""
    try:
        ShardReader(path)
    except (OSError, pyarrow.ArrowInvalid, KeyError, ValueError):
        return False
    return True
