"""Packing: several rows in one sequence, none of which sees another.

Positions restart at each row and no attention mask is given: transformers then keeps the rows apart by itself (a
block-diagonal mask for SDPA, eager and flex attention, `cu_seqlens` for flash attention). Rows of 3 and 2 tokens:

    input_ids       a0   a1   a2   b0   b1              attends to      a0 a1 a2 b0 b1
    position_ids     0    1    2    0    1                          a0   x
    labels        -100   a1   a2 -100   b1                          a1   x  x
                     |              |                               a2   x  x  x
                     '--- no row's first token is predicted         b0            x
                          from the row before                       b1            x  x

Rows go into packs best fit decreasing: the longest first, each into the pack that it leaves the least room in. With
packs of 10 tokens, rows of 7, 5, 4, 3 and 1 make [7 3] and [5 4 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy import ndarray


class Packs(NamedTuple):
    """Row numbers in the order of the packs, and the bounds of each pack in it: int32 arrays."""

    order: ndarray
    bounds: ndarray


@dataclass(frozen=True)
class PackingPlan:
    """What goes into batches: tokens of each item, a row or a pack; for packs their rows, and a note on them."""

    sizes: ndarray
    packs: Packs | None = None
    note: str | None = None

    def build_dataset(self, rows: Dataset, by_length: bool = False) -> Dataset | PackedDataset | LengthsDataset:
        """The dataset that `rows` become; `by_length`: batches are made of rows of like length."""
        if self.packs is not None:
            return PackedDataset(rows, self.packs)
        return LengthsDataset(rows, self.sizes) if by_length else rows


def plan_packing(lengths: ndarray, packed: bool, max_tokens: int | None, seed: int) -> PackingPlan:
    """Rows of these lengths as they are, or packed to `max_tokens`, at least the longest row."""
    import numpy as np

    if not packed or not len(lengths):
        return PackingPlan(lengths)
    longest = int(lengths.max())
    enough = (max_tokens or 0) >= longest
    room, source = (max_tokens, "tokenizer.max_tokens_count") if enough else (longest, "the longest row")
    packs = pack_best_fit(lengths, room, seed)
    sizes = np.add.reduceat(lengths[packs.order], packs.bounds[:-1])
    return PackingPlan(sizes, packs, f"packs: {len(sizes):,} of up to {room:,} tokens ({source})")


def pack_best_fit(lengths: ndarray, room: int, seed: int) -> Packs:
    """Rows put into packs of `room` tokens, best fit decreasing; no token is copied.

    Equally long rows and the packs themselves are shuffled by `seed`.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(lengths))
    falling = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    pack_of = np.empty(len(lengths), dtype=np.int32)
    opened: list[list[int]] = [[] for _ in range(room + 1)]  # packs by the room that is left in them
    left = 0  # bit n: a pack with room for n tokens is open
    count = 0
    for position, length in enumerate(lengths[falling].tolist()):
        fitting = left >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1  # the smallest that does
            pack = opened[space].pop()
            left ^= 0 if opened[space] else 1 << space
        else:
            space, pack, count = room, count, count + 1
        pack_of[position] = pack
        if space > length:
            opened[space - length].append(pack)
            left |= 1 << (space - length)
    pack_of = random.permutation(count)[pack_of]
    order = falling[np.argsort(pack_of, kind="stable")].astype(np.int32)
    ends = np.cumsum(np.bincount(pack_of, minlength=count))
    return Packs(order, np.concatenate([[0], ends]).astype(np.int32))


class PackedDataset:
    """Packs over memory-mapped rows: rows are read when their pack is asked for."""

    def __init__(self, rows: Dataset, packs: Packs) -> None:
        self.rows, self.packs = rows, packs

    def __len__(self) -> int:
        return len(self.packs.bounds) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        rows = self.rows[self.packs.order[self.packs.bounds[index] : self.packs.bounds[index + 1]]]
        packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            packed["input_ids"] += ids
            packed["labels"] += [IGNORE_INDEX, *labels[1:]]  # its first token is no continuation of the row before
            packed["position_ids"] += range(len(ids))
        return packed


class LengthsDataset:
    """Rows whose lengths are known: transformers' length grouping iterates over them all, and needs no token."""

    def __init__(self, rows: Dataset, lengths: ndarray) -> None:
        self.rows, self.lengths = rows, lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, range]]:
        return ({"input_ids": range(length)} for length in self.lengths.tolist())
