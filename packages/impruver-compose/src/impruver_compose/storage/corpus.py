"""All encoded conversations in the recipe's order: in memory what later steps judge by, the rest in their shards."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from pyarrow.compute import binary_length

from impruver_compose.records import RowOrigin
from impruver_compose.storage.shard_file import ShardReader

CONVERSATION = ("row", "part", "exact", "prompt")  # columns with a value a conversation,


LINE = ("tokens", "learned", "ended")  # and a line


OPEN = 64  # shards mapped at once, for what is read out of order


class Corpus:
    """The conversations of several data sets' shards, numbered from 0; and their lines, likewise."""

    def __init__(self, names: Sequence[str], shards: Sequence[Sequence[Path]]):
        self.names = names
        self.paths = [path for each in shards for path in each]
        read = [_read_small_columns(ShardReader(path)) for path in self.paths]
        whole = {name: np.concatenate([columns[name] for columns in read]) for name in read[0]}
        self.row, self.part, self.exact, self.prompt = (whole[name] for name in CONVERSATION)
        self.tokens, self.learned, self.ended = (whole[name] for name in LINE)  # of each line
        self.size, self.extra_size = whole["content"], whole["extra"]  # bytes of each line
        self.said_size = whole["said"]
        sizes = [len(columns["row"]) for columns in read]
        self.starts = np.cumsum([0, *sizes])  # the first conversation of each shard
        self.line_starts = np.cumsum([0, *(len(columns["tokens"]) for columns in read)])
        self.first_line = np.cumsum([0, *whole["lines"]])  # of each conversation; at the end, how many there are
        dataset = [index for index, each in enumerate(shards) for _ in each]
        self.dataset = np.repeat(np.array(dataset, np.int32), sizes)
        self._open = lru_cache(maxsize=OPEN)(ShardReader)

    def __len__(self) -> int:
        return len(self.row)

    def get_origin(self, number: int) -> RowOrigin:
        """Where a conversation came from."""
        index = int(self.dataset[number])
        return RowOrigin(self.names[index], index, int(self.row[number]), int(self.part[number]))

    def get_row_numbers(self, numbers: Iterable[int]) -> np.ndarray:
        """The numbers of the lines of these conversations."""
        first = self.first_line.tolist()
        return np.array([line for n in numbers for line in range(first[n], first[n + 1])], np.int64)

    def find_conversation(self, line: int) -> int:
        """The number of the conversation that a line is of."""
        return int(np.searchsorted(self.first_line, line, "right")) - 1

    @cached_property
    def dataset_of_rows(self) -> np.ndarray:
        """The data set of each line, by its index."""
        return np.repeat(self.dataset, np.diff(self.first_line))

    def read_compared_ids(self, number: int) -> np.ndarray:
        """uint32 ids of what near-duplicates are judged by."""
        shard = int(np.searchsorted(self.starts, number, "right")) - 1
        return self._open(self.paths[shard]).read_compared_ids(number - int(self.starts[shard]))

    def read_text(self, name: str, line: int) -> bytes:
        """`content` of a line, or its `extra`."""
        shard = int(np.searchsorted(self.line_starts, line, "right")) - 1
        return self._open(self.paths[shard]).read_row_column(name)[line - int(self.line_starts[shard])].as_py()

    def open_shards(self) -> Iterator[tuple[int, ShardReader]]:
        """Each shard in turn, with the number of its first line."""
        for path, first in zip(self.paths, self.line_starts[:-1], strict=True):
            yield int(first), ShardReader(path)


def _read_small_columns(shard: ShardReader) -> dict[str, np.ndarray]:
    """The small columns of a shard, in memory."""
    columns = {name: shard.read_column(name).copy() for name in CONVERSATION}
    columns |= {name: shard.read_row_column(name).to_numpy().copy() for name in LINE}
    return columns | {
        "lines": shard.read_sizes("content"),
        "said": shard.read_sizes("said"),
        "content": binary_length(shard.read_row_column("content")).to_numpy(),
        "extra": binary_length(shard.read_row_column("extra")).to_numpy(),
    }
