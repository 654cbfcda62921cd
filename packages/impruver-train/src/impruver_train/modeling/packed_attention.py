"""Attention over packs row by row: on a CPU, a block-diagonal mask costs as much as one that hides nothing.

Each row's scores are computed by transformers' own SDPA function, with that row's part of its own mask: whatever the
mask says (causal, sliding, chunked), nothing outside the block is visible, so the result is the same.
"""

from itertools import pairwise
from typing import Any

NAME = "sdpa_row_by_row"


def go_by_row(model: Any) -> None:
    """Has `model`, if its attention is SDPA, compute packs row by row; what is no pack is computed as before."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    base = getattr(model, "get_base_model", lambda: model)()
    if base.config.get_text_config()._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    base.set_attn_implementation(NAME)


def attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, *, position_ids: Any = None, **more: Any
) -> tuple[Any, None]:
    """transformers' attention function, from (batch, heads, places, size) to (batch, places, heads, size).

    Rows begin where `position_ids`, (batch, places), are 0.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    places = query.shape[2]
    if position_ids is None or position_ids.shape != (len(query), places) or key.shape[2] != places:
        return sdpa(module, query, key, value, attention_mask, position_ids=position_ids, **more)
    packs = []
    for number, positions in enumerate(position_ids):
        starts = (positions == 0).nonzero().flatten().tolist()
        bounds = list(pairwise(sorted({0, *starts, places})))
        lengths = [end - start for start, end in bounds]
        # Split, not sliced: the backward of one split is one concatenation.
        parts = zip(*(part[number : number + 1].split(lengths, 2) for part in (query, key, value)), strict=True)
        mask = None if attention_mask is None else attention_mask[min(number, len(attention_mask) - 1)][None]
        rows = [
            sdpa(module, *part, None if mask is None else mask[..., start:end, start:end], **more)[0]
            for part, (start, end) in zip(parts, bounds, strict=True)
        ]
        packs.append(torch.cat(rows, 1))
    return torch.cat(packs), None
