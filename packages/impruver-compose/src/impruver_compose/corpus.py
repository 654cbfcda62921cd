"""The encoded conversations of all data sets: what is decided by as arrays, the rest in the memory-mapped shards."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from impruver_core.cli.console import open_progress
from pyarrow.compute import binary_length

from impruver_compose.stages.large_arrays import ArrayStore
from impruver_compose.storage import DIGESTS, ShardReader, make_bytes_getter

TOLD_ROWS = 100_000  # that take long enough to be written for a progress
OPEN_SHARDS = 64  # memory-mapped at once, where they are read out of order
BY_CONVERSATION = {"row": np.int64, "part": np.int32, **dict.fromkeys(DIGESTS, "V16")}
BY_TOKEN_ROW = {"tokens": np.int32, "target_tokens": np.int32, "ended": np.int8}
SIZES = {"content_size": "content", "extra_size": "extra"}  # bytes of a token row's columns


class RowOrigin(NamedTuple):
    """Where a conversation comes from: a row of the loaded split and a part of that row, all numbers from 0."""

    dataset: str
    dataset_index: int
    row: int
    part: int


class ComparedIds:
    """The tokens by which conversations are judged, by the conversation's number, and where that one comes from."""

    def __init__(self, paths: Sequence[Path], starts: np.ndarray):
        self._paths, self._starts = paths, starts
        self._open = lru_cache(maxsize=OPEN_SHARDS)(ShardReader)

    def __reduce__(self) -> tuple:
        return ComparedIds, (self._paths, self._starts)

    def read(self, number: int) -> np.ndarray:
        """Reads the tokens by which a conversation is judged, uint32."""
        shard = int(np.searchsorted(self._starts, number, "right")) - 1
        return self._open(self._paths[shard]).read_compared_ids(number - int(self._starts[shard]))


