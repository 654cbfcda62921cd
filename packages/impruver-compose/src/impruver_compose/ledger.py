"""What became of every row: the ledger's lines, and the counts that must add up."""

from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter

from impruver_compose.records import EncodedShard, RowOrigin
from impruver_compose.storage.shard_file import ShardReader

DETAIL = 100  # characters of a detail in a table


REASONS = (
    "bad_row",
    "converter_skipped",
    "converter_failed",
    "template_refused",
    "template_lost_text",
    "mask_refused",
    "nothing_to_learn",
    "too_long",
    "exact_duplicate",
    "near_duplicate",
    "sampled_out",
)


@dataclass
class DatasetStats:
    """Of one data set: rows read, rows converted, conversations, what became of them.

    And of what is written of them, unfolded and repeated: rows, tokens, learned tokens, rows whose end is learned.
    """

    rows: int = 0
    converted: int = 0
    conversations: int = 0
    train: int = 0
    val: int = 0
    trimmed: int = 0
    train_rows: int = 0
    val_rows: int = 0
    ended: int = 0
    tokens: int = 0
    learned: int = 0
    rows_dropped: Counter = field(default_factory=Counter)  # by the converter
    dropped: Counter = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # of each reason: the row that was dropped first, and why

    def add_shard(self, shard: EncodedShard | ShardReader) -> None:
        """Counts what a shard tells."""
        for name, number in shard.counts.items():
            setattr(self, name, getattr(self, name) + number)
        for each in shard.dropped:
            self.count_drop(each.reason, each.row, each.detail, by_converter=each.part is None)

    def count_drop(self, reason: str, row: int, detail: str = "", by_converter: bool = False) -> None:
        """Counts a conversation that was dropped, or a whole row."""
        (self.rows_dropped if by_converter else self.dropped)[reason] += 1
        if reason not in self.first:
            self.first[reason] = f"row {row}: {_shorten_detail(detail)}" if detail else f"row {row}"

    def check_sums(self, name: str) -> None:
        """Both sums: rows = converted + dropped by the converter; conversations = train + val + dropped."""
        if self.rows != self.converted + self.rows_dropped.total():
            raise AssertionError(f"{name}: {self.rows} rows read, {self.converted} converted, {self.rows_dropped}")
        if self.conversations != self.train + self.val + self.dropped.total():
            raise AssertionError(
                f"{name}: {self.conversations} conversations, {self.train} + {self.val}, {self.dropped}"
            )

    def to_dict(self) -> dict:
        """For the manifest: the numbers."""
        return {name: value for name, value in vars(self).items() if name != "first"}


def _shorten_detail(detail: str) -> str:
    """For a table: one line of what can be printed."""
    line = "".join(character if character.isprintable() else " " for character in detail[: 4 * DETAIL])
    line = " ".join(line.split())
    return line if len(line) <= DETAIL else f"{line[: DETAIL - 1]}…"


@dataclass
class Ledger:
    """Every dropped row and conversation, in the order in which they were dropped."""

    lines: list[dict] = field(default_factory=list)

    def add(self, origin: RowOrigin, reason: str, detail: str = "", **more) -> None:
        """Notes one; `more` are `kept` (an Origin as a dict) and `similarity` of a duplicate."""
        self.lines.append(origin._asdict() | {"reason": reason, "detail": detail} | more)

    def get_sorted_lines(self) -> list[dict]:
        """In the order of the data."""
        return sorted(self.lines, key=itemgetter("dataset_index", "row", "part"))
