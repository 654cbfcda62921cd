"""The prompt cache of transformers: keys and values of the last conversation, reused for what the next prompt shares.

Prompts are compared by token ids, so what a chat template changes in earlier turns is computed anew from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


class PromptCache:
    """One cache of keys and values for the model as it is, one for it without its adapter: their states differ."""

    def __init__(self) -> None:
        self._caches: dict[bool, tuple[Cache | None, list[int]]] = {}

    def pop_shared_prefix(self, model: PreTrainedModel, ids: Sequence[int]) -> dict[str, Any]:
        """Take the cache of the longest common prefix with `ids` out, as a keyword of `generate`; {} without one.

        A cache that can't be cropped to that prefix (of a recurrent state, of a sliding window that has moved on) is
        dropped.
        """
        cache, cached_ids = self._caches.pop(is_adapter_disabled(model), (None, []))
        shared = len(commonprefix([cached_ids, ids]))  # noqa: RUF071 (no paths)
        shared = min(shared, len(ids) - 1)  # the last token is always computed: its scores are wanted
        if cache is None or not shared:
            return {}
        if shared < len(cached_ids):
            if not cache.is_croppable:
                return {}
            try:
                cache.crop(shared - len(cached_ids))
            except RuntimeError:
                return {}
        return {"past_key_values": cache}

    def store(self, model: PreTrainedModel, cache: Cache | None, ids: list[int]) -> None:
        """Store the cache after `ids`, unless its length is another (a model with its own kind of cache)."""
        if cache is not None and cache.get_seq_length() == len(ids):
            self._caches[is_adapter_disabled(model)] = (cache, ids)


def is_adapter_disabled(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter that is switched off."""
    return any(getattr(part, "disable_adapters", False) is True for part in model.modules())
