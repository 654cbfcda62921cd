"""All shards as one indexed corpus; write its token rows in any order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pyarrow.compute import binary_length

from impruver_compose.storage.records import RowOrigin
from impruver_compose.storage.shard_file import ShardReader, make_bytes_getter

OPEN_SHARDS = 64  # memory-mapped at once, where they are read out of order
BY_CONVERSATION = ("row", "part", "digest", "prompt_digest")
BY_TOKEN_ROW = ("tokens", "target_tokens", "ended")


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

    def open_shards(self) -> Iterator[ShardReader]:
        """Opens one shard after another."""
        return map(ShardReader, self._paths)

    def compute_sizes(self, rows: np.ndarray, with_extra: bool = False) -> np.ndarray:
        """Computes the bytes that each of these token rows takes in its file."""
        return self.content_size[rows] + 1 + (self.extra_size[rows] - 1 if with_extra else 0)

    def write_token_rows(self, file: BinaryIO, rows: np.ndarray, with_extra: bool = False) -> None:
        """Writes these token rows in this order, `with_extra` as rows of val.jsonl; each shard is read only once."""
        sizes = self.compute_sizes(rows, with_extra)
        offsets = (np.cumsum(sizes) - sizes).tolist()
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
                os.pwrite(file.fileno(), line + b"\n", offsets[position])
            start = end


def _read_index(shard: ShardReader) -> dict[str, np.ndarray]:
    return {
        **{name: shard.read_column(name).copy() for name in BY_CONVERSATION},
        **{name: shard.read_row_column(name).to_numpy().copy() for name in BY_TOKEN_ROW},
        "row_count": shard.read_lengths("content"),
        "compared_size": shard.read_lengths("compared_ids"),
        "content_size": binary_length(shard.read_row_column("content")).to_numpy(),
        "extra_size": binary_length(shard.read_row_column("extra")).to_numpy(),
    }
