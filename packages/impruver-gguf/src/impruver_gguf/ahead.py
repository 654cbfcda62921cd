"""Before training: the model that a recipe trains, as far as its base tells, to say whether it will convert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.recipe.lookup import find_local

from impruver_gguf.adapter import not_merged
from impruver_gguf.architectures import ARCHITECTURES
from impruver_gguf.base import Model, has_model, read_model
from impruver_gguf.tensors import Tensor
from impruver_gguf.vocabulary import largest_id


def model_to_be(
    base: str | None, tokenizer: str | None, lora: dict[str, Any] | None, recipe_dir: Path | None
) -> tuple[Model, Path] | None:
    """The base as training will leave it, and the folder of its tokenizer; None where the base is not on this disk."""
    reason = not_merged(lora or {})
    if reason:
        raise ImpruverError(
            f"lora: {reason} can't be merged exactly, and impruver-gguf will refuse such an adapter: leave it out, or "
            "merge it with peft after training"
        )
    folder = find_local(base, recipe_dir) if base else None
    if folder is None or not has_model(folder):
        return None
    place = (find_local(tokenizer, recipe_dir) if tokenizer else None) or folder
    return _grown(read_model(folder, None, recipe_dir), largest_id(place)), place


def _grown(model: Model, largest: int) -> Model:
    """With a row for each id of the tokenizer, which training gives it."""
    architecture = ARCHITECTURES.get(model.kind)
    before = model.config.get("vocab_size")
    if architecture is None or not isinstance(before, int) or largest < before:
        return model
    ends = [f"{end.partition('.')[2] or end}.weight" for end in architecture.tied]
    tensors = {
        name: Tensor((largest + 1, *tensor.shape[1:]), tensor.rows) if name.endswith(tuple(ends)) else tensor
        for name, tensor in model.tensors.items()
    }
    return replace(model, config=model.config | {"vocab_size": largest + 1}, tensors=tensors)
