"""What encoding makes of rows, written as memory-mapped Arrow shards and read as one indexed corpus."""

import hashlib
import json
import mmap
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson
import pyarrow
import xxhash
from impruver_core.chat_template.masking.loss_mask import ControlTextTokens, Encoded
from impruver_core.cli.console import log_info
from impruver_core.io.atomic import atomic_write, remove_path
from impruver_core.io.integrity import DamagedError, read_record
from impruver_core.labels import count_target_tokens
from pyarrow.compute import binary_length

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
OPEN_SHARDS = 64  # memory-mapped at once, where they are read out of order
BY_CONVERSATION = ("row", "part", "digest", "prompt_digest")
BY_TOKEN_ROW = ("tokens", "target_tokens", "ended")


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
    batch = pyarrow.record_batch(columns).replace_schema_metadata(metadata)
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


def compute_checksum(content: Any, path: Path) -> bytes:
    """XXH3 of a shard's bytes and of its place: the same bytes under another shard's name are none of its rows."""
    place = f"{path.parent.name}/{path.name}".encode()
    return xxhash.xxh3_128_digest(place + xxhash.xxh3_128_digest(content))


def _map_shard(path: Path) -> tuple[pyarrow.Buffer, bytes]:
    """The Arrow file that a shard holds, memory-mapped, and its checksum, which stands behind it."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would never end
        raise OSError("it is no file")
    with pyarrow.memory_map(str(path)) as file:
        content = file.read_buffer()
    end = max(0, content.size - CHECKSUM_BYTES)
    return content.slice(0, end), content.slice(end).to_pybytes()


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
        reader = pyarrow.ipc.open_file(_map_shard(path)[0])
        self._batch = reader.get_batch(0)
        metadata = reader.schema.metadata
        self.counts: dict[str, int] = json.loads(metadata[b"counts"])
        self.dropped = [DroppedRow(*each) for each in json.loads(metadata[b"dropped"])]
        self.usage = FieldUsage.from_json(metadata[b"usage"])

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


class Corpus:
    """The conversations of all data sets in the recipe's order, numbered from 0, and their token rows likewise.

    What later steps decide by is in memory, as arrays; the rest stays in the memory-mapped shards.
    """

    def __init__(self, names: Sequence[str], shards: Sequence[Sequence[Path]]):
        """Reads the index of the shards of each data set."""
        self.names = names
        self._paths = [path for paths in shards for path in paths]
        indexes = [_read_index(ShardReader(path)) for path in self._paths]
        joined = {name: np.concatenate([columns[name] for columns in indexes]) for name in indexes[0]}
        # (conversations,): where each comes from, and what it is compared by; how many tokens near-duplicates have
        self.row, self.part, self.digest, self.prompt_digest = (joined[name] for name in BY_CONVERSATION)
        self.compared_size = joined["compared_size"]
        self.first_row = np.cumsum([0, *joined["row_count"]])  # (conversations + 1,): the number of its first token row
        # (token rows,): counts, and bytes
        self.tokens, self.target_tokens, self.ended = (joined[name] for name in BY_TOKEN_ROW)
        self.content_size, self.extra_size = joined["content_size"], joined["extra_size"]
        sizes = [len(columns["row"]) for columns in indexes]
        self._shard_starts = np.cumsum([0, *sizes])  # the first conversation of each shard
        self._shard_row_starts = np.cumsum([0, *(len(columns["tokens"]) for columns in indexes)])
        dataset_of_shards = [index for index, paths in enumerate(shards) for _ in paths]
        self.dataset = np.repeat(np.array(dataset_of_shards, np.int32), sizes)
        self._open = lru_cache(maxsize=OPEN_SHARDS)(ShardReader)

    def __len__(self) -> int:
        return len(self.row)

    @cached_property
    def dataset_of_rows(self) -> np.ndarray:
        """The data set's index of each token row, (token rows,)."""
        return np.repeat(self.dataset, np.diff(self.first_row))

    def get_origin(self, number: int) -> RowOrigin:
        """Returns where a conversation comes from."""
        index = int(self.dataset[number])
        return RowOrigin(self.names[index], index, int(self.row[number]), int(self.part[number]))

    def get_row_numbers(self, numbers: Iterable[int]) -> np.ndarray:
        """Returns the numbers of these conversations' token rows, int64, in their order."""
        first = self.first_row.tolist()
        return np.array([row for number in numbers for row in range(first[number], first[number + 1])], np.int64)

    def find_conversation(self, row: int) -> int:
        """Finds the number of the conversation that a token row belongs to."""
        return int(np.searchsorted(self.first_row, row, "right")) - 1

    def read_compared_ids(self, number: int) -> np.ndarray:
        """Reads the tokens by which a conversation is judged, uint32."""
        shard = int(np.searchsorted(self._shard_starts, number, "right")) - 1
        return self._open(self._paths[shard]).read_compared_ids(number - int(self._shard_starts[shard]))

    def read_bytes(self, name: str, row: int) -> bytes:
        """Reads the `content` or the `extra` of a token row."""
        shard = int(np.searchsorted(self._shard_row_starts, row, "right")) - 1
        return self._open(self._paths[shard]).read_row_column(name)[row - int(self._shard_row_starts[shard])].as_py()

    def read_conversation(self, number: int) -> dict:
        """Reads what a conversation was made of, as rows of val.jsonl have it; a document's text is whole."""
        first, end = self.first_row[number : number + 2].tolist()
        return _join_extras([self.read_bytes("extra", row) for row in range(first, end)])

    def read_conversations(self, wanted: np.ndarray) -> Iterator[tuple[int, dict]]:
        """Reads the conversations that are `wanted`, (conversations,) of bool, in order, each with its number."""
        for shard, first in zip(self.open_shards(), self._shard_starts.tolist(), strict=False):
            extra = make_bytes_getter(shard.read_row_column("extra"))
            stop = 0
            for number, count in enumerate(shard.read_lengths("extra").tolist(), first):
                start, stop = stop, stop + count
                if wanted[number]:
                    yield number, _join_extras([extra(row) for row in range(start, stop)])

    def open_shards(self) -> Iterator[ShardReader]:
        """Opens one shard after another."""
        return map(ShardReader, self._paths)

    def compute_sizes(self, rows: np.ndarray, with_extra: bool = False) -> np.ndarray:
        """Computes the bytes that each of these token rows takes in its file."""
        return self.content_size[rows] + 1 + (self.extra_size[rows] - 1 if with_extra else 0)

    def write_token_rows(
        self, files: Sequence[BinaryIO], counts: Sequence[int], rows: np.ndarray, with_extra: bool = False
    ) -> None:
        """Writes these token rows in this order, `counts[n]` of them into `files[n]`; each shard is read only once.

        `with_extra`: as rows of val.jsonl.
        """
        bounds = np.concatenate([[0], np.cumsum(self.compute_sizes(rows, with_extra), dtype=np.int64)])
        starts = np.cumsum([0, *counts])[:-1]
        offsets = (bounds[:-1] - np.repeat(bounds[starts], counts)).tolist()
        numbers = np.repeat([file.fileno() for file in files], counts).tolist()
        by_row = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows, self._shard_row_starts[1:], sorter=by_row)
        start = 0
        for shard, first, end in zip(self.open_shards(), self._shard_row_starts[:-1].tolist(), ends, strict=True):
            content, extra = (make_bytes_getter(shard.read_row_column(name)) for name in ("content", "extra"))
            for position in by_row[start:end].tolist():
                row = int(rows[position]) - first
                line = content(row)
                if with_extra:  # two JSON objects become one
                    line = line[:-1] + b"," + extra(row)[1:]
                os.pwrite(numbers[position], line + b"\n", offsets[position])
            start = end


def _join_extras(extras: Sequence[bytes]) -> dict:
    """Joins what a conversation's token rows were made of: the last one has all of its messages, or a text's end."""
    last = json.loads(extras[-1])
    return last if "messages" in last else {"text": "".join(json.loads(extra)["text"] for extra in extras)}


def _read_index(shard: ShardReader) -> dict[str, np.ndarray]:
    return {
        **{name: shard.read_column(name).copy() for name in BY_CONVERSATION},
        **{name: shard.read_row_column(name).to_numpy().copy() for name in BY_TOKEN_ROW},
        "row_count": shard.read_lengths("content"),
        "compared_size": shard.read_lengths("compared_ids"),
        "content_size": binary_length(shard.read_row_column("content")).to_numpy(),
        "extra_size": binary_length(shard.read_row_column("extra")).to_numpy(),
    }
