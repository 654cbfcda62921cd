"""Row accounting: `DatasetStats`, whose sums are asserted, and the ledger's lines of what was dropped."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np
from impruver_core.errors import CheckFailedError

from impruver_compose.storage.records import EncodedShard
from impruver_compose.storage.shard_file import ShardReader

DETAIL = 100  # characters of a detail in a table


@dataclass
class DatasetStats:
    """What became of the rows of data set number `index`; from `rows` on the fields of the manifest's `counts`."""

    name: str
    index: int
    first: dict[str, str] = field(default_factory=dict)  # of each reason the first row, with the detail
    ledger: list[dict] = field(default_factory=list)  # a line for each row or conversation that was dropped
    rows: int = 0
    converted: int = 0
    conversations: int = 0
    train: int = 0  # conversations
    val: int = 0
    trimmed: int = 0
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
        for row, part, reason, detail in shard.dropped:
            self.drop(reason, row, part, detail)

    def drop(self, reason: str, row: int, part: int | None, detail: str = "", **of_duplicate) -> None:
        """Counts a conversation, or with `part` None a whole row, as dropped, and adds a line to the ledger."""
        (self.rows_dropped if part is None else self.dropped)[reason] += 1
        if reason not in self.first:
            self.first[reason] = f"row {row}: {_shorten(detail)}" if detail else f"row {row}"
        line = {"dataset": self.name, "dataset_index": self.index, "row": row, "part": part or 0}
        self.ledger.append(line | {"reason": reason, "detail": detail} | of_duplicate)

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


def collect_ledger(stats: Iterable[DatasetStats]) -> list[dict]:
    """Collects the ledger's lines in the order of the data."""
    lines = [line for each in stats for line in each.ledger]
    return sorted(lines, key=itemgetter("dataset_index", "row", "part"))


def check_masks_found(stats: Iterable[DatasetStats], ledger: Path) -> None:
    """CheckFailedError if conversations were dropped because they have no exact loss mask."""
    refused = sum(each.dropped["mask_refused"] for each in stats)
    if refused:
        raise CheckFailedError(f"{refused} conversations have no exact mask: see mask_refused in {ledger}")


def _shorten(detail: str) -> str:
    """Shortens a detail to a line of printable characters for a table."""
    line = "".join(character if character.isprintable() else " " for character in detail[: 4 * DETAIL])
    line = " ".join(line.split())
    return line if len(line) <= DETAIL else f"{line[: DETAIL - 1]}…"
