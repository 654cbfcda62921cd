"""The sections of all installed tools; finds the declaration of a key."""

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.recipe.schema import ListOf, OpenMapping, Scalar, get_fields, list_keys
from impruver_core.recipe.sections import OWNERS, SECTIONS

GROUP = "impruver.sections"


@cache
def load_installed_sections() -> dict[str, Any]:
    """Top-level key -> its declaration, for core and every installed tool; the others' keys are not in it."""
    sections = dict(SECTIONS)
    for entry in entry_points(group=GROUP):
        sections.update(_load_sections(entry))
    return sections


def find_key(path: str) -> Scalar:
    """The declaration of a key: of `seed` or `chat.top_k`; with type None where anything may stand.

    KeyError where the path names nothing, a fault of ours.
    """
    top, _, inner = path.partition(".")
    name, _, deeper = inner.partition(".")
    spec = SECTIONS[top] if top in SECTIONS else _load_owners_sections(OWNERS[top])[top]
    if isinstance(spec, Scalar):
        return spec
    if isinstance(spec, OpenMapping):
        return Scalar(None, None, "")
    section = spec.section if isinstance(spec, ListOf) else spec
    field = get_fields(section)[name]
    default = None if deeper or field.default is dataclasses.MISSING else field.default
    hint = None if deeper else typing.get_type_hints(section)[field.name]
    return Scalar(hint, default, field.metadata.get("help", ""), field.metadata.get("choices"))


# Names that other kits have for a key.
ELSEWHERE = {
    **dict.fromkeys(("base_model", "model_name_or_path", "model_name"), "model.name"),
    **dict.fromkeys(("sequence_len", "cutoff_len", "max_seq_length", "max_length"), "tokenizer.max_tokens_count"),
    **dict.fromkeys(("lora_r", "lora_rank"), "lora.r"),
    **dict.fromkeys(("lora_target", "lora_target_modules"), "lora.target_modules"),
    **dict.fromkeys(("val_size", "val_set_size"), "split.val_ratio"),
    "lr": "trainer.learning_rate",
    "micro_batch_size": "trainer.per_device_train_batch_size",
    "num_epochs": "trainer.num_train_epochs",
    "sample_packing": "trainer.packing",
}


def suggest_key(name: str, sections: Mapping[str, Any]) -> str | None:
    """The key path that a bare name stands for: `trainer.learning_rate` for `learning_rate`, or for another kit's."""
    for top, spec in sections.items():
        if name in list_keys(spec):
            return f"{top}.0.{name}" if isinstance(spec, ListOf) else f"{top}.{name}"
    return ELSEWHERE.get(name)


def _load_owners_sections(owner: str) -> dict[str, Any]:
    """The sections of one package alone, so that a broken sibling can't break this tool's --help."""
    for entry in entry_points(group=GROUP):
        if entry.value.startswith(owner.replace("-", "_") + "."):
            return _load_sections(entry)
    raise KeyError(f"{owner} declares no sections")


def _load_sections(entry: EntryPoint) -> dict[str, Any]:
    if entry.value == "impruver_core.recipe.sections:SECTIONS":
        return SECTIONS
    try:
        module, _, name = entry.value.partition(":")
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        package = entry.value.partition(".")[0].replace("_", "-")
        raise ImpruverError(
            f"{package} is installed, but its part of the recipe can't be read ({type(error).__name__}: {error}); "
            f"install it again: pip install --force-reinstall --no-deps {package}"
        ) from error
