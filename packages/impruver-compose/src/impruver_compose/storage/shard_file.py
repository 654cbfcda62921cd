"""Write and memory-map one Arrow shard: what encoding made of a range of a data set's rows."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
from impruver_core.io.atomic import make_folder

from impruver_compose.storage.records import DroppedRow, EncodedShard

ROWS = 1000  # rows of the data set in a shard
DIGESTS = ("digest", "prompt_digest")
CONVERSATION_COLUMNS = {
    "row": pyarrow.int64(),
    "part": pyarrow.int32(),
    **dict.fromkeys(DIGESTS, pyarrow.binary(16)),
    "compared_ids": pyarrow.large_list(pyarrow.uint32()),
}
TOKEN_ROW_COLUMNS = {  # a list for each conversation
    "content": pyarrow.large_binary(),
    "extra": pyarrow.large_binary(),
    "tokens": pyarrow.int32(),
    "target_tokens": pyarrow.int32(),
    "ended": pyarrow.int8(),
}


def write_shard(path: Path, shard: EncodedShard, signatures: np.ndarray) -> None:
    """Writes a shard with its conversations' MinHash signatures, uint32 (conversations, num_perm)."""
    columns = {"signature": pyarrow.FixedSizeListArray.from_arrays(signatures.ravel(), signatures.shape[1])}
    for name, kind in CONVERSATION_COLUMNS.items():
        columns[name] = pyarrow.array([getattr(each, name) for each in shard.conversations], kind)
    for name, kind in TOKEN_ROW_COLUMNS.items():
        values = [[getattr(row, name) for row in each.token_rows] for each in shard.conversations]
        columns[name] = pyarrow.array(values, pyarrow.large_list(kind))
    metadata = {"counts": json.dumps(shard.counts), "dropped": json.dumps(shard.dropped)}
    batch = pyarrow.record_batch(columns).replace_schema_metadata(metadata)
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        os.replace(part, path)  # not synced: one that a power cut emptied is made again
    finally:
        part.unlink(missing_ok=True)


class ShardReader:
    """A written shard, memory-mapped, with its `counts` and what it `dropped`."""

    def __init__(self, path: Path):
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        self._batch = reader.get_batch(0)
        metadata = reader.schema.metadata
        self.counts: dict[str, int] = json.loads(metadata[b"counts"])
        self.dropped = [DroppedRow(*each) for each in json.loads(metadata[b"dropped"])]

    def read_column(self, name: str) -> np.ndarray:
        """Reads a column with a number or digest (a field of 16 bytes) for each conversation."""
        column = self._batch.column(name)
        if name in DIGESTS:
            return np.frombuffer(column.buffers()[1] or b"", "V16")[: len(column)]
        return column.to_numpy(zero_copy_only=False)

    def read_signatures(self) -> np.ndarray:
        """Reads the MinHash signatures, uint32 (conversations, num_perm)."""
        column = self._batch.column("signature")
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)

    def read_lengths(self, name: str) -> np.ndarray:
        """Reads how long each conversation's list is in a column of lists."""
        return np.diff(self._batch.column(name).offsets.to_numpy())

    def read_row_column(self, name: str) -> pyarrow.Array:
        """Reads a column of TOKEN_ROW_COLUMNS with a value for each token row."""
        return self._batch.column(name).flatten()

    def read_compared_ids(self, position: int) -> np.ndarray:
        """Reads the tokens that near-duplicates are judged by of the conversation at `position`, uint32."""
        return self._batch.column("compared_ids")[position].values.to_numpy()


def make_bytes_getter(values: pyarrow.LargeBinaryArray) -> Callable[[int], bytes]:
    """Makes a function that returns the value at a position, faster than Arrow's own indexing."""
    _, offsets, buffer = values.buffers()
    content = memoryview(buffer if buffer is not None else b"")
    bounds = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1].tolist()
    return lambda position: bytes(content[bounds[position] : bounds[position + 1]])


def is_readable(path: Path) -> bool:
    """Tells whether there is a whole shard at `path`."""
    try:
        ShardReader(path)
    except (OSError, pyarrow.ArrowInvalid, KeyError, ValueError):
        return False
    return True
