"""Before training: the model that a recipe trains, as far as its base tells, to say whether it will convert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.recipe.sections import ModelSection

from impruver_gguf.architectures.registry import ARCHITECTURES
from impruver_gguf.vocab.vocabulary import FILES, largest_id
from impruver_gguf.weights.checkpoint import Model, has_model, local_or_downloaded, model_of, read_model
from impruver_gguf.weights.lazy_tensor import Tensor
from impruver_gguf.weights.peft_adapter import not_merged


class NotSeenError(ImpruverError):
    """What keeps a dry run from telling whether a model will convert."""


def model_to_be(
    section: ModelSection, tokenizer: str | None, lora: dict[str, Any] | None, recipe_dir: Path | None
) -> tuple[Model, Path]:
    """The model as training will leave it, and the folder of its tokenizer; NotSeenError where something is missing.

    It has no tensors where there are no weights yet.
    """
    reason = not_merged(lora or {})
    if reason:
        raise ImpruverError(
            f"lora: {reason} can't be merged exactly, and impruver-gguf will refuse such an adapter: leave it out, or "
            "merge it with peft after training"
        )
    if section.name:
        folder = _folder(section.name, recipe_dir)
        if not (folder / "config.json").is_file():
            raise NotSeenError(f"{folder} has no config.json")
        model = read_model(folder, None, recipe_dir) if has_model(folder) else model_of(folder, {}, None, folder)
    elif section.config_class:
        model = _from_scratch(section)
    else:
        raise NotSeenError("neither model.name nor model.config_class is set")
    place = _folder(tokenizer, recipe_dir) if tokenizer else model.base
    return _grown(model, largest_id(place)), place


def _folder(name: str, recipe_dir: Path | None) -> Path:
    """A local folder, or the hub's with configuration and tokenizer, from its cache or the network."""
    try:
        return local_or_downloaded(name, recipe_dir, ("config.json", *FILES))
    except FileNotFoundError:
        raise NotSeenError(f"{name} is not there") from None
    except OSError as error:
        raise NotSeenError(f"{name} is neither in the hub's cache nor to be had from the hub ({error})") from None


def _from_scratch(section: ModelSection) -> Model:
    """As train builds it, without a vocabulary of its own: the recipe's config, the class's defaults."""
    kind = section.class_.rpartition(".")[2]
    if kind.startswith("Auto"):
        kind = section.config_class.rpartition(".")[2].removesuffix("Config") + "ForCausalLM"
    return Model(Path("model.config"), {"vocab_size": 1, **section.config, "architectures": [kind]}, {}, None, Path())


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
