"""Judging near-duplicates: each candidate is compared with those kept before it that share a bucket with it.

This is the same whether it is done for all conversations, or for each connected component of those that share buckets
by itself: what is compared with what is in one component.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from impruver_compose.dedup.shingles import compute_jaccard, compute_shingles
from impruver_compose.stages.column_files import ColumnFile, Columns
from impruver_compose.stages.large_arrays import ArrayStore
from impruver_compose.stages.workspace import KeyRange

if TYPE_CHECKING:
    from impruver_compose.corpus import ComparedIds

PAIRS = 1 << 16  # of a conversation and a bucket, that are looked up at once
CACHED = 256  # conversations whose shingles are at hand
LOW = np.uint64(0xFFFFFFFF)
SHIFT = np.uint64(32)


class JudgingRules(NamedTuple):
    """What is judged and how.

    Conversations are judged in the order of their ranks, `order[rank]` being their numbers. Those before rank
    `judged_from` are kept in any case. With `joins` one that repeats none is kept, and later ones are compared with it.
    """

    threshold: float
    order: np.ndarray
    compared: ComparedIds
    arrays: ArrayStore
    judged_from: int = 0
    joins: bool = True


def judge_candidates(rules: JudgingRules, candidates: KeyRange) -> Columns:
    """Judges the conversations of whole components, whose files have columns `key`, `bucket` and `rank`.

    Returns:
        Columns `number`, `kept` (int64) and `similarity` (float64) of those that repeat another; what is dropped of the
        stage's rows are those that are kept.
    """
    by_rank, by_bucket = _read_pairs(rules.arrays, candidates)
    counts = rules.arrays.make(len(by_bucket), np.uint32)  # of those kept, for the bucket that begins at each place
    shingles = lru_cache(maxsize=CACHED)(lambda rank: compute_shingles(rules.compared.read(int(rules.order[rank]))))
    found: list[tuple[int, int, float]] = []
    for rank, starts in _iterate_rows(by_rank, by_bucket):
        if rank >= rules.judged_from:
            match = _find_first_match(shingles, rank, _list_kept(by_bucket, starts, counts[starts]), rules.threshold)
            if match is not None:
                found.append((int(rules.order[rank]), int(rules.order[match[0]]), match[1]))
                continue
        if rank < rules.judged_from or rules.joins:  # over what was judged: repeats are never looked at again
            by_bucket[starts + counts[starts]] = by_bucket[starts] >> SHIFT << SHIFT | np.uint64(rank)
            counts[starts] += 1
    columns = zip(*found, strict=True) if found else ((), (), ())
    types = {"number": np.int64, "kept": np.int64, "similarity": np.float64}
    content = {name: np.array(values, kind) for (name, kind), values in zip(types.items(), columns, strict=True)}
    return Columns(content, len(by_rank) - len(found))


def _find_first_match(
    shingles: Callable[[int], np.ndarray], rank: int, others: list[int], threshold: float
) -> tuple[int, float] | None:
    """Finds the first of the others that is at least as similar as `threshold`, and how similar it is."""
    for other in others:
        similarity = compute_jaccard(shingles(rank), shingles(other))
        if similarity >= threshold:
            return other, round(similarity, 4)
    return None


def _list_kept(by_bucket: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> list[int]:
    """Lists the ranks that stand first in buckets, `counts` in those that begin at `starts`: ascending, each once."""
    counts = counts.astype(np.int64)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.unique(by_bucket[np.repeat(starts, counts) + within] & LOW).tolist()


def _read_pairs(arrays: ArrayStore, candidates: KeyRange) -> tuple[np.ndarray, np.ndarray]:
    """Reads the pairs of bucket and rank: uint64 (pairs,), sorted as rank, bucket, and as bucket, rank."""
    slices = [(path, ColumnFile(path).find_rows(candidates.part, candidates.parts)) for path in candidates.files]
    count = sum(rows.stop - rows.start for _, rows in slices)
    by_rank, by_bucket = arrays.make(count, np.uint64), arrays.make(count, np.uint64)
    at = 0
    for path, rows in slices:
        file, end = ColumnFile(path), at + rows.stop - rows.start
        bucket, rank = (file.read(name, rows).astype(np.uint64) for name in ("bucket", "rank"))
        by_rank[at:end], by_bucket[at:end] = rank << SHIFT | bucket, bucket << SHIFT | rank
        at = end
    by_rank.sort()
    by_bucket.sort()
    return by_rank, by_bucket


def _iterate_rows(by_rank: np.ndarray, by_bucket: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Iterates over the conversations in the order of their ranks.

    Yields:
        The rank, and where its buckets begin in `by_bucket`, int64 (buckets,).
    """
    first = 0
    while first < len(by_rank):
        block = by_rank[first : first + PAIRS]
        if len(block) == PAIRS:  # whole conversations
            start_of_last = int(np.searchsorted(block, block[-1] >> SHIFT << SHIFT))
            block = block[: start_of_last or None]
        first += len(block)
        starts = np.searchsorted(by_bucket, (block & LOW) << SHIFT)
        ranks, begins = np.unique(block >> SHIFT, return_index=True)
        for rank, begin, end in zip(ranks.tolist(), begins.tolist(), [*begins[1:].tolist(), len(block)], strict=True):
            yield rank, starts[begin:end]
