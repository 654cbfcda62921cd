"""What output_dir holds and what it was made from: configuration, weights, and for an adapter those of its base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import TEXT, list_of, read_json
from impruver_core.recipe.paths import find_local, is_local_path

from impruver_gguf.weights.lazy_tensor import Tensor
from impruver_gguf.weights.peft_adapter import ADAPTER_CONFIG, Adapter, read_adapter
from impruver_gguf.weights.safetensors_reader import read_weights

WANTED = ("config.json", "model*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class Model:
    """A model's configuration and weights, with the adapter that goes onto it if there is one."""

    config_path: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]  # none where the weights are not here, before training or in a dry run
    adapter: Adapter | None
    base: Path  # the folder of the weights

    @property
    def kind(self) -> str:
        """The class that transformers loads it with: `LlamaForCausalLM`."""
        return self.config["architectures"][0]


def has_model(output_dir: Path) -> bool:
    """Whether training left an adapter or a model in `output_dir`."""
    left = [path for pattern in ("adapter_*", "model*.safetensors", "*.bin") for path in output_dir.glob(pattern)]
    return any(path.name != "training_args.bin" for path in left)


def read_model(output_dir: Path, base_name: str | None, recipe_dir: Path | None, dry_run: bool = False) -> Model:
    """The model in `output_dir`: whole, or an adapter with its base; `base_name` is the recipe's model.name.

    A `dry_run` brings no weights from the hub: a base whose weights are not on this disk then has no tensors.
    """
    if not output_dir.is_dir():
        raise ImpruverError(f"output_dir: {output_dir} is not there; impruver-train makes it")
    if not (output_dir / ADAPTER_CONFIG).is_file():
        tensors = read_weights(output_dir)
        if not tensors:
            raise ImpruverError(f"output_dir: {output_dir} holds neither a model nor an adapter; train one first")
        return model_of(output_dir, tensors, None, output_dir)
    adapter = read_adapter(output_dir)
    base = _find_base(base_name or adapter.config.get("base_model_name_or_path"), adapter, recipe_dir, dry_run)
    tensors = read_weights(base)
    if not tensors and not dry_run:
        raise ImpruverError(f"{base}: the adapter's base has no safetensors files")
    if (base / ADAPTER_CONFIG).is_file():
        raise ImpruverError(f"{base}: the adapter's base is an adapter itself: export that one's merge first")
    return model_of(output_dir if (output_dir / "config.json").is_file() else base, tensors, adapter, base)


def model_of(folder: Path, tensors: dict[str, Tensor], adapter: Adapter | None, base: Path) -> Model:
    """The model whose config.json is in `folder`."""
    path = folder / "config.json"
    config = read_json(path, {"architectures": list_of(TEXT), "_name_or_path": TEXT})
    if not config.get("architectures"):
        raise ImpruverError(f"{path}: architectures is not set: name the class there, such as LlamaForCausalLM")
    return Model(path, config, tensors, adapter, base)


def _find_base(name: str | None, adapter: Adapter, recipe_dir: Path | None, dry_run: bool) -> Path:
    """The folder of the adapter's base: a local one, else the hub's files in its cache, downloaded if need be."""
    if not name:
        raise ImpruverError(f"{adapter.folder}: nothing names the adapter's base; set model.name")
    try:
        return local_or_downloaded(name, recipe_dir, WANTED[:1] if dry_run else WANTED, adapter.config.get("revision"))
    except FileNotFoundError:
        raise ImpruverError(
            f"the adapter's base {name} is not there; say where it is with --set model.name=FOLDER (or a hub id)"
        ) from None
    except OSError as error:
        raise ImpruverError(
            f"the adapter's base {name} is neither a folder nor to be had from the hub ({error}); say where it is with "
            "--set model.name=FOLDER"
        ) from None


def local_or_downloaded(name: str, recipe_dir: Path | None, wanted: Sequence[str], revision: str | None = None) -> Path:
    """A local folder, else that of a hub repository in the cache, the `wanted` files brought there.

    FileNotFoundError for a local one that is not there, another OSError with why the hub's can't be had.
    """
    local = find_local(name, recipe_dir)
    if local is not None:
        return local
    if is_local_path(name) or name.count("/") > 1:
        raise FileNotFoundError(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(wanted)))
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:  # its HTTP errors are OSErrors
        raise OSError((str(error).strip() or type(error).__name__).splitlines()[0]) from None
