"""Train/val split, resampling by weight, and the accounting of what was selected."""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

from impruver_compose.dedup.near_duplicates import Duplicate, find_leaks
from impruver_compose.ledger import DatasetStats
from impruver_compose.sections import DedupSection
from impruver_compose.storage.corpus import Corpus


class Selection(NamedTuple):
    """What train and val have, in the order of the files: conversations and token rows, by number."""

    train: list[int]
    val: list[int]
    train_rows: np.ndarray
    val_rows: np.ndarray


def drop_duplicates(corpus: Corpus, duplicates: Sequence[Duplicate], stats: Sequence[DatasetStats]) -> list[int]:
    """Drops duplicates; the numbers of the conversations that are left."""
    for number, kept, similarity, exact in duplicates:
        _, index, row, part = corpus.get_origin(number)
        reason = "exact_duplicate" if exact else "near_duplicate"
        stats[index].drop(reason, row, part, kept=corpus.get_origin(kept)._asdict(), similarity=similarity)
    dropped = {duplicate.number for duplicate in duplicates}
    return [number for number in range(len(corpus)) if number not in dropped]


def split_train_val(
    numbers: Sequence[int], prompts: Sequence[bytes], val_ratio: float, val_rows: int | None, seed: int
) -> tuple[list[int], list[int]]:
    """Splits conversations into train and val, both shuffled; those with the same prompt (a digest) stay on one side.

    Val gets `val_rows`, else `val_ratio` of them (at least one of two or more, unless the ratio is 0), or fewer where
    no whole group fits any more. ImpruverError if nothing is left for train.
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
    if not train:
        ways = "lower split.val_rows (or val_ratio)"
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
