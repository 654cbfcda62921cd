"""Shards: the encoded conversations of a stretch of a data set's rows, each an Arrow file that is there whole or not.

It holds all that later steps need of its rows: the lines of train.jsonl, what they carry besides in val.jsonl, what
duplicates are judged by, and what was dropped.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
from impruver_core.files.safe import make_folder

ROWS = 1000  # of the data set, to a shard


class Line(NamedTuple):
    """A line of train.jsonl, without its end, and the JSON object of what it carries besides in val.jsonl."""

    content: bytes
    extra: bytes
    tokens: int
    learned: int
    ended: bool  # the end of its last learned turn is learned


class Kept(NamedTuple):
    """An encoded conversation: its lines (several where it is unfolded, or a long text) and what it is judged by."""

    row: int
    part: int
    lines: list[Line]
    said: np.ndarray  # uint32 ids of what near-duplicates are judged by
    exact: bytes  # digest of what is equal in an exact duplicate
    prompt: bytes  # digest of the texts before the last answer, else of all
    trimmed: bool = False  # something of it is in no line


class Dropped(NamedTuple):
    """What was dropped before duplicates were judged: a conversation, or a whole row (`part` None)."""

    row: int
    part: int | None
    reason: str
    detail: str


@dataclass
class Shard:
    """What became of a stretch of rows."""

    rows: int = 0
    converted: int = 0
    conversations: int = 0
    kept: list[Kept] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows, and what became of them."""
        counts = {name: getattr(self, name) for name in ("rows", "converted", "conversations")}
        return counts | {"trimmed": sum(kept.trimmed for kept in self.kept)}


def write_shard(path: Path, shard: Shard, signatures: np.ndarray) -> None:
    """Writes a shard with the MinHash signatures of what it kept (uint32, a row each), then puts it at `path`."""
    lines = [kept.lines for kept in shard.kept]
    flat = [line for several in lines for line in several]
    of_lines = _offsets(lines)
    columns = {
        "row": pyarrow.array([kept.row for kept in shard.kept], pyarrow.int64()),
        "part": pyarrow.array([kept.part for kept in shard.kept], pyarrow.int32()),
        "exact": pyarrow.array([kept.exact for kept in shard.kept], pyarrow.binary(16)),
        "prompt": pyarrow.array([kept.prompt for kept in shard.kept], pyarrow.binary(16)),
        "said": pyarrow.LargeListArray.from_arrays(
            _offsets([kept.said for kept in shard.kept]),
            np.concatenate([np.zeros(0, np.uint32), *(kept.said for kept in shard.kept)]),
        ),
        "signature": pyarrow.FixedSizeListArray.from_arrays(signatures.ravel(), signatures.shape[1]),
    }
    for name, kind in (("content", pyarrow.large_binary()), ("extra", pyarrow.large_binary())):
        columns[name] = _listed(of_lines, [getattr(line, name) for line in flat], kind)
    for name, kind in (("tokens", pyarrow.int32()), ("learned", pyarrow.int32()), ("ended", pyarrow.int8())):
        columns[name] = _listed(of_lines, [int(getattr(line, name)) for line in flat], kind)
    told = {"counts": json.dumps(shard.counts), "dropped": json.dumps(shard.dropped)}
    batch = pyarrow.record_batch(columns)
    _write(path, batch.replace_schema_metadata(told))


def _offsets(lists: Sequence) -> np.ndarray:
    return np.cumsum([0, *map(len, lists)], dtype=np.int64)


def _listed(offsets: np.ndarray, values: list, kind) -> pyarrow.Array:
    return pyarrow.LargeListArray.from_arrays(offsets, pyarrow.array(values, kind))


def _write(path: Path, batch: pyarrow.RecordBatch) -> None:
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        os.replace(part, path)  # not synced: one that a power cut emptied is made again
    finally:
        part.unlink(missing_ok=True)


class Opened:
    """A written shard, memory-mapped."""

    def __init__(self, path: Path):
        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        self._batch = reader.get_batch(0)
        told = reader.schema.metadata
        self.counts: dict[str, int] = json.loads(told[b"counts"])
        self.dropped = [Dropped(*each) for each in json.loads(told[b"dropped"])]

    def column(self, name: str) -> np.ndarray:
        """One of the columns of numbers, a value a conversation; of digests as fields of 16 bytes."""
        column = self._batch.column(name)
        if name in ("exact", "prompt"):
            return np.frombuffer(column.buffers()[1] or b"", "V16")[: len(column)]
        return column.to_numpy(zero_copy_only=False)

    def signatures(self) -> np.ndarray:
        """uint32 of shape (conversations, num_perm)."""
        column = self._batch.column("signature")
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)

    def sizes(self, name: str) -> np.ndarray:
        """How many values each conversation has: lines in `content`, tokens that are judged in `said`."""
        return np.diff(self._batch.column(name).offsets.to_numpy())

    def of_lines(self, name: str) -> pyarrow.Array:
        """`content`, `extra`, `tokens`, `learned` or `ended`, a value a line."""
        return self._batch.column(name).flatten()

    def said(self, at: int) -> np.ndarray:
        """uint32 ids of what is judged of conversation `at`."""
        return self._batch.column("said")[at].values.to_numpy()


def offsets(texts: pyarrow.LargeBinaryArray) -> np.ndarray:
    """Where in its buffer each value begins, and where the last ends."""
    start = texts.offset
    return np.frombuffer(texts.buffers()[1], np.int64)[start : start + len(texts) + 1]


def bytes_of(texts: pyarrow.LargeBinaryArray) -> Callable[[int], bytes]:
    """A function that gives a value by its number."""
    buffer = texts.buffers()[2]
    content, places = memoryview(buffer if buffer is not None else b""), offsets(texts).tolist()
    return lambda number: bytes(content[places[number] : places[number + 1]])


def is_whole(path: Path) -> bool:
    """Whether a shard stands at `path` and can be read."""
    try:
        Opened(path)
    except (OSError, pyarrow.ArrowInvalid, KeyError, ValueError):
        return False
    return True
