"""What goes to train and val: what is dropped on the way, the split, and resampling by weight."""

import random
from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from impruver_core.cli.console import warn
from impruver_core.errors import CheckFailedError, ImpruverError

from impruver_compose.corpus import Corpus
from impruver_compose.dataset_stats import DatasetStats
from impruver_compose.decontamination.search import ContaminationResult
from impruver_compose.dedup.duplicates import Duplicates
from impruver_compose.dedup.equal_digests import find_first_equal
from impruver_compose.dedup.search import find_leaks
from impruver_compose.ledger import DroppedGroup
from impruver_compose.sections import DedupSection, SplitSection
from impruver_compose.stages.workspace import Workspace


def check_masks_found(stats: Iterable[DatasetStats], ledger: Path) -> None:
    """CheckFailedError if conversations were dropped because they have no exact loss mask."""
    refused = sum(each.dropped["mask_refused"] for each in stats)
    if refused:
        raise CheckFailedError(f"{refused} conversations have no exact mask: see mask_refused in {ledger}")


class Selection(NamedTuple):
    """The token rows of train and val by number, int64, in the order of the files."""

    train_rows: np.ndarray
    val_rows: np.ndarray


class UseMasks(NamedTuple):
    """Which data sets are for val alone, and which for train alone: bool, (data sets,)."""

    val: np.ndarray
    train: np.ndarray


def build_use_masks(uses: Sequence[str | None]) -> UseMasks:
    """Builds the masks of the `use` of each data set."""
    return UseMasks(*(np.array([use == side for use in uses]) for side in ("val", "train")))


def order_by_use(corpus: Corpus, uses: UseMasks) -> np.ndarray:
    """Orders the conversations as they are judged, int64: those for val first, so that train loses what repeats."""
    numbers = np.arange(len(corpus))
    if not uses.val.any():
        return numbers
    for_val = uses.val[corpus.get_datasets(numbers)]
    return np.concatenate([numbers[for_val], numbers[~for_val]])


def list_trainable(corpus: Corpus, numbers: np.ndarray, uses: UseMasks) -> np.ndarray:
    """Lists those of the conversations that may go to train: not of a data set for val."""
    return numbers[~uses.val[corpus.get_datasets(numbers)]] if uses.val.any() else numbers


def drop_contaminated(
    corpus: Corpus, numbers: np.ndarray, found: ContaminationResult, stats: Sequence[DatasetStats]
) -> tuple[np.ndarray, DroppedGroup]:
    """Drops the conversations that hold text of a benchmark; the numbers of those that are left, and of the dropped."""

    def describe(position: int) -> dict[str, Any]:
        each = found.conversations[position]
        name, words = found.index.benchmarks[each.benchmark_index].section.name, " ".join(each.words)
        detail = f"{each.run} words in a row are in row {each.row} of {name}: {words}"
        benchmark = {"name": name, "benchmark_index": each.benchmark_index, "row": each.row}
        return {"detail": detail, "benchmark": benchmark, "words": words, "run": each.run}

    dropped = np.array([each.number for each in found.conversations], np.int64)
    return _drop(corpus, numbers, DroppedGroup("contaminated", dropped, describe), stats)


def drop_duplicates(
    corpus: Corpus, numbers: np.ndarray, duplicates: Duplicates, stats: Sequence[DatasetStats]
) -> tuple[np.ndarray, list[DroppedGroup]]:
    """Drops duplicates; the numbers of the conversations that are left, and of the dropped."""
    groups = []
    for exact in (True, False):
        own = duplicates.exact == exact
        describe = partial(_describe_kept, corpus, duplicates.kept[own], duplicates.similarity[own])
        reason = "exact_duplicate" if exact else "near_duplicate"
        numbers, group = _drop(corpus, numbers, DroppedGroup(reason, duplicates.number[own], describe), stats)
        groups.append(group)
    return numbers, groups


