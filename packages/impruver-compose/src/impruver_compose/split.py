"""Divides conversations into train and val; those with the same prompt stay together."""

import random
from collections import defaultdict
from collections.abc import Sequence


def split(numbers: Sequence[int], prompts: Sequence[bytes], val_ratio: float, val_rows: int | None, seed: int):
    """(train, val): the numbers of the conversations, each shuffled by `seed`.

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
    chance.shuffle(train)
    chance.shuffle(val)
    return train, val
