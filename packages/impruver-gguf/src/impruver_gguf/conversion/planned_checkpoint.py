"""Before training: the model that a recipe trains, as far as its base tells, to say whether it will convert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.errors import ImpruverError
from impruver_core.recipe.paths import find_or_download
from impruver_core.recipe.sections import ModelSection

from impruver_gguf.architectures.registry import ARCHITECTURES
from impruver_gguf.vocab.saved_tokenizer import FILES, get_largest_token_id
from impruver_gguf.weights.checkpoint import (
    SourceCheckpoint,
    has_model,
    make_checkpoint,
    read_checkpoint,
)
from impruver_gguf.weights.lazy_tensor import LazyTensor
from impruver_gguf.weights.peft_adapter import describe_unmergeable


class UnknownModelError(ImpruverError):
    """What keeps a dry run from knowing the model that will be trained."""


class PlannedCheckpoint(NamedTuple):
    """The model as training will leave it, without tensors where there are no weights yet; its tokenizer's folder."""

    checkpoint: SourceCheckpoint
    tokenizer_dir: Path


def plan_checkpoint(
    section: ModelSection, tokenizer: str | None, lora: dict[str, Any] | None, recipe_dir: Path | None
) -> PlannedCheckpoint:
    """Derive the model from the recipe's sections; UnknownModelError where something of it is missing.

    Args:
        tokenizer: The recipe's tokenizer.name; None: the base's.
        lora: The recipe's lora section as it is written.
        recipe_dir: Where local names are looked for first.
    """
    method = describe_unmergeable(lora or {})
    if method:
        raise ImpruverError(
            f"lora: {method} can't be merged exactly, and impruver-gguf will refuse such an adapter: leave it out, or "
            "merge it with peft after training"
        )
    if section.name:
        base = _find_folder(section.name, recipe_dir)
        if not (base / "config.json").is_file():
            raise UnknownModelError(f"{base} has no config.json")
        if has_model(base):
            checkpoint = read_checkpoint(base, None, recipe_dir)
        else:
            checkpoint = make_checkpoint(base, {}, None, base)
    elif section.config_class:
        checkpoint = _make_from_config(section)
    else:
        raise UnknownModelError("neither model.name nor model.config_class is set")
    tokenizer_dir = _find_folder(tokenizer, recipe_dir) if tokenizer else checkpoint.base
    return PlannedCheckpoint(_grow_embeddings(checkpoint, get_largest_token_id(tokenizer_dir)), tokenizer_dir)


def _find_folder(name: str, recipe_dir: Path | None) -> Path:
    """A local folder, or the hub's with configuration and tokenizer, from its cache or the network."""
    try:
        return find_or_download(name, recipe_dir, ("config.json", *FILES))
    except FileNotFoundError:
        raise UnknownModelError(f"{name} is not there") from None
    except OSError as error:
        raise UnknownModelError(f"{name} is neither in the hub's cache nor to be had from the hub ({error})") from None


def _make_from_config(section: ModelSection) -> SourceCheckpoint:
    """As train builds it, without a vocabulary of its own: the recipe's config, the class's defaults."""
    class_name = section.class_.rpartition(".")[2]
    if class_name.startswith("Auto"):
        class_name = section.config_class.rpartition(".")[2].removesuffix("Config") + "ForCausalLM"
    config = {"vocab_size": 1, **section.config, "architectures": [class_name]}
    return SourceCheckpoint(Path("model.config"), config, {}, None, Path())


def _grow_embeddings(checkpoint: SourceCheckpoint, largest_id: int) -> SourceCheckpoint:
    """With a row for each id of the tokenizer, as training adds them."""
    architecture = ARCHITECTURES.get(checkpoint.class_name)
    size = checkpoint.config.get("vocab_size")
    if architecture is None or not isinstance(size, int) or largest_id < size:
        return checkpoint
    ends = tuple(f"{module.partition('.')[2] or module}.weight" for module in architecture.tied)
    tensors = {
        name: LazyTensor((largest_id + 1, *tensor.shape[1:]), tensor.read) if name.endswith(ends) else tensor
        for name, tensor in checkpoint.tensors.items()
    }
    return replace(checkpoint, config=checkpoint.config | {"vocab_size": largest_id + 1}, tensors=tensors)