def drop_val_prompts(
    corpus: Corpus, numbers: np.ndarray, uses: UseMasks, stats: Sequence[DatasetStats]
) -> tuple[np.ndarray, list[DroppedGroup]]:
    """Drops the conversations that have the prompt of one of a data set for val; the numbers of those that are left.

    The same prompt must not stand on both sides, and neither may such a data set's rows go to train, nor others be
    added to what its owner chose to validate on. `numbers`: those for val first.
    """
    if not uses.val.any():
        return numbers, []
    first = numbers[find_first_equal(corpus.prompt_digest, numbers, corpus.arrays)]
    for_val, of_val = (uses.val[corpus.get_datasets(each)] for each in (numbers, first))
    repeats = of_val & ~for_val
    group = DroppedGroup("prompt_in_val", numbers[repeats], partial(_describe_kept, corpus, first[repeats], None))
    numbers, group = _drop(corpus, numbers, group, stats)
    return numbers, [group]


def _describe_kept(corpus: Corpus, kept: np.ndarray, similarity: np.ndarray | None, position: int) -> dict[str, Any]:
    more = {} if similarity is None else {"similarity": float(similarity[position])}
    return {"kept": corpus.get_origin(int(kept[position]))._asdict(), **more}


def _drop(
    corpus: Corpus, numbers: np.ndarray, group: DroppedGroup, stats: Sequence[DatasetStats]
) -> tuple[np.ndarray, DroppedGroup]:
    """Drops a group, and counts it in `stats`; the numbers that are left, and the group."""
    datasets, first, counts = np.unique(corpus.get_datasets(group.numbers), return_index=True, return_counts=True)
    for index, position, count in zip(datasets.tolist(), first.tolist(), counts.tolist(), strict=True):
        number = group.numbers[position]
        detail = group.describe(position).get("detail", "")
        stats[index].drop(group.reason, int(corpus.row[number]), int(corpus.part[number]), detail, count)
    return (numbers[~_mark(corpus, group.numbers)[numbers]] if len(group.numbers) else numbers), group


def _mark(corpus: Corpus, numbers: np.ndarray) -> np.ndarray:
    """Marks conversations among all, bool (conversations,)."""
    marked = corpus.arrays.make(len(corpus), bool)
    marked[numbers] = True
    return marked


