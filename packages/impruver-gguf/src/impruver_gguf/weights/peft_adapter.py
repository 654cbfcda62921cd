"""Read an adapter that PEFT saved, and say whether its method can be merged exactly."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, NUMBER, PATTERN, TEXT, by_name, either, list_of, read_json
from impruver_core.io.model_files import refuse_pickled_weights
from impruver_core.modeling.peft_methods import find_unmergeable

from impruver_gguf.weights.lazy_tensor import LazyTensor, read_safetensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LOAD_PICKLED = "load the adapter with peft where you trust it and save_pretrained it again, which writes safetensors"
ADAPTER_KEYS = {
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_type"), TEXT),
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), FLAG),
    "r": COUNT,
    "lora_alpha": NUMBER,
    "rank_pattern": by_name(PATTERN, COUNT),
    "alpha_pattern": by_name(PATTERN, NUMBER),
    "target_modules": either(PATTERN, list_of(TEXT)),
    "modules_to_save": list_of(TEXT),
    "trainable_token_indices": either(list_of(INDEX), by_name(TEXT, list_of(INDEX))),
}


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter: adapter_config.json without its nulls, the tensors of adapter_model.safetensors, their folder."""

    config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    folder: Path


def read_adapter(folder: Path) -> PeftAdapter:
    """Read PEFT's two files; a key that is null counts as left out."""
    config = read_json(folder / ADAPTER_CONFIG, ADAPTER_KEYS)
    config = {name: value for name, value in config.items() if value is not None}
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        if (folder / "adapter_model.bin").is_file():
            refuse_pickled_weights(folder, LOAD_PICKLED)
        raise ImpruverError(f"{path} is not there, but {ADAPTER_CONFIG} is: train it again, or copy it whole")
    return PeftAdapter(config, read_safetensors(path), folder)


def check_mergeable(adapter: PeftAdapter) -> None:
    """Raise ImpruverError for a method that can't be merged exactly here."""
    method = describe_unmergeable(adapter.config)
    if method:
        raise ImpruverError(
            f"{adapter.folder}: {method} can't be merged exactly; merge it with peft (merge_and_unload, "
            "save_pretrained) and give that folder as output_dir"
        )


def describe_unmergeable(config: Mapping[str, Any]) -> str | None:
    """Name the first setting of an adapter's configuration that can't be merged exactly, if any."""
    return next((f"{name} {detail}".strip() for name, detail in find_unmergeable(config).items()), None)


def get_rank(config: Mapping[str, Any], module: str) -> int:
    """The rank of a module's LoRA: the first match in rank_pattern, else r."""
    return _match_pattern(config.get("rank_pattern") or {}, module, config.get("r", 8))


def get_scaling(config: Mapping[str, Any], module: str) -> float:
    """The factor of a module's update: alpha / r, for rsLoRA alpha / sqrt(r)."""
    rank = get_rank(config, module)
    alpha = _match_pattern(config.get("alpha_pattern") or {}, module, config.get("lora_alpha", 8))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def is_module_named(module: str, name: str) -> bool:
    """Whether a module's dotted path ends in `name`, as PEFT matches target_modules and modules_to_save."""
    return module == name or module.endswith(f".{name}")


def _match_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
