"""Counts of each data set, and the ledger: what became of every row, told so that the sums can be checked."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

from impruver_compose.dedup.near_duplicates import Duplicate, find_leaks
from impruver_compose.encoding.cache import CacheEntry
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.ledger import DatasetStats, Ledger
from impruver_compose.records import RowOrigin
from impruver_compose.storage.corpus import Corpus
from impruver_compose.storage.shard_file import ShardReader


def split_train_val(
    numbers: Sequence[int], prompts: Sequence[bytes], val_ratio: float, val_rows: int | None, seed: int
):
    """(train, val): the numbers of the conversations, each shuffled by `seed`; `prompts` has a digest for each number.

    Val gets `val_rows`, else `val_ratio` of them (at least one where there are two and the ratio is not 0), less where
    no whole group of the same prompt fits any more.
    """
    wanted = val_rows if val_rows is not None else round(len(numbers) * val_ratio)
    if val_rows is None and val_ratio > 0 and len(numbers) > 1:
        wanted = max(1, wanted)
    groups: dict[bytes, list[int]] = defaultdict(list)
    for number in numbers:
        groups[prompts[number]].append(number)
    order = list(groups.values())
    chance = random.Random(seed)
    chance.shuffle(order)
    train, val = [], []
    for group in order:
        (val if len(val) + len(group) <= wanted else train).extend(group)
    if wanted and not val:
        warn(f"val_path gets no row: each group of conversations with the same prompt has more than {wanted}")
    chance.shuffle(train)
    chance.shuffle(val)
    return train, val


def resample(numbers: Sequence[int], weight: float, seed: int) -> tuple[list[int], list[int]]:
    """(taken, left out) of the conversations of one data set: each is taken `weight` times, by chance where it must be.

    2.5 takes each twice and half of them, drawn by `seed`, once more; 0.3 takes three of ten.
    """
    whole = int(weight)
    more = set(random.Random(seed).sample(range(len(numbers)), round(len(numbers) * (weight - whole))))
    taken = [number for at, number in enumerate(numbers) for _ in range(whole + (at in more))]
    return taken, [number for at, number in enumerate(numbers) if not whole and at not in more]


def count_encoded(job: DatasetJob, entry: CacheEntry, ledger: Ledger) -> DatasetStats:
    """What the shards of a data set tell; what they dropped goes into the ledger."""
    counts = DatasetStats()
    for shard in map(ShardReader, entry.get_shard_paths()):
        counts.add_shard(shard)
        for row, part, reason, detail in shard.dropped:
            ledger.add(RowOrigin(job.name, job.index, row, part or 0), reason, detail)
    return counts


def drop_duplicates(
    corpus: Corpus, duplicates: Sequence[Duplicate], ledger: Ledger, counts: list[DatasetStats]
) -> list[int]:
    """The numbers of the conversations that are left; those that repeat another go into the ledger."""
    for duplicate in duplicates:
        origin, kept = corpus.get_origin(duplicate.number), corpus.get_origin(duplicate.kept)
        reason = "exact_duplicate" if duplicate.exact else "near_duplicate"
        ledger.add(origin, reason, kept=kept._asdict(), similarity=duplicate.similarity)
        counts[origin.dataset_index].count_drop(reason, origin.row)
    gone = {duplicate.number for duplicate in duplicates}
    return [number for number in range(len(corpus)) if number not in gone]


def resample_train(corpus: Corpus, train: list[int], weights: Sequence[float], seed: int, ledger, counts) -> list[int]:
    """What train gets: each conversation as often as the weight of its data set says; the rest goes into the ledger."""
    if all(weight == 1 for weight in weights):
        return train
    weighed = []
    for index, weight in enumerate(weights):
        taken, left_out = resample([number for number in train if corpus.dataset[number] == index], weight, seed)
        weighed += taken
        for number in left_out:
            origin = corpus.get_origin(number)
            ledger.add(origin, "sampled_out", f"weight {weight}")
            counts[index].count_drop("sampled_out", origin.row)
    if not weighed:
        raise ImpruverError("datasets[].weight leaves no conversation for train_path: raise it")
    random.Random(seed).shuffle(weighed)
    return weighed


def warn_about_leaks(corpus: Corpus, train: list[int], val: list[int], section) -> None:
    """Where near-duplicates were not dropped, val may hold what is nearly in train."""
    found = [] if section.method == "minhash" else find_leaks(corpus, train, val, section.threshold, section.num_perm)
    if found:
        one, other = (corpus.get_origin(number) for number in found[0][:2])
        warn(
            f"{len(found)} of {len(val)} conversations in val have a near-duplicate in train, the first "
            f"{one.dataset_index}:{one.row} is like {other.dataset_index}:{other.row} (similarity "
            f"{found[0].similarity}): dedup.method: minhash drops such rows"
        )


def count_written(
    corpus: Corpus,
    counts: list[DatasetStats],
    jobs: Sequence[DatasetJob],
    train: list[int],
    val: list[int],
    lines: Sequence,
) -> None:
    """Counts what is written, and asserts that nothing was lost unsaid.

    `train`, `val`: numbers of conversations, repeated ones as often as they are; `lines`: those of both's lines.
    """
    for name, numbers in (("train", set(train)), ("val", set(val))):
        for index, number in Counter(corpus.dataset[sorted(numbers)].tolist()).items():
            setattr(counts[index], name, number)
    for name, numbers in zip(("train_rows", "val_rows"), lines, strict=True):
        dataset = corpus.dataset_of_rows[numbers]
        for index, each in enumerate(counts):
            own = numbers[dataset == index]
            setattr(each, name, len(own))
            for column in ("tokens", "learned", "ended"):
                setattr(each, column, getattr(each, column) + int(getattr(corpus, column)[own].sum(dtype=int)))
    for job, each in zip(jobs, counts, strict=True):
        each.check_sums(job.name)
