"""Exact and near-duplicate search by MinHash; each candidate is verified against the conversation that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from impruver_compose.dedup.duplicates import Duplicates, build_duplicates, join_duplicates
from impruver_compose.dedup.equal_digests import find_first_equal
from impruver_compose.dedup.near_duplicates import find_near_duplicates

if TYPE_CHECKING:
    from impruver_compose.corpus import Corpus
    from impruver_compose.sections import DedupSection
    from impruver_compose.stages.workspace import Workspace

NOTHING = np.zeros(0, np.int64)


def find_duplicates(corpus: Corpus, numbers: np.ndarray, dedup: DedupSection, workspace: Workspace) -> Duplicates:
    """Finds which of the conversations `numbers` to drop; of those that repeat one another the first there is kept."""
    if dedup.method == "none":
        return build_duplicates(NOTHING, NOTHING)
    first = numbers[find_first_equal(corpus.digest, numbers, workspace.arrays)]
    repeated = first != numbers
    exact = build_duplicates(numbers[repeated], first[repeated])
    if dedup.method == "exact":
        return exact
    judged = numbers[~repeated]
    judged = judged[corpus.compared_size[judged] > 0]
    with workspace.open_folder(_name_folder(corpus, "duplicates", [judged], dedup)) as opened:
        near = find_near_duplicates(corpus, judged, dedup.threshold, dedup.num_perm, opened)
    return join_duplicates([exact, near])


def find_leaks(
    corpus: Corpus, train: np.ndarray, val: np.ndarray, dedup: DedupSection, workspace: Workspace
) -> Duplicates:
    """Finds the conversations of val that have a near-duplicate in train."""
    sides = [np.sort(side[corpus.compared_size[side] > 0]) for side in (train, val)]
    options = {"judged_from": len(sides[0]), "joins": False}
    with workspace.open_folder(_name_folder(corpus, "leaks", sides, dedup)) as opened:
        order = np.concatenate(sides)
        return find_near_duplicates(corpus, order, dedup.threshold, dedup.num_perm, opened, **options)


def _name_folder(corpus: Corpus, what: str, orders: Sequence[np.ndarray], dedup: DedupSection) -> str:
    """Names the folder of the stages after all that their files depend on."""
    digest = xxhash.xxh3_128(f"{what} {dedup.threshold} {dedup.num_perm} {corpus.key}".encode())
    for order in orders:
        digest.update(str(len(order)).encode())
        digest.update(np.ascontiguousarray(order))
    return f"{what}-{digest.hexdigest()}"
