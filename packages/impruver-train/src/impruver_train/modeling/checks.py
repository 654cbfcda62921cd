"""What of a base and of `lora` can be checked before any weights are loaded, each check with what to do about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from impruver_core.errors import ImpruverError
from impruver_core.io.model_files import check_no_lfs_pointer, refuse_pickled_weights
from impruver_core.modeling.peft_methods import find_unmergeable
from impruver_core.recipe.paths import check_model_folder
from impruver_core.suggestions import find_similar

if TYPE_CHECKING:
    from impruver_core.recipe.sections import ModelSection
    from torch import nn


def check_method(section: ModelSection, lora: dict[str, Any] | None) -> None:
    """Refuses what can't be trained: a quantized base without an adapter, and an adapter on random weights."""
    if lora is None and section.bits:
        raise ImpruverError(
            f"model.load_in_{section.bits}bit: {section.bits}-bit weights can't be trained themselves; add a `lora` "
            f"section, or leave load_in_{section.bits}bit out"
        )
    if lora is not None and not section.name:
        raise ImpruverError(
            "lora: an adapter needs a base to go with it; set model.name, or leave the `lora` section out"
        )


def check_base(folder: Path | None, name: str) -> None:
    """Refuses a local base without weights in safetensors, or with what Git LFS left in place of a file."""
    if folder is None:
        return
    check_model_folder(folder, "model.name")
    for path in (*folder.glob("*.safetensors"), *folder.glob("tokenizer.*")):
        check_no_lfs_pointer(path)
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ImpruverError(f"model.name: {name} holds no weights; copy its *.safetensors there, or name another model")
    if not any(folder.glob("*.safetensors")):
        refuse_pickled_weights(folder, key="model.name")


def list_merge_warnings(lora: dict[str, Any] | None) -> list[str]:
    """Warnings of a method in `lora` that impruver-gguf can't merge exactly, before hours go into it."""
    return [
        f"lora.{name}{detail and f': {detail}'}: impruver-gguf can't merge such an adapter exactly; peft can "
        "(merge_and_unload, save_pretrained)"
        for name, detail in find_unmergeable(lora or {}).items()
    ]


def list_unmatched_names(model: nn.Module, lora: dict[str, Any]) -> list[str]:
    """Warnings of the names in `lora` that no module of `model` has; peft passes over them."""
    names = [name for name, _ in model.named_modules()]
    warnings = []
    for key in ("target_modules", "modules_to_save"):
        wanted = lora.get(key) if isinstance(lora.get(key), (list, tuple)) else []
        absent = [each for each in wanted if not any(f".{name}".endswith(f".{each}") for name in names)]
        if absent:
            near = format_near_targets(model, absent)
            warnings.append(f"lora.{key}: the model has no {', '.join(absent)}; not trained{near}")
    for key in ("rank_pattern", "alpha_pattern"):  # whose names are regular expressions, which peft matches so
        absent = [
            each for each in lora.get(key) or {} if not any(re.match(rf"(.*\.)?({each})$", name) for name in names)
        ]
        if absent:
            warnings.append(f"lora.{key}: the model has no {', '.join(absent)}; passed over")
    weights = [f".{name}" for name, _ in model.named_parameters()]
    wanted = lora.get("target_parameters") or []
    absent = [each for each in wanted if not any(name.endswith(f".{each}") for name in weights)]
    if absent:
        warnings.append(f"lora.target_parameters: the model has no weights {', '.join(absent)}; not trained")
    return warnings


def format_near_targets(model: nn.Module, targets: Any) -> str:
    """The model's own module names, first those nearest to the targets which peft did not find."""
    import torch

    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    names |= {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if type(module).__name__ == "Conv1D"}
    wanted = targets if isinstance(targets, (list, tuple)) else [str(targets)]
    near = {match for target in wanted for match in find_similar(target, names, 2)}
    return f" (the model has {', '.join(sorted(near) + sorted(names - near))})" if names else ""
