"""Packing: several rows in one sequence, none of which sees another.

Positions restart at each row and no attention mask is given: transformers then keeps the rows apart by itself (a
block-diagonal mask for SDPA, eager and flex attention, `cu_seqlens` for flash attention). That holds for attention
alone, so models that carry state from token to token are refused.
"""

import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.labels import IGNORE_INDEX

ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # of a configuration's `layer_types`


@dataclass(frozen=True)
class Layout:
    """What goes into batches: tokens of each item (a row, or a pack); for packs the rows' order and bounds in it."""

    sizes: Any
    order: Any = None
    bounds: Any = None
    note: str | None = None

    def over(self, rows: Any, grouped: bool = False) -> Any:
        """The dataset that `rows` become; `grouped`: batches are made by length."""
        if self.order is not None:
            return Packs(rows, self.order, self.bounds)
        return Measured(rows, self.sizes) if grouped else rows


def lay_out(lengths: Any, packed: bool, asked: int | None, seed: int) -> Layout:
    """Rows of these lengths as they are, or packed to `asked` tokens, at least the longest row."""
    import numpy as np

    if not packed or not len(lengths):
        return Layout(lengths)
    longest = int(lengths.max())
    room, source = (asked, "tokenizer.max_tokens_count") if (asked or 0) >= longest else (longest, "the longest row")
    order, bounds = best_fit(lengths, room, seed)
    sizes = np.add.reduceat(lengths[order], bounds[:-1])
    return Layout(sizes, order, bounds, f"packs: {len(sizes):,} of up to {room:,} tokens ({source})")


def best_fit(lengths: Any, room: int, seed: int) -> tuple[Any, Any]:
    """Rows put into packs of `room` tokens, best fit decreasing: their order and the packs' bounds in it.

    Equally long rows and the packs themselves are shuffled by `seed`. Both are int32 arrays: no token is copied.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(lengths))
    falling = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
    packs = np.empty(len(lengths), dtype=np.int32)
    opened: list[list[int]] = [[] for _ in range(room + 1)]  # packs by the room that is left in them
    left = 0  # bit n: a pack with room for n tokens is open
    count = 0
    for place, length in enumerate(lengths[falling].tolist()):
        fitting = left >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1  # the smallest that does
            pack = opened[space].pop()
            left ^= 0 if opened[space] else 1 << space
        else:
            space, pack, count = room, count, count + 1
        packs[place] = pack
        if space > length:
            opened[space - length].append(pack)
            left |= 1 << (space - length)
    packs = random.permutation(count)[packs]
    order = falling[np.argsort(packs, kind="stable")].astype(np.int32)
    return order, np.concatenate([[0], np.cumsum(np.bincount(packs, minlength=count))]).astype(np.int32)


class Packs:
    """A dataset of packs over memory-mapped rows: rows are read when their pack is asked for."""

    def __init__(self, rows: Any, order: Any, bounds: Any) -> None:
        self.rows, self.order, self.bounds = rows, order, bounds

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        rows = self.rows[self.order[self.bounds[index] : self.bounds[index + 1]]]
        packed: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            packed["input_ids"] += ids
            packed["labels"] += [IGNORE_INDEX, *labels[1:]]  # its first token is no continuation of the row before
            packed["position_ids"] += range(len(ids))
        return packed


class Measured:
    """Rows whose lengths are known: transformers' length grouping iterates over them all, and needs no token."""

    def __init__(self, rows: Any, lengths: Any) -> None:
        self.rows, self.lengths = rows, lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]

    def __iter__(self) -> Iterator[dict[str, range]]:
        return ({"input_ids": range(length)} for length in self.lengths.tolist())


def refuse_state(model: Any) -> None:
    """ImpruverError for a model whose rows would not be kept apart; `model` may be on the meta device.

    What is asked: no state of its own, attention in every layer, no convolution over tokens, positions that can be
    given, and masks made by transformers' one place that knows packed rows.
    """
    config = model.config.get_text_config()
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - ATTENTION)
    base = model.base_model
    masks = vars(sys.modules[type(base).__module__]).values()
    takes = {name for part in (model, base) for name in inspect.signature(part.forward).parameters}
    if getattr(model, "_is_stateful", False):
        why = "carries state from token to token"
    elif others:
        why = f"has layers that are no attention ({', '.join(others)})"
    elif any(type(part).__name__ == "Conv1d" for part in base.modules()):
        why = "has convolutions over tokens"
    elif "position_ids" not in takes:
        why = "takes no position_ids"
    elif not any(getattr(value, "__module__", None) == "transformers.masking_utils" for value in masks):
        why = "makes its attention masks itself"
    else:
        return
    raise ImpruverError(
        f"trainer.packing: {type(model).__name__} {why}: packed rows would see each other; set trainer.packing: false "
        "(trainer.train_sampling_strategy: group_by_length saves padding too)"
    )


def require_apart(model: Any, autocast: Any = None) -> None:
    """ImpruverError if, in the loaded model, the logits of one row change with the row before it.

    `autocast`: the dtype that training computes in where weights are held in another.
    """
    import torch

    device, vocabulary = model.get_input_embeddings().weight.device, model.config.get_text_config().vocab_size
    positions = torch.tensor([[*range(6), *range(6)]], device=device)
    said = []
    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for first in (range(3, 9), range(4, 10)):
            ids = torch.tensor([[*first, *range(5, 11)]], device=device) % vocabulary
            said.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 6:].float())
    model.train(training)
    if (said[0] - said[1]).abs().max() > 1e-2 * said[0].std():
        raise ImpruverError(
            f"trainer.packing: in {type(model).__name__} packed rows see each other; set trainer.packing: false"
        )


def is_flash(model: Any) -> bool:
    """Whether `model` computes attention with a flash attention package, which wants packs in one sequence."""
    return "flash" in str(model.config.get_text_config()._attn_implementation)