class Corpus:
    """The conversations of all data sets in the recipe's order, numbered from 0, and their token rows likewise.

    Arrays, by conversation: `row`, `part`, `digest`, `prompt_digest`, `compared_size` (tokens that it is judged by),
    and `first_row` (conversations + 1,), the number of its first token row; by token row: `tokens`, `target_tokens`,
    `ended`, and the bytes `content_size` and `extra_size`. Those that memory is too small for lie on the disk.
    """

    row: np.ndarray
    part: np.ndarray
    digest: np.ndarray
    prompt_digest: np.ndarray
    tokens: np.ndarray
    target_tokens: np.ndarray
    ended: np.ndarray
    content_size: np.ndarray
    extra_size: np.ndarray

    def __init__(self, names: Sequence[str], shards: Sequence[Sequence[Path]], arrays: ArrayStore):
        """Reads the index of the shards of each data set."""
        self.names, self.arrays = names, arrays
        self._paths = [path for paths in shards for path in paths]
        self.key = " ".join(f"{path.parent.name}/{path.name}" for path in self._paths)
        counts = [(shard.conversations, shard.token_rows) for shard in self.open_shards()]
        sizes, row_sizes = zip(*counts, strict=True)
        self._shard_starts = np.cumsum([0, *sizes])  # the first conversation of each shard
        self._shard_row_starts = np.cumsum([0, *row_sizes])
        self._shard_dataset = np.array([index for index, paths in enumerate(shards) for _ in paths], np.int32)
        self._read_index()
        self.compared = ComparedIds(self._paths, self._shard_starts)

    def _read_index(self) -> None:
        """Reads the arrays, whose number is that of the columns of a shard."""
        count, rows = int(self._shard_starts[-1]), int(self._shard_row_starts[-1])
        for name, kind in BY_CONVERSATION.items():
            setattr(self, name, self.arrays.make(count, kind))
        for name, kind in (BY_TOKEN_ROW | dict.fromkeys(SIZES, np.int64)).items():
            setattr(self, name, self.arrays.make(rows, kind))
        self.compared_size = self.arrays.make(count, np.int64)
        self.first_row = self.arrays.make(count + 1, np.int64)
        for shard, *bounds in zip(self.open_shards(), *self._list_bounds(), strict=True):
            own, rows = slice(*bounds[:2]), slice(*bounds[2:])
            for name in BY_CONVERSATION:
                getattr(self, name)[own] = shard.read_column(name)
            for name in BY_TOKEN_ROW:
                getattr(self, name)[rows] = shard.read_row_column(name).to_numpy()
            for name, column in SIZES.items():
                getattr(self, name)[rows] = binary_length(shard.read_row_column(column)).to_numpy()
            self.compared_size[own] = shard.read_lengths("compared_ids")
            self.first_row[own.start + 1 : own.stop + 1] = shard.read_lengths("content")
        np.cumsum(self.first_row, out=self.first_row)

    def _list_bounds(self) -> tuple[list[int], ...]:
        """Lists where the conversations of each shard begin and end, and where its token rows do."""
        starts, row_starts = self._shard_starts.tolist(), self._shard_row_starts.tolist()
        return starts[:-1], starts[1:], row_starts[:-1], row_starts[1:]

    def __len__(self) -> int:
        return int(self._shard_starts[-1])

    def get_datasets(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the data set's index of each of these conversations, int32."""
        return self._shard_dataset[np.searchsorted(self._shard_starts, numbers, "right") - 1]

    def get_datasets_of_rows(self, rows: np.ndarray) -> np.ndarray:
        """Returns the data set's index of each of these token rows, int32."""
        return self._shard_dataset[np.searchsorted(self._shard_row_starts, rows, "right") - 1]

    def count_conversations(self) -> list[int]:
        """Counts the conversations of each data set."""
        sizes = np.diff(self._shard_starts)
        return np.bincount(self._shard_dataset, sizes, len(self.names)).astype(int).tolist()

    def get_origin(self, number: int) -> RowOrigin:
        """Returns where a conversation comes from."""
        index = int(self.get_datasets(number))
        return RowOrigin(self.names[index], index, int(self.row[number]), int(self.part[number]))

    def get_row_numbers(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the numbers of these conversations' token rows, int64, in their order."""
        first = self.first_row[numbers]
        counts = self.first_row[numbers + 1] - first
        if len(counts) == counts.sum():  # as nearly always: a conversation is one row
            return first
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(first, counts) + within

    def find_conversation(self, row: int) -> int:
        """Finds the number of the conversation that a token row belongs to."""
        return int(np.searchsorted(self.first_row, row, "right")) - 1

    def read_bytes(self, name: str, row: int) -> bytes:
        """Reads the `content` or the `extra` of a token row."""
        shard = int(np.searchsorted(self._shard_row_starts, row, "right")) - 1
        return ShardReader(self._paths[shard]).read_row_column(name)[row - int(self._shard_row_starts[shard])].as_py()

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

    def list_shards(self) -> Iterator[tuple[int, ShardReader, int, int]]:
        """Lists the shards: the index of the data set, the shard, and where its conversations begin and end."""
        starts = self._shard_starts.tolist()
        return zip(self._shard_dataset.tolist(), self.open_shards(), starts[:-1], starts[1:], strict=True)

    def list_blocks(self, count: int) -> Iterator[tuple[list[Path], int]]:
        """Lists the files of `count` shards at a time, with the number of their first conversation."""
        for start in range(0, len(self._paths), count):
            yield self._paths[start : start + count], int(self._shard_starts[start])

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
        file_starts = np.cumsum([0, *counts])
        by_row = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows, self._shard_row_starts[1:], sorter=by_row)
        start = 0
        with open_progress(len(rows), "write", "rows") if len(rows) >= TOLD_ROWS else nullcontext() as progress:
            for shard, first, end in zip(self.open_shards(), self._shard_row_starts[:-1].tolist(), ends, strict=True):
                own = by_row[start:end]
                places = np.searchsorted(file_starts, own, "right") - 1
                offsets = bounds[own] - bounds[file_starts[places]]
                targets = [files[place].fileno() for place in places.tolist()]
                _write_lines(shard, (rows[own] - first).tolist(), targets, offsets.tolist(), with_extra)
                start = end
                if progress is not None:
                    progress.update(len(own))


def _write_lines(
    shard: ShardReader, rows: Sequence[int], targets: Sequence[int], offsets: Sequence[int], with_extra: bool
) -> None:
    """Writes token rows of a shard into open files, each at its offset."""
    content, extra = (make_bytes_getter(shard.read_row_column(name)) for name in ("content", "extra"))
    for row, target, offset in zip(rows, targets, offsets, strict=True):
        line = content(row)
        if with_extra:  # two JSON objects become one
            line = line[:-1] + b"," + extra(row)[1:]
        os.pwrite(target, line + b"\n", offset)


def _join_extras(extras: Sequence[bytes]) -> dict:
    """Joins what a conversation's token rows were made of: the last one has all of its messages, or a text's end."""
    last = json.loads(extras[-1])
    return last if "messages" in last else {"text": "".join(json.loads(extra)["text"] for extra in extras)}
