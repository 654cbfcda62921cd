"""Deduplication's drops, the train/val split and resampling by weight, with the accounting of every row."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from impruver_core.cli.console import warn
from impruver_core.errors import CheckFailedError, ImpruverError

from impruver_compose.decontamination.search import ContaminationResult
from impruver_compose.dedup import Duplicate, find_leaks
from impruver_compose.field_usage import FieldUsage
from impruver_compose.sections import DedupSection
from impruver_compose.storage import Corpus, EncodedShard, ShardReader

DETAIL = 100  # characters of a detail in a table


@dataclass
class DatasetStats:
    """What became of the rows of data set number `index`; from `rows` on the fields of the manifest's `counts`."""

    name: str
    index: int
    first: dict[str, str] = field(default_factory=dict)  # of each reason the first row, with the detail
    ledger: list[dict] = field(default_factory=list)  # a line for each row or conversation that was dropped
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

    def drop(self, reason: str, row: int, part: int | None, detail: str = "", **more) -> None:
        """Counts a conversation, or with `part` None a whole row, as dropped, and adds a line to the ledger."""
        (self.rows_dropped if part is None else self.dropped)[reason] += 1
        if reason not in self.first:
            self.first[reason] = f"row {row}: {_shorten(detail)}" if detail else f"row {row}"
        line = {"dataset": self.name, "dataset_index": self.index, "row": row, "part": part or 0}
        self.ledger.append(line | {"reason": reason, "detail": detail} | more)

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
        return dict(list(vars(self).items())[5:])


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


class Selection(NamedTuple):
    """What train and val have, in the order of the files: conversations and token rows, by number."""

    train: list[int]
    val: list[int]
    train_rows: np.ndarray
    val_rows: np.ndarray


def order_by_use(corpus: Corpus, uses: Sequence[str | None]) -> list[int]:
    """Orders the conversations as they are judged: those of data sets for val first, so that train loses what repeats.

    `uses` is the `use` of each data set.
    """
    numbers = range(len(corpus))
    if "val" not in uses:
        return list(numbers)
    dataset = corpus.dataset.tolist()
    return sorted(numbers, key=lambda number: uses[dataset[number]] != "val")  # each side in its order


def list_trainable(corpus: Corpus, numbers: Iterable[int], uses: Sequence[str | None]) -> list[int]:
    """Lists those of the conversations that may go to train: not of a data set for val."""
    if "val" not in uses:
        return list(numbers)
    return [number for number in numbers if uses[corpus.dataset[number]] != "val"]


def list_fixed_sides(corpus: Corpus, numbers: Iterable[int], uses: Sequence[str | None]) -> dict[int, str]:
    """Lists the conversations that are not divided, each with its side: train or val."""
    sides = ((number, uses[corpus.dataset[number]]) for number in numbers)
    return {number: side for number, side in sides if side in ("train", "val")}


def drop_contaminated(
    corpus: Corpus, numbers: Sequence[int], found: ContaminationResult, stats: Sequence[DatasetStats]
) -> list[int]:
    """Drops the conversations that hold text of a benchmark; the numbers of those that are left."""
    for each in found.conversations:
        _, index, row, part = corpus.get_origin(each.number)
        name, words = found.index.benchmarks[each.benchmark_index].section.name, " ".join(each.words)
        detail = f"{each.run} words in a row are in row {each.row} of {name}: {words}"
        benchmark = {"name": name, "benchmark_index": each.benchmark_index, "row": each.row}
        stats[index].drop("contaminated", row, part, detail, benchmark=benchmark, words=words, run=each.run)
    dropped = {each.number for each in found.conversations}
    return [number for number in numbers if number not in dropped]


def drop_duplicates(
    corpus: Corpus, numbers: Sequence[int], duplicates: Sequence[Duplicate], stats: Sequence[DatasetStats]
) -> list[int]:
    """Drops duplicates; the numbers of the conversations that are left."""
    for number, kept, similarity, exact in duplicates:
        _, index, row, part = corpus.get_origin(number)
        reason = "exact_duplicate" if exact else "near_duplicate"
        stats[index].drop(reason, row, part, kept=corpus.get_origin(kept)._asdict(), similarity=similarity)
    dropped = {duplicate.number for duplicate in duplicates}
    return [number for number in numbers if number not in dropped]


def drop_val_prompts(
    corpus: Corpus, numbers: Sequence[int], uses: Sequence[str | None], stats: Sequence[DatasetStats]
) -> list[int]:
    """Drops the conversations that have the prompt of one of a data set for val; the numbers of those that are left.

    The same prompt must not stand on both sides, and neither may such a data set's rows go to train, nor others be
    added to what its owner chose to validate on.
    """
    if "val" not in uses:
        return list(numbers)
    prompts, for_val = corpus.prompt_digest.tolist(), [use == "val" for use in uses]
    dataset = corpus.dataset.tolist()
    first: dict[bytes, int] = {}
    for number in numbers:
        if for_val[dataset[number]]:
            first.setdefault(prompts[number], number)
    left = []
    for number in numbers:
        kept = first.get(prompts[number])
        if kept is None or for_val[dataset[number]]:
            left.append(number)
            continue
        _, index, row, part = corpus.get_origin(number)
        stats[index].drop("prompt_in_val", row, part, kept=corpus.get_origin(kept)._asdict())
    return left


