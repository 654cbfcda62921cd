"""transformers' cache of the last prompt and answer, kept for what the next prompt shares with them."""

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any


class PromptCache:
    """One cache for the model as it is, one for it without its adapter: they compute different states."""

    def __init__(self) -> None:
        self._caches: dict[bool, tuple[Any, list[int]]] = {}

    def pop_shared_prefix(self, model: Any, ids: Sequence[int]) -> dict[str, Any]:
        """What `generate` is to be given: a cache of the longest common prefix, or nothing. It is the caller's then."""
        cache, known = self._caches.pop(is_adapter_disabled(model), (None, []))
        shared = len(commonprefix([known, ids]))  # noqa: RUF071 (no paths)
        shared = min(shared, len(ids) - 1)  # the last one always: its scores are wanted
        if cache is None or not shared:
            return {}
        if shared < len(known):
            if not cache.is_croppable:  # a state: there is no way back
                return {}
            try:
                cache.crop(shared - len(known))
            except RuntimeError:  # nor from a window that has moved on
                return {}
        return {"past_key_values": cache}

    def store(self, model: Any, cache: Any, ids: list[int]) -> None:
        """Keeps the cache after `ids`; one of another length (a model with its own kind of cache) is let go."""
        if cache is not None and cache.get_seq_length() == len(ids):
            self._caches[is_adapter_disabled(model)] = (cache, ids)


def is_adapter_disabled(model: Any) -> bool:
    """Whether an adapter is there and switched off."""
    return any(getattr(part, "disable_adapters", False) is True for part in model.modules())
