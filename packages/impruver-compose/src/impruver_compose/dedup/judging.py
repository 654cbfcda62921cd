"""Judging near-duplicates: each candidate is compared with those kept before it that share a bucket with it.

This is the same whether it is done for all conversations, or for each connected component of those that share buckets
by itself: what is compared with what is in one component.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    shingles = lru_cache(maxsize=CACHED)(lambda rank: compute_shingles(rules.compared.read(int(rules.order[rank]))))
    found: list[tuple[int, int, float]] = []
    dropped: set[int] = set()  # ranks
    for rank, spans in _iterate_rows(by_rank, by_bucket):
        if rank < rules.judged_from:
            continue
        others = {int(each) for start, stop in spans for each in (by_bucket[start:stop] & LOW).tolist()}
        for other in sorted(others - dropped):
            if other >= rules.judged_from and not rules.joins:
                break
            similarity = compute_jaccard(shingles(rank), shingles(other))
            if similarity >= rules.threshold:
                found.append((int(rules.order[rank]), int(rules.order[other]), round(similarity, 4)))
                dropped.add(rank)
                break
    columns = zip(*found, strict=True) if found else ((), (), ())
    types = {"number": np.int64, "kept": np.int64, "similarity": np.float64}
    content = {name: np.array(values, kind) for (name, kind), values in zip(types.items(), columns, strict=True)}
    return Columns(content, len(by_rank) - len(found))


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


def _iterate_rows(by_rank: np.ndarray, by_bucket: np.ndarray) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Iterates over the conversations in the order of their ranks.

    Yields:
        The rank of one that may repeat another, and for each of its buckets where those before it there begin and end
        in `by_bucket`.
    """
    first = 0
    while first < len(by_rank):
        block = by_rank[first : first + PAIRS]
        if len(block) == PAIRS:  # whole conversations
            start_of_last = int(np.searchsorted(block, block[-1] >> SHIFT << SHIFT))
            block = block[: start_of_last or None]
        first += len(block)
        ranks, buckets = block >> SHIFT, block & LOW
        starts = np.searchsorted(by_bucket, buckets << SHIFT)
        stops = np.searchsorted(by_bucket, buckets << SHIFT | ranks)
        behind = np.flatnonzero(stops > starts)
        rows, begins = np.unique(ranks[behind], return_index=True)
        spans = list(zip(starts[behind].tolist(), stops[behind].tolist(), strict=True))
        for rank, begin, end in zip(rows.tolist(), begins.tolist(), [*begins[1:].tolist(), len(behind)], strict=True):
            yield rank, spans[begin:end]