def split_train_val(
    corpus: Corpus, numbers: np.ndarray, uses: UseMasks, section: SplitSection, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Splits conversations into train and val, both shuffled; those with the same prompt (a digest) stay on one side.

    Those of data sets with a `use` are not divided. Of the others val gets `val_rows`, else `val_ratio` of them (at
    least one of two or more, unless the ratio is 0), or fewer where no whole group fits any more; those with a prompt
    of train's go there. ImpruverError if nothing is left for train.
    """
    numbers, chance = np.sort(numbers), random.Random(seed)
    datasets = corpus.get_datasets(numbers)
    for_train, for_val = uses.train[datasets], uses.val[datasets]
    divided, fixed = numbers[~(for_train | for_val)], numbers[for_train]
    wanted = section.val_rows if section.val_rows is not None else round(len(divided) * section.val_ratio)
    if section.val_rows is None and section.val_ratio > 0 and len(divided) > 1:
        wanted = max(1, wanted)
    # Groups, by the place of their first conversation; those whose first one is of train's stay there.
    first = find_first_equal(corpus.prompt_digest, np.concatenate([fixed, divided]), corpus.arrays)[len(fixed) :]
    order, of_val = _choose_groups(first, len(fixed), wanted, chance)
    train, val = divided[order[~of_val]], divided[order[of_val]]
    if wanted and len(divided) and not len(val):
        also = ", or one that stands in a data set with use: train" if len(fixed) else ""
        warn(f"val_path gets no row: each group of conversations with the same prompt has more than {wanted}{also}")
    train, val = np.concatenate([train, fixed]), np.concatenate([val, numbers[for_val]])
    if not len(train):
        ways = "lower split.val_rows (or val_ratio)" if len(divided) else "all of them are of data sets with use: val"
        raise ImpruverError(f"none of {len(val)} conversations is left for train_path: {ways}")
    return _shuffle(train, chance), _shuffle(val, chance)


def _choose_groups(first: np.ndarray, fixed: int, wanted: int, chance: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the groups that val gets, in a random order, as long as no more than `wanted` conversations are in them.

    Args:
        first: for each conversation the first one of its group, counted from train's own, which are `fixed`.

    Returns:
        The conversations in the order of the groups, int64, and which of them val gets, bool.
    """
    leaders, group, sizes = np.unique(first, return_inverse=True, return_counts=True)
    # Groups are shuffled in the order of their first conversation here, which may not be the first of all.
    begins = np.full(len(leaders), len(first))
    np.minimum.at(begins, group, np.arange(len(first)))
    by_begin = np.argsort(begins)
    shuffled = by_begin[_shuffle(np.arange(len(leaders)), chance)]
    chosen, taken = np.zeros(len(leaders), bool), 0
    for number in shuffled[leaders[shuffled] >= fixed]:  # as a list it would take memory for every group
        if taken >= wanted:
            break
        if taken + sizes[number] <= wanted:
            chosen[number] = True
            taken += int(sizes[number])
    place = np.empty(len(leaders), np.int64)
    place[shuffled] = np.arange(len(leaders))
    order = np.argsort(place[group], kind="stable")
    return order, chosen[group[order]]


def _shuffle(numbers: np.ndarray, chance: random.Random) -> np.ndarray:
    """Shuffles int64 as `random.shuffle` does a list of so many."""
    shuffled = array("q", numbers.tobytes())
    chance.shuffle(shuffled)
    return np.array(shuffled, np.int64)


def warn_about_leaks(
    corpus: Corpus, train: np.ndarray, val: np.ndarray, dedup: DedupSection, workspace: Workspace
) -> None:
    """Warns of conversations in val that have a near-duplicate in train, where those were not dropped."""
    if dedup.method == "minhash" or not len(val):
        return
    leaks = find_leaks(corpus, train, val, dedup, workspace)
    if len(leaks):
        leak = leaks.get(0)
        one, other = corpus.get_origin(leak.number), corpus.get_origin(leak.kept)
        warn(
            f"{len(leaks)} of {len(val)} conversations in val have a near-duplicate in train, the first "
            f"{one.dataset_index}:{one.row} is like {other.dataset_index}:{other.row} (similarity "
            f"{leak.similarity}): dedup.method: minhash drops such rows"
        )


def resample_train(
    corpus: Corpus, train: np.ndarray, weights: Sequence[float], seed: int, stats: Sequence[DatasetStats]
) -> tuple[np.ndarray, list[DroppedGroup]]:
    """Repeats or samples the conversations of train by their data set's weight; those drawn in no way are dropped.

    A weight of 2.5 takes each twice and half of them, drawn by `seed`, once more; 0.3 takes three of ten.
    """
    if all(weight == 1 for weight in weights):
        return train, []
    datasets, resampled, left_out = corpus.get_datasets(train), [], []
    for index, weight in enumerate(weights):
        numbers, times = train[datasets == index], int(weight)
        repeats = np.full(len(numbers), times)
        drawn = random.Random(seed).sample(range(len(numbers)), round(len(numbers) * (weight - times)))
        repeats[np.array(drawn, np.int64)] += 1
        resampled.append(np.repeat(numbers, repeats))
        left_out.append(numbers[repeats == 0])
    taken = np.concatenate(resampled)
    if not len(taken):
        raise ImpruverError("datasets[].weight leaves no conversation for train_path: raise it")
    dropped = np.sort(np.concatenate(left_out))

    def describe(position: int) -> dict[str, Any]:
        return {"detail": f"weight {weights[int(corpus.get_datasets(dropped[position]))]}"}

    _, group = _drop(corpus, dropped, DroppedGroup("sampled_out", dropped, describe), stats)
    return _shuffle(taken, random.Random(seed)), [group]


def select_rows(corpus: Corpus, train: np.ndarray, val: np.ndarray, stats: Sequence[DatasetStats]) -> Selection:
    """Selects the token rows of conversations, counts them, and asserts that nothing was lost without a reason."""
    selection = Selection(corpus.get_row_numbers(train), corpus.get_row_numbers(val))
    for name, numbers in (("train", train), ("val", val)):
        datasets = corpus.get_datasets(np.unique(numbers))
        counts = np.bincount(datasets, minlength=len(stats)).tolist()
        rows = getattr(selection, f"{name}_rows")
        datasets = corpus.get_datasets_of_rows(rows)
        for index, each in enumerate(stats):
            setattr(each, name, counts[index])
            own = rows[datasets == index]
            setattr(each, f"{name}_rows", len(own))
            each.add_tokens(corpus.tokens[own], corpus.target_tokens[own], corpus.ended[own])
    for each in stats:
        each.check_sums()
    return selection
