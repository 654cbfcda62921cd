"""Collators: rows padded by transformers, packs joined, both to a multiple of 8 tokens."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from impruver_core.cli.console import log_info
from impruver_core.labels import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MULTIPLE = 8


def make_collator(
    tokenizer: PreTrainedTokenizerBase,
    flat_packs: bool = False,
    finish: Callable[[dict], dict] = dict,
    positions: int | None = None,
) -> Callable[[list[dict[str, Any]]], dict[str, Tensor]]:
    """The collator of packs and of rows: transformers' DataCollatorForTokenClassification, padding on the right.

    It works on a copy of the tokenizer: padding changes a fast one's own settings. Padding is masked, so any id will do
    where the tokenizer has no pad token.

    Args:
        flat_packs: all packs of a batch become one sequence.
        finish: is applied to each batch.
        positions: rows are padded to no more than the model has.
    """
    from transformers import DataCollatorForTokenClassification

    padding = deepcopy(tokenizer)
    padding.padding_side = "right"
    if padding.pad_token is None:
        padding.pad_token = padding.eos_token or padding.convert_ids_to_tokens(0)
        log_info(f"note: the tokenizer has no pad token; batches are padded with {padding.pad_token!r}, masked")
    collate_rows = DataCollatorForTokenClassification(
        padding, pad_to_multiple_of=MULTIPLE, label_pad_token_id=IGNORE_INDEX
    )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        if "position_ids" in rows[0]:
            return finish(collate_packs(rows, padding.pad_token_id, flat_packs))
        return finish({name: values[:, :positions] for name, values in collate_rows(rows).items()})  # of evaluation too

    return collate


def collate_packs(packs: list[dict[str, list[int]]], pad_id: int, flat: bool) -> dict[str, Tensor]:
    """A batch of packs, each value (batch, sequence), without an attention mask: positions that restart part the rows.

    `flat`: all packs in one sequence, the only form in which flash attention keeps rows apart.
    """
    import torch

    if flat:
        packs = [{name: [value for pack in packs for value in pack[name]] for name in packs[0]}]
    width = -(-max(len(pack["input_ids"]) for pack in packs) // MULTIPLE) * MULTIPLE
    longest = max(max(pack["position_ids"]) for pack in packs) + 1
    batch: dict[str, list[list[int]]] = {name: [] for name in packs[0]}
    for pack in packs:
        missing = width - len(pack["input_ids"])
        # Padding is rows of its own, seen by none, and no longer than others: a model may have no more positions.
        positions = [position % longest for position in range(missing)]
        padding = {"input_ids": [pad_id] * missing, "labels": [IGNORE_INDEX] * missing, "position_ids": positions}
        for name, values in pack.items():
            batch[name].append([*values, *padding[name]])
    return {name: torch.tensor(values) for name, values in batch.items()}
