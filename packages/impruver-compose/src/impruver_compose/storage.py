"""What encoding makes of rows, written as Arrow files, the shards, and read memory-mapped."""

import hashlib
import json
import mmap
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow
import xxhash
from impruver_core.chat_template.masking.loss_mask import ControlTextTokens, Encoded
from impruver_core.cli.console import log_info
from impruver_core.io.atomic import atomic_write, make_folder, remove_path
from impruver_core.io.integrity import DamagedError, read_record
from impruver_core.labels import count_target_tokens

from impruver_compose.field_usage import FieldUsage

ROWS = 1000  # rows of the data set in a shard
DIGESTS = ("digest", "prompt_digest")
CONVERSATION_COLUMNS = {
    "row": pyarrow.int64(),
    "part": pyarrow.int32(),
    **dict.fromkeys(DIGESTS, pyarrow.binary(16)),
}
TOKEN_ROW_COLUMNS = {  # a list for each conversation
    "content": pyarrow.large_binary(),
    "extra": pyarrow.large_binary(),
    "tokens": pyarrow.int32(),
    "target_tokens": pyarrow.int32(),
    "ended": pyarrow.int8(),
}
CHECKSUM_BYTES = 16  # XXH3 of the Arrow file that they stand behind


class TokenRow(NamedTuple):
    """A line of train.jsonl without its end, and the JSON object that val.jsonl adds to it."""

    content: bytes
    extra: bytes
    tokens: int
    target_tokens: int
    ended: int  # 1 if the last trained turn is trained on up to its end
    control_text: Sequence[ControlTextTokens] = ()  # in no shard


def build_token_row(encoded: Encoded, extra: bytes) -> TokenRow:
    """Builds the token row of an encoding."""
    row = {"input_ids": encoded.input_ids, "labels": encoded.labels}
    content = orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)
    target_tokens = count_target_tokens(encoded.labels)
    tokens, ended = len(encoded.input_ids), int(encoded.ended)
    return TokenRow(content, extra, tokens, target_tokens, ended, encoded.control_text)


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
    control_text: bool = False  # it holds text of control tokens


class DroppedRow(NamedTuple):
    """A conversation that was dropped before duplicates are judged, or with `part` None a whole row."""

    row: int
    part: int | None
    reason: str
    detail: str


@dataclass
class EncodedShard:
    """What became of a range of rows; `counts` has the fields of DatasetStats that they are for."""

    counts: Counter[str] = field(default_factory=Counter)
    conversations: list[EncodedConversation] = field(default_factory=list)
    dropped: list[DroppedRow] = field(default_factory=list)
    usage: FieldUsage = field(default_factory=FieldUsage)


def write_shard(path: Path, shard: EncodedShard, signatures: np.ndarray) -> None:
    """Writes a shard with its conversations' MinHash signatures, uint32 (conversations, num_perm)."""
    columns = {"signature": pyarrow.FixedSizeListArray.from_arrays(signatures.ravel(), signatures.shape[1])}
    for name, kind in CONVERSATION_COLUMNS.items():
        columns[name] = pyarrow.array([getattr(each, name) for each in shard.conversations], kind)
    texts = [each.compared_ids for each in shard.conversations]
    compared = np.concatenate([np.empty(0, np.uint32), *texts])
    columns["compared_ids"] = pyarrow.LargeListArray.from_arrays(_build_offsets(texts), pyarrow.array(compared))
    lists = [each.token_rows for each in shard.conversations]
    offsets, token_rows = _build_offsets(lists), list(chain.from_iterable(lists))
    for name, kind in TOKEN_ROW_COLUMNS.items():
        values = pyarrow.array([getattr(row, name) for row in token_rows], kind)
        columns[name] = pyarrow.LargeListArray.from_arrays(offsets, values)
    metadata = {"counts": json.dumps(shard.counts), "dropped": json.dumps(shard.dropped)}
    metadata["usage"] = shard.usage.to_json()
    write_arrow_file(path, pyarrow.record_batch(columns).replace_schema_metadata(metadata))


def write_arrow_file(path: Path, batch: pyarrow.RecordBatch) -> None:
    """Writes a record batch, with a checksum behind it, whole or not at all."""
    with atomic_write(path, "w+b") as file:
        with pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            checksum = compute_checksum(content, path)
        file.seek(0, os.SEEK_END)
        file.write(checksum)


def _build_offsets(lists: Sequence[Sequence]) -> pyarrow.Array:
    """Where each list begins in all of them joined, and the end of the last."""
    return pyarrow.array(np.cumsum([0, *map(len, lists)], dtype=np.int64))


def find_shard_damage(path: Path) -> str | None:
    """What is wrong with the shard at `path`; None for one that is as it was written."""
    try:
        content, checksum = _map_shard(path)
    except FileNotFoundError:
        return "it is not there"
    except (OSError, ValueError) as error:
        return f"it can't be read: {error}"
    right = compute_checksum(memoryview(content), path) == checksum
    return None if right else "it holds other bytes than were written, or those of another shard"


def is_missing(path: Path) -> bool:
    """Tells whether there is no shard at `path` as it was written; what is there instead is removed."""
    if find_shard_damage(path) is None:
        return False
    remove_path(path)
    return True


def make_own_folder(path: Path) -> None:
    """Makes a folder that only we write into: a link that somebody put in its place is not followed but removed."""
    make_folder(path.parent)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        with suppress(IsADirectoryError):  # another run was quicker
            path.unlink(missing_ok=True)
    make_folder(path)


def compute_checksum(content: Any, path: Path) -> bytes:
    """XXH3 of a file's bytes and of its place, a stage's with the folder of all stages: elsewhere they are no rows."""
    place = "/".join(path.parts[-3:]).encode()
    return xxhash.xxh3_128_digest(place + xxhash.xxh3_128_digest(content))


def _map_shard(path: Path) -> tuple[pyarrow.Buffer, bytes]:
    """The Arrow file that a shard holds, memory-mapped, and its checksum, which stands behind it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
        raise OSError("it is no file")
    with pyarrow.memory_map(str(path)) as file:
        content = file.read_buffer()
    end = max(0, content.size - CHECKSUM_BYTES)
    return content.slice(0, end), content.slice(end).to_pybytes()


def open_arrow_file(path: Path) -> tuple[pyarrow.RecordBatch, dict[bytes, bytes]]:
    """Opens what `write_arrow_file` wrote, memory-mapped, with the metadata of its schema."""
    reader = pyarrow.ipc.open_file(_map_shard(path)[0])
    return reader.get_batch(0), reader.schema.metadata


def load_record(path: Path) -> Any:
    """The value that `write_record` wrote; None, with a note, where it is damaged, in which case it is removed."""
    try:
        return read_record(path)
    except DamagedError as error:
        log_info(f"note: {path} is damaged and made again: {error}")
        remove_path(path)
        return None


class ShardReader:
    """A written shard, memory-mapped, with its `counts`, what it `dropped` and its `usage` of fields."""

    def __init__(self, path: Path):
        self._batch, metadata = open_arrow_file(path)
        self.counts: dict[str, int] = json.loads(metadata[b"counts"])
        self.dropped = [DroppedRow(*each) for each in json.loads(metadata[b"dropped"])]
        self.usage = FieldUsage.from_json(metadata[b"usage"])

    @property
    def conversations(self) -> int:
        """The number of conversations that were encoded."""
        return self._batch.num_rows

    @property
    def token_rows(self) -> int:
        """The number of token rows that they make."""
        return int(self.read_lengths("content").sum())

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
