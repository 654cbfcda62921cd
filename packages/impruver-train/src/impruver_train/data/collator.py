"""Collators: rows padded by transformers, packs joined, both to a multiple of 8 tokens."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from impruver_core.cli.console import log_info
from impruver_core.labels import IGNORE_INDEX

MULTIPLE = 8


def make_collator(
    tokenizer: Any, flat_packs: bool = False, finish: Callable[[dict], dict] = dict, positions: int | None = None
) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """The collator of packs and of rows: transformers' DataCollatorForTokenClassification, padding on the right.

    `finish` is applied to each batch. Rows are padded to no more than the `positions` that the model has.

    It works on a copy: padding changes a fast tokenizer's own settings. Padded places are masked, so any id will do
    where the tokenizer has no pad token.
    """
    from transformers import DataCollatorForTokenClassification

    padding = deepcopy(tokenizer)
    padding.padding_side = "right"
    if padding.pad_token is None:
        padding.pad_token = padding.eos_token or padding.convert_ids_to_tokens(0)
        log_info(f"note: the tokenizer has no pad token; batches are padded with {padding.pad_token!r}, masked")
    plain = DataCollatorForTokenClassification(padding, pad_to_multiple_of=MULTIPLE, label_pad_token_id=IGNORE_INDEX)

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        if "position_ids" in features[0]:
            return finish(join_packs(features, padding.pad_token_id, flat_packs))
        batch = plain(features)  # rows: evaluation is never packed
        return finish({name: values[:, :positions] for name, values in batch.items()})

    return collate


def join_packs(features: list[dict[str, list[int]]], pad_id: int, flat: bool) -> dict[str, Any]:
    """A batch of packs, without an attention mask: positions that restart tell the rows apart.

    `flat`: all packs in one sequence, the only form in which flash attention keeps rows apart.
    """
    import torch

    if flat:
        features = [{name: [value for part in features for value in part[name]] for name in features[0]}]
    width = -(-max(len(pack["input_ids"]) for pack in features) // MULTIPLE) * MULTIPLE
    longest = max(max(pack["position_ids"]) for pack in features) + 1
    batch: dict[str, list[list[int]]] = {name: [] for name in features[0]}
    for pack in features:
        more = width - len(pack["input_ids"])
        # Padding is rows of its own, seen by none, and no longer than others: a model may have no more positions.
        positions = [place % longest for place in range(more)]
        padding = {"input_ids": [pad_id] * more, "labels": [IGNORE_INDEX] * more, "position_ids": positions}
        for name, values in pack.items():
            batch[name].append([*values, *padding[name]])
    return {name: torch.tensor(values) for name, values in batch.items()}
