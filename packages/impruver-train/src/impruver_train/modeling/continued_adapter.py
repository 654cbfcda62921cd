"""An adapter named by `model.name`: its training goes on, on its own base and by its own LoRA configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import check_weight_links
from impruver_core.recipe.base_model import read_adapter_config
from impruver_core.recipe.paths import find_local, is_local_path

from impruver_train.sections import check_lora

if TYPE_CHECKING:
    from impruver_core.recipe.loading import Recipe
    from impruver_core.recipe.sections import ModelSection, TokenizerSection
    from transformers import PreTrainedModel

EVA = ("init_lora_weights", "eva_config")
WEIGHTS = "adapter_model.safetensors"
# Fields of LoraConfig that say where an adapter comes from, not what it is.
ORIGIN = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode", "task_type")


class ContinuedAdapter(NamedTuple):
    """The folder of an adapter, its base (a folder or a hub id), and its LoraConfig but for where it comes from."""

    folder: Path
    base: str
    settings: dict[str, Any]


def find_continued_adapter(name: str | None, recipe_dir: Path | None) -> ContinuedAdapter | None:
    """The adapter that `model.name` names; None where it names a model.

    Raises:
        ImpruverError: for one that is no LoRA adapter, without weights in safetensors, or whose base is not there.
    """
    folder = find_local(name, recipe_dir) if name else None
    content = read_adapter_config(folder)
    if content is None:
        return None
    key = f"model.name: {name}"
    if str(content.get("peft_type", "LORA")).upper() != "LORA":
        raise ImpruverError(f"{key} is an adapter of kind {content['peft_type']}; LoRA alone is trained on here")
    if not (folder / WEIGHTS).is_file():
        raise ImpruverError(f"{key} is an adapter without {WEIGHTS}; copy that from where it was trained")
    base = content.get("base_model_name_or_path")
    local = find_local(base, folder) if base else None
    if not base or (local is None and is_local_path(base)):
        raise ImpruverError(
            f"{key} is an adapter, and its base {base or ''} is not there: set base_model_name_or_path in "
            f"{folder / 'adapter_config.json'} to where it is now"
        )
    if local is not None:
        check_weight_links(local)
        if read_adapter_config(local) is not None:
            raise ImpruverError(f"{key} is an adapter on an adapter, {base}; merge that one with its base first")
    settings = {field: value for field, value in content.items() if field not in ORIGIN}
    if settings.get("init_lora_weights") == "eva":  # how it once began; from there on it is as any other
        settings = {field: value for field, value in settings.items() if field not in EVA}
    faults = [*check_lora(settings), *_find_faults_of_modules(settings)]
    if faults:
        raise ImpruverError(f"{folder / 'adapter_config.json'}: {faults[0][0]}: {faults[0][1]}")
    return ContinuedAdapter(folder, str(local or base), settings)


def _find_faults_of_modules(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong) where an adapter names no modules, or tokens that are none."""
    if not settings.get("target_modules") and not settings.get("target_parameters"):
        yield "target_modules", "it names no modules; copy it again"
    indices = settings.get("trainable_token_indices") or []
    for ids in indices.values() if isinstance(indices, dict) else [indices]:
        if not isinstance(ids, list) or not all(type(number) is int and number >= 0 for number in ids):
            yield "trainable_token_indices", f"{ids!r} is no list of token ids; copy it again"


def apply_to_recipe(recipe: Recipe, adapter: ContinuedAdapter | None) -> Recipe:
    """`recipe` with the adapter's LoRA configuration where it has none of its own."""
    if adapter is None or recipe.lora is not None:
        return recipe
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    return replace(
        recipe, lora={field: value for field, value in adapter.settings.items() if value != defaults.get(field)}
    )


def name_base(
    model: ModelSection, tokenizer: TokenizerSection, adapter: ContinuedAdapter | None
) -> tuple[ModelSection, TokenizerSection]:
    """The sections with the adapter's base for the model, and the tokenizer beside the adapter where it has one."""
    if adapter is None:
        return model, tokenizer
    own = adapter.folder if (adapter.folder / "tokenizer.json").is_file() else adapter.base
    return replace(model, name=adapter.base), replace(tokenizer, name=tokenizer.name or str(own))


def check_agreement(model: PreTrainedModel, adapter: ContinuedAdapter) -> None:
    """ImpruverError where the recipe's `lora`, as `model` has it, is not the adapter's own."""
    from peft import LoraConfig

    wanted = model.peft_config["default"].to_dict()
    try:
        own = LoraConfig(**(adapter.settings | {"task_type": "CAUSAL_LM"})).to_dict()
    except (TypeError, ValueError) as error:
        raise ImpruverError(f"{adapter.folder / 'adapter_config.json'}: {error}") from error
    for field in wanted.keys() - {*ORIGIN}:
        values = [sorted(value) if isinstance(value, (set, list)) else value for value in (wanted[field], own[field])]
        if values[0] != values[1]:
            raise ImpruverError(
                f"lora.{field}: {values[0]!r}, and the adapter in {adapter.folder} has {values[1]!r}; an adapter goes "
                "on as it is: leave the `lora` section out"
            )


def list_token_ids(adapter: ContinuedAdapter, tokens: int, rows: int) -> list[int]:
    """Ids of the tokens whose embeddings the adapter trains; ImpruverError where some of `tokens` have none.

    `rows`: of the base's embeddings.
    """
    indices = adapter.settings.get("trainable_token_indices") or []
    lists = indices.values() if isinstance(indices, dict) else [indices]
    ids = sorted({number for each in lists for number in each})
    if absent := [number for number in range(rows, tokens) if number not in ids]:
        raise ImpruverError(
            f"tokenizer: {len(absent)} of its {tokens} tokens have embeddings neither in the base nor in the "
            f"adapter in {adapter.folder}; an adapter that goes on can't learn new tokens"
        )
    return ids
