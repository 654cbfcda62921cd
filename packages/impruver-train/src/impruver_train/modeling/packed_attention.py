"""Packed rows in a model: which models keep them apart, and attention over packs row by row.

On a CPU, a block-diagonal mask costs as much as one that hides nothing. Each row's scores are computed by transformers'
own SDPA function, with that row's part of its own mask: whatever the mask says (causal, sliding, chunked), nothing
outside the block is visible, so the result is the same.
"""

from __future__ import annotations

import inspect
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NAME = "sdpa_row_by_row"
ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}  # of a configuration's `layer_types`


def check_packable(model: PreTrainedModel) -> None:
    """ImpruverError for a model, maybe on the meta device, whose rows would not be kept apart."""
    config = model.config.get_text_config()
    others = sorted({str(kind) for kind in getattr(config, "layer_types", None) or ()} - ATTENTION)
    base = model.base_model
    masks = vars(sys.modules[type(base).__module__]).values()
    takes = {name for module in (model, base) for name in inspect.signature(module.forward).parameters}
    if getattr(model, "_is_stateful", False):
        why = "carries state from token to token"
    elif others:
        why = f"has layers that are no attention ({', '.join(others)})"
    elif any(type(module).__name__ == "Conv1d" for module in base.modules()):
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


def require_row_isolation(model: PreTrainedModel, autocast: torch.dtype | None = None) -> None:
    """ImpruverError if, in the loaded model, the logits of one row change with the row before it."""
    import torch

    device, vocabulary = model.get_input_embeddings().weight.device, model.config.get_text_config().vocab_size
    positions = torch.tensor([[*range(6), *range(6)]], device=device)
    logits = []
    training = model.training
    model.eval()
    with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for first in (range(3, 9), range(4, 10)):
            ids = torch.tensor([[*first, *range(5, 11)]], device=device) % vocabulary
            logits.append(model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, 6:].float())
    model.train(training)
    if (logits[0] - logits[1]).abs().max() > 1e-2 * logits[0].std():
        raise ImpruverError(
            f"trainer.packing: in {type(model).__name__} packed rows see each other; set trainer.packing: false"
        )


def enable_rowwise_attention(model: PreTrainedModel) -> None:
    """Has `model`, if its attention is SDPA, compute packs row by row; what is no pack is computed as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base = getattr(model, "get_base_model", lambda: model)()
    if base.config.get_text_config()._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend_row_by_row)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)


def attend_row_by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more: Any
) -> tuple[Tensor, None]:
    """transformers' attention function, from (batch, heads, sequence, size) to (batch, sequence, heads, size).

    Rows begin where `position_ids`, (batch, sequence), are 0.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    position_ids, length = more.pop("position_ids", None), query.shape[2]
    if position_ids is None or position_ids.shape != (len(query), length) or key.shape[2] != length:
        return sdpa(module, query, key, value, attention_mask, position_ids=position_ids, **more)
    packs = []
    for index, positions in enumerate(position_ids):
        starts = (positions == 0).nonzero().flatten().tolist()
        bounds = list(pairwise(sorted({0, *starts, length})))
        lengths = [end - start for start, end in bounds]
        # Split, not sliced: the backward of one split is one concatenation.
        rows = zip(*(each[index : index + 1].split(lengths, 2) for each in (query, key, value)), strict=True)
        mask = None if attention_mask is None else attention_mask[min(index, len(attention_mask) - 1)][None]
        outputs = [
            sdpa(module, *row, None if mask is None else mask[..., start:end, start:end], **more)[0]
            for row, (start, end) in zip(rows, bounds, strict=True)
        ]
        packs.append(torch.cat(outputs, 1))
    return torch.cat(packs), None
