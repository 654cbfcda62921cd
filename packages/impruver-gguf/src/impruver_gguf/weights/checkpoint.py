"""Find the model in output_dir: its configuration and weights, and for an adapter that PEFT saved those of its base."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from impruver_core.dynamic_import import is_foreign_recipe
from impruver_core.errors import ImpruverError
from impruver_core.io.integrity import FileState, read_file_states
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, NUMBER, PATTERN, TEXT, by_name, either, list_of, read_json
from impruver_core.io.model_files import check_ordinary_files, check_weight_links, refuse_pickled_weights
from impruver_core.modeling.foreign_config import check_adapter_config
from impruver_core.modeling.peft_methods import find_unmergeable
from impruver_core.recipe.base_model import find_base_name
from impruver_core.recipe.paths import find_or_download

from impruver_gguf.weights.lazy_tensor import LazyTensor, read_safetensors, read_weights

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # before a module's name in an adapter's file
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
CONFIG_KEYS = {
    "architectures": list_of(TEXT),
    "_name_or_path": TEXT,
    "text_config": {"architectures": list_of(TEXT), "model_type": TEXT},
}
MODEL_FILES = ("*.safetensors", "*config.json", "tokenizer*", "*.model", "*.jinja", "additional_chat_templates/*.jinja")
OTHER_BASE = (
    "the adapter is merged into its base in 16 bits: name that with --set model.name=FOLDER (or a hub id), the model "
    "that this one was made from"
)
QUANTIZED = ("bitsandbytes", "gptq", "awq")  # methods that config.json names, of weights that nothing is merged into
BASE_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")


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
    tensors = read_safetensors(path)
    check_adapter_config(folder, {name.removeprefix(PEFT_PREFIX).partition(".lora_")[0] for name in tensors})
    return PeftAdapter(config, tensors, folder)


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


@dataclass(frozen=True)
class SourceCheckpoint:
    """What is converted: config.json, weights, and the adapter to be merged into them if there is one."""

    config_path: Path
    config: dict[str, Any]
    tensors: dict[str, LazyTensor]  # empty where the weights are not on this disk: before training, in a dry run
    adapter: PeftAdapter | None
    base: Path  # the folder of the weights
    states: Mapping[Path, FileState] = field(default_factory=dict)  # of the files that it is read from, before that

    @property
    def class_name(self) -> str:
        """The class that transformers loads it with: `LlamaForCausalLM`; its text model's own, where that is named."""
        nested = (self.config.get("text_config") or {}).get("architectures")
        return (nested or self.config["architectures"])[0]


def has_model(output_dir: Path) -> bool:
    """Whether training left an adapter or a model in `output_dir`."""
    paths = [path for pattern in ("adapter_*", "model*.safetensors", "*.bin") for path in output_dir.glob(pattern)]
    return any(path.name != "training_args.bin" for path in paths)


def read_checkpoint(
    output_dir: Path, base_name: str | None, recipe_dir: Path | None, dry_run: bool = False
) -> SourceCheckpoint:
    """Read the model in `output_dir`, or the adapter there with its base: `base_name`, else the one that it names.

    A `dry_run` brings no weights from the hub: a base whose weights are not on this disk then has no tensors.
    """
    if not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is not there; impruver-train makes it")
    states = _read_states(output_dir)
    if not (output_dir / ADAPTER_CONFIG).is_file():
        tensors = read_weights(output_dir)
        if not tensors:
            raise ImpruverError(f"output_dir: {output_dir} holds neither a model nor an adapter; train one first")
        return replace(make_checkpoint(output_dir, tensors, None, output_dir), states=states)
    adapter = read_adapter(output_dir)
    base_name = find_base_name(base_name, recipe_dir)
    base = _find_base(base_name or adapter.config.get("base_model_name_or_path"), adapter, recipe_dir, dry_run)
    if not base_name or is_foreign_recipe():
        check_weight_links(base)
    check_ordinary_files(base)
    states |= _read_states(base)
    tensors = read_weights(base, OTHER_BASE)
    _check_not_quantized(base)
    if not tensors and not dry_run:
        raise ImpruverError(f"{base}: the adapter's base has no safetensors files")
    if (base / ADAPTER_CONFIG).is_file():
        raise ImpruverError(f"{base}: the adapter's base is an adapter itself: export that one's merge first")
    config_dir = output_dir if (output_dir / "config.json").is_file() else base
    return replace(make_checkpoint(config_dir, tensors, adapter, base), states=states)


def _check_not_quantized(base: Path) -> None:
    """ImpruverError for a base in 4 or 8 bits by its config.json: in a dry run its weights may be elsewhere."""
    settings = read_json(base / "config.json", {"quantization_config": {"quant_method": TEXT}}, missing_ok=True)
    method = (settings.get("quantization_config") or {}).get("quant_method")
    if method in QUANTIZED:
        raise ImpruverError(f"{base}/config.json: quantized with {method}, and {OTHER_BASE}")


def _read_states(folder: Path) -> dict[Path, FileState]:
    """The states of a model's files: weights, configurations, the tokenizer."""
    return read_file_states(path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file())


def make_checkpoint(
    config_dir: Path, tensors: dict[str, LazyTensor], adapter: PeftAdapter | None, base: Path
) -> SourceCheckpoint:
    """Put the config.json of `config_dir` to these tensors; ImpruverError where it names no class."""
    path = config_dir / "config.json"
    config = read_json(path, CONFIG_KEYS)
    check_ordinary_files(config_dir)
    if not config.get("architectures"):
        raise ImpruverError(f"{path}: architectures is not set: name the class there, such as LlamaForCausalLM")
    return SourceCheckpoint(path, config, tensors, adapter, base)


def _find_base(name: str | None, adapter: PeftAdapter, recipe_dir: Path | None, dry_run: bool) -> Path:
    """The folder of the adapter's base: a local one, else the hub's files in its cache, downloaded if need be."""
    if not name:
        raise ImpruverError(f"{adapter.folder}: nothing names the adapter's base; set model.name")
    files = BASE_FILES[:1] if dry_run else BASE_FILES
    try:
        return find_or_download(name, recipe_dir, files, adapter.config.get("revision"))
    except FileNotFoundError:
        raise ImpruverError(
            f"the adapter's base {name} is not there; say where it is with --set model.name=FOLDER (or a hub id)"
        ) from None
    except OSError as error:
        raise ImpruverError(
            f"the adapter's base {name} is neither a folder nor to be had from the hub ({error}); say where it is with "
            "--set model.name=FOLDER"
        ) from None
