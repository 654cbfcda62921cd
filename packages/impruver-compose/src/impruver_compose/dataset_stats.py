"""`DatasetStats`: what became of the rows of a data set, with the accounting of every row."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from impruver_compose.field_usage import FieldUsage
from impruver_compose.storage import EncodedShard, ShardReader

DETAIL = 100  # characters of a detail in a table


@dataclass
class DatasetStats:
    """What became of the rows of data set number `index`; from `rows` on the fields of the manifest's `counts`."""

    name: str
    index: int
    first: dict[str, str] = field(default_factory=dict)  # of each reason the first row, with the detail
    usage: FieldUsage = field(default_factory=FieldUsage)
    rows: int = 0
    converted: int = 0
    conversations: int = 0
    train: int = 0  # conversations
    val: int = 0
    trimmed: int = 0
    control_text: int = 0  # conversations that were encoded and hold text of control tokens
    train_rows: int = 0  # token rows, unfolded and repeated
    val_rows: int = 0
    ended: int = 0  # token rows whose last turn's end is trained on
    tokens: int = 0
    learned: int = 0  # target tokens
    rows_dropped: Counter = field(default_factory=Counter)  # rows that the converter dropped, by reason
    dropped: Counter = field(default_factory=Counter)  # conversations

    def add_shard(self, shard: EncodedShard | ShardReader) -> None:
        """Adds what a shard counted and dropped."""
        for name, count in shard.counts.items():
            setattr(self, name, getattr(self, name) + count)
        self.usage.add(shard.usage)
        for row, part, reason, detail in shard.dropped:
            self.drop(reason, row, part, detail)

    def drop(self, reason: str, row: int, part: int | None, detail: str = "", count: int = 1) -> None:
        """Counts `count` conversations, or with `part` None whole rows, as dropped, of which `row` is the first."""
        (self.rows_dropped if part is None else self.dropped)[reason] += count
        if reason not in self.first:
            self.first[reason] = f"row {row}: {_shorten(detail)}" if detail else f"row {row}"

    def count_dropped(self) -> int:
        """Counts the rows and conversations that were dropped: the lines of the ledger."""
        return self.rows_dropped.total() + self.dropped.total()

    def add_tokens(self, tokens: Sequence[int], target_tokens: Sequence[int], ended: Sequence[int]) -> None:
        """Adds what token rows have, a value for each row."""
        self.tokens += int(np.sum(tokens, dtype=int))
        self.learned += int(np.sum(target_tokens, dtype=int))
        self.ended += int(np.sum(ended, dtype=int))

    def check_sums(self) -> None:
        """Asserts that rows = converted + dropped by the converter, and conversations = train + val + dropped."""
        if self.rows != self.converted + self.rows_dropped.total():
            raise AssertionError(f"{self.name}: {self.rows} rows read, {self.converted} converted, {self.rows_dropped}")
        if self.conversations != self.train + self.val + self.dropped.total():
            raise AssertionError(
                f"{self.name}: {self.conversations} conversations, {self.train} + {self.val}, {self.dropped}"
            )

    def to_dict(self) -> dict:
        """Returns the entry of the manifest's `counts`."""
        return dict(list(vars(self).items())[4:])


def count_encoded(name: str, index: int, shards: Iterable[Path]) -> DatasetStats:
    """Counts what became of a data set's rows until they were encoded."""
    stats = DatasetStats(name, index)
    for path in shards:
        stats.add_shard(ShardReader(path))
    return stats


def _shorten(detail: str) -> str:
    """Shortens a detail to a line of printable characters for a table."""
    line = "".join(character if character.isprintable() else " " for character in detail[: 4 * DETAIL])
    line = " ".join(line.split())
    return line if len(line) <= DETAIL else f"{line[: DETAIL - 1]}…"
