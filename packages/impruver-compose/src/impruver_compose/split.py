"""Divides conversations into train and val; those with the same prompt stay together. Weighs what train gets."""

import random
from collections import defaultdict
from collections.abc import Sequence

from impruver_core.cli.console import warn


def split(numbers: Sequence[int], prompts: Sequence[bytes], val_ratio: float, val_rows: int | None, seed: int):
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


def weigh(numbers: Sequence[int], weight: float, seed: int) -> tuple[list[int], list[int]]:
    """(taken, left out) of the conversations of one data set: each is taken `weight` times, by chance where it must be.

    2.5 takes each twice and half of them, drawn by `seed`, once more; 0.3 takes three of ten.
    """
    whole = int(weight)
    more = set(random.Random(seed).sample(range(len(numbers)), round(len(numbers) * (weight - whole))))
    taken = [number for at, number in enumerate(numbers) for _ in range(whole + (at in more))]
    return taken, [number for at, number in enumerate(numbers) if not whole and at not in more]
