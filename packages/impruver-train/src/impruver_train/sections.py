"""The recipe's sections that impruver-train owns: all open, their names checked against the installed libraries."""

from collections.abc import Iterator
from typing import Any

from impruver_core.recipe.schema import open_mapping

from impruver_train.names import OLD_NAMES, faults, lora_fields, out_of_range, training_fields

OURS = ("class", "packing")  # keys of `trainer` that are no TrainingArguments


def check_trainer(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of `trainer`: names that TrainingArguments does not take, values of a wrong type."""
    yield from faults(values, training_fields(), (*OURS, *OLD_NAMES))
    yield from out_of_range(values)
    if values.get("packing"):
        yield "packing", "rows can't be packed yet; set it to false"
    if values.get("hub_token"):
        yield "hub_token", "a recipe is copied into output_dir; keep the token in the environment variable HF_TOKEN"


def check_ddp(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of `ddp`, whose names are TrainingArguments too."""
    yield from faults(values, training_fields(), OLD_NAMES)
    yield from out_of_range(values)


def check_lora(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Faults of `lora`: names that LoraConfig does not take, values of a wrong type."""
    yield from faults(values, lora_fields())


SECTIONS = {
    "lora": open_mapping("any field of peft.LoraConfig; left out: all weights are trained", True, check_lora),
    "trainer": open_mapping(
        "`class` (a dotted path, else transformers.Trainer) and any field of transformers.TrainingArguments",
        check=check_trainer,
    ),
    "ddp": open_mapping("merged into the training arguments", check=check_ddp),
}