def split_train_val(
    numbers: Sequence[int],
    prompts: Sequence[bytes],
    val_ratio: float,
    val_rows: int | None,
    seed: int,
    uses: Mapping[int, str] = MappingProxyType({}),
) -> tuple[list[int], list[int]]:
    """Splits conversations into train and val, both shuffled; those with the same prompt (a digest) stay on one side.

    `uses` has the side, train or val, of those that are not divided. Of the others val gets `val_rows`, else
    `val_ratio` of them (at least one of two or more, unless the ratio is 0), or fewer where no whole group fits any
    more; those with a prompt of train's go there. ImpruverError if nothing is left for train.
    """
    divided = [number for number in numbers if number not in uses]
    wanted = val_rows if val_rows is not None else round(len(divided) * val_ratio)
    if val_rows is None and val_ratio > 0 and len(divided) > 1:
        wanted = max(1, wanted)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number in divided:
        groups[prompts[number]].append(number)
    order = list(groups.values())
    chance = random.Random(seed)
    chance.shuffle(order)
    train, val = [], []
    of_train = {prompts[number] for number in numbers if uses.get(number) == "train"}
    for group in order:
        fits = len(val) + len(group) <= wanted and prompts[group[0]] not in of_train
        (val if fits else train).extend(group)
    if wanted and order and not val:
        also = ", or one that stands in a data set with use: train" if of_train else ""
        warn(f"val_path gets no row: each group of conversations with the same prompt has more than {wanted}{also}")
    for number in numbers:
        if number in uses:
            (train if uses[number] == "train" else val).append(number)
    if not train:
        ways = "lower split.val_rows (or val_ratio)" if divided else "all of them are of data sets with use: val"
        raise ImpruverError(f"none of {len(val)} conversations is left for train_path: {ways}")
    chance.shuffle(train)
    chance.shuffle(val)
    return train, val


def warn_about_leaks(corpus: Corpus, train: list[int], val: list[int], dedup: DedupSection) -> None:
    """Warns of conversations in val that have a near-duplicate in train, where those were not dropped."""
    leaks = [] if dedup.method == "minhash" else find_leaks(corpus, train, val, dedup.threshold, dedup.num_perm)
    if leaks:
        one, other = corpus.get_origin(leaks[0].number), corpus.get_origin(leaks[0].kept)
        warn(
            f"{len(leaks)} of {len(val)} conversations in val have a near-duplicate in train, the first "
            f"{one.dataset_index}:{one.row} is like {other.dataset_index}:{other.row} (similarity "
            f"{leaks[0].similarity}): dedup.method: minhash drops such rows"
        )


def resample_train(
    corpus: Corpus, train: list[int], weights: Sequence[float], seed: int, stats: Sequence[DatasetStats]
) -> list[int]:
    """Repeats or samples the conversations of train by their data set's weight.

    A weight of 2.5 takes each twice and half of them, drawn by `seed`, once more; 0.3 takes three of ten.
    """
    if all(weight == 1 for weight in weights):
        return train
    resampled = []
    for index, weight in enumerate(weights):
        numbers, times = [number for number in train if corpus.dataset[number] == index], int(weight)
        drawn = set(random.Random(seed).sample(range(len(numbers)), round(len(numbers) * (weight - times))))
        for position, number in enumerate(numbers):
            resampled += [number] * (times + (position in drawn))
            if not times and position not in drawn:
                origin = corpus.get_origin(number)
                stats[index].drop("sampled_out", origin.row, origin.part, f"weight {weight}")
    if not resampled:
        raise ImpruverError("datasets[].weight leaves no conversation for train_path: raise it")
    random.Random(seed).shuffle(resampled)
    return resampled


def select_rows(corpus: Corpus, train: list[int], val: list[int], stats: Sequence[DatasetStats]) -> Selection:
    """Selects the token rows of conversations, counts them, and asserts that nothing was lost without a reason."""
    selection = Selection(train, val, corpus.get_row_numbers(train), corpus.get_row_numbers(val))
    for name in ("train", "val"):
        numbers = sorted(set(getattr(selection, name)))
        for index, count in Counter(corpus.dataset[numbers].tolist()).items():
            setattr(stats[index], name, count)
        rows = getattr(selection, f"{name}_rows")
        dataset = corpus.dataset_of_rows[rows]
        for index, each in enumerate(stats):
            own = rows[dataset == index]
            setattr(each, f"{name}_rows", len(own))
            each.add_tokens(corpus.tokens[own], corpus.target_tokens[own], corpus.ended[own])
    for each in stats:
        each.check_sums()
    return selection
