"""Find the model in output_dir: its configuration and weights, and for an adapter those of its base."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import TEXT, list_of, read_json
from impruver_core.recipe.paths import find_or_download

from impruver_gguf.weights.lazy_tensor import LazyTensor, read_weights
from impruver_gguf.weights.peft_adapter import ADAPTER_CONFIG, PeftAdapter, read_adapter

BASE_FILES = ("config.json", "model*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class SourceCheckpoint:
    """What is converted: config.json, weights, and the adapter to be merged into them if there is one."""

    config_path: Path
    config: dict[str, Any]
    tensors: dict[str, LazyTensor]  # empty where the weights are not on this disk: before training, in a dry run
    adapter: PeftAdapter | None
    base: Path  # the folder of the weights

    @property
    def class_name(self) -> str:
        """The class that transformers loads it with: `LlamaForCausalLM`."""
        return self.config["architectures"][0]


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
    if not (output_dir / ADAPTER_CONFIG).is_file():
        tensors = read_weights(output_dir)
        if not tensors:
            raise ImpruverError(f"output_dir: {output_dir} holds neither a model nor an adapter; train one first")
        return make_checkpoint(output_dir, tensors, None, output_dir)
    adapter = read_adapter(output_dir)
    base = _find_base(base_name or adapter.config.get("base_model_name_or_path"), adapter, recipe_dir, dry_run)
    tensors = read_weights(base)
    if not tensors and not dry_run:
        raise ImpruverError(f"{base}: the adapter's base has no safetensors files")
    if (base / ADAPTER_CONFIG).is_file():
        raise ImpruverError(f"{base}: the adapter's base is an adapter itself: export that one's merge first")
    return make_checkpoint(output_dir if (output_dir / "config.json").is_file() else base, tensors, adapter, base)


def make_checkpoint(
    config_dir: Path, tensors: dict[str, LazyTensor], adapter: PeftAdapter | None, base: Path
) -> SourceCheckpoint:
    """Put the config.json of `config_dir` to these tensors; ImpruverError where it names no class."""
    path = config_dir / "config.json"
    config = read_json(path, {"architectures": list_of(TEXT), "_name_or_path": TEXT})
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
